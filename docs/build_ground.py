"""Make ``workflows/service/web/vendor/natural-earth.json``: land, borders and places of the map.

npm pack world-atlas@2.0.2
pip download --no-deps geopandas==0.14.4
python docs/build_ground.py world-atlas-2.0.2.tgz geopandas-0.14.4-py3-none-any.whl

Both packages carry data of Natural Earth, which is in the public domain. Coordinates are rounded to
hundredths of a degree, about a kilometre, and small islands are left out.
"""

import json
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
from shapely import Geometry, get_parts, make_valid, simplify, unary_union
from shapely.geometry import LineString, Polygon, mapping

WEB = Path(__file__).parents[1] / "workflows" / "service" / "web"
TOLERANCE_DEGREES, LEAST_ISLAND = 0.05, 0.03


def arcs_of(topology: dict[str, Any]) -> list[np.ndarray[Any, Any]]:
    """Return the arcs of a TopoJSON document in degrees."""
    scale, shift = (np.array(topology["transform"][name]) for name in ("scale", "translate"))
    return [np.cumsum(arc, axis=0) * scale + shift for arc in topology["arcs"]]


def rings_of(geometry: dict[str, Any], arcs: list[np.ndarray[Any, Any]]) -> list[Polygon]:
    """Return the polygons of a TopoJSON geometry."""

    def ring(numbers: list[int]) -> np.ndarray[Any, Any]:
        parts = [arcs[n] if n >= 0 else arcs[~n][::-1] for n in numbers]
        return np.concatenate([parts[0], *(part[1:] for part in parts[1:])])

    polygons = geometry["arcs"] if geometry["type"] == "MultiPolygon" else [geometry["arcs"]]
    return [Polygon(ring(outer), [ring(n) for n in holes]) for outer, *holes in polygons]


def rounded(geometry: Geometry) -> Any:
    """Return a geometry as GeoJSON with two decimals."""

    def shorter(value: Any) -> Any:
        if isinstance(value, float):
            return round(value, 2)
        return [shorter(part) for part in value]

    known = mapping(geometry)
    return {"type": known["type"], "coordinates": shorter(known["coordinates"])}


def used_twice(countries: list[dict[str, Any]]) -> set[int]:
    """Return the arcs that two countries share: their borders."""
    seen: dict[int, int] = {}
    for country in countries:
        polygons = country["arcs"] if country["type"] == "MultiPolygon" else [country["arcs"]]
        for number in {n if n >= 0 else ~n for rings in polygons for ring in rings for n in ring}:
            seen[number] = seen.get(number, 0) + 1
    return {number for number, count in seen.items() if count > 1}


def main(atlas: str, datasets: str) -> None:
    """Write the file."""
    with tarfile.open(atlas) as package:
        document = package.extractfile("package/countries-50m.json")
        assert document is not None
        topology = json.load(document)
    arcs, objects = arcs_of(topology), topology["objects"]
    land = [
        part
        for geometry in objects["land"]["geometries"]
        for part in rings_of(geometry, arcs)
        if part.area > LEAST_ISLAND
    ]
    land = [p for p in get_parts(make_valid(simplify(land, TOLERANCE_DEGREES))) if p.area]
    shared = sorted(used_twice(objects["countries"]["geometries"]))
    borders = simplify(unary_union([LineString(arcs[n]) for n in shared]), TOLERANCE_DEGREES)
    with tempfile.TemporaryDirectory() as folder:
        zipfile.ZipFile(datasets).extractall(folder)
        cities = gpd.read_file(f"{folder}/geopandas/datasets/naturalearth_cities")
    features = [
        {"type": "Feature", "properties": {"kind": kind, **more}, "geometry": rounded(geometry)}
        for kind, more, geometry in [
            *(("land", {}, polygon) for polygon in land),
            ("border", {}, borders),
            *(("place", {"name": c["name"]}, c["geometry"]) for _, c in cities.iterrows()),
        ]
    ]
    collection = {"type": "FeatureCollection", "features": features}
    text = json.dumps(collection, separators=(",", ":"), ensure_ascii=False)
    (WEB / "vendor" / "natural-earth.json").write_text(text + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
