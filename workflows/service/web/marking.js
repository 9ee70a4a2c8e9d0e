// Uses of marks: the query that they make, detections at a threshold, and a saved search.

import { measuredInWords } from "./check.js";
import { counted, find, percent } from "./dom.js";
import { LEARNS, learns, numbersOf } from "./state.js";

const OF_EACH = 3;
export const THRESHOLD = 0.5;

/** Whether there are enough marks for probabilities. */
function canDetect(state) {
  const { right, wrong } = numbersOf(state);
  return learns(state) && Math.min(right, wrong) >= OF_EACH;
}

/** What the marks are and which query is in use; `learned` says so of the last answer. */
function marksInWords(state, learned) {
  const { right, wrong } = numbersOf(state);
  const marks = `${counted(right, "right mark")} and ${counted(wrong, "wrong mark")}`;
  const words = [`${marks}${state.query ? "; the query is a right one" : ""}.`];
  if (learned) words.push("In use: a query learned from marks.");
  else if (!learns(state)) words.push(`In use: a mean; from ${LEARNS} marks on the search learns from them.`);
  else words.push("In use: a mean; search again, and the search learns from the marks.");
  if (!canDetect(state)) words.push(`Detections need ${LEARNS} marks, ${OF_EACH} right and ${OF_EACH} wrong ones.`);
  return words.join(" ");
}

/** Precision and recall that the marks let expect, for people. */
function expectedInWords({ expected }) {
  if (!expected.rows) return "No tile without a mark is that probable.";
  const figures = ["precision", "recall"].map((name) => `${name} ${percent(expected[name])} %`);
  return `Expected from the marks: ${figures.join(", ")}. Check accuracy measures them.`;
}

/** How many detections there are, for people. */
export function detectedInWords({ total, hits, truncated, threshold }) {
  const shown = total > hits.length ? `, the best ${hits.length.toLocaleString("en")} shown` : "";
  const more = truncated ? "; more tiles than were looked at are probable: narrow the filters" : "";
  return `${counted(total, "detection")} at ${percent(threshold)} % or more${shown}${more}`;
}

/** Show what marks there are and what can be done with them; `detected` and `measured` are the last answers, or null. */
export function showMarking(state, { learned, detected, measured, able }) {
  const has = state.good.length + state.bad.length > 0;
  find("#marking").hidden = !has;
  find("#marks-note").textContent = has ? marksInWords(state, learned) : "";
  for (const name of ["refine", "suggest", "save-search", "marks-geojson", "marks-geoparquet"]) {
    find(`#${name}`).disabled = !able;
  }
  find("#refine").textContent = `${state.detect ? "Detect" : "Search"} again with the marks`;
  find("#detect").disabled = !state.detect && !(able && canDetect(state));
  find("#detect").setAttribute("aria-pressed", String(Boolean(state.detect)));
  const form = find("#threshold");
  form.hidden = !state.detect;
  if (!state.detect) return;
  form.elements.threshold.value = state.detect;
  showThreshold(state.detect);
  find("#expected").textContent = measured?.marked ? measuredInWords(measured) : detected ? expectedInWords(detected) : "";
  find("#review").textContent = `Review ${counted(detected?.review.length ?? 0, "tile")}`;
  find("#review").disabled = !detected?.review.length;
  find("#check").disabled = !detected?.expected.rows;
}

function showThreshold(value) {
  find("#threshold-shown").textContent = `${percent(value)} %`;
}

/** Listen to the slider; `on` gets a threshold when it is let go. */
export function watchThreshold(on) {
  const form = find("#threshold");
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", ({ target }) => showThreshold(target.value));
  form.addEventListener("change", ({ target }) => on(Number(target.value)));
}

/** The part of a state that a saved search brings, and what the page cannot show of it. */
export function openedState({ positive, negative, threshold, review, blend, filter, left_out: leftOut }) {
  const { bbox, since, until, max_cloud_fraction: cloud, labels = [], ...others } = filter;
  const notes = Object.keys(others).map((name) => `Its filter by ${name} is left out.`);
  if (labels.length > 1) notes.push(`Of its labels only ${labels[0]} is taken.`);
  if (leftOut) notes.push(`${counted(leftOut, "mark")} not of this archive's tiles: left out here; \`skysift detect --saved\` uses all.`);
  const state = {
    query: null, change: null, open: null, good: positive, bad: negative, detect: threshold,
    review: review || 20, blend, area: bbox ?? null, label: labels[0] ?? "",
    since: since?.slice(0, 10) ?? "", until: until?.slice(0, 10) ?? "",
    cloud: cloud === undefined ? 100 : Math.round(cloud * 100),
  };
  return { state, notes };
}
