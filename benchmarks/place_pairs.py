"""Places as supervision: pairs of dates of one's own archive beside labels, on a date held out.

    python -m benchmarks.place_pairs

reads AID (`AID_TAR`), the frozen MobileNetV2 (`MOBILENET_V2`) and two series of five dates of one
ground (NAIP and Landsat, ``../shared/data/scenes``), and writes ``benchmarks/place_pairs.json`` and
a section of ``docs/results.md``. Features and finished runs are kept in `--scratch`.

Each date is held out in turn. Pairs come from the four other dates; the queries are the tiles of
the date held out, the database those of the other dates, and a hit is the same tile. "Uncovered"
takes pairs from the western half of the ground only, and queries from the eastern half.
"""

import os
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.kept_runs import columns_of, kept, parser_of, publish_section, run_all, seconds_of
from benchmarks.results import DATA
from benchmarks.results_runs import World, score
from benchmarks.soft_labels import load_worlds
from encoders.bundle import Encoder
from encoders.places import PlaceRows
from encoders.projection import HALF_WHITENING, principal_head
from pipeline.tiles.grid import grid_for_scene
from pipeline.tiles.read import read_tiles
from pipeline.tiles.spec import GridSpec, TileRules
from pipeline.training.head import learned_vectors, place_head
from pipeline.training.spec import TrainingSpec
from pipeline.training.worker import initial_encoder
from storage.catalog.read import read_scenes
from storage.dataset import LabelledDataset
from storage.scene import BandMapping, CatalogSpec

Floats = NDArray[np.float32]
DATES, TILE_PX, STEPS, DIMENSION = 5, 64, 360, 128
WEIGHT, BLENDS = 0.25, (0.3, 0.5)
SERIES: dict[str, tuple[str, dict[str, Any], GridSpec]] = {
    "NAIP": ("naip_m_4709963_*.tif", {}, GridSpec(resolution=5, tile_px=TILE_PX)),
    "Landsat": (
        "landsat_ucayali_*.tif",
        {"datetime_pattern": r"_(?P<date>\d{4})$"},
        GridSpec(tile_px=TILE_PX, anchor=(-74.72249415376068, -8.282107593468341)),
    ),
}
"""Files, options of the catalog, and grid, as in the recipes of these series."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """Tiles of several dates: features (n, F), tile (n, 2) and number of the date (n,)."""

    features: Floats
    tile: NDArray[np.int64]
    date: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One run: a series, the date held out, and whether the pairs leave its ground out."""

    series: str
    date: int
    uncovered: bool = False


def load_series(name: str, world: World, scratch: Path, backbone: Path) -> Series:
    """Return the tiles of a series with their features, from the scratch folder if known there."""
    cache = scratch / f"places-{name}-{world.digest}.npz"
    if not cache.exists():
        pattern, options, grid = SERIES[name]
        bands = {band: BandMapping(index=i) for i, band in enumerate(("red", "green", "blue"), 1)}
        catalog = CatalogSpec(source=str(DATA / "scenes" / pattern), bands=bands, **options)
        scenes = read_scenes(catalog, tuple(bands)).scenes
        dataset = LabelledDataset.open(str(scratch / "dataset"))
        spec = TrainingSpec(backbone="mobilenet_v2", pretrained=str(backbone), freeze_backbone=True)
        trained = initial_encoder(dataset, spec)
        at_64 = replace(trained.spec, tile_px=TILE_PX)
        encoder = Encoder(at_64, trained.backbone, trained.head)
        parts: list[tuple[Any, ...]] = []
        for date, scene in enumerate(sorted(scenes, key=lambda scene: str(scene.datetime))):
            for batch in read_tiles(scene, grid_for_scene(scene, grid), TileRules(), batch_size=64):
                found = encoder.features(np.ascontiguousarray(batch.pixels))
                parts.append((found, batch.tiles, np.full(len(found), date)))
        features, tile, date_n = (np.concatenate(part) for part in zip(*parts, strict=True))
        np.savez(cache, features=features, tile=tile, date=date_n)
    return Series(**dict(np.load(cache).items()))


def figures(worlds: dict[str, World], series: dict[str, Series], part: Part) -> dict[str, Any]:
    """Return nDCG@50 on AID and same-place recall of every form, for one date held out."""
    world, tiles = worlds["AID"], series[part.series]
    rows, first = world.rows("train"), len(world.features_NF)
    features = np.concatenate([world.features_NF, tiles.features])
    is_west = tiles.tile[:, 0] < np.median(tiles.tile[:, 0])
    usable = tiles.date != part.date
    places = _places(tiles, usable & is_west if part.uncovered else usable, first, features)
    queries = (tiles.date == part.date) & (~is_west if part.uncovered else True)
    learn = partial(
        learned_vectors, features, rows, world.labels_NC[rows], seed=part.date, steps=STEPS
    )
    label, place = learn(), place_vectors(features, places, part.date)
    forms = {
        "frozen features": _unit(features),
        "half-whitened": _half_whitened(features, rows),
        "macl": label,
        f"one head, λ {WEIGHT:g}": learn(places=places),
        "place head": place,
        **{f"two parts, w {w:g}": _blend(place, label, w) for w in BLENDS},
    }
    found: dict[str, Any] = {}
    for name, vectors in forms.items():
        recall = _recall(vectors[first:], tiles, queries, usable)
        found[name] = {"nDCG@50": score(world, vectors[:first], "test")["nDCG@50"], **recall}
    return found


def place_vectors(features: Floats, places: PlaceRows, seed: int) -> Floats:
    """Train a head on the pairs of places alone and return the vectors of all rows."""
    head = place_head(places, DIMENSION, seed=seed, steps=STEPS)
    with torch.inference_mode():
        return _unit(head(torch.from_numpy(features)).numpy())


def _places(tiles: Series, usable: NDArray[np.bool_], first: int, features: Floats) -> PlaceRows:
    """Return the places of the usable tiles; ``first`` is the row of the first tile."""
    rows = np.flatnonzero(usable)
    _, place = np.unique(tiles.tile[rows], axis=0, return_inverse=True)
    groups = [rows[place.reshape(-1) == number] + first for number in range(place.max() + 1)]
    kept = tuple(group for group in groups if len(group) > 1)
    return PlaceRows(inputs=features, places=kept, weight=WEIGHT)


def _recall(
    vectors: Floats, tiles: Series, queries: NDArray[np.bool_], known: NDArray[np.bool_]
) -> dict[str, float]:
    """Return the share of queries with their own tile among the first 1 and 10 hits."""
    order = np.argsort(-(vectors[queries] @ vectors[known].T), axis=1, kind="stable")[:, :10]
    is_same = (tiles.tile[known][order] == tiles.tile[queries][:, None]).all(axis=2)
    return {f"r@{k}": float(is_same[:, :k].any(axis=1).mean()) for k in (1, 10)}


def _unit(vectors: Floats) -> Floats:
    out: Floats = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return out


def _half_whitened(features: Floats, rows: NDArray[np.int64]) -> Floats:
    """Return 128 half-whitened principal scores, fitted to the train rows of AID."""
    head = principal_head(features[rows], DIMENSION, HALF_WHITENING)
    with torch.inference_mode():
        return _unit(head(torch.from_numpy(features)).numpy())


def _blend(place: Floats, label: Floats, weight: float) -> Floats:
    """Return vectors whose product is ``w cos(place) + (1 - w) cos(label)``."""
    return np.concatenate([np.sqrt(weight) * place, np.sqrt(1 - weight) * label], axis=1)


def run(
    worlds: dict[str, World], series: dict[str, Series], scratch: Path, part: Part
) -> dict[str, Any]:
    """Return the figures of a run, from the scratch folder if it is known there."""
    settings = [asdict(part), worlds["AID"].digest, STEPS, WEIGHT, "linear"]
    return kept(scratch, "places", settings, lambda: {"forms": figures(worlds, series, part)})


def collected(found: dict[Part, dict[str, Any]]) -> dict[str, Any]:
    """Return mean and deviation over the dates held out, by series, ground and form."""
    tables: dict[str, Any] = {}
    for part in found:
        ground = "uncovered" if part.uncovered else "covered"
        runs = [
            run["forms"]
            for other, run in found.items()
            if (other.series, other.uncovered) == (part.series, part.uncovered)
        ]
        tables.setdefault(part.series, {})[ground] = {
            form: columns_of([run[form] for run in runs]) for form in runs[0]
        }
    return tables


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    chosen = parser_of(__doc__).parse_args(arguments)
    worlds = load_worlds(chosen.scratch, ["AID"])
    if worlds is None or not (DATA / "scenes").exists():
        print(f"skipped: {DATA / 'scenes'} or the labelled set not found")
        return 0
    weights = DATA / "weights" / "mobilenet_v2_imagenet_folded"
    backbone = Path(os.environ.get("MOBILENET_V2", weights))
    series = {n: load_series(n, worlds["AID"], chosen.scratch, backbone) for n in SERIES}
    plan = [
        Part(series=name, date=date, uncovered=uncovered)
        for uncovered in (False, True)
        for name in SERIES
        for date in range(DATES)
    ]
    found = run_all(partial(run, worlds, series, chosen.scratch), plan, chosen.jobs)
    result = {
        "series": collected(found),
        "tiles": {name: len(tiles.date) for name, tiles in series.items()},
        "seconds": seconds_of(found.values()),
    }
    publish_section("place_pairs", result, chosen.output)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
