// The books of both services, compared. Points are read first: a transfer that commits in between is then
// on the way, never extra.

import { checks } from "/page/texts.js";
import { element, say, word } from "/page/parts.js";
import { ask } from "/page/requests.js";

const $ = (id) => document.getElementById(id);
const SYMBOLS = { holds: "✓", waits: "…", broken: "✗" };
let books = { account: null, points: null };
let hasPoints = false;
let users = [];
let isBehind = () => false; // whether the picture has yet to show what the books know already

export const userNames = () => users;
export function compareWithPoints(isThere) {
  hasPoints = isThere;
}
export function waitForPicture(isItBehind) {
  isBehind = isItBehind;
}

let refreshing = false;
let again = false;
export async function refreshBooks() {
  if (users.length > 0 && isBehind()) { // its next step asks again
    drawLine("waits", word("books_wait"));
    return;
  }
  if (refreshing) {
    again = true;
    return;
  }
  refreshing = true;
  const points = hasPoints ? await ask("/points-service/books") : { status: 404 };
  const [account, accounts, balances] = await Promise.all([ask("/books"), ask("/accounts"), hasPoints ? ask("/points-service/points") : { status: 404 }]);
  refreshing = false;
  if (users.length > 0 && isBehind()) return;
  books = { account: account.status === 200 ? account.body : null, points: points.status === 200 ? points.body : null };
  if (accounts.status === 200) drawAccounts(accounts.body.accounts, balances.status === 200 ? balances.body.points : null);
  drawChecks();
  if (again) {
    again = false;
    refreshBooksSoon();
  }
}

let timer = null;
export function refreshBooksSoon() {
  timer ??= setTimeout(() => {
    timer = null;
    refreshBooks();
  }, 250);
}

export const yuan = (fen) => (fen / 100).toLocaleString("en-US", { minimumFractionDigits: 2 });

export function drawChecks() {
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
  $("checks").replaceChildren(...found.map(([kind, text, ...values]) =>
    element("li", { class: kind, "data-check": kind }, element("strong", {}, `${SYMBOLS[kind]} ${say(checks[kind])}`), ` ${say(checks[text], ...values)}`)));
  const worst = ["broken", "waits", "holds"].find((kind) => found.some(([one]) => one === kind));
  const [, text, ...values] = found.find(([kind]) => kind === worst);
  drawLine(worst, worst === "holds" && points !== null ? word("books_hold", account.transfers, points.entries) : say(checks[text], ...values));
}

function drawLine(kind, text) {
  const line = $("books-line");
  line.dataset.check = kind;
  line.className = kind;
  line.replaceChildren(element("strong", {}, `${SYMBOLS[kind]} ${say(checks[kind])}`), ` ${text}`);
}

function drawAccounts(accounts, points) {
  const given = new Map((points ?? []).map((one) => [one.user, one.points]));
  $("accounts").replaceChildren(...accounts.map(({ user, balance }) =>
    element("tr", {}, element("th", { scope: "row" }, user), element("td", {}, yuan(balance)), element("td", {}, points === null ? "…" : String(given.get(user) ?? 0)))));
  const names = accounts.map((account) => account.user);
  if (names.join() === users.join()) return;
  users = names;
  const form = $("transfer");
  form.querySelector("button").disabled = names.length < 2; // nobody to choose yet
  for (const [name, standard] of [["from", 0], ["to", 1]]) {
    const chosen = form.elements[name].value;
    form.elements[name].replaceChildren(...names.map((user) => element("option", { value: user }, user)));
    form.elements[name].value = names.includes(chosen) ? chosen : names[Math.min(standard, names.length - 1)] ?? "";
  }
}
