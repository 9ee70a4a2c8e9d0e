// The ground below the hits: land and borders, the base map, the scenes themselves, and how these look.

import { request } from "./api.js";
import { complain, day, element, find, sentence } from "./dom.js";

const MOST_DAYS = 400;
const NEWEST = "Newest clear";
const SCHEME = "skysift-mosaic";
const TILE_PX = 256;
const PATIENCE_MS = 1500; // the rest of the map waits no longer for the first picture
const [EMPTY, LEAST_BYTES] = ["", 100]; // a tile without scenes is a picture of one pixel
/** The settings of the ground as the address spells them, with what is left out of it. */
const DEFAULTS = { day: "", bands: "", gamma: "1", opacity: "1" };

/** Read the settings from the words of an address. */
export function groundOf(words) {
  const kept = Object.keys(DEFAULTS).map((name) => [name, words.get(name) ?? DEFAULTS[name]]);
  const ground = Object.fromEntries(kept);
  if (!/^\d{4}-\d{2}-\d{2}$/.test(ground.day)) ground.day = "";
  for (const name of ["gamma", "opacity"]) {
    if (!(Number(ground[name]) >= 0)) ground[name] = DEFAULTS[name];
  }
  return ground;
}

/** Write the settings that are not the defaults. */
export function writeGround(ground, words) {
  for (const [name, value] of Object.entries(ground)) {
    if (value !== DEFAULTS[name]) words.set(name, value);
  }
}

/** Bands and gamma for the address of a picture. */
export function lookOf(ground) {
  const words = new URLSearchParams();
  if (ground.bands) words.set("preset", ground.bands);
  if (ground.gamma !== DEFAULTS.gamma) words.set("gamma", ground.gamma);
  return words;
}

const later = (ms) => new Promise((resolve) => { setTimeout(resolve, ms); });

const LAND = "web/vendor/natural-earth.json";
const of = (kind) => ["==", ["get", "kind"], kind];
const PLACES = {
  id: "places", type: "symbol", source: "land", filter: of("place"), maxzoom: 11,
  layout: { "text-field": ["get", "name"], "text-font": ["sans-serif"], "text-size": 12 },
  paint: { "text-halo-width": 1.5 },
};

/** The land below the scenes, from the lowest layer; names of places only without a base map. */
export function addLand(map, about) {
  const below = ["base", "mosaic"].find((name) => map.getLayer(name));
  const data = new URL(LAND, location.href).href;
  map.addSource("land", { type: "geojson", data, attribution: "Natural Earth" });
  map.addLayer({ id: "land", type: "fill", source: "land", filter: of("land") }, below);
  map.addLayer({ id: "borders", type: "line", source: "land", filter: of("border"),
    paint: { "line-width": 1, "line-dasharray": [4, 2] } }, below);
  if (!about.base_map) map.addLayer(PLACES, below);
}

/** The scenes of the archive on the map, and the controls of the ground. `on.change()` hears them. */
export class Ground {
  constructor(about, settings, on) {
    Object.assign(this, { about, settings, on, scenes: [], notes: new Map(), told: false });
    window.maplibregl.addProtocol(SCHEME, (asked, { signal }) => this.tile(asked.url, signal));
  }

  /** The sources and layers that the map begins with: the base map and the scenes. */
  style() {
    const { about, settings } = this;
    const [sources, layers] = [{}, []];
    if (about.base_map) {
      sources.base = {
        type: "raster", tiles: [about.base_map], tileSize: 256, maxzoom: 19,
        attribution: about.base_map_attribution,
      };
      layers.push({ id: "base", type: "raster", source: "base" });
    }
    if (about.pictures) {
      this.drawn = this.tiles();
      const [west, , east] = about.bbox;
      sources.mosaic = {
        type: "raster", tiles: [this.drawn], tileSize: TILE_PX, maxzoom: about.mosaic_zoom,
        ...(west < east && { bounds: about.bbox }), // nothing is requested where no scene can be
      };
      layers.push({ id: "mosaic", type: "raster", source: "mosaic",
        paint: { "raster-fade-duration": 0, "raster-opacity": Number(settings.opacity) } });
    }
    return { sources, layers };
  }

  /** Take the map that shows the style; resolves when other things may be drawn too. */
  join(map) {
    this.map = map;
    const styled = map.once("style.load");
    if (!this.about.pictures) return styled;
    this.panel = this.controls();
    find("#controls").prepend(this.panel);
    map.on("moveend", () => this.offerDays());
    map.on("error", (event) => this.explain(event));
    map.on("idle", () => this.note());
    return styled.then(() => Promise.race([this.first(), map.once("idle"), later(PATIENCE_MS)]));
  }

  /** Wait for the first picture; leave a mark in the browser's timeline when it is on the screen. */
  first() {
    return new Promise((resolve) => {
      const arrived = ({ sourceId, tile }) => {
        if (sourceId !== "mosaic" || tile?.state !== "loaded") return;
        const { z, x, y } = tile.tileID.canonical;
        if (this.notes.get(`${z}/${x}/${y}`) === EMPTY) return;
        this.map.off("sourcedata", arrived);
        this.map.once("render", () => requestAnimationFrame(() => {
          performance.mark("first-picture");
          resolve();
        }));
      };
      this.map.on("sourcedata", arrived);
    });
  }

  /** Take other settings, from an address. */
  use(settings) {
    this.settings = settings;
    if (!this.panel) return;
    const { bands, gamma, opacity } = this.panel.elements;
    [gamma.value, opacity.value] = [settings.gamma, settings.opacity];
    if (bands) bands.value = settings.bands || this.about.presets[0].name;
    this.offerDays();
    this.show();
  }

  /** The scenes of the archive, whose days are offered where they are in sight. */
  know(scenes) {
    this.scenes = scenes;
    if (this.panel) this.offerDays();
  }

  tiles() {
    const words = lookOf(this.settings);
    if (this.settings.day) words.set("since", this.settings.day);
    if (this.settings.day) words.set("until", this.settings.day);
    return `${SCHEME}://{z}/{x}/{y}?${words}`;
  }

  /** Get a tile as the page gets everything else, with the token, and keep what it does not show. */
  async tile(url, signal) {
    const path = url.replace(`${SCHEME}://`, "");
    const answer = await request(`v1/mosaic/${path}`, { signal });
    const data = await answer.arrayBuffer();
    const note = data.byteLength < LEAST_BYTES ? EMPTY : answer.headers.get("Skysift-Note");
    this.notes.set(path.split("?")[0], note);
    return { data };
  }

  /** Say what the tiles in sight do not show. */
  note() {
    const { map } = this;
    const bounds = map.getBounds();
    const [low, high] = [bounds.getNorthWest(), bounds.getSouthEast()]
      .map((corner) => window.maplibregl.MercatorCoordinate.fromLngLat(corner));
    const zoom = Math.min(Math.round(map.getZoom() + Math.log2(512 / TILE_PX)), this.about.mosaic_zoom);
    const inSight = ([tile]) => {
      const [z, x, y] = tile.split("/").map(Number);
      const [left, top] = [x, y].map((step) => step / 2 ** z);
      const beside = [-1, 0, 1].some((turn) => left + turn < high.x && left + turn + 2 ** -z > low.x);
      return z === zoom && beside && top < high.y && top + 2 ** -z > low.y;
    };
    const said = new Set([...this.notes].filter(inSight).map(([, note]) => note).filter(Boolean));
    const place = find(".note", this.panel);
    const text = [...said].sort((one, other) => other.length - one.length)[0] ?? "";
    place.textContent = sentence(text);
    place.hidden = !text || !Number(this.settings.opacity);
  }

  /** Draw the scenes with the present settings. */
  show() {
    const { map, settings } = this;
    const tiles = this.tiles();
    if (tiles !== this.drawn) {
      this.notes.clear();
      map.getSource("mosaic").setTiles([tiles]);
    }
    this.drawn = tiles;
    map.setPaintProperty("mosaic", "raster-opacity", Number(settings.opacity));
  }

  controls() {
    const { presets } = this.about;
    const step = (text, by, label) => element("button", {
      type: "button", "aria-label": label, onclick: () => this.step(by),
    }, text);
    const range = (name, label, min, max) => element("label", {}, label, element("input", {
      type: "range", name, min, max, step: 0.1, value: this.settings[name],
    }));
    const bands = element("label", {}, "Bands", element("select", { name: "bands" },
      ...presets.map(({ name, title }) => element("option", { value: name }, title))));
    if (this.settings.bands) find("select", bands).value = this.settings.bands;
    return element("form", {
      id: "ground", "aria-label": "Scenes on the map", onsubmit: (event) => event.preventDefault(),
      onchange: () => this.changed(), oninput: (event) => this.slid(event),
    },
    element("div", { class: "days" },
      step("◀", 1, "Earlier day"),
      element("select", { name: "day", "aria-label": "Day of the scenes" }, element("option", { value: "" }, NEWEST)),
      step("▶", -1, "Later day")),
    element("details", {},
      element("summary", {}, "Look"),
      ...(presets.length > 1 ? [bands] : []),
      range("opacity", "Opacity", 0, 1),
      range("gamma", "Brightness", 0.4, 3)),
    element("p", { class: "note", role: "status", hidden: true }));
  }

  changed() {
    const fields = this.panel.elements;
    for (const name of ["day", "bands", "gamma", "opacity"]) {
      const field = fields.namedItem(name);
      if (field) this.settings[name] = field.value;
    }
    if (this.settings.bands === this.about.presets[0].name) this.settings.bands = "";
    this.told = false;
    this.show();
    this.note();
    this.on.change();
  }

  /** Opacity follows the hand; the other settings wait until it lets go. */
  slid({ target }) {
    if (target.name === "opacity") this.map.setPaintProperty("mosaic", "raster-opacity", Number(target.value));
  }

  step(by) {
    const select = this.panel.elements.namedItem("day");
    const next = select.selectedIndex + by;
    if (next < 0 || next >= select.options.length) return;
    select.selectedIndex = next;
    this.changed();
  }

  /** Offer the days of the scenes in sight, the newest first. */
  offerDays() {
    const bounds = this.map.getBounds();
    const [west, south, east, north] = [bounds.getWest(), bounds.getSouth(), bounds.getEast(), bounds.getNorth()];
    const seen = this.scenes.filter(({ geometry, properties }) => properties.datetime
      && geometry.coordinates.flat(geometry.type === "Polygon" ? 0 : 1).some((outline) => {
        const [lons, lats] = [0, 1].map((axis) => outline.map((point) => point[axis]));
        const [w, e] = [Math.min(...lons), Math.max(...lons)];
        const beside = [-360, 0, 360].some((turn) => w + turn <= east && e + turn >= west);
        return beside && Math.min(...lats) <= north && Math.max(...lats) >= south;
      }));
    const days = new Set(seen.map(({ properties }) => properties.datetime.slice(0, 10)));
    if (this.settings.day) days.add(this.settings.day);
    const sorted = [...days].sort().reverse().slice(0, MOST_DAYS);
    const select = this.panel.elements.namedItem("day");
    select.replaceChildren(
      element("option", { value: "" }, NEWEST),
      ...sorted.map((one) => element("option", { value: one }, day(one))));
    select.value = this.settings.day;
  }

  /** Say once why the scenes are not there. */
  explain({ error, sourceId }) {
    if (sourceId !== "mosaic" || this.told) return;
    this.told = true;
    complain(`No picture of the scenes: ${error.message}`);
  }
}
