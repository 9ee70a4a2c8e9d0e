// The map: footprints, hits, the place that asks, boxes that are drawn, above the ground.

import { element, find } from "./dom.js";
import { tokenHeaders } from "./api.js";
import { addGraticule } from "./graticule.js";
import { Ground, addLand } from "./ground.js";
import { PlaceLayers } from "./layers.js";
import { COLOURS, shadeOf } from "./scale.js";
import { followTheme, water } from "./theme.js";

const HERE = new URL(".", location.href).href;
const EMPTY = { type: "FeatureCollection", features: [] };
const MARKS = ["match", ["get", "mark"], "good", "#0a7a3d", "bad", "#b3261e", "#1c2b36"];

export function ring([west, south, east, north]) {
  const right = east < west ? east + 360 : east;
  return [[[west, south], [right, south], [right, north], [west, north], [west, south]]];
}

const feature = (geometry, properties = {}) => ({ type: "Feature", properties, geometry });

const polygon = (box) => feature({ type: "Polygon", coordinates: ring(box) });

const collection = (features) => ({ type: "FeatureCollection", features });

/** A light line below another, which keeps it in sight on any ground. */
const casing = (source) => ({
  id: `${source}-casing`, type: "line", source,
  paint: { "line-color": "#ffffff", "line-width": 6, "line-opacity": 0.8 },
});

const LAYERS = [
  { id: "scenes", type: "line", source: "scenes",
    paint: { "line-color": "#4f6d84", "line-width": 1, "line-opacity": 0.7 } },
  casing("area"),
  { id: "area", type: "line", source: "area",
    paint: { "line-color": "#12324a", "line-width": 2, "line-dasharray": [3, 2] } },
  { id: "hits-fill", type: "fill", source: "hits",
    paint: {
      "fill-color": ["interpolate", ["linear"], ["get", "shade"], ...COLOURS],
      "fill-opacity": 0, // a hit is an outline; the fill is there to be clicked
    } },
  { id: "hits-edge", type: "line", source: "hits",
    paint: { "line-color": "#14212b", "line-width": ["case", ["get", "open"], 8, 5], "line-opacity": 0.75 } },
  { id: "hits", type: "line", source: "hits",
    paint: {
      "line-color": ["match", ["get", "mark"], "good", "#0a7a3d", "bad", "#b3261e",
        ["interpolate", ["linear"], ["get", "shade"], ...COLOURS]],
      "line-width": ["case", ["get", "open"], 5, 2.5],
    } },
  { id: "hit-points", type: "circle", source: "hit-points", maxzoom: 12,
    paint: {
      "circle-radius": ["case", ["get", "open"], 9, 6],
      "circle-color": ["interpolate", ["linear"], ["get", "shade"], ...COLOURS],
      "circle-stroke-color": MARKS,
      "circle-stroke-width": ["case", ["any", ["get", "open"], ["!=", ["get", "mark"], ""]], 3, 1],
    } },
  casing("asked"),
  { id: "asked", type: "line", source: "asked",
    paint: { "line-color": "#c2185b", "line-width": 3 } },
  casing("query"),
  { id: "query", type: "line", source: "query",
    paint: { "line-color": "#c2185b", "line-width": 3 } },
  { id: "query-point", type: "circle", source: "query", filter: ["==", ["geometry-type"], "Point"],
    paint: {
      "circle-radius": 7, "circle-color": "#c2185b",
      "circle-stroke-color": "#ffffff", "circle-stroke-width": 2,
    } },
  { id: "drawn", type: "fill", source: "drawn",
    paint: { "fill-color": "#c2185b", "fill-opacity": 0.2 } },
];

/**
 * A map over the extent of an archive. `on` has place(lonlat), hit(row), box(box, purpose), view(view).
 * The constructor throws where the browser cannot draw.
 */
export class MapView {
  constructor(about, view, ground, on) {
    Object.assign(this, { on, about });
    this.drawing = null;
    this.ground = new Ground(about, ground, { change: on.ground });
    const { maplibregl } = window;
    maplibregl.setWorkerUrl("web/vendor/maplibre-gl-csp-worker.js");
    const start = view
      ? { center: [view[0], view[1]], zoom: view[2] }
      : { bounds: this.extent(about.bbox), fitBoundsOptions: { padding: 40, maxZoom: 14 } };
    const { sources, layers } = this.ground.style();
    this.map = new maplibregl.Map({
      container: "map", style: { version: 8, sources, layers: [water(), ...layers] },
      attributionControl: { compact: false },
      maxPitch: 0, dragRotate: false, pitchWithRotate: false, ...start,
      transformRequest: (url) => (url.startsWith(HERE) ? { url, headers: tokenHeaders() } : { url }),
    });
    this.map.touchZoomRotate.disableRotation();
    this.map.addControl(new maplibregl.NavigationControl({ showCompass: false }), "top-left");
    this.map.addControl(new maplibregl.ScaleControl(), "bottom-left");
    this.map.getCanvas().setAttribute("aria-label",
      "Map of the archive. Arrow keys move, plus and minus zoom, Enter searches at the middle.");
    this.first = this.ground.join(this.map); // nothing else is drawn before the first picture
    this.ready = this.first.then(() => this.furnish());
  }

  extent([west, south, east, north]) {
    return [[west, south], [east < west ? east + 360 : east, north]];
  }

  furnish() {
    const { map } = this;
    addLand(map, this.about);
    addGraticule(map, find("#map"));
    const names = ["scenes", "area", "hits", "hit-points", "asked", "query", "drawn"];
    for (const name of names) map.addSource(name, { type: "geojson", data: EMPTY });
    for (const layer of LAYERS) map.addLayer(layer);
    this.places = new PlaceLayers(map, "area-casing");
    followTheme(map);
    map.on("click", (event) => this.clicked(event));
    map.on("dataloading", () => { find("#map").dataset.idle = "false"; });
    map.on("idle", () => { find("#map").dataset.idle = "true"; });
    map.on("moveend", () => {
      const { lng, lat } = map.getCenter();
      this.on.view([+lng.toFixed(5), +lat.toFixed(5), +map.getZoom().toFixed(2)]);
    });
    for (const layer of ["hits-fill", "hit-points"]) {
      map.on("mouseenter", layer, () => { map.getCanvas().style.cursor = "pointer"; });
      map.on("mouseleave", layer, () => { map.getCanvas().style.cursor = ""; });
    }
    map.getCanvas().addEventListener("keydown", (event) => {
      if (event.key === "Enter") this.on.place(map.getCenter().wrap().toArray());
    });
    find("#map").append(element("div", { class: "crosshair", "aria-hidden": "true" }));
    this.listenForBoxes();
  }

  clicked(event) {
    if (this.drawing) return;
    const [hit] = this.map.queryRenderedFeatures(event.point, { layers: ["hit-points", "hits-fill"] });
    if (hit) this.on.hit(hit.properties.rank);
    else this.on.place(event.lngLat.wrap().toArray().map((value) => +value.toFixed(6)));
  }

  /** Let the next drag draw a box for a purpose; null ends it. */
  draw(purpose) {
    this.drawing = purpose;
    const { map } = this;
    map.dragPan[purpose ? "disable" : "enable"]();
    map.boxZoom[purpose ? "disable" : "enable"]();
    map.getCanvas().style.cursor = purpose ? "crosshair" : "";
    map.getCanvasContainer().style.touchAction = purpose ? "none" : "";
    this.set("drawn", EMPTY);
  }

  listenForBoxes() {
    const host = this.map.getCanvasContainer();
    const at = (event) => {
      const frame = host.getBoundingClientRect();
      const point = [event.clientX - frame.left, event.clientY - frame.top];
      return this.map.unproject(point).wrap().toArray();
    };
    let start = null;
    const box = (event) => {
      const [x, y] = at(event);
      const sides = [Math.min(start[0], x), Math.min(start[1], y), Math.max(start[0], x), Math.max(start[1], y)];
      return sides.map((value) => +value.toFixed(6));
    };
    host.addEventListener("pointerdown", (event) => {
      if (!this.drawing) return;
      start = at(event);
      host.setPointerCapture(event.pointerId);
    });
    host.addEventListener("pointermove", (event) => {
      if (start) this.set("drawn", polygon(box(event)));
    });
    host.addEventListener("pointerup", (event) => {
      if (!start) return;
      const [drawn, purpose] = [box(event), this.drawing];
      start = null;
      this.draw(null);
      if (drawn[0] < drawn[2] && drawn[1] < drawn[3]) this.on.box(drawn, purpose);
    });
  }

  async set(source, data) {
    await this.ready;
    this.map.getSource(source).setData(data);
  }

  showScenes(features) {
    this.ground.know(features);
    return this.set("scenes", collection(features));
  }

  showHits(hits, open, markOf, scale) {
    const shade = ({ score, probability }) => probability ?? shadeOf(score, scale);
    const shown = [...hits].reverse().map((hit) => ({
      hit, properties: { shade: shade(hit), rank: hit.rank, mark: markOf(hit), open: hit === open },
    }));
    this.set("hits", collection(shown.map(({ hit, properties }) => feature(hit.geometry, properties))));
    return this.set("hit-points", collection(shown.map(({ hit, properties }) => ({
      type: "Feature", properties, geometry: { type: "Point", coordinates: middle(hit.bbox) },
    }))));
  }

  showQuery(query) {
    if (query?.box) return this.set("query", polygon(query.box));
    if (!query?.lonlat) return this.set("query", EMPTY);
    return this.set("query", {
      type: "Feature", properties: {}, geometry: { type: "Point", coordinates: query.lonlat },
    });
  }

  /** The outline of the tile that was asked with; null takes it away. */
  showAsked(geometry) {
    return this.set("asked", geometry ? feature(geometry) : EMPTY);
  }

  /** Colour every place by the scores of a vector, by components, or not. */
  async colour(name, like, scale) {
    await this.ready;
    this.places.show(name, like, scale);
  }

  /** Go where a link or an earlier search looked. */
  look(view) {
    if (view) this.map.jumpTo({ center: view.slice(0, 2), zoom: view[2] });
  }

  showArea(area) {
    return this.set("area", area ? polygon(area) : EMPTY);
  }

  /** The sides of a box on the screen: left, top, right, bottom. */
  onScreen(box) {
    const { x, y } = find("#map").getBoundingClientRect();
    const [[west, south], [east, north]] = this.extent(box);
    const [low, high] = [this.map.project([west, south]), this.map.project([east, north])];
    return [low.x + x, high.y + y, high.x + x, low.y + y];
  }

  /** Fit a tile into the part of the map that a panel and the controls leave free. */
  reveal(box, panel) {
    const [stage, over, controls] = [find("#map"), panel, find("#controls")].map((one) => one.getBoundingClientRect());
    const beside = stage.right - over.left < stage.width * 0.6;
    const right = beside ? stage.right - over.left : 0;
    const top = Math.max(0, (beside ? controls : over).bottom - stage.top);
    const edge = Math.max(10, Math.min(stage.width - right, stage.height - top) / 4);
    const padding = { left: edge, bottom: edge, top: top + edge, right: right + edge };
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.map.fitBounds(this.extent(box), { padding, maxZoom: 16, animate: !calm, duration: 500 });
    this.map.once("moveend", () => { find("#map").dataset.open = this.onScreen(box).join(","); });
  }
}

function middle([west, south, east, north]) {
  return [(west + (east < west ? east + 360 : east)) / 2, (south + north) / 2];
}
