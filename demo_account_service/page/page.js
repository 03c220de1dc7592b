// The demo page: it hears both services in one stream, draws, and sends what the buttons say.

import { buttons, checks, states } from "/page/texts.js";
import * as parts from "/page/parts.js";
import { drawScene, drawWaiting, markAway, sceneOf } from "/page/scene.js";
import { drawTour, startTour } from "/page/tour.js";

const { element, say, word } = parts;
const $ = (id) => document.getElementById(id);
const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

const STEP_MILLISECONDS = 1200; // each caption can be read; real steps take a few milliseconds
const OLD_MILLISECONDS = 20000; // steps before the page was opened are shown at once
const LOOK_MILLISECONDS = 400; // a service that dies is marked within half a second
const PATIENCE_MILLISECONDS = 30000;

const transactions = new Map(); // txn_id → events in the order of their time
const opened = new Map(); // txn_id → whether its reader opened or closed it
const sent = JSON.parse(sessionStorage.getItem("sent") ?? "{}"); // transfer_id → what we sent
let settings = { faults: false, points: false, max_amount: 1e12 };
let books = { account: null, points: null };
let users = [];
let followed = null; // the transaction in the picture
let shown = new Set(); // its events that the picture has shown
let current = null; // the newest of them
let paused = false;
let speed = 1;
const busy = new Set();

// Requests: an answer is {status, body}; status 0 means that there was none.
async function ask(path, body) {
  const options = body === undefined ? {} : { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  try {
    const answer = await fetch(path, options);
    return { status: answer.status, body: await answer.json() };
  } catch {
    return { status: 0, body: { error: { code: "no_answer", message: word("not_armed") } } };
  }
}

async function askUntilAnswered(path, body) {
  const deadline = Date.now() + PATIENCE_MILLISECONDS;
  for (;;) {
    const answer = await ask(path, body);
    if ((answer.status !== 0 && answer.status !== 503) || Date.now() > deadline) return answer;
    await pause(300);
  }
}

// Events.
function listen(after) {
  const source = new EventSource(`/events?after=${after}`);
  let last = after;
  source.onmessage = (message) => {
    last = message.lastEventId || last;
    hear(JSON.parse(message.data));
  };
  source.onerror = () => {
    // Closed and opened anew: a browser gives up on its own after some kinds of answers.
    source.close();
    markAway("account_service", true);
    refreshBooks();
    setTimeout(() => listen(last), 500);
  };
}

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
  drawWaiting(scene);
  const state = parts.stateOf(shownSteps());
  const [symbol, name] = states[state];
  $("badge").textContent = current ? `${symbol} ${say(name)}` : "";
  $("badge").className = `badge ${current ? state : ""}`;
  $("now").textContent = current ? parts.titleOf(current) : word("nothing");
  $("now").dataset.step = current ? `${current.service}.${current.step}` : "";
  $("sentence").textContent = current ? parts.sentenceOf(current) : "";
  const transferId = (transactions.get(followed) ?? []).find((event) => event.transfer_id)?.transfer_id;
  $("followed").textContent = followed ? word("followed", transferId ?? followed) : "";
  $("step").disabled = nextStep() === undefined;
  $("replay").disabled = followed === null;
}

function setPaused(isPaused) {
  paused = isPaused;
  $("pause").setAttribute("aria-pressed", String(paused));
}

function replay() {
  follow(followed);
  replaying = true;
  setPaused(false);
  showNext();
}

// The timeline.
function drawTimeline() {
  const holder = $("timeline");
  const newest = [...transactions.entries()].sort(([, one], [, other]) => byTime(other[0], one[0]));
  const present = new Map([...holder.children].map((child) => [child.dataset.txn, child]));
  const wanted = newest.map(([txnId, events], number) => {
    const old = present.get(txnId);
    const isOpen = opened.get(txnId) ?? number === 0;
    if (old && !changed.has(txnId)) {
      if (old.open !== isOpen) old.open = isOpen;
      return old;
    }
    const made = parts.card(txnId, events, visible(txnId, events), isOpen, moreButtons(txnId, events));
    made.querySelector("summary").addEventListener("click", () => opened.set(txnId, !made.open));
    if (old && old.contains(document.activeElement)) queueMicrotask(() => made.querySelector("summary").focus());
    return made;
  });
  changed.clear();
  holder.replaceChildren(...wanted);
  $("timeline-empty").hidden = wanted.length > 0;
  drawMends();
}

function moreButtons(txnId, events) {
  const transferId = events.find((event) => event.transfer_id)?.transfer_id;
  const show = smallButton("show", () => { follow(txnId); replay(); });
  if (["rolled_back", "undone", "orphan"].includes(parts.stateOf(visible(txnId, events))) && sent[transferId]) {
    return [" ", show, " ", smallButton("again", () => send(sent[transferId], $("button-answer")))];
  }
  return [" ", show];
}

// Every parked transfer, however old: it is mended here.
function drawMends() {
  const parked = [...transactions].filter(([txnId, events]) => settings.faults && parts.stateOf(visible(txnId, events)) === "parked");
  $("mends").replaceChildren(...parked.map(([, events]) => {
    const transferId = events.find((event) => event.transfer_id).transfer_id;
    const button = smallButton("mend", () => mend(transferId));
    button.dataset.mend = transferId;
    return element("li", {}, `‖ ${transferId} `, button);
  }));
}

function smallButton(key, action) {
  const made = element("button", { type: "button" }, word(key));
  made.addEventListener("click", action);
  return made;
}

// The books. Points are read first: a transfer that commits in between is then on the way, never extra.
let refreshing = false;
let again = false;
async function refreshBooks() {
  if (refreshing) {
    again = true;
    return;
  }
  refreshing = true;
  const points = settings.points ? await ask("/points-service/books") : { status: 404 };
  const [account, accounts, balances] = await Promise.all([ask("/books"), ask("/accounts"), settings.points ? ask("/points-service/points") : { status: 404 }]);
  books = { account: account.status === 200 ? account.body : null, points: points.status === 200 ? points.body : null };
  if (accounts.status === 200) drawAccounts(accounts.body.accounts, balances.status === 200 ? balances.body.points : null);
  drawChecks();
  refreshing = false;
  if (again) {
    again = false;
    refreshBooksSoon();
  }
}

let timer = null;
function refreshBooksSoon() {
  timer ??= setTimeout(() => {
    timer = null;
    refreshBooks();
  }, 250);
}

const yuan = (fen) => (fen / 100).toLocaleString("en-US", { minimumFractionDigits: 2 });

function drawChecks() {
  const { account, points } = books;
  const found = [];
  if (account === null) found.push(["waits", "no_books"]);
  else if (account.opened === null) found.push(["holds", "sum_only", yuan(account.balances)]);
  else found.push([account.balances === account.opened ? "holds" : "broken", "sum", yuan(account.balances), yuan(account.opened)]);
  if (account !== null && points === null) found.push(["waits", "unknown"]);
  if (account !== null && points !== null) {
    const missing = account.transfers - points.entries;
    if (missing < 0) found.push(["broken", "extra", account.transfers, points.entries]);
    else if (missing > 0) found.push(["waits", "on_the_way", account.transfers, points.entries, missing]);
    else found.push([account.ids === points.ids ? "holds" : "broken", "equal", account.transfers, points.entries]);
    const adds = points.points === points.balances && (missing > 0 ? points.points <= account.points_due : points.points === account.points_due);
    found.push([adds ? (missing > 0 ? "waits" : "holds") : "broken", "points", account.points_due, points.points, points.balances]);
  }
  const symbols = { holds: "✓", waits: "…", broken: "✗" };
  $("checks").replaceChildren(...found.map(([kind, text, ...values]) =>
    element("li", { class: kind, "data-check": kind }, element("strong", {}, `${symbols[kind]} ${say(checks[kind])}`), ` ${say(checks[text], ...values)}`)));
  const worst = ["broken", "waits", "holds"].find((kind) => found.some(([one]) => one === kind));
  const [, text, ...values] = found.find(([kind]) => kind === worst);
  const line = worst === "holds" && points !== null ? word("books_hold", account.transfers, points.entries) : say(checks[text], ...values);
  $("books-line").dataset.check = worst;
  $("books-line").className = worst;
  $("books-line").replaceChildren(element("strong", {}, `${symbols[worst]} ${say(checks[worst])}`), ` ${line}`);
}

// Each service is asked by itself. Points are reached through the account service: while that one is
// away nothing new is known of them, and their mark stays what it was.
async function lookAround() {
  const [account, points] = await Promise.all([ask("/health"), settings.points ? ask("/points-service/health") : null]);
  markAway("account_service", account.status === 0);
  // Killed or frozen, only those who need it can tell; a service that is away can't.
  const broker = account.body.broker;
  if (broker !== undefined) markAway("broker", !["ok", "not asked"].includes(broker));
  if (points !== null && account.status !== 0 && points.status !== 0) {
    markAway("points_service", points.body.error?.code === "points_service_unavailable");
  }
  setTimeout(lookAround, LOOK_MILLISECONDS);
}

function drawAccounts(accounts, points) {
  const given = new Map((points ?? []).map((one) => [one.user, one.points]));
  $("accounts").replaceChildren(...accounts.map(({ user, balance }) =>
    element("tr", {}, element("th", { scope: "row" }, user), element("td", {}, yuan(balance)), element("td", {}, points === null ? "…" : String(given.get(user) ?? 0)))));
  const names = accounts.map((account) => account.user);
  if (names.join() === users.join()) return;
  users = names;
  const form = $("transfer");
  for (const [name, standard] of [["from", 0], ["to", 1]]) {
    const chosen = form.elements[name].value;
    form.elements[name].replaceChildren(...names.map((user) => element("option", { value: user }, user)));
    form.elements[name].value = names.includes(chosen) ? chosen : names[Math.min(standard, names.length - 1)] ?? "";
  }
}

// Transfers.
const newId = (prefix) => `${prefix.replaceAll("_", "-")}-${crypto.getRandomValues(new Uint32Array(1))[0].toString(36)}`;

async function send(body, place) {
  sent[body.transfer_id] = body;
  sessionStorage.setItem("sent", JSON.stringify(sent));
  tell(place, word("sending"));
  const { status, body: answer } = await ask("/transfers", body);
  if (status === 0) tell(place, word("no_answer", body.transfer_id), "waits");
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
  const fen = /^\d{1,12}(\.\d{1,2})?$/.test(text) ? Math.round(Number(text) * 100) : 0;
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
  const [from, to] = users;
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
    while (Date.now() < deadline && (await ask("/points-service/health")).status === 200) await pause(100);
  }
  await send(body, place);
}

async function mend(transferId) {
  const place = $("button-answer");
  await once(`mend ${transferId}`, transferId, place, async () => {
    const answer = await askUntilAnswered("/points-service/mend", { transfer_id: transferId });
    if (answer.status === 200) tell(place, word("mended", transferId), "holds");
    else tell(place, parts.explain(answer.body.error), "broken");
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
$("replay").addEventListener("click", replay);
$("speed").addEventListener("change", () => { speed = Number($("speed").value); });
setInterval(() => { drawWaiting(sceneOf(shownSteps())); $("step").disabled = nextStep() === undefined; }, 500);
drawAll();
const answer = await askUntilAnswered("/page/settings");
if (answer.status === 200) settings = answer.body;
drawButtons();
await refreshBooks();
listen("0.0");
showNext();
lookAround();
setInterval(refreshBooks, 3000);
