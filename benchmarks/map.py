"""The map of an archive of a million places: the layers of all places, and the first picture.

    python -m benchmarks.map [--full] [--folder FOLDER]

992 scenes lie beside each other, each a COG of 512 x 512 pixels and 1,024 tiles of 128 values.
Layers are drawn in this process, without HTTP; each map tile is asked for once. The page is opened
by Chromium (software rendering, on the same cores) from a service that says it is ready.
"""

import argparse
import shutil
import statistics
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
from playwright.sync_api import Browser, sync_playwright

from benchmarks.map_world import ROWS, World, make_archive
from benchmarks.measure import Row, publish, seconds
from benchmarks.service import serving
from benchmarks.vectors import clustered
from pipeline.indexing.driver import build_index
from pipeline.indexing.spec import IndexSpec
from pipeline.runtime.cluster import ray_session
from pipeline.search.searcher import Searcher
from workflows.service.layers import Layers, TileNumber, to_text
from workflows.service.mosaic import MapTile

WORLD = World(tile_px=16, dimension=128, spread=True)
ZOOMS = range(7, 15)
_WEBGL = ("--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader")
_WEBGL += ("--enable-unsafe-swiftshader",)
_EMPTY_MAP = """<!doctype html><link rel="stylesheet" href="web/vendor/maplibre-gl.css">
<script src="web/vendor/maplibre-gl-csp.js"></script><div id="map" style="height: 600px"></div>
<script>
  const picture = document.createElement("canvas").toDataURL();
  maplibregl.setWorkerUrl("web/vendor/maplibre-gl-csp-worker.js");
  const layer = { id: "t", type: "raster", source: "t", paint: { "raster-fade-duration": 0 } };
  const sources = { t: { type: "raster", tiles: [picture], tileSize: 256 } };
  const style = { version: 8, sources, layers: [layer] };
  const map = new maplibregl.Map({ container: "map", style });
  const loaded = ({ tile }) => {
    if (tile?.state !== "loaded") return;
    map.off("sourcedata", loaded);
    map.once("render", () => requestAnimationFrame(() => performance.mark("first-picture")));
  };
  map.on("sourcedata", loaded);
</script>"""
_MARK = "performance.getEntriesByName('first-picture')[0]?.startTime ?? null"
_READY_S = 300.0


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="Three times as many tiles and visits.")
    parser.add_argument("--folder", type=Path, help="Keep the index here, and use it when there.")
    given = parser.parse_args()
    times = 3 if given.full else 1
    with tempfile.TemporaryDirectory(prefix="bm") as temporary, ray_session():
        folder = given.folder or Path(temporary)
        index = str(folder / "index")
        if not Path(index).exists():
            build_index(make_archive(folder, WORLD), index, IndexSpec(kind="ivf_flat", nlist=1024))
        publish("map", [*_layers(index, 5 * times), *_page(index, 5 * times)])


def _layers(index: str, tiles_a_zoom: int) -> list[Row]:
    searcher = Searcher.local(index)
    layers = Layers(searcher)
    west, south, east, north = searcher.manifest.bbox
    rng = np.random.default_rng(0)
    places = [
        MapTile.at(rng.uniform(west, east), rng.uniform(south, north), zoom)
        for zoom in ZOOMS
        for _ in range(tiles_a_zoom)
    ]
    numbers = [(tile.z, tile.x, tile.y) for tile in places]
    queries = [to_text(query) for query in next(iter(clustered(3, WORLD.dimension, seed=9)))]
    rows = []
    for name, draws in (
        ("likeness", [lambda at, like=like: layers.scores(like, at) for like in queries]),
        ("look", [layers.colours]),
    ):
        rows += _layer(name, draws, numbers)
    return rows


def _layer(
    name: str, draws: list[Callable[[TileNumber], bytes]], numbers: list[TileNumber]
) -> list[Row]:
    """Draw the first map tile of each layer, and many further ones of the first."""
    firsts = [seconds(lambda draw=draw: draw(numbers[0])) for draw in draws]
    further = [1e3 * seconds(lambda at=at: draws[0](at)) for at in dict.fromkeys(numbers[1:])]
    places = f"{ROWS:,} places of {WORLD.dimension} values"
    first, *others = firsts
    half, most = statistics.median(further), float(np.percentile(further, 95))
    after = f"; of another query {statistics.median(others):.2f} s" if others else ""
    note = f"Once for an index version: the places are gathered{after}."
    what = f"every place by {name}"
    return [
        Row(what=f"{what}: first map tile, {places}", ours=first, unit="s", ratio=first, note=note),
        Row(
            what=f"{what}: further map tiles, p50 of {len(further)} (zoom 7 to 14)",
            ours=half,
            unit="ms",
            ratio=half,
            goal=150,
            direction="at most",
        ),
        Row(what=f"{what}: the same, p95", ours=most, unit="ms", ratio=most),
    ]


def _page(index: str, visits: int) -> list[Row]:
    chromium = shutil.which("chromium")
    with serving(index) as address, sync_playwright() as playwright:
        _wait_until_ready(address)
        browser = playwright.chromium.launch(executable_path=chromium, args=_WEBGL)
        _, *empty = [_visit(browser, address, _EMPTY_MAP) for _ in range(visits + 1)]
        first, *later = [_visit(browser, address) for _ in range(visits + 1)]
        browser.close()
    limit, again = statistics.median(empty), statistics.median(later)
    what = f"first picture of the ground after the page's navigation, {ROWS:,} tiles"
    note = "Chromium at 1280 x 800 without a GPU shares the two cores with the service"
    against = "an empty map of one picture"
    return [
        Row(
            what=f"{what}: the first visit of a service",
            ours=first,
            unit="s",
            peer=limit,
            against=against,
            ratio=first,
            goal=1,
            direction="at most",
            note=f"{note}; it has shown maps before.",
        ),
        Row(
            what=f"{what}: median of {len(later)} later visits",
            ours=again,
            unit="s",
            peer=limit,
            against=against,
            ratio=again,
            goal=1,
            direction="at most",
            note=f"{note}. The browser's cache is empty.",
        ),
    ]


def _wait_until_ready(address: str) -> None:
    until = time.monotonic() + _READY_S
    while True:
        try:
            urllib.request.urlopen(f"{address}/v1/ready", timeout=60).close()
            return
        except urllib.error.HTTPError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)


def _visit(browser: Browser, address: str, html: str | None = None) -> float:
    """Open the page, or another, with an empty cache; return the seconds to the first picture."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    if html is not None:
        page.route(f"{address}/", lambda route: route.fulfill(body=html, content_type="text/html"))
    page.goto(address)
    while (taken_ms := page.evaluate(_MARK)) is None:  # the page forbids `wait_for_function`
        page.wait_for_timeout(100)
    context.close()
    return float(taken_ms) / 1e3


if __name__ == "__main__":
    main()
