// The dial of an index of two-part vectors: how much looks count against labels.

import { find, percent } from "./dom.js";
import { LEARNS, learns } from "./state.js";

const PAUSE_MS = 250;

/** The weights of a blend, for people. */
function inWords(blend) {
  if (blend <= 0) return "labels only";
  if (blend >= 1) return "looks only";
  return `looks ${percent(blend)} %, labels ${percent(1 - blend)} %`;
}

/** Why the dial does nothing for a state; empty when it does something. */
function obstacle(state) {
  if (state.change) return state.change.toward ? "Changes go toward the query as it was asked." : "";
  if (state.detect) return "In detections the marks weigh looks and labels.";
  if (learns(state)) return `From ${LEARNS} marks on, the marks weigh looks and labels.`;
  return "";
}

function showBlend(blend) {
  find("#blend-shown").textContent = inWords(blend);
  find("#blend").setAttribute("aria-valuetext", inWords(blend));
}

/** Show the weight of a state; `parts` are those of the index, null where vectors have one part. */
export function showDial(state, parts) {
  find("#dial").hidden = !parts;
  if (!parts) return;
  const because = obstacle(state);
  const blend = state.blend ?? parts.blend;
  find("#blend").value = blend;
  find("#blend").disabled = Boolean(because);
  showBlend(blend);
  if (because) find("#blend-shown").textContent = "not in use";
  find("#blend-note").textContent = because;
}

/** Listen to the dial; `on` gets a blend once it rests, null for that of the encoder. */
export function watchDial(parts, on) {
  let waiting;
  const blendOf = ({ value }) => (Number(value) === parts.blend ? null : Number(value));
  find("#dial").addEventListener("submit", (event) => event.preventDefault());
  find("#blend").addEventListener("input", ({ target }) => {
    showBlend(Number(target.value));
    clearTimeout(waiting);
    waiting = setTimeout(() => on(blendOf(target)), PAUSE_MS);
  });
}
