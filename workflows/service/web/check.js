// An accuracy check: tiles drawn at random from the detections and below, and what their marks measure.

import { percent } from "./dom.js";
import { same } from "./state.js";

export const CHECKED = 60;
const NAMES = { right: "good", wrong: "bad" };
const MARKS = { good: "right", bad: "wrong", "": null };

/** A check of an answer, with the names of tiles that queries and marks use. */
export const named = ({ strata, tiles, below }) => (
  { strata, below, tiles: tiles.map((one) => ({ tile: one.tile_key, ...one })) });

/** A check as the service takes it. */
export const plain = ({ strata, tiles, below }) => ({
  strata,
  below,
  tiles: tiles.map(({ tile, scene, stratum, probability, mark }) => ({ tile, scene, stratum, probability, mark })),
});

const find = (check, hit) => check.tiles.find((one) => same(one, hit));

export const markOf = (check, hit) => NAMES[find(check, hit)?.mark] ?? "";

/** Mark a tile of a check as good or bad, or as neither with an empty name; returns its mark before. */
export function setMark(check, hit, name) {
  const was = markOf(check, hit);
  find(check, hit).mark = MARKS[name];
  return was;
}

/** Precision, recall and F1 that a check measures, for people. */
export function measuredInWords({ tiles, marked, scope, accuracy: [at] }) {
  const figure = (name, title) => (
    `${title} ${percent(at[name])} % (${at[`${name}_interval`].map(percent).join(" to ")} %)`);
  return `${figure("precision", "Precision")}, ${figure("recall", "recall")}, ${figure("f1", "F1")}: `
    + `90 % intervals from ${marked} of ${tiles} tiles drawn at random. ${scope}`;
}
