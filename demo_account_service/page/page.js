// The demo page: it hears both services in one stream, draws, and sends what the buttons say.

import { buttons, states } from "/page/texts.js";
import * as parts from "/page/parts.js";
import { compareWithPoints, drawChecks, refreshBooks, refreshBooksSoon, userNames, waitForPicture, yuan } from "/page/books.js";
import { ask, askUntilAnswered, pause } from "/page/requests.js";
import { drawLanes, drawScene, drawWaiting, sceneOf } from "/page/scene.js";
import { drawTour, linkDocuments, startTour } from "/page/tour.js";

const { element, say, word } = parts;
const $ = (id) => document.getElementById(id);

const STEP_MILLISECONDS = 1200; // each caption can be read; real steps take a few milliseconds
const SPEED = "rmq_txn.speed";
const OLD_MILLISECONDS = 20000; // steps before the page was opened are shown at once

const transactions = new Map(); // txn_id → events in the order of their time
const opened = new Map(); // txn_id → whether its reader opened or closed it
const sent = JSON.parse(sessionStorage.getItem("sent") ?? "{}"); // transfer_id → what we sent
// kept: this page comes from a process that no button kills. check_back_seconds: until RocketMQ asks, if known.
let settings = { faults: false, points: false, max_amount: 1e12, kept: false, check_back_seconds: null };
let lanes = {};
let followed = null; // the transaction in the picture
let shown = new Set(); // its events that the picture has shown
let current = null; // the newest of them
let currentSince = 0; // when it was shown
const reached = new Map(); // txn_id → how many of its events were shown at most
let paused = false;
const remembered = localStorage.getItem(SPEED);
if ([...$("speed").options].some((one) => one.value === remembered)) $("speed").value = remembered;
let speed = Number($("speed").value);
const busy = new Set();

// Events.
function listen(after) {
  const source = new EventSource(`/events?after=${after}`);
  let last = after;
  source.onmessage = (message) => {
    last = message.lastEventId || last;
    hear(JSON.parse(message.data));
  };
  source.addEventListener("lanes", (message) => showLanes(JSON.parse(message.data)));
  source.onopen = () => { $("gone").textContent = ""; };
  source.onerror = () => {
    // Closed and opened anew: a browser gives up on its own after some kinds of answers.
    source.close();
    // Who serves the page is away; of the others nothing new is known, and their marks stay.
    if (settings.kept) $("gone").textContent = word("gone");
    else showLanes({ ...lanes, account_service: "away" });
    refreshBooks();
    setTimeout(() => listen(last), 500);
  };
}

function showLanes(states) {
  lanes = states;
  drawLanes(lanes, sceneOf(shownSteps()));
}

const transferOf = (events) => events.find((event) => event.transfer_id)?.transfer_id;
const byTime = (one, other) => one.time.localeCompare(other.time);

function hear(event) {
  if (event.step === "service_started" || event.step === "stopped") refreshBooks();
  if (event.step === "service_started") {
    parts.noteStart(event);
    for (const txnId of transactions.keys()) changed.add(txnId);
    scheduleDraw();
  }
  if (!event.txn_id || !parts.isKnown(event)) return;
  const events = transactions.get(event.txn_id) ?? [];
  if (events.some((one) => one.service === event.service && one.id === event.id)) return;
  const isNew = events.length === 0;
  events.push(event);
  events.sort(byTime); // two services, two clocks' worth of delay
  transactions.set(event.txn_id, events);
  if (isNew && event.transfer_id && isToFollow(event)) follow(event.txn_id);
  changed.add(event.txn_id);
  scheduleDraw();
}

// What only the timeline shows is drawn in bundles. Not by requestAnimationFrame: a tab in the background has none.
const changed = new Set();
const BUNDLE_MILLISECONDS = 30;
let drawing = null;
function scheduleDraw() {
  drawing ??= setTimeout(() => {
    drawing = null;
    drawTimeline();
    refreshBooksSoon();
  }, BUNDLE_MILLISECONDS);
}

// The picture.
const isOurs = (txnId) => (transactions.get(txnId) ?? []).some((event) => sent[event.transfer_id]);

// What this tab sent; what others sent only while it shows nothing of its own, and is not paused.
function isToFollow(event) {
  if (event.time < (transactions.get(followed)?.[0].time ?? "")) return false;
  return sent[event.transfer_id] !== undefined || !(paused || isOurs(followed));
}

function follow(txnId) {
  const before = followed;
  followed = txnId;
  shown = new Set();
  current = null;
  for (const one of [before, followed]) if (transactions.has(one)) changed.add(one);
  drawMoment();
  clearTimeout(clock);
  clock = setTimeout(showNext, 0); // what a button causes begins at once
}

const nextStep = () => (transactions.get(followed) ?? []).find((event) => !shown.has(event));
const shownSteps = () => (transactions.get(followed) ?? []).filter((event) => shown.has(event));
// The timeline is never ahead of the picture.
const visible = (txnId, events) => (txnId === followed ? shownSteps() : events);

let replaying = false;
let clock = null;
function showStep() {
  const event = nextStep();
  if (event === undefined) return;
  shown.add(event);
  current = event;
  currentSince = Date.now();
  reached.set(followed, Math.max(reached.get(followed) ?? 0, shown.size));
  changed.add(followed);
  drawMoment();
  refreshBooksSoon();
}

// Picture, caption, badge and card are drawn in one go, of the same events: none of them is ever ahead.
function drawMoment() {
  drawNow();
  drawTimeline();
}

function showNext() {
  clearTimeout(clock);
  const wait = (milliseconds) => { clock = setTimeout(showNext, milliseconds); };
  const next = nextStep();
  if (next === undefined) replaying = false;
  if (paused || next === undefined) return wait(60);
  const isOld = !replaying && Date.now() - Date.parse(next.time) > OLD_MILLISECONDS && shown.size < oldSteps();
  showStep();
  return wait(isOld ? 5 : STEP_MILLISECONDS * speed);
}

// How many steps of the transaction were over when this page was opened.
const openedAt = new Date().toISOString();
const oldSteps = () => (transactions.get(followed) ?? []).filter((event) => event.time < openedAt).length;

function drawNow() {
  const scene = sceneOf(shownSteps());
  drawScene(scene, current && parts.rowOf(current));
  drawLanes(lanes, scene);
  drawClock();
  const state = parts.stateOf(shownSteps(), nextStep() === undefined);
  const [symbol, name] = states[state];
  $("badge").textContent = current ? `${symbol} ${say(name)}` : "";
  $("badge").className = `badge ${current ? state : ""}`;
  $("now").textContent = current ? parts.captionOf(current) : word("nothing");
  $("now").dataset.step = current ? `${current.service}.${current.step}` : "";
  $("sentence").textContent = current ? parts.sentenceOf(current) : "";
  const transferId = transferOf(transactions.get(followed) ?? []);
  $("followed").textContent = followed ? word("followed", transferId ?? followed) : "";
  $("step").disabled = nextStep() === undefined;
  $("replay").disabled = followed === null;
}

// What time it is in the picture: now, or in a replay the time of the step that is shown, and a bit later.
function storyNow() {
  if (current === null || !(paused || replaying)) return Date.now();
  const later = Date.parse(current.time) + (paused ? 0 : Date.now() - currentSince);
  return Math.min(later, Date.parse(nextStep()?.time ?? new Date().toISOString()));
}

function drawClock() {
  drawWaiting(sceneOf(shownSteps()), storyNow(), settings.check_back_seconds);
}

function setPaused(isPaused) {
  paused = isPaused;
  $("pause").setAttribute("aria-pressed", String(paused));
}

function replay(txnId) {
  follow(txnId);
  replaying = true;
  setPaused(false);
  showNext();
}

// The timeline: one row a transfer, newest first. Rows that stay are not moved: what somebody reads stays
// where it is when another tab acts.
function drawTimeline() {
  const holder = $("timeline");
  const newest = [...transactions.entries()].sort(([, one], [, other]) => byTime(other[0], one[0]));
  const present = new Map([...holder.children].map((child) => [child.dataset.txn, child]));
  let place = holder.firstElementChild;
  for (const [txnId, events] of newest) {
    const old = present.get(txnId);
    const row = old && !changed.has(txnId) ? old : makeRow(txnId, events, old);
    if (old && row !== old) {
      if (old === place) place = row;
      old.replaceWith(row);
    }
    if (row === place) place = row.nextElementSibling;
    else holder.insertBefore(row, place);
  }
  changed.clear();
  $("timeline-empty").hidden = newest.length > 0;
  drawMends();
}

function makeRow(txnId, events, old) {
  const made = parts.card(txnId, events, visible(txnId, events), opened.get(txnId) ?? false, moreButtons(txnId, events));
  made.querySelector("summary").addEventListener("click", () => opened.set(txnId, !made.open));
  if (old && old.contains(document.activeElement)) queueMicrotask(() => made.querySelector("summary").focus());
  return made;
}

function moreButtons(txnId, events) {
  const transferId = transferOf(events);
  const show = showButton(txnId);
  if (["rolled_back", "undone", "orphan"].includes(parts.stateOf(visible(txnId, events), txnId !== followed || nextStep() === undefined)) && sent[transferId]) {
    return [" ", show, " ", smallButton("again", () => send(sent[transferId], $("button-answer")))];
  }
  return [" ", show];
}

// Every parked transfer, however old, is mended here; what this tab has mended stays in the list.
const mended = new Set();
function drawMends() {
  // Never ahead of the picture; a replay takes nothing back.
  const known = (txnId, events) => (txnId === followed ? events.slice(0, Math.max(shown.size, reached.get(txnId) ?? 0)) : events);
  const rows = [];
  for (const [txnId, events] of settings.faults ? transactions : []) {
    const transferId = transferOf(events);
    const isParked = parts.stateOf(known(txnId, events)) === "parked";
    if (!isParked && !mended.has(transferId)) continue;
    const button = smallButton("mend", () => mend(transferId));
    button.dataset.mend = transferId;
    rows.push(element("li", {}, isParked ? `‖ ${transferId} ` : `✓ ${transferId} ${word("is_mended")} `, ...(isParked ? [button, " "] : []), showButton(txnId)));
  }
  $("mends").replaceChildren(...rows.reverse());
  $("parked-none").hidden = rows.length > 0;
}

const showButton = (txnId) => smallButton("show", () => replay(txnId));

function smallButton(key, action) {
  const made = element("button", { type: "button" }, word(key));
  made.addEventListener("click", action);
  return made;
}

// Transfers.
const newId = (prefix) => `${prefix.replaceAll("_", "-")}-${crypto.getRandomValues(new Uint32Array(1))[0].toString(36)}`;

async function send(body, place) {
  sent[body.transfer_id] = body;
  sessionStorage.setItem("sent", JSON.stringify(sent));
  tell(place, word("sending"));
  const { status, body: answer } = await ask("/transfers", body);
  if (status === 0 || status === 504) tell(place, word("no_answer", body.transfer_id), "waits");
  else if (answer.error) tell(place, parts.explain(answer.error), "broken");
  else tell(place, word(status === 200 ? "repeated" : "sent", body.transfer_id), "holds");
  refreshBooksSoon();
}

function tell(place, text, kind = "") {
  place.className = kind;
  const symbols = { holds: "✓ ", waits: "? ", broken: "✗ " };
  place.textContent = `${symbols[kind] ?? ""}${text}`;
}

async function submit(event) {
  event.preventDefault();
  const form = $("transfer");
  const place = $("form-answer");
  const { from, to, amount } = form.elements;
  const text = amount.value.trim();
  const fen = /^\d+(\.\d{1,2})?$/.test(text) ? Math.round(Number(text) * 100) : 0;
  let problem = null;
  if (fen <= 0) problem = [amount, word("bad_amount")];
  else if (fen > settings.max_amount) problem = [amount, word("too_large", yuan(settings.max_amount))];
  else if (from.value === to.value) problem = [to, word("same_user")];
  for (const field of [from, to, amount]) field.removeAttribute("aria-invalid");
  if (problem !== null) {
    problem[0].setAttribute("aria-invalid", "true");
    problem[0].focus();
    tell(place, problem[1], "broken");
    return;
  }
  await once("transfer", word("transfer"), place, () =>
    send({ transfer_id: newId("transfer"), from: from.value, to: to.value, amount: fen }, place));
}

// A second press while the first is under way does nothing.
async function once(name, label, place, action) {
  if (busy.has(name)) {
    tell(place, word("under_way", label), "waits");
    return;
  }
  busy.add(name);
  try {
    await action();
  } finally {
    busy.delete(name);
  }
}

// Buttons that break things.
const AT_POINTS = ["fail", "deliver_twice", "poison", "stop"];

async function breakIt(fault, place) {
  const [from, to] = userNames();
  const body = { transfer_id: newId(fault), from, to, amount: 1000 };
  const request = fault === "stop" ? { fault, seconds: 15 } : { fault, transfer_id: body.transfer_id };
  if (fault === "fail") request.times = 2;
  const answer = await askUntilAnswered(AT_POINTS.includes(fault) ? "/points-service/faults" : "/faults", request);
  if (answer.status !== 200) {
    tell(place, answer.body.error ? parts.explain(answer.body.error) : word("not_armed"), "broken");
    return;
  }
  if (fault === "stop") {
    const deadline = Date.now() + 5000;
    while (Date.now() < deadline && lanes.points_service === "here") await pause(50);
  }
  await send(body, place);
}

async function mend(transferId) {
  const place = $("button-answer");
  await once(`mend ${transferId}`, transferId, place, async () => {
    const answer = await askUntilAnswered("/points-service/mend", { transfer_id: transferId });
    if (answer.status === 200) {
      mended.add(transferId);
      tell(place, word("mended", transferId), "holds");
    } else {
      tell(place, parts.explain(answer.body.error), "broken");
    }
  });
}

function drawButtons() {
  $("breaking").hidden = !settings.faults;
  $("buttons").replaceChildren(...buttons.filter(([fault]) => settings.points || !AT_POINTS.includes(fault)).map(([fault, label, sentence]) => {
    const button = element("button", { type: "button", "data-fault": fault, title: say(sentence), "aria-description": say(sentence) }, say(label));
    button.addEventListener("click", () => once("breaking", say(label), $("button-answer"), () => breakIt(fault, $("button-answer"))));
    return element("li", {}, button);
  }));
  drawTour(settings.faults && settings.points);
}

function drawAll() {
  parts.drawWords();
  drawButtons();
  for (const txnId of transactions.keys()) changed.add(txnId);
  drawTimeline();
  drawChecks();
  drawNow();
}

for (const button of document.querySelectorAll("[data-language]")) {
  button.addEventListener("click", () => {
    parts.speak(button.dataset.language);
    drawAll();
  });
}
$("transfer").addEventListener("submit", submit);
startTour(() => drawTour(settings.faults && settings.points));
$("pause").addEventListener("click", () => setPaused(!paused));
$("step").addEventListener("click", () => {
  setPaused(true);
  showStep();
});
$("replay").addEventListener("click", () => replay(followed));
$("speed").addEventListener("change", () => {
  speed = Number($("speed").value);
  localStorage.setItem(SPEED, $("speed").value);
});
setInterval(() => { drawClock(); $("step").disabled = nextStep() === undefined; }, 250);
drawAll();
const answer = await askUntilAnswered("/page/settings");
if (answer.status === 200) settings = { ...settings, ...answer.body };
compareWithPoints(settings.points);
linkDocuments(settings.kept);
waitForPicture(() => !replaying && nextStep() !== undefined);
drawButtons();
await refreshBooks();
listen("0.0");
showNext();
setInterval(refreshBooks, 3000);
