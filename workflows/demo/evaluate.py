"""How good the demo's search is: queries that show it, and scores that measure it.

Everything is asked of ground that training never saw. Queries are of the summer day and the
database of the autumn day, so the light, the crops and the colours differ; a query's own ground
is left out of its answer.
"""

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from encoders.bundle import Encoder
from pipeline.analysis.evaluation import evaluate_labels, same_place_recall
from pipeline.analysis.landcover import TileLabels
from pipeline.search.searcher import Searcher
from storage.archive.reader import Archive
from storage.dataset import LabelledDataset
from storage.errors import SkysiftError
from storage.geometry import centres

METRICS = ("macro mAP", "rare mAP", "nDCG@50", "WAP@50", "mAP", "same place R@10")
QUERY_DAY = "20240618"


def held_out_days(dataset: LabelledDataset) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows of the test split that query, and those that are searched."""
    test = dataset.indices("test")
    asks = dataset.rows["scene"].iloc[test].str.endswith(QUERY_DAY).to_numpy(bool)
    return test[asks], test[~asks]


def score(
    dataset: LabelledDataset, archive: Archive, untrained: Encoder
) -> dict[str, dict[str, float]]:
    """Score the archive's vectors, an untrained encoder's and a random ranking.

    Returns
    -------
    dict
        Metrics by name for ``trained``, ``untrained`` and ``random``, and in ``counts`` the
        numbers of ``queries`` and ``items``.
    """
    asks, asked = held_out_days(dataset)
    rows = np.concatenate([asks, asked])
    vectors = {
        "trained": archived_vectors(archive, dataset, rows),
        "untrained": untrained(dataset.images[rows]),
    }
    labels, places = dataset.labels, dataset.rows["tile_key"].to_numpy()
    position = {place: i for i, place in enumerate(places[asked])}
    own = np.array([position.get(place, -1) for place in places[asks]])
    found: dict[str, dict[str, float]] = {}
    for name, z in vectors.items():
        by_label = evaluate_labels(
            z[: len(asks)],
            labels[asks],
            z[len(asks) :],
            labels[asked],
            dataset.classes,
            exclude_self=own,
            rare_counts=labels[dataset.indices("train")].sum(0),
        )
        by_place = same_place_recall(z, places[rows], dataset.rows["scene"].to_numpy()[rows], (10,))
        found[name] = {**by_label.metrics, "same place R@10": by_place["recall@10"]}
        found["random"] = {**by_label.random, "same place R@10": by_place["random recall@10"]}
        found["counts"] = {"queries": by_label.queries, "items": by_label.items}
    return {name: _plain(found[name]) for name in ("trained", "untrained", "random", "counts")}


def archived_vectors(
    archive: Archive, dataset: LabelledDataset, rows: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return what the archive holds for rows of the dataset, float32 (n, D).

    Raises
    ------
    SkysiftError
        A tile of the dataset is not in the archive.
    """
    ids = archived_rows(archive, dataset, rows)
    return archive.read(ids, ["embedding"])["embedding"].astype(np.float32)


def archived_rows(
    archive: Archive, dataset: LabelledDataset, rows: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the archive's row ids of dataset rows, by scene and tile key; int64 (n,).

    Raises
    ------
    SkysiftError
        A tile of the dataset is not in the archive.
    """
    known: dict[tuple[str, str], int] = {}
    for segment in archive.segments:
        part = archive.read_segment(segment.ordinal, ["scene", "tile_key"])
        known.update(
            zip(
                zip(part["scene"], part["tile_key"], strict=True), part["row"].tolist(), strict=True
            )
        )
    table = dataset.rows.iloc[rows]
    wanted = list(zip(table["scene"], table["tile_key"], strict=True))
    missing = [pair for pair in wanted if pair not in known]
    if missing:
        raise SkysiftError(
            f"{len(missing)} labelled tiles are not in archive {archive.uri}, the first is "
            f"{missing[0]}; dataset and archive must have the same tile rules"
        )
    return np.array([known[pair] for pair in wanted], np.int64)


def choose_queries(
    dataset: LabelledDataset, archive: Archive, labels: TileLabels, most: int = 6
) -> NDArray[np.int64]:
    """Choose held-out tiles to show: for each class, rarest first, the one with most of it.

    Parameters
    ----------
    labels
        Class fractions of every tile.

    Returns
    -------
    ndarray
        Row ids of the archive, at most ``most``, none twice; whole tiles without cloud.
    """
    asks, _ = held_out_days(dataset)
    rows = archived_rows(archive, dataset, asks)
    seen = archive.read(rows, ["cloud_fraction", "valid_fraction", "tile_key"])
    clear = (seen["cloud_fraction"] < 0.01) & (seen["valid_fraction"] > 0.99)
    known = {key: i for i, key in enumerate(labels.tile_keys)}
    shares = labels.fractions[[known[key] for key in seen["tile_key"]]] * clear[:, None]
    chosen: list[int] = []
    for name in np.argsort(labels.labels.sum(0), kind="stable"):
        best = int(np.argmax(shares[:, name]))
        if shares[best, name] >= labels.min_fraction:
            chosen.append(int(rows[best]))
            shares[best] = 0
    return np.array(chosen[:most], np.int64)


def _plain(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items()}


K = 40
_TIMED = 50


def ask(archive: Archive, index_uri: str, rows: NDArray[np.int64], recipe: Path) -> dict[str, Any]:
    """Search for the tiles most like some rows of an archive, in three ways that must agree.

    Parameters
    ----------
    archive
        The archive that the index was built from.
    rows
        Row ids that ask, int64 (n,).
    recipe
        Recipe for the command line.

    Returns
    -------
    dict
        JSON values: ``queries`` (row ids), for each of them ``hits`` (row ids, best first, without
        the query's own ground) and ``scores``; ``median_ms`` of single searches; ``asked_from``;
        ``example``, the first query in the words of the command line.

    Raises
    ------
    SkysiftError
        Two ways disagree, or the command line fails.
    """
    vectors = archive.read(rows, ["embedding"])["embedding"].astype(np.float32)
    searcher = Searcher.connect(index_uri)
    found = searcher.search(vectors, k=K)
    _compare("a Ray task", _from_task(index_uri, vectors), found.rows.tolist())
    example = _example(archive, rows[:1])
    others = [row for row in found.rows[0].tolist() if row != rows[0]][:10]
    _compare("the command line", _from_command_line(recipe, example), _named(archive, others))
    return {
        "queries": rows.tolist(),
        **_without_own_ground(archive, rows, found.rows, found.scores),
        "median_ms": _median_ms(searcher, vectors),
        "asked_from": ["the library", "a Ray task", "the command line"],
        "example": example,
    }


def _compare(way: str, answer: list[Any], expected: list[Any]) -> None:
    if answer != expected:
        raise SkysiftError(
            f"{way} got another answer from the demo's index than the library did "
            f"({answer[:1]}, not {expected[:1]}); delete the folder `index` of the demo, run it "
            "again, and report this if it stays"
        )


def _from_task(index_uri: str, vectors: NDArray[np.float32]) -> list[list[int]]:
    """Ask from inside a Ray task; return the row ids of the hits of each query."""

    def search() -> list[list[int]]:
        found: list[list[int]] = Searcher.connect(index_uri).search(vectors, k=K).rows.tolist()
        return found

    answer: list[list[int]] = ray.get(ray.remote(search).remote())
    return answer


def _from_command_line(recipe: Path, example: dict[str, Any]) -> list[tuple[str, str]]:
    """Ask with `skysift search`; return tile key and scene of the hits."""
    call = ["search", "-r", str(recipe), "--tile", example["tile_key"]]
    call += ["--scene", example["scene"], "-k", "10", "--json"]
    done = subprocess.run(  # our own command line, without a shell
        [sys.executable, "-m", "workflows.cli", *call], capture_output=True, text=True, check=False
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise SkysiftError(f"`skysift {' '.join(call)}` failed: {reason}")
    return [(hit["tile_key"], hit["scene"]) for hit in json.loads(done.stdout)["hits"]]


def _named(archive: Archive, rows: list[int]) -> list[tuple[str, str]]:
    found = archive.read(rows, ["tile_key", "scene"])
    return list(zip(found["tile_key"].tolist(), found["scene"].tolist(), strict=True))


def _without_own_ground(
    archive: Archive,
    queries: NDArray[np.int64],
    hits: NDArray[np.int64],
    scores: NDArray[np.float32],
) -> dict[str, Any]:
    """Drop the hits on a query's own place, of any day, and what pads a short answer."""
    places = archive.read(queries, ["tile_key"])["tile_key"]
    kept: dict[str, list[list[Any]]] = {"hits": [], "scores": []}
    for place, row_hits, row_scores in zip(places, hits, scores, strict=True):
        real = row_hits >= 0
        real[real] = archive.read(row_hits[real], ["tile_key"])["tile_key"] != place
        kept["hits"].append(row_hits[real].tolist())
        kept["scores"].append([round(value, 6) for value in row_scores[real].tolist()])
    return kept


def _median_ms(searcher: Searcher, vectors: NDArray[np.float32]) -> float:
    """Time single searches in milliseconds, after the searcher has warmed up."""
    times = []
    for i in range(_TIMED):
        started = time.perf_counter()
        searcher.search(vectors[i % len(vectors)][None], k=10)
        times.append(1000 * (time.perf_counter() - started))
    return round(median(times), 2)


def _example(archive: Archive, row: NDArray[np.int64]) -> dict[str, Any]:
    """Name a query in the words of the command line."""
    found = archive.read(row, ["tile_key", "scene", "bbox"])
    return {
        "tile_key": str(found["tile_key"][0]),
        "scene": str(found["scene"][0]),
        "place": centres(found["bbox"])[0].tolist(),
    }
