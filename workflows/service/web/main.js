// Wires the parts together: every change of the state shows itself and, where it asks, searches.

import { about as described } from "./about.js";
import * as api from "./api.js";
import { Asked } from "./asked.js";
import { offerBands, withdrawBands } from "./bands.js";
import { changeBody, changeInWords, fillChange, watchChange } from "./change.js";
import { announce, complain, counted, day, find, sentence } from "./dom.js";
import { lookOf } from "./ground.js";
import { MapView } from "./mapview.js";
import { fillForms, swapped, watchAsk, watchFilters } from "./panel.js";
import { Place } from "./place.js";
import { indexOf, layOut, refreshStrip, showExamples, showStrip, walkByArrows } from "./results.js";
import { closerThan, scaleOf } from "./scale.js";
import { askedInWords, canSearch, fromHash, markOf, toBody, toHash, toggleMark } from "./state.js";

const MOST_FOOTPRINTS = 5000;
const NO_MAP = "This browser offers no WebGL, so there is no map. Search by coordinates, picture "
  + "or box; the hits below and the export work.";

let state = fromHash(location.hash);
let hits = [];
let about = null;
let map = null;
let running = null;
let like = ""; // the vector of the last answer
const files = []; // pictures that were asked with, for the way back
let look = "";

const mark = (hit) => markOf(state, hit);
const openHit = () => indexOf(hits, state.open);
const place = new Place({
  close: () => open(null),
  step: (tile, scene) => { state.open = { tile, scene }; remember(); },
  search: (tile, scene) => ask({ tile, scene }),
});

const asked = new Asked({
  ask: (tile, scene) => ask({ tile, scene }),
  outline: (geometry) => map?.showAsked(geometry),
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
  find("#legend").firstChild.textContent = about.pairs && scale === about.pairs ? "like random tiles " : "less ";
  find("#legend b").textContent = state.change ? "more change" : "more alike";
  layOut(state.grid);
  find("#layer").value = state.layer;
  find("#distinct").setAttribute("aria-pressed", String(state.places));
  find("#legend").hidden = !hits.length && state.layer !== "scores";
  find("#refine").disabled = !(state.good.length || state.bad.length) || !canSearch(state);
  for (const name of ["#geojson", "#geoparquet"]) find(name).disabled = !hits.length;
}

function toggle(hit, name) {
  toggleMark(state, hit, name);
  remember();
  show();
}

function open(hit) {
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
  Object.assign(state, { query, good: [], bad: [], open: null, change: null });
  place.close();
  return run(true);
}

function forget() {
  hits = [];
  like = "";
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

async function run(asNew = false) {
  running?.abort();
  const mine = running = new AbortController();
  withdrawBands();
  place.rescore(null);
  remember(asNew);
  show();
  if (state.change) {
    await compare(mine);
    return;
  }
  if (!canSearch(state)) {
    forget();
    announce("");
    show();
    return;
  }
  announce("Searching…");
  find("#results").setAttribute("aria-busy", "true");
  try {
    const response = await api.search(toBody(state), state.query?.file, { signal: mine.signal });
    const answer = await response.json();
    hits = answer.hits.map((hit) => ({ tile: hit.tile_key, ...hit })); // as queries and marks say it
    like = answer.like;
    warn(answer);
    place.rescore(openHit());
    asked.show(answer, state.query, askedInWords(state), about.pictures)
      .catch((error) => complain(error.message));
    showStrip(hits, { about, markOf: mark, on: { open, mark: toggle } });
    announce(hits.length ? `${counted(hits.length, "hit")} like ${askedInWords(state)}` : "No hit: widen the filters.");
    find("#status").title = answer.query;
    if (answer.coverage < 1) complain(`Only ${Math.round(answer.coverage * 100)} % of the index answered.`);
  } catch (error) {
    if (error.name === "AbortError") return;
    forget();
    complain(inWords(error), remedy(error));
    if (error.bands) offerBands(error.bands, about.bands, (bands) => ask({ ...state.query, bands }));
  }
  if (running === mine) find("#results").removeAttribute("aria-busy");
  show();
}

/** Rank the places by their change between the periods of the state. */
async function compare(mine) {
  announce("Comparing…");
  find("#results").setAttribute("aria-busy", "true");
  const { toward } = state.change;
  try {
    if (toward && !like && canSearch(state)) { // a link was opened: what it is toward is not known yet
      const body = { ...toBody(state), k: 1 };
      like = (await (await api.search(body, state.query?.file, { signal: mine.signal })).json()).like;
    }
    const found = await (await api.change(changeBody(state, like), { signal: mine.signal })).json();
    const kept = like;
    forget();
    like = kept;
    const unit = toward && like ? "" : "°"; // a gain in similarity has none
    hits = found.changes.map((one) => ({ tile: one.tile_key, unit, ...one }));
    showStrip(hits, { about, markOf: mark, on: { open, mark: toggle } });
    announce(changeInWords(found));
  } catch (error) {
    if (error.name === "AbortError") return;
    forget();
    complain(error.message);
  }
  if (running === mine) find("#results").removeAttribute("aria-busy");
  show();
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

async function save(accept, name) {
  try {
    const response = await (state.change ? api.change(changeBody(state, like), { accept })
      : api.search(toBody(state), state.query?.file, { accept }));
    const address = URL.createObjectURL(await response.blob());
    const link = document.createElement("a");
    Object.assign(link, { href: address, download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(address), 60_000);
    announce(`Saved ${name}.`);
  } catch (error) {
    complain(error.message);
  }
}

const saved = () => (state.change ? "changes" : "hits");

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
  watchAsk({ words: (text) => ask({ text }), place: (lonlat) => ask({ lonlat }), box: (box) => ask({ box }), file: (file) => ask({ file }) });
  watchFilters((values) => { Object.assign(state, values); run(true); });
  walkByArrows();
  watchChange((change) => { Object.assign(state, { change, open: null }); place.close(); run(true); });
  find("#refine").addEventListener("click", () => { state.change = null; run(true); });
  find("#distinct").addEventListener("click", () => { state.places = !state.places; run(true); });
  find("#layout").addEventListener("click", () => { state.grid = !state.grid; remember(); show(); });
  find("#layer").addEventListener("change", ({ target }) => { state.layer = target.value; remember(); show(); });
  find("#link").addEventListener("click", copyLink);
  find("#geojson").addEventListener("click", () => save("application/geo+json", `${saved()}.geojson`));
  find("#geoparquet").addEventListener("click", () => save("application/vnd.apache.parquet", `${saved()}.parquet`));
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
      place: (lonlat) => ask({ lonlat }),
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
  showStrip(hits, { about, markOf: mark, on: { open, mark: toggle } });
  if (state.open) place.show(openHit() ?? state.open, about.pictures);
  show();
}

function describe() {
  const [first, last] = [day(about.since), day(about.until)];
  find("#about").textContent = `${counted(about.rows, "tile")}, ${first === last ? first : `${first} to ${last}`}`;
  const embeds = about.bands.length > 0; // imported embeddings come without an encoder
  find("#drop").hidden = !embeds;
  find("#needs").textContent = embeds
    ? `PNG, JPEG or GeoTIFF; the encoder needs ${about.bands.join(", ")}.`
    : "No pictures: these embeddings were imported, and their encoder is not here.";
  find("#words-row").hidden = !about.words;
  find("#map-hint").textContent = about.words ? "Or click a place on the map, or:" : "Click a place on the map, or:";
}

async function start() {
  try {
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
