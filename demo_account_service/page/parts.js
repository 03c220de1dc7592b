// What the page is drawn with. Text reaches the document by textContent only.

import { errors, glossary, states, steps, words } from "/page/texts.js";

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
export const captionOf = (event) => fill(say(stepOf(event).caption), event.detail);
export const sentenceOf = (event) => fill(say(stepOf(event).sentence), event.detail);
export const rowOf = (event) => stepOf(event)?.row ?? null;
export const isKnown = (event) => stepOf(event) !== undefined;

// A transfer that had sent nothing when its process died is told of by nobody: the next start tells.
let started = "";
export function noteStart(event) {
  if (event.service === "account" && event.time > started) started = event.time;
}

// The state of a transaction, from its steps in the order of their time. `isWhole`: no more are known.
export function stateOf(events, isWhole = true) {
  if (events.length === 0) return "unseen";
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
  return state === "running" && isWhole && events.at(-1).time < started ? "undone" : state;
}

const time = (event) =>
  new Date(event.time).toLocaleTimeString("en-GB", { hour12: false }) + "." + event.time.slice(20, 23);

// One transaction of the timeline: `shown` of its events; `more` are its buttons.
export function card(txnId, events, shown, isOpen, more) {
  const state = stateOf(shown, shown.length === events.length);
  const [symbol, name, sentence] = states[state];
  const transferId = events.find((event) => event.transfer_id)?.transfer_id ?? "";
  const badge = element("span", { class: `badge ${state}` }, `${symbol} ${say(name)}`);
  const made = element("details", { class: "card", "data-txn": txnId, "data-state": state });
  made.open = isOpen;
  made.append(
    element("summary", {}, element("strong", {}, transferId || word("no_transfer")), " ", badge),
    element("p", {}, say(sentence), ...more),
    element("p", { class: "id" }, `txn_id ${txnId}`),
    element("ol", {}, ...shown.map((event) => line(event))),
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
  document.title = word("title");
  for (const item of document.querySelectorAll("[data-text]")) item.textContent = word(item.dataset.text);
  for (const item of document.querySelectorAll("[data-label]")) item.setAttribute("aria-label", word(item.dataset.label));
  for (const item of document.querySelectorAll("[data-language]")) {
    item.setAttribute("aria-pressed", String(item.dataset.language === language));
  }
  document.getElementById("words").replaceChildren(
    ...glossary.map(([name, text]) => element("div", {}, element("dt", {}, say(name)), element("dd", {}, say(text)))),
  );
}
