// The guided tour: eight steps, each one something that the reader breaks with a button of the page.

import { element, say, word } from "/page/parts.js";
import { tour } from "/page/texts.js";

const $ = (id) => document.getElementById(id);
let at = null; // the number of the step; null: no tour

// Below #buttons: the tour itself says its fault in an attribute of the same name.
const button = () => document.querySelector(`#buttons [data-fault=${tour[at].fault}]`);

// The supervisor of the demo serves the documents of its checkout; elsewhere their names must do.
let hasDocuments = false;
export function linkDocuments(areServed) {
  hasDocuments = areServed;
}

function link(file, text) {
  if (!hasDocuments) return `docs/${file}: ${text}`;
  return element("a", { href: `/docs/${file}`, target: "_blank" }, text);
}

export function drawTour(hasButtons) {
  $("tour-start").hidden = !hasButtons || at !== null;
  $("tour").hidden = at === null;
  for (const one of document.querySelectorAll("#buttons [data-fault]")) one.classList.remove("is-next");
  if (at === null) return;
  const { title, text, fault, tutorial, api } = tour[at];
  $("tour").dataset.fault = fault;
  $("tour-title").textContent = `${at + 1}/${tour.length} ${say(title)}`;
  $("tour-text").textContent = say(text);
  $("tour-break").textContent = button()?.textContent ?? "";
  $("tour-break").disabled = !button();
  $("tour-back").disabled = at === 0;
  $("tour-next").textContent = word(at === tour.length - 1 ? "tour_end" : "tour_next");
  $("tour-more").replaceChildren(
    link(`tutorial${word("tour_suffix")}.md`, word("tour_tutorial", tutorial)), " · ", link("api.md", api));
  button()?.classList.add("is-next");
}

export function startTour(redraw) {
  const go = (step) => () => {
    at = step();
    redraw();
    (at === null ? $("tour-start") : $("tour-title")).focus();
  };
  $("tour-start").addEventListener("click", go(() => 0));
  $("tour-back").addEventListener("click", go(() => at - 1));
  $("tour-next").addEventListener("click", go(() => (at === tour.length - 1 ? null : at + 1)));
  $("tour-break").addEventListener("click", () => button()?.click());
}
