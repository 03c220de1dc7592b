// The picture: an envelope between three lanes, and database rows in their bracket. It is a function of
// the events shown so far, so that nothing is drawn that did not happen.

import { element, say } from "/page/parts.js";
import { scene as texts } from "/page/texts.js";

// Where everything is after these events of one transaction, in the order of their time.
export function sceneOf(events) {
  const scene = { account: "none", fence: false, message: "none", at: "account", points: "none", inbox: false, duplicate: "none", asked: false, since: null, killed: false, word: "" };
  let applied = false; // the points are committed
  for (const event of events) {
    scene.word = words[`${event.service}.${event.step}.${event.detail.verdict}`] ?? words[`${event.service}.${event.step}`] ?? "";
    if (event.service === "account") scene.killed = event.step === "killed";
    const known = reactions[`${event.service}.${event.step}`];
    if (known) known(scene, event, applied);
    if (event.step === "replayed" || (event.service === "points" && event.step === "committed")) applied = true;
  }
  return scene;
}

// What is said at a step, from one lane to another.
const words = {
  "account.message_committed": "commit",
  "account.message_rolled_back": "rollback",
  "account.check_asked": "ask",
  "account.check_answered.commit": "commit",
  "account.check_answered.rollback": "rollback",
  "account.check_answered.unknown": "unknown",
  "points.acked": "ack",
  "points.ack_withheld": "again",
  "points.failed": "again",
};

const isDecided = (scene) => scene.message === "solid" || scene.message === "acked";

function decide(scene, verdict) {
  scene.asked = false;
  // A repeated send leaves a second half message behind: dropping that one drops nothing here.
  if (isDecided(scene)) return;
  if (verdict === "commit") scene.message = "solid";
  if (verdict === "rollback" && scene.account !== "durable") {
    scene.message = "vanished";
    scene.fence = true;
  }
}

const reactions = {
  "account.local_running": (scene) => { scene.account = "open"; },
  "account.local_rolled_back": (scene) => { if (scene.account !== "durable") scene.account = "undone"; },
  "account.half_stored": (scene, event) => {
    if (scene.message !== "none") return;
    Object.assign(scene, { message: "half", at: "broker", since: event.time });
  },
  "account.half_refused": (scene) => { scene.account = "undone"; },
  "account.committed": (scene) => { scene.account = "durable"; },
  "account.not_committed": (scene) => { if (scene.account !== "durable") scene.account = "undone"; },
  "account.killed": (scene, event) => { scene.account = event.detail.fault === "kill_before_commit" ? "undone" : "durable"; },
  "account.message_committed": (scene) => decide(scene, "commit"),
  "account.message_rolled_back": (scene) => { if (scene.message === "half") scene.message = "vanished"; },
  "account.check_asked": (scene) => { if (!isDecided(scene)) scene.asked = true; },
  "account.check_answered": (scene, event) => decide(scene, event.detail.verdict),
  "points.delivered": (scene, _event, applied) => {
    scene.message = "solid"; // it was committed, even if the word about it is heard later
    if (applied) scene.duplicate = "arrived";
    else Object.assign(scene, { at: "points", points: "none", inbox: false });
  },
  "points.inbox_row": (scene, _event, applied) => { if (!applied) Object.assign(scene, { points: "open", inbox: true }); },
  "points.handler": (scene, _event, applied) => { if (!applied) scene.points = "open"; },
  "points.committed": (scene) => Object.assign(scene, { points: "durable", inbox: true }),
  "points.acked": (scene) => { if (scene.at === "points" && scene.points === "durable") scene.message = "acked"; },
  "points.ack_withheld": () => {},
  "points.given_back": (scene, _event, applied) => { if (!applied) scene.at = "broker"; },
  "points.skipped": (scene) => { scene.duplicate = "bounced"; },
  "points.failed": (scene) => Object.assign(scene, { points: "undone", inbox: false, at: "broker" }),
  "points.parked": (scene) => Object.assign(scene, { points: "undone", inbox: false, at: "shelf" }),
  "points.replayed": (scene) => Object.assign(scene, { points: "durable", inbox: true, at: "points", message: "acked" }),
};

const MARKS = { acked: "✓", vanished: "✗" };

function rows(name, state, cells) {
  const visible = state === "none" ? [] : cells;
  return element("div", { class: `rows ${state}`, "data-rows": name },
    element("span", { class: "database" }, say(texts[`${name}_database`])),
    ...visible.map((cell) => element("span", { class: "cell" }, say(texts[cell]))),
    element("em", {}, say(texts[state])));
}

// What RocketMQ knows of the message; one on the shelf was acked.
function atBroker(scene) {
  if (scene.message === "solid" && scene.at === "shelf") return "acked";
  return scene.message === "solid" && scene.at === "points" ? "delivered" : scene.message;
}

// Rows that are the same stay: they would appear anew.
function redraw(id, made) {
  const place = document.getElementById(id);
  if (place.firstElementChild?.outerHTML !== made.outerHTML) place.replaceChildren(made);
}

// Draw a scene; `row` is where its newest step belongs. Elements stay, so that movements are seen.
export function drawScene(scene, row) {
  const stage = document.getElementById("scene");
  Object.assign(stage.dataset, { account: scene.account, message: scene.message, at: scene.at, points: scene.points, duplicate: scene.duplicate, asked: String(scene.asked), row: row ?? "", word: scene.word });
  const said = document.getElementById("word");
  said.replaceWith(Object.assign(said.cloneNode(), { textContent: scene.word && say(texts[`word_${scene.word}`]) }));
  redraw("account-rows",
    rows("account", scene.fence && scene.account !== "durable" ? "fenced" : scene.account, scene.fence && scene.account !== "durable" ? ["fence"] : ["money", "log"]));
  redraw("points-rows", rows("points", scene.points, scene.inbox ? ["inbox", "given"] : ["given"]));
  document.getElementById("envelope-mark").textContent = MARKS[scene.message] ?? "";
  document.getElementById("message-state").textContent = scene.message === "none" ? "" : say(texts[`message_${atBroker(scene)}`]);
  document.getElementById("question").textContent = scene.asked ? `◀ ${say(texts.question)}` : "";
  document.getElementById("shelf").textContent = scene.at === "shelf" ? say(texts.shelf) : "";
  document.getElementById("bounce").textContent = scene.duplicate === "bounced" ? `↩ ${say(texts.bounced)}` : "";
}

// How long RocketMQ will wait, or has waited, for a word, while nobody has given it one.
export function drawWaiting(scene, now, checkBackSeconds) {
  const waits = scene.message === "half" && scene.since !== null && !scene.asked;
  const seconds = (now - Date.parse(scene.since)) / 1000;
  const left = Math.ceil((checkBackSeconds ?? 0) - seconds);
  let text = "";
  if (waits && checkBackSeconds === null) text = say(texts.waiting, Math.max(0, Math.floor(seconds)));
  else if (waits) text = left > 0 ? say(texts.asks_in, left) : say(texts.asks_now);
  const place = document.getElementById("waiting");
  if (place.textContent !== text) place.textContent = text;
}

// Away and frozen are how the servers are now; killed is what the shown step says.
export function drawLanes(states, scene) {
  for (const lane of document.querySelectorAll("[data-lane]")) {
    const name = lane.dataset.lane;
    const live = states[name] ?? "here";
    const state = live === "here" && name === "account_service" && scene.killed ? "killed" : live;
    if (lane.dataset.state === state) continue;
    lane.dataset.state = state;
    lane.querySelector("[data-away]").textContent = state === "here" ? "" : say(texts[`lane_${state}`]);
  }
}
