// Wires the parts together: every change of the state shows itself and, where it asks, searches.

import { about as described } from "./about.js";
import * as api from "./api.js";
import { Asked } from "./asked.js";
import { offerBands, withdrawBands } from "./bands.js";
import * as checks from "./check.js";
import { changeBody, changeInWords, fillChange, watchChange } from "./change.js";
import { showDial, watchDial } from "./dial.js";
import { announce, complain, counted, day, find, sentence } from "./dom.js";
import { lookOf } from "./ground.js";
import { offerIndexes } from "./indexes.js";
import { MapView } from "./mapview.js";
import { THRESHOLD, detectedInWords, openedState, showMarking, watchThreshold } from "./marking.js";
import { fillForms, swapped, watchAsk, watchFilters } from "./panel.js";
import { Place } from "./place.js";
import { Queue } from "./queue.js";
import { indexOf, layOut, refreshStrip, showExamples, showStrip, walkByArrows } from "./results.js";
import { closerThan, scaleOf } from "./scale.js";
import { askedInWords, canSearch, fromHash, markOf, queryBody, setMark, toBody, toHash } from "./state.js";

const MOST_FOOTPRINTS = 5000;
const SUGGESTED = 10;
const NO_MAP = "This browser offers no WebGL, so there is no map. Search by coordinates, picture "
  + "or box; the hits below and the export work.";

let state = fromHash(location.hash);
let hits = [];
let about = null;
let map = null;
let running = null;
let like = ""; // the vector of the last answer
let learned = false; // whether it was learned from marks
let detected = null; // the last detections
let check = null; // the last accuracy check; that of the detections, if they have one
let checking = false; // whether its tiles are being marked
let measured = null; // what it measures, if it is that of the detections
let measuring = null;
const files = []; // pictures that were asked with, for the way back
let look = "";

const mark = (hit) => (checking ? checks.markOf(check, hit) : markOf(state, hit));
const openHit = () => (queue.running ? queue.turn : indexOf(hits, state.open));
const place = new Place({
  close: () => open(null),
  step: (tile, scene) => { state.open = { tile, scene }; remember(); },
  search: (tile, scene) => ask({ tile, scene }),
});

const asked = new Asked({
  ask: (tile, scene) => ask({ tile, scene }),
  outline: (geometry) => map?.showAsked(geometry),
});

const queue = new Queue({
  mark: (tile, name) => {
    if (checking) return markChecked(tile, name);
    const was = setMark(state, tile, name);
    remember();
    return was;
  },
  show: () => {
    show();
    if (queue.turn?.bbox) map?.reveal(queue.turn.bbox, queue.panel);
  },
  finish: (marked) => run(marked && !checking),
});

/** Put the state into the address; a new search is a step that Back undoes. */
function remember(asNew = false) {
  const { file } = state.query ?? {};
  if (file && !files.includes(file)) files.push(file);
  const kept = file ? { file: files.indexOf(file), bands: state.query.bands } : null;
  history[asNew ? "pushState" : "replaceState"](kept, "", `#${toHash(state)}`);
}

function show() {
  fillForms(state, about);
  fillChange(state.change, canSearch(state) ? askedInWords(state) : "");
  refreshStrip(hits, openHit(), mark);
  showExamples(state, about, { mark: toggle });
  const scale = scaleOf(hits, about.pairs);
  map?.showHits(hits, openHit(), mark, scale);
  map?.showQuery(state.query);
  map?.showArea(state.area);
  map?.colour(state.layer, like, scale);
  find("#results-title").textContent = state.change ? "Changes" : state.detect ? "Detections" : "Hits";
  find("#legend").firstChild.textContent = about.pairs && scale === about.pairs ? "like random tiles " : "less ";
  find("#legend b").textContent = state.change ? "more change" : state.detect ? "more probable" : "more alike";
  layOut(state.grid);
  find("#layer").value = state.layer;
  find("#distinct").setAttribute("aria-pressed", String(state.places));
  find("#distinct").disabled = Boolean(state.change || state.detect);
  find("#legend").hidden = !hits.length && state.layer !== "scores";
  showDial(state, about.parts);
  showMarking(state, { learned, detected, measured, able: canSearch(state) });
  for (const name of ["#geojson", "#geoparquet"]) find(name).disabled = !hits.length;
}

/** Mark a tile; the same mark again takes it away. */
function toggle(hit, name) {
  const wanted = mark(hit) === name ? "" : name;
  if (checking) markChecked(hit, wanted);
  else setMark(state, hit, wanted);
  remember();
  show();
}

function open(hit) {
  if (queue.running) {
    if (hit) queue.go(hit);
    return;
  }
  const before = openHit();
  state.open = hit && { tile: hit.tile, scene: hit.scene };
  if (hit) {
    place.show(hit, about.pictures).then(() => {
      if (place.panel.hidden) return;
      place.panel.scrollIntoView({ block: "nearest" }); // a phone shows the hits without the map
      if (hit.bbox) map?.reveal(hit.bbox, place.panel);
    });
  } else {
    place.close();
    if (before) find(`#strip [data-rank="${before.rank}"] .show`)?.focus();
  }
  remember();
  show();
}

/** Ask something new: marks of the last question do not count for it. */
function ask(query) {
  Object.assign(state, { query, good: [], bad: [], open: null, change: null, detect: null });
  check = null;
  place.close();
  return run(true);
}

function forget() {
  hits = [];
  like = "";
  learned = false;
  detected = measured = null;
  asked.clear();
  find("#ordinary").hidden = true;
  showStrip(hits, { about, markOf: mark, on: {} });
}

/** Say what has to be known about the hits: that they are no better than chance, or why they are. */
function warn({ ordinary, note, hits: [best] }) {
  const said = [sentence(note)];
  if (ordinary) {
    const meaning = closerThan(best.closer_than).replace("than", "than only");
    said.push(`Nothing in the archive is like it: its best hit is ${meaning} of random tiles.`);
  }
  find("#ordinary").textContent = said.filter(Boolean).join(" ");
  find("#ordinary").hidden = !find("#ordinary").textContent;
}

/** Do what the state asks for; a later call takes the place of an earlier one. */
async function run(asNew = false) {
  if (!about.parts) state.blend = null; // a link of an index of two parts
  queue.drop();
  checking = false;
  withdrawBands();
  place.rescore(null);
  remember(asNew);
  show();
  if (state.change) return work("Comparing…", compare);
  if (canSearch(state)) return state.detect ? work("Looking for detections…", detect) : work("Searching…", search);
  running?.abort();
  forget();
  announce("");
  return show();
}

/** Do one thing with the service, and show it; `act` gets the signal that ends it. */
async function work(words, act) {
  running?.abort();
  const mine = running = new AbortController();
  announce(words);
  find("#results").setAttribute("aria-busy", "true");
  try {
    await act(mine.signal);
  } catch (error) {
    if (error.name === "AbortError") return;
    forget();
    complain(inWords(error), remedy(error));
    if (error.bands) offerBands(error.bands, about.bands, (bands) => ask({ ...state.query, bands }));
  }
  if (running === mine) find("#results").removeAttribute("aria-busy");
  show();
}

/** Ask a route with the query, and its picture if there is one. */
const post = (route, body, options) => api.post(route, body, { file: state.query?.file, ...options });

/** Show the hits of an answer to the query. */
function showAnswer(answer) {
  hits = answer.hits.map((hit) => ({ tile: hit.tile_key, ...hit })); // as queries and marks say it
  ({ like, learned } = answer);
  asked.show(answer, state.query, askedInWords(state), about.pictures)
    .catch((error) => complain(error.message));
  showCards();
  if (answer.coverage < 1) complain(`Only ${Math.round(answer.coverage * 100)} % of the index answered.`);
}

const showCards = () => showStrip(hits.slice(0, state.k), { about, markOf: mark, on: { open, mark: toggle } });

async function search(signal) {
  const answer = await (await post("search", toBody(state), { signal })).json();
  detected = measured = null;
  warn(answer);
  announce(answer.hits.length
    ? `${counted(answer.hits.length, "hit")} like ${askedInWords(state)}` : "No hit: widen the filters.");
  find("#status").title = answer.query;
  showAnswer(answer);
  place.rescore(openHit());
}

const detectBody = () => (
  { ...queryBody(state), threshold: state.detect, review: state.review, k: about.max_k });

/** Find every place that the marks ask for. */
async function detect(signal) {
  const checked = check && checks.plain(check);
  detected = await (await post("detections", { ...detectBody(), checked }, { signal })).json();
  takeCheck();
  find("#ordinary").hidden = true;
  announce(detectedInWords(detected));
  showAnswer(detected);
}

/** Keep the check of the detections; one of other detections may fit again. */
function takeCheck() {
  if (detected.check) check = checks.named(detected.check);
  measured = detected.check && detected.check.measured;
}

/** Mark tiles that are drawn at random, one after another, which measures precision and recall. */
async function checkAccuracy(signal) {
  if (!detected.check) {
    detected = await (await post("detections", { ...detectBody(), check: checks.CHECKED }, { signal })).json();
    takeCheck();
  }
  hits = check.tiles.map((one) => ({ ...one, probability: undefined })); // it would sway the person
  checking = true;
  showCards();
  announce(`${counted(hits.length, "tile")} drawn at random: say of each whether it is right`);
  const at = Math.max(check.tiles.findIndex((one) => !one.mark), 0);
  queue.begin(hits, { title: "Check accuracy", done: "Show detections", pictures: about.pictures, at });
}

function markChecked(tile, name) {
  const was = checks.setMark(check, tile, name);
  measure().catch((error) => { if (error.name !== "AbortError") complain(error.message); });
  return was;
}

/** Ask what the marks of the check measure so far; a later call takes the place of an earlier one. */
async function measure() {
  measuring?.abort();
  measuring = new AbortController();
  measured = await (await api.post("accuracy", checks.plain(check), { signal: measuring.signal })).json();
  queue.say(checks.measuredInWords(measured));
  show();
}

/** Mark the tiles that teach most, one after another. */
async function suggest(signal) {
  const answer = await (await post("suggestions", { ...queryBody(state), k: SUGGESTED }, { signal })).json();
  detected = measured = null;
  checking = false;
  announce(`${counted(answer.hits.length, "tile")} to mark next, from which the search learns most`);
  showAnswer(answer);
  queue.begin(hits, { title: "Mark next", done: "Search again", pictures: about.pictures });
}

/** Mark the tiles that are nearest to the threshold, one after another. */
function review() {
  place.close();
  checking = false;
  state.open = null;
  hits = detected.review.map((hit) => ({ tile: hit.tile_key, ...hit }));
  showCards();
  announce(`${counted(hits.length, "tile")} nearest to the threshold`);
  queue.begin(hits, { title: "Review", done: "Detect again", pictures: about.pictures });
}

/** Rank the places by their change between the periods of the state. */
async function compare(signal) {
  const { toward } = state.change;
  if (toward && !like && canSearch(state)) { // a link was opened: what it is toward is not known yet
    like = (await (await post("search", { ...toBody(state), k: 1 }, { signal })).json()).like;
  }
  const found = await (await api.post("change", changeBody(state, like), { signal })).json();
  const kept = like;
  forget();
  like = kept;
  const unit = toward && like ? "" : "°"; // a gain in similarity has none
  hits = found.changes.map((one) => ({ tile: one.tile_key, unit, ...one }));
  showCards();
  announce(changeInWords(found));
}

function inWords(error) {
  const { lonlat, box } = state.query ?? {};
  if (error.status !== 404 || !(lonlat || box)) return error.message;
  return "The archive has no tile there: choose a place inside one of the outlined scenes.";
}

function remedy({ status }) {
  const { lonlat } = state.query ?? {};
  return status === 404 && lonlat ? swapped(lonlat, (place) => ask({ lonlat: place }), about.bbox) : undefined;
}

function drawMode(purpose) {
  map.draw(purpose);
  if (purpose) find("#stage").scrollIntoView({ block: "nearest" });
  for (const name of ["query", "area"]) {
    find(`#draw-${name}`).setAttribute("aria-pressed", String(purpose === name));
  }
  const mode = find("#mode");
  mode.hidden = !purpose;
  mode.textContent = purpose ? "Drag a box on the map. Escape cancels." : "";
}

function drawn(box, purpose) {
  drawMode(null);
  if (purpose === "query") ask({ box });
  else {
    state.area = box;
    run(true);
  }
}

/** Let the browser keep an answer as a file. */
async function save(name, answer) {
  try {
    const address = URL.createObjectURL(await (await answer).blob());
    const link = document.createElement("a");
    Object.assign(link, { href: address, download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(address), 60_000);
    announce(`Saved ${name}.`);
  } catch (error) {
    complain(error.message);
  }
}

const FORMATS = { geojson: "application/geo+json", parquet: "application/vnd.apache.parquet" };

/** Keep what is shown. */
function saveShown(suffix) {
  const accept = FORMATS[suffix];
  if (state.change) return save(`changes.${suffix}`, api.post("change", changeBody(state, like), { accept }));
  if (state.detect) return save(`detections.${suffix}`, post("detections", detectBody(), { accept }));
  return save(`hits.${suffix}`, post("search", toBody(state), { accept }));
}

const saveMarks = (suffix) => (
  save(`marks.${suffix}`, post("marks", queryBody(state), { accept: FORMATS[suffix] })));

/** Keep query, marks, filters and threshold, to run again. */
function saveSearch() {
  const { k, review: count, detect: threshold } = state;
  const title = askedInWords(state).slice(0, 512);
  const kept = threshold && measured ? checks.plain(check) : null;
  return save("saved-search.json", post("saved-search", { ...queryBody(state), title, k, review: count, threshold, check: kept }));
}

/** Go on with a saved search: its marks, filters, threshold and review. */
async function openSaved(file) {
  try {
    const answer = await (await api.post("saved-search/open", await file.text())).json();
    const opened = openedState(answer);
    Object.assign(state, opened.state);
    ({ check } = answer);
    place.close();
    await run(true);
    if (!canSearch(state)) complain("No right mark of the saved search is a tile of this archive.");
    if (!opened.notes.length) return;
    find("#ordinary").textContent = opened.notes.join(" ");
    find("#ordinary").hidden = false;
  } catch (error) {
    complain(error.message);
  }
}

async function copyLink() {
  const note = state.query?.file ? " The picture itself is not part of it." : "";
  try {
    await navigator.clipboard.writeText(location.href);
    announce(`Link copied.${note}`);
  } catch {
    complain(`The browser does not let the link be copied: take it from the address bar.${note}`);
  }
}

function wire() {
  watchAsk({ words: (text) => ask({ text }), place: (lonlat) => ask({ lonlat }), box: (box) => ask({ box }), file: (file) => ask({ file }), saved: openSaved });
  watchFilters((values) => { Object.assign(state, values); run(true); });
  walkByArrows();
  watchChange((change) => { Object.assign(state, { change, open: null, detect: null }); place.close(); run(true); });
  if (about.parts) watchDial(about.parts, (blend) => { state.blend = blend; run(); });
  watchThreshold((detect) => { state.detect = detect; run(); });
  find("#refine").addEventListener("click", () => { state.change = null; run(true); });
  find("#distinct").addEventListener("click", () => { state.places = !state.places; run(true); });
  find("#layout").addEventListener("click", () => { state.grid = !state.grid; remember(); show(); });
  find("#layer").addEventListener("change", ({ target }) => { state.layer = target.value; remember(); show(); });
  find("#link").addEventListener("click", copyLink);
  for (const [name, suffix] of [["geojson", "geojson"], ["geoparquet", "parquet"]]) {
    find(`#${name}`).addEventListener("click", () => saveShown(suffix));
    find(`#marks-${name}`).addEventListener("click", () => saveMarks(suffix));
  }
  find("#save-search").addEventListener("click", saveSearch);
  find("#suggest").addEventListener("click", () => {
    Object.assign(state, { change: null, open: null });
    place.close();
    work("Choosing tiles…", suggest);
  });
  find("#detect").addEventListener("click", () => {
    Object.assign(state, { change: null, open: null, detect: state.detect ? null : THRESHOLD });
    place.close();
    run(true);
  });
  find("#review").addEventListener("click", review);
  find("#check").addEventListener("click", () => {
    place.close();
    state.open = null;
    work("Drawing tiles…", checkAccuracy);
  });
  for (const name of ["query", "area"]) {
    find(`#draw-${name}`).addEventListener("click", () => drawMode(map.drawing === name ? null : name));
  }
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    if (map?.drawing) drawMode(null);
    else if (state.open) open(null);
  });
  window.addEventListener("popstate", () => { goBack(); });
}

function goBack() {
  const kept = history.state;
  state = fromHash(location.hash);
  if (kept && files[kept.file]) state.query = { file: files[kept.file], bands: kept.bands };
  map?.look(state.view);
  map?.ground?.use(state.ground);
  redraw();
  return reopen();
}

async function reopen() {
  if (!state.open) place.close();
  await run();
  if (state.open) open(openHit() ?? state.open);
}

function startMap() {
  try {
    map = new MapView(about, state.view, state.ground, {
      ground: () => { remember(); redraw(); },
      place: (lonlat) => { if (!queue.running) ask({ lonlat }); }, // a slip would end the marking
      hit: (rank) => open(hits[rank - 1]),
      box: drawn,
      view: (view) => { state.view = view; remember(); },
    });
  } catch (error) {
    if (!error.message.includes("WebGL")) throw error;
    find("#map").replaceChildren();
    find("#no-map").textContent = NO_MAP;
    find("#no-map").hidden = false;
    document.body.classList.add("no-map");
  }
}

/** Draw the pictures again with the bands that were chosen. */
function redraw() {
  const before = look;
  look = String(lookOf(state.ground));
  api.lookLike(lookOf(state.ground));
  if (look === before || !hits.length) return;
  showCards();
  if (state.open) place.show(openHit() ?? state.open, about.pictures);
  show();
}

function describe() {
  const [first, last] = [day(about.since), day(about.until)];
  find("#about").textContent = `${counted(about.rows, "tile")}, ${first === last ? first : `${first} to ${last}`}`;
  const embeds = about.bands.length > 0; // imported embeddings come without an encoder
  find("#drops").textContent = embeds ? "A picture or a saved search" : "A saved search";
  find("#needs").textContent = embeds
    ? `PNG, JPEG or GeoTIFF; the encoder needs ${about.bands.join(", ")}.`
    : "No query pictures: these embeddings were imported, and their encoder is not here."
      + (about.pictures ? " A tile is shown as the scene nearest to its date shows it." : "");
  find("#words-row").hidden = !about.words;
  find("#map-hint").textContent = about.words ? "Or click a place on the map, or:" : "Click a place on the map, or:";
}

async function start() {
  try {
    offerIndexes().catch((error) => complain(error.message));
    about = await described;
  } catch (error) {
    complain(error.message);
    return;
  }
  describe();
  redraw();
  startMap();
  wire();
  await reopen();
  if (!about.pictures) complain(`No pictures: ${about.no_pictures_because}`);
  await map?.first; // the outlines of many scenes are long to load
  try {
    const { features, total } = await api.footprints(MOST_FOOTPRINTS);
    map?.showScenes(features.filter((one) => one.geometry));
    if (!canSearch(state) && !state.change && about.pictures) announce(`${counted(total, "scene")}. Click one to begin.`);
  } catch (error) {
    complain(error.message);
  }
}

start();
