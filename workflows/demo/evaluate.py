"""The quality of the demo's search: scores that measure it, and queries that show it.

All queries are tiles of the summer day on ground that training never saw; a query's own ground is
left out of its hits.
"""

import time
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from encoders.bundle import Encoder
from pipeline.analysis.evaluation import evaluate_labels, same_place_recall
from pipeline.analysis.landcover import TileLabels
from pipeline.search.query import QueryResolver, blended
from pipeline.search.searcher import Searcher
from storage.archive.reader import Archive
from storage.dataset import LabelledDataset
from storage.geometry import centres

METRICS = ("macro mAP", "rare mAP", "nDCG@50", "mAP J>=0.6", "same place R@10")
RANKINGS = ("trained", "labels only", "appearance only", "untrained", "random")
"""What the demo scores: the trained encoder at its own blend and at both ends of the dial, the
weights that training started from, and a random ranking."""
QUERY_DAY = "20240618"
_K, _TIMED = 40, 50


def score(
    dataset: LabelledDataset, trained: Encoder, untrained: Encoder
) -> dict[str, dict[str, float]]:
    """Score the `RANKINGS`: the summer tiles of the test split search the autumn's.

    The trained encoder has two parts. Returns metrics by name for each ranking, and in ``counts``
    the numbers of ``queries`` and ``items``.
    """
    test = dataset.indices("test")
    is_query = dataset.rows["scene"].iloc[test].str.endswith(QUERY_DAY).to_numpy(bool)
    queries, items = test[is_query], test[~is_query]
    rows = np.concatenate([queries, items])
    labels, places = dataset.labels, dataset.rows["tile_key"].to_numpy()
    position = {place: i for i, place in enumerate(places[items])}
    scores: dict[str, dict[str, float]] = {}
    for name, z in _vectors(dataset.images[rows], trained, untrained).items():
        by_label = evaluate_labels(
            z[: len(queries)],
            labels[queries],
            z[len(queries) :],
            labels[items],
            dataset.classes,
            exclude_self=[position.get(place, -1) for place in places[queries]],
            rare_counts=labels[dataset.indices("train")].sum(0),
        )
        by_place = same_place_recall(z, places[rows], dataset.rows["scene"].to_numpy()[rows], (10,))
        scores[name] = {**by_label.metrics, "same place R@10": by_place["recall@10"]}
        scores["random"] = {**by_label.random, "same place R@10": by_place["random recall@10"]}
        scores["counts"] = {"queries": by_label.queries, "items": by_label.items}
    return {name: {m: float(v) for m, v in metrics.items()} for name, metrics in scores.items()}


def _vectors(
    images: NDArray[Any], trained: Encoder, untrained: Encoder
) -> dict[str, NDArray[np.float32]]:
    """Return vectors whose dot products are the scores of each ranking but the random one."""
    parts, whole = trained.spec.parts, trained(images)
    assert parts is not None
    blends = dict(zip(RANKINGS, (parts.blend, 0.0, 1.0), strict=False))
    blended = {name: parts.weighted(whole, blend) for name, blend in blends.items()}
    return {**blended, "untrained": untrained(images)}


def choose_queries(
    dataset: LabelledDataset, archive: Archive, labels: TileLabels, most: int = 6
) -> NDArray[np.int64]:
    """Choose held-out tiles to show: for each class, rarest first, the tile with most of it.

    Returns row ids of the archive, at most ``most``, none twice; whole tiles without cloud.
    """
    names = ["scene", "tile_key", "cloud_fraction", "valid_fraction"]
    tiles = pd.DataFrame(archive.read_all(names))
    tiles = tiles[
        tiles["scene"].str.endswith(QUERY_DAY)
        & tiles["tile_key"].isin(dataset.rows["tile_key"].iloc[dataset.indices("test")])
        & (tiles["cloud_fraction"] < 0.01)
        & (tiles["valid_fraction"] > 0.99)
    ]
    position = {key: i for i, key in enumerate(labels.tile_keys)}
    fractions = labels.fractions[[position[key] for key in tiles["tile_key"]]]
    chosen: list[int] = []
    for label in np.argsort(labels.labels.sum(0), kind="stable"):
        best = int(np.argmax(fractions[:, label]))
        if fractions[best, label] >= labels.min_fraction:
            chosen.append(int(tiles["row"].iloc[best]))
            fractions[best] = 0
    return np.array(chosen[:most], np.int64)


def search_queries(archive: Archive, searcher: Searcher, rows: NDArray[np.int64]) -> dict[str, Any]:
    """Search for the tiles most similar to rows of the archive, int64 (n,).

    Scores are those of the encoder's own blend. Returns JSON values: ``queries`` (row ids), for
    each query ``hits`` (row ids, best first, none on the query's own ground) and ``scores``;
    ``median_ms`` of single searches; ``example``, the tile key, scene and place of the first query.
    """
    queries = archive.read(rows, ["tile_key", "scene", "bbox"])
    resolver = QueryResolver(searcher)
    asked = [blended(searcher, resolver.row(int(row))) for row in rows]
    table = searcher.answer(asked, k=_K).to_pandas()
    elsewhere = table[table["tile_key"] != queries["tile_key"][table["query"]]]
    answers = [elsewhere[elsewhere["query"] == number] for number in range(len(rows))]
    times_s = []
    for i in range(_TIMED):
        started = time.perf_counter()
        searcher.answer(asked[i % len(asked)], k=10)
        times_s.append(time.perf_counter() - started)
    return {
        "queries": rows.tolist(),
        "hits": [answer["row"].tolist() for answer in answers],
        "scores": [answer["score"].astype(float).round(6).tolist() for answer in answers],
        "median_ms": round(1000 * median(times_s), 2),
        "example": {
            "tile_key": str(queries["tile_key"][0]),
            "scene": str(queries["scene"][0]),
            "place": centres(queries["bbox"])[0].tolist(),
        },
    }
