// Layers below the hits that colour every place of the archive: similarity, or principal components.

import { request } from "./api.js";
import { COLOURS, stops } from "./scale.js";

const SCHEME = "skysift-places";
const MOST_ZOOM = 14;
const NAMES = ["scores", "colours"];

/** Let the map get its tiles as the page gets everything else, with the token. */
function listen(maplibregl) {
  maplibregl.addProtocol(SCHEME, async ({ url }, { signal }) => {
    const answer = await request(url.replace(`${SCHEME}://`, ""), { signal });
    return { data: await answer.arrayBuffer() };
  });
}

function paint(name, pairs) {
  if (name === "colours") return ["to-color", ["get", "colour"]];
  const shade = ["interpolate", ["linear"], ["get", "score"], ...stops(pairs).flat()];
  return ["interpolate", ["linear"], shade, ...COLOURS];
}

/** The coloured places of a map; `below` is the layer under which they lie. */
export class PlaceLayers {
  constructor(map, below) {
    Object.assign(this, { map, below, shown: null });
    listen(window.maplibregl);
  }

  /** Show "scores" of a vector on a scale, "colours", or nothing. */
  show(name, like, scale) {
    const wanted = name === "colours" || (name === "scores" && like) ? name : "";
    const address = { scores: `v1/scores/{z}/{x}/{y}.mvt?like=${like}`, colours: "v1/colours/{z}/{x}/{y}.mvt" }[wanted];
    if (this.shown === address) return;
    this.shown = address;
    for (const one of NAMES) this.remove(one);
    if (!wanted) return;
    this.map.addSource(wanted, { type: "vector", tiles: [`${SCHEME}://${address}`], maxzoom: MOST_ZOOM });
    for (const layer of [wanted, `${wanted}-places`]) {
      this.map.addLayer({
        id: layer, type: "fill", source: wanted, "source-layer": layer,
        paint: { "fill-color": paint(wanted, scale), "fill-opacity": 0.6, "fill-antialias": false },
      }, this.below);
    }
  }

  remove(name) {
    for (const layer of [name, `${name}-places`]) if (this.map.getLayer(layer)) this.map.removeLayer(layer);
    if (this.map.getSource(name)) this.map.removeSource(name);
  }
}
