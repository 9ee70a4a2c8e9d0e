// Colours of the map's own layers that follow the light or dark scheme of the system.

const DARK = window.matchMedia("(prefers-color-scheme: dark)");
const PAINTS = [
  ["background", "background-color", "#d9e5ec", "#10181e"],
  ["land", "fill-color", "#f2f0e9", "#202b33"],
  ["borders", "line-color", "#b3a78f", "#5f6d77"],
  ["places", "text-color", "#33485a", "#c3d0da"],
  ["places", "text-halo-color", "#ffffff", "#10181e"],
  ["graticule", "line-color", "#9fb3c1", "#3b4f5d"],
  ["scenes", "line-color", "#4f6d84", "#8fb0c6"],
];

/** The layer below all others, in its colour from the first frame on. */
export function water() {
  const [[id, property, light, dark]] = PAINTS;
  return { id, type: id, paint: { [property]: DARK.matches ? dark : light } };
}

/** Paint now and whenever the system changes its scheme. */
export function followTheme(map) {
  const apply = () => {
    for (const [layer, property, light, dark] of PAINTS) {
      if (!map.getLayer(layer)) continue;
      map.setPaintProperty(layer, `${property}-transition`, { duration: 0 }); // no flash of the other
      map.setPaintProperty(layer, property, DARK.matches ? dark : light);
    }
  };
  DARK.addEventListener("change", apply);
  apply();
}
