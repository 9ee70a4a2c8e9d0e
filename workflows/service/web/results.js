// The strip of hits, and the examples that were marked.

import { picture } from "./api.js";
import { changeCard } from "./change.js";
import { day, element, find } from "./dom.js";
import { closerThan } from "./scale.js";
import { same } from "./state.js";

const SIZE = 128;
const MARKS = [["good", "✓", "Right"], ["bad", "✗", "Wrong"]];

function photograph(pictures, tile, scene, alt) {
  const image = element("img", { alt, width: SIZE, height: SIZE });
  if (pictures) picture(image, tile, scene, SIZE);
  else image.classList.add("missing");
  return image;
}

function markButtons(hit, mark, on) {
  return MARKS.map(([name, sign, word]) => element("button", {
    type: "button", class: `mark ${name}`, "aria-pressed": String(mark === name),
    "aria-label": `${word}: hit ${hit.rank}`, title: word, onclick: () => on.mark(hit, name),
  }, sign));
}

function card(hit, context) {
  const { about, markOf, on } = context;
  const probable = hit.probability !== undefined;
  const score = probable ? `${Math.round(hit.probability * 100)} %` : hit.score.toFixed(3);
  const meaning = closerThan(hit.closer_than);
  const words = `${probable ? "Detection" : "Hit"} ${hit.rank}: ${probable ? "probability" : "score"} ${score}, `
    + `${day(hit.datetime)}, scene ${hit.scene}`
    + (meaning && `, ${meaning}`);
  const dates = hit.dates?.length > 1 ? `${hit.dates.length} dates` : "";
  return element("li", { class: "card", "data-rank": hit.rank },
    element("button", { type: "button", class: "show", "aria-label": words, onclick: () => on.open(hit) },
      photograph(about.pictures, hit.tile, hit.scene, ""),
      element("span", { class: "score", title: probable ? "probability" : meaning }, score),
      element("span", { class: "date" }, day(hit.datetime)),
      element("span", { class: "meaning", title: meaning }, meaning.replace(" of pairs", "")),
      element("span", { class: "scene", title: hit.scene }, dates || hit.scene)),
    element("div", { class: "marks" }, ...markButtons(hit, markOf(hit), on)));
}

/** Show hits or changes; `context` has about, markOf and on (open, mark, unmark). */
export function showStrip(hits, context) {
  const strip = find("#strip");
  strip.replaceChildren(...hits.map((hit) => (hit.before_scene
    ? changeCard(hit, context.about.pictures, context.on.open) : card(hit, context))));
  strip.scrollLeft = 0;
}

/** Say on each card whether it is marked or open. */
export function refreshStrip(hits, open, markOf) {
  for (const item of find("#strip").children) {
    const hit = hits[Number(item.dataset.rank) - 1];
    item.classList.toggle("open", hit === open);
    item.dataset.mark = markOf(hit);
    for (const [name] of MARKS) {
      find(`.mark.${name}`, item)?.setAttribute("aria-pressed", String(markOf(hit) === name));
    }
  }
}

/** Lay the hits out as a strip or as a grid. */
export function layOut(grid) {
  find("#results").classList.toggle("grid", grid);
  find("#layout").setAttribute("aria-pressed", String(grid));
}

/** Left and right go from card to card. */
export function walkByArrows() {
  find("#strip").addEventListener("keydown", (event) => {
    const step = { ArrowRight: "nextElementSibling", ArrowLeft: "previousElementSibling" }[event.key];
    const next = step && event.target.closest(".card")?.[step];
    if (!next) return;
    event.preventDefault();
    find(".show", next).focus();
  });
}

/** Show the marked examples, each with a way to take the mark away. */
export function showExamples(state, about, on) {
  const list = find("#examples");
  const made = MARKS.flatMap(([name, sign, word]) => state[name].map((one) => element(
    "li", { class: `example ${name}` },
    photograph(about.pictures, one.tile, one.scene, ""),
    element("span", {}, `${sign} ${word}`),
    element("button", {
      type: "button", "aria-label": `Take the mark off tile ${one.tile} of ${one.scene}`,
      onclick: () => on.mark(one, name),
    }, "×"),
  )));
  list.replaceChildren(...made);
  list.hidden = !made.length;
}

export const indexOf = (hits, one) => hits.find((hit) => same(hit, one)) ?? null;
