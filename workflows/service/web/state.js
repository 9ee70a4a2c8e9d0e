// What is asked and shown, and its form in the address: a link reproduces the view.

import { groundOf, writeGround } from "./ground.js";

const BOXES = ["box", "area"];

export function emptyState() {
  return {
    query: null, // { text } | { lonlat, date? } | { tile, scene } | { box } | { file }
    good: [], // { tile, scene }
    bad: [],
    blend: null, // weight of appearance against labels; null for that of the encoder
    since: "", until: "", cloud: 100, label: "", area: null, k: 24,
    change: null, // { before, after, toward }: places by their change in place of hits
    detect: null, // least probability: detections in place of hits
    review: 20, // tiles to review
    places: false, // one hit a place
    grid: false, // hits as a grid instead of a strip
    layer: "", // "scores" | "colours": what colours every place
    view: null, // [longitude, latitude, zoom]
    open: null, // { tile, scene }
    ground: groundOf(new URLSearchParams()), // how the scenes on the map look
  };
}

const pair = ({ tile, scene }) => `${tile}@${scene}`;

function unpair(text) {
  const at = text.indexOf("@");
  return at < 0 ? null : { tile: text.slice(0, at), scene: text.slice(at + 1) };
}

function numberList(text, count) {
  const parts = (text ?? "").split(",").map(Number);
  return parts.length === count && parts.every(Number.isFinite) ? parts : null;
}

/** The part of the address after #. */
export function toHash(state) {
  const words = new URLSearchParams();
  const { query } = state;
  if (query?.text) words.set("text", query.text);
  if (query?.lonlat) words.set("at", query.lonlat.join(","));
  if (query?.date) words.set("date", query.date);
  if (query?.tile) words.set("tile", pair(query));
  if (query?.box) words.set("box", query.box.join(","));
  for (const name of ["good", "bad"]) for (const one of state[name]) words.append(name, pair(one));
  if (state.blend !== null) words.set("blend", state.blend);
  for (const name of ["since", "until", "label"]) if (state[name]) words.set(name, state[name]);
  if (state.cloud < 100) words.set("cloud", state.cloud);
  if (state.area) words.set("area", state.area.join(","));
  if (state.k !== 24) words.set("k", state.k);
  if (state.change) {
    for (const name of ["before", "after"]) words.set(name, state.change[name]);
    if (state.change.toward) words.set("toward", "1");
  }
  if (state.detect) words.set("detect", state.detect);
  if (state.review !== 20) words.set("review", state.review);
  for (const name of ["places", "grid"]) if (state[name]) words.set(name, "1");
  if (state.layer) words.set("layer", state.layer);
  if (state.view) words.set("view", state.view.join(","));
  if (state.open) words.set("open", pair(state.open));
  writeGround(state.ground, words);
  return words.toString().replaceAll("%2C", ",").replaceAll("%2F", "/").replaceAll("%40", "@");
}

/** Read an address; what makes no sense in it is left out. */
export function fromHash(hash) {
  const words = new URLSearchParams(hash.replace(/^#/, ""));
  const state = emptyState();
  const lonlat = numberList(words.get("at"), 2);
  const tile = unpair(words.get("tile") ?? "");
  const [box, area] = BOXES.map((name) => numberList(words.get(name), 4));
  const text = (words.get("text") ?? "").trim();
  if (text) state.query = { text };
  else if (lonlat) state.query = { lonlat, ...(words.get("date") && { date: words.get("date") }) };
  else if (tile) state.query = tile;
  else if (box) state.query = { box };
  for (const name of ["good", "bad"]) state[name] = words.getAll(name).map(unpair).filter(Boolean);
  const blend = Number(words.get("blend") || NaN);
  if (blend >= 0 && blend <= 1) state.blend = blend;
  for (const name of ["since", "until"]) {
    if (/^\d{4}-\d{2}-\d{2}$/.test(words.get(name) ?? "")) state[name] = words.get(name);
  }
  state.label = words.get("label") ?? "";
  if (words.has("cloud")) state.cloud = Math.min(100, Math.max(0, Number(words.get("cloud")) || 0));
  if (words.has("k")) state.k = Math.max(1, Math.trunc(Number(words.get("k"))) || 24);
  if (words.get("before") && words.get("after")) {
    state.change = {
      before: words.get("before"), after: words.get("after"), toward: words.get("toward") === "1",
    };
  }
  const threshold = Number(words.get("detect"));
  if (threshold > 0 && threshold < 1) state.detect = threshold;
  if (words.has("review")) state.review = Math.max(1, Math.trunc(Number(words.get("review"))) || 20);
  for (const name of ["places", "grid"]) state[name] = words.get(name) === "1";
  state.layer = ["scores", "colours"].find((name) => name === words.get("layer")) ?? "";
  state.area = area;
  state.view = numberList(words.get("view"), 3);
  state.open = unpair(words.get("open") ?? "");
  state.ground = groundOf(words);
  return state;
}

/** Marks from which the search learns. */
export const LEARNS = 10;

/** The numbers of right and wrong marks; the query counts as right. */
export function numbersOf({ query, good, bad }) {
  return { right: good.length + (query ? 1 : 0), wrong: bad.length };
}

/** Whether there are enough marks for the search to learn from them. */
export function learns(state) {
  const { right, wrong } = numbersOf(state);
  return right + wrong >= LEARNS;
}

/** A query with its marks and filters, without the file of an image query. */
export function queryBody(state) {
  const { query } = state;
  const filter = {};
  if (state.area) filter.bbox = state.area;
  if (state.since) filter.since = state.since;
  if (state.until) filter.until = state.until;
  if (state.cloud < 100) filter.max_cloud_fraction = state.cloud / 100;
  if (state.label) filter.labels = [state.label];
  const asked = {};
  if (query?.text) asked.text = query.text;
  if (query?.lonlat) asked.lonlat = query.lonlat;
  if (query?.date) asked.date = query.date;
  if (query?.tile) Object.assign(asked, { tile: query.tile, scene: query.scene });
  if (query?.box) asked.box = query.box;
  if (query?.file && query.bands) asked.bands = query.bands;
  if (state.blend !== null && !learns(state)) asked.blend = state.blend;
  return { ...asked, positive: state.good, negative: state.bad, filter };
}

/** The body of a search. */
export const toBody = (state) => ({ ...queryBody(state), k: state.k, ...(state.places && { distinct: "place" }) });

/** What is looked for, for people. */
export function askedInWords({ query, good, bad }) {
  const parts = [];
  if (query?.text) parts.push(`“${query.text}”`);
  if (query?.lonlat) parts.push(`the tile at ${query.lonlat.map((one) => one.toFixed(4)).join(", ")}`);
  if (query?.tile) parts.push(`tile ${query.tile} of ${query.scene}`);
  if (query?.box) parts.push("the tiles in the box");
  if (query?.file) parts.push(`the picture ${query.file.name}`);
  if (good.length) parts.push(`${good.length} right`);
  if (bad.length) parts.push(`${bad.length} wrong`);
  return parts.join(" + ").replace(/ \+ (\d+ wrong)$/, " − $1");
}

export const canSearch = (state) => Boolean(state.query || state.good.length);

export const same = (a, b) => a && b && a.tile === b.tile && a.scene === b.scene;

/** Mark a tile as good or bad, or as neither with an empty name; returns its mark before. */
export function setMark(state, hit, name) {
  const was = markOf(state, hit);
  for (const list of ["good", "bad"]) state[list] = state[list].filter((one) => !same(one, hit));
  if (name) state[name] = [...state[name], { tile: hit.tile, scene: hit.scene }];
  return was;
}

export function markOf(state, hit) {
  return ["good", "bad"].find((name) => state[name].some((one) => same(one, hit))) ?? "";
}
