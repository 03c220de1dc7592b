// What the page is drawn with. Text reaches the document by textContent only.

import { errors, glossary, rows, states, steps, words } from "/page/texts.js";

const KEY = "rmq_txn.language";
let language = localStorage.getItem(KEY) ?? (navigator.language.startsWith("zh") ? "zh" : "en");

export const currentLanguage = () => language;
export function speak(name) {
  language = name;
  localStorage.setItem(KEY, name);
}
export const say = (pair, ...values) =>
  pair[language === "zh" ? 1 : 0].replace(/\{(\d)\}/g, (_, number) => values[number] ?? "");
export const word = (key, ...values) => say(words[key], ...values);
export const explain = (error) => (errors[error.code] ? say(errors[error.code]) : error.message);

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// A repeated request ends its own transaction with this error, and gets the first result.
const isRepeat = (event) => event.detail.cause === "_CommittedBeforeError";
const variantOf = ({ step, detail }) => (step === "delivered" && detail.redeliveries > 0 ? "again" : detail.fault ?? detail.verdict);
const stepOf = (event) =>
  isRepeat(event) ? steps["account.repeated"] : steps[`${event.service}.${event.step}.${variantOf(event)}`] ?? steps[`${event.service}.${event.step}`];
const fill = (text, detail) => text.replace(/\{(\w+)\}/g, (_, name) => detail[name] ?? "?");
export const titleOf = (event) => fill(say(stepOf(event).title), event.detail);
export const sentenceOf = (event) => fill(say(stepOf(event).sentence), event.detail);
export const rowOf = (event) => stepOf(event)?.row ?? null;
const BROKEN = ["local_rolled_back", "half_refused", "not_committed", "killed", "verdict_unknown", "failed", "parked", "ack_withheld", "given_back"];
export const wentWell = (event) => !BROKEN.includes(event.step);
export const isKnown = (event) => stepOf(event) !== undefined;

// A transfer that had sent nothing when its process died is told of by nobody: the next start tells.
let started = "";
export function noteStart(event) {
  if (event.service === "account" && event.time > started) started = event.time;
}

// The state of a transaction, from its steps in the order of their time.
export function stateOf(events) {
  // Somebody else sent a half message in the service's producer group.
  if (!events.some((event) => event.transfer_id)) return "no_transfer";
  const committed = events.some((event) => event.service === "account" && event.step === "committed");
  let state = "running";
  for (const event of events) {
    const name = `${event.service}.${event.step}`;
    const received = event.step !== "message_committed" || !events.some((one) => one.service === "points");
    if (state === "parked" && event.step !== "replayed") continue;
    if (state === "done") continue; // a delivery more changes nothing
    // Of a copy that a repeated send left behind: the broker drops the copy, the transfer stands.
    if (committed && event.step === "check_answered" && event.detail.verdict === "rollback") continue;
    if (isRepeat(event)) state = "repeated";
    else if (event.step === "local_rolled_back" || event.step === "half_refused") state = "refused";
    else if (event.step === "half_stored") state = "half";
    else if (name === "account.committed") state = "committed";
    else if (event.step === "message_committed" && received) state = "sent";
    else if (event.step === "message_rolled_back") state = "rolled_back";
    else if (event.step === "killed" || event.step === "verdict_unknown") state = "orphan";
    else if (event.step === "check_asked") state = "checking";
    else if (event.step === "check_answered") {
      state = { commit: "sent", rollback: "rolled_back" }[event.detail.verdict] ?? "orphan";
    } else if (event.step === "delivered") state = "delivered";
    else if (event.step === "failed" || event.step === "ack_withheld" || event.step === "given_back") state = "retrying";
    else if (event.step === "parked") state = "parked";
    else if (event.step === "acked" || event.step === "replayed") state = "done";
  }
  return state === "running" && events.at(-1).time < started ? "undone" : state;
}

const time = (event) =>
  new Date(event.time).toLocaleTimeString("en-GB", { hour12: false }) + "." + event.time.slice(20, 23);

// One transaction of the timeline; `more` are its buttons.
export function card(txnId, events, isOpen, more) {
  const state = stateOf(events);
  const [symbol, name, sentence] = states[state];
  const transferId = events.find((event) => event.transfer_id)?.transfer_id ?? "";
  const badge = element("span", { class: `badge ${state}` }, `${symbol} ${say(name)}`);
  const made = element("details", { class: "card", "data-txn": txnId, "data-state": state });
  made.open = isOpen;
  made.append(
    element("summary", {}, element("strong", {}, transferId || word("no_transfer")), " ", badge),
    element("p", {}, say(sentence), ...more),
    element("p", { class: "id" }, `txn_id ${txnId}`),
    element("ol", {}, ...events.map((event) => line(event))),
  );
  return made;
}

function line(event) {
  const service = word(event.service === "account" ? "account_service" : "points_service");
  return element(
    "li",
    { class: event.service, "data-step": event.step },
    element("span", { class: "when" }, element("time", { datetime: event.time }, time(event)), ` ${service}`),
    element("strong", {}, titleOf(event)),
    element("span", {}, sentenceOf(event)),
  );
}

export function drawWords() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  document.title = `rmq_txn – ${word("title")}`;
  for (const item of document.querySelectorAll("[data-text]")) item.textContent = word(item.dataset.text);
  for (const item of document.querySelectorAll("[data-label]")) item.setAttribute("aria-label", word(item.dataset.label));
  for (const item of document.querySelectorAll("[data-language]")) {
    item.setAttribute("aria-pressed", String(item.dataset.language === language));
  }
  document.getElementById("words").replaceChildren(
    ...glossary.map(([name, text]) => element("div", {}, element("dt", {}, say(name)), element("dd", {}, say(text)))),
  );
}

// The picture: three life lines, one row a step.
const X = { a: 60, b: 180, c: 300 };
const TOP = 46;
const ROW = 44;

function shape(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

export function drawPicture() {
  const picture = document.getElementById("picture");
  picture.replaceChildren();
  for (const [at, name] of [["a", "account_service"], ["b", "broker"], ["c", "points_service"]]) {
    picture.append(
      shape("line", { class: "life", x1: X[at], x2: X[at], y1: 32, y2: TOP + ROW * rows.length }),
      shape("rect", { class: "head", "data-head": name, x: X[at] - 56, y: 4, width: 112, height: 28, rx: 6 }),
      shape("text", { class: "head", x: X[at], y: 23, "text-anchor": "middle" }, word(name)),
      shape("text", { class: "away", "data-away": name, x: X[at], y: 46, "text-anchor": "middle" }),
    );
  }
  rows.forEach(([name, label, path], number) => {
    const y = TOP + ROW * number + 22;
    const group = shape("g", { class: `row ${path.length > 1 && name !== "local" ? "" : "inside"}`, "data-row": name });
    const from = X[path[0]];
    const to = X[path[1] ?? path[0]];
    const middle = path.length > 1 ? (from + to) / 2 : { a: 4, c: 356 }[path];
    const anchor = path.length > 1 ? "middle" : { a: "start", c: "end" }[path];
    const wide = name === "ask" || name === "answer" ? { x: 4, anchor: "start" } : { x: middle, anchor };
    group.append(shape("rect", { class: "glow", x: 2, y: y - 20, width: 356, height: 40, rx: 8 }));
    if (path.length > 1) {
      const back = to < from;
      group.append(
        shape("line", { class: `arrow${name === "ask" || name === "answer" ? " dashed" : ""}`, x1: from, x2: to + (back ? 8 : -8), y1: y + 10, y2: y + 10 }),
        shape("path", { class: "point", d: back ? `M${to} ${y + 10}l9 -5v10z` : `M${to} ${y + 10}l-9 -5v10z` }),
      );
    } else {
      group.append(shape("rect", { class: "work", x: from - 7, y: y + 2, width: 14, height: 16, rx: 3 }));
    }
    group.append(
      shape("text", { class: "label", x: wide.x, y: y - 3, "text-anchor": wide.anchor }, say(label)),
      shape("text", { class: "mark", x: path.includes("c") ? 12 : 346, y: y + 15, "text-anchor": "middle" }),
    );
    picture.append(group);
  });
}

// A service that does not answer: its head is dashed, and says so.
export function markAway(name, isAway) {
  document.querySelector(`[data-head=${name}]`).classList.toggle("is-away", isAway);
  document.querySelector(`[data-away=${name}]`).textContent = isAway ? `✗ ${word("is_away")}` : "";
}

// `passed`: rows that a transaction has passed, and whether that went well; `now`: the row of its current step.
export function lightUp(passed, now) {
  for (const group of document.querySelectorAll("#picture .row")) {
    const isNow = group.dataset.row === now;
    group.classList.toggle("now", isNow);
    const well = passed.get(group.dataset.row);
    group.classList.toggle("seen", well === true);
    group.classList.toggle("broke", well === false && !isNow);
    group.querySelector(".mark").textContent = isNow ? "◀" : { true: "✓", false: "✗" }[well] ?? "";
  }
}
