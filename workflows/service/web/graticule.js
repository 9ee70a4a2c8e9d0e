// Lines of longitude and latitude with labels, so that a map without a base map says where it is.

import { element } from "./dom.js";

const STEPS = [30, 15, 10, 5, 2, 1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001];
const LINES = 5;
const APART_PX = 80; // a label is about this wide

function step(span) {
  return STEPS.find((one) => span / one >= LINES) ?? STEPS.at(-1);
}

function ticks(low, high, by) {
  const first = Math.ceil(low / by);
  const count = Math.min(200, Math.floor(high / by) - first + 1);
  return Array.from({ length: Math.max(count, 0) }, (_, i) => Number(((first + i) * by).toFixed(6)));
}

function lines(map) {
  const bounds = map.getBounds();
  const [west, east] = [bounds.getWest(), bounds.getEast()];
  const [south, north] = [Math.max(bounds.getSouth(), -85), Math.min(bounds.getNorth(), 85)];
  const by = step(Math.max(east - west, 1e-6));
  return { lons: ticks(west, east, by), lats: ticks(south, north, by), west, east, south, north };
}

function features({ lons, lats, west, east, south, north }) {
  const [dx, dy] = [east - west, north - south];
  const made = (coordinates) => ({
    type: "Feature", properties: {}, geometry: { type: "LineString", coordinates },
  });
  return {
    type: "FeatureCollection",
    features: [
      ...lons.map((x) => made([[x, Math.max(south - dy, -85)], [x, Math.min(north + dy, 85)]])),
      ...lats.map((y) => made([[west - dx, y], [east + dx, y]])),
    ],
  };
}

function name(value, positive, negative) {
  const shown = Number(Math.abs(value).toFixed(4));
  return value === 0 ? "0°" : `${shown}° ${value > 0 ? positive : negative}`;
}

/** Draw the lines below the other layers, and labels along the edges. */
export function addGraticule(map, host) {
  map.addSource("graticule", { type: "geojson", data: { type: "FeatureCollection", features: [] } });
  map.addLayer({
    id: "graticule", type: "line", source: "graticule",
    paint: { "line-color": "#9fb3c1", "line-width": 0.7, "line-opacity": 0.7 },
  });
  const labels = element("div", { class: "graticule", "aria-hidden": "true" });
  host.append(labels);
  const place = () => {
    const seen = lines(map);
    const { clientWidth: width, clientHeight: height } = host;
    const made = [];
    let last = -Infinity;
    for (const lon of seen.lons) {
      const { x } = map.project([lon, seen.south]);
      const folded = ((lon + 180) % 360 + 360) % 360 - 180;
      if (x <= 110 || x >= width - 90 || x - last < APART_PX) continue;
      made.push([name(folded, "E", "W"), "lon", x]);
      last = x;
    }
    for (const lat of seen.lats) {
      const { y } = map.project([seen.west, lat]);
      if (y > 100 && y < height - 40) made.push([name(lat, "N", "S"), "lat", y]);
    }
    labels.replaceChildren(...made.map(([text, kind, at]) => {
      const label = element("span", { class: kind }, text);
      label.style[kind === "lon" ? "left" : "top"] = `${Math.round(at)}px`;
      return label;
    }));
  };
  const draw = () => map.getSource("graticule").setData(features(lines(map)));
  map.on("move", place);
  map.on("resize", place);
  map.on("moveend", draw);
  place();
  draw();
}
