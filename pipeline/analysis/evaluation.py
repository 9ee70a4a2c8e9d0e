"""Scores of retrieval: by shared labels, or by place where scenes repeat.

Works on arrays that the caller has read (from an archive, a dataset or an encoder). Every score
comes with the score of a random ranking, because with few labels or few scenes chance scores high.

Shapes: Q queries, N database rows, D dimension, C labels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from encoders.metrics import random_ranking_metrics, score_retrieval
from encoders.ranking import nearest
from storage.errors import ConfigError
from storage.parts import EVEN_BLEND, Parts

Vectors = Callable[[ArrayLike], NDArray[Any]]
"""Vectors (N, D) to vectors (N, D) whose cosines are scores."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelEvaluation:
    """Retrieval scored by labels.

    Attributes
    ----------
    queries, items
        Queries that could be scored (they have a relevant item) and rows of the database.
    metrics, random
        The scores of ``encoders.metrics`` by name, of the embeddings and of a random ranking.
    label_ap
        mAP of each label that could be scored; empty without the whole ranking.
    """

    queries: int
    items: int
    metrics: Mapping[str, float]
    random: Mapping[str, float]
    label_ap: Mapping[str, float]


def blends_to_score(parts: Parts | None, asked: Sequence[float] = ()) -> dict[str, Vectors]:
    """Return by name how vectors are scored: at several blends of their two parts, or as they are.

    Parameters
    ----------
    parts
        The parts of the vectors; None where they have one, which is scored under the name "".
    asked
        Blends to score, from 0 to 1; by default both ends, the encoder's own and the even one.

    Returns
    -------
    dict[str, Callable]
        Functions from vectors (N, D) to vectors whose cosines are the scores of the blend.

    Raises
    ------
    ConfigError
        Blends are asked for, and the vectors have one part; or a blend is not from 0 to 1.

    Examples
    --------
    >>> list(blends_to_score(Parts(appearance=2, labels=3)))
    ['0', '0.15', '0.5', '1']
    """
    if parts is None:
        if asked:
            raise ConfigError(
                "evaluate: blend is for vectors of two parts, and these have one; leave it out, or "
                "make an encoder with `skysift encoder make --trained`"
            )
        return {"": np.asarray}
    if wrong := [blend for blend in asked if not 0 <= blend <= 1]:
        raise ConfigError(f"evaluate: blend is {wrong[0]:g}; give numbers from 0 to 1")
    blends = sorted({*asked} or {*parts.measured, EVEN_BLEND})
    return {f"{blend:g}": partial(parts.weighted, blend=blend) for blend in blends}


def evaluate_labels(
    z_QD: ArrayLike,
    y_QC: ArrayLike,
    z_ND: ArrayLike,
    y_NC: ArrayLike,
    classes: Sequence[str],
    *,
    k: int = 50,
    exclude_self: ArrayLike | None = None,
    rare_counts: ArrayLike | None = None,
    full: bool = True,
) -> LabelEvaluation:
    """Score the retrieval of a database by the labels that queries share with their hits.

    Parameters
    ----------
    z_QD, y_QC, z_ND, y_NC
        Embeddings and multi-hot labels of the queries and of the database.
    classes
        Names of the C labels.
    k, exclude_self, rare_counts, full
        As in :func:`encoders.metrics.score_retrieval`.

    Raises
    ------
    ConfigError
        When shapes do not fit.
    """
    y_QC, y_NC = np.asarray(y_QC), np.asarray(y_NC)
    if y_NC.ndim != 2 or len(classes) != y_NC.shape[1]:
        raise ConfigError(f"evaluation: {len(classes)} class names for labels {y_NC.shape}")
    options: dict[str, Any] = {
        "exclude_self": exclude_self,
        "rare_counts": rare_counts,
        "full": full,
    }
    scores = score_retrieval(z_QD, y_QC, z_ND, y_NC, k, **options)
    label_ap = [] if scores.label_ap is None else scores.label_ap.tolist()
    return LabelEvaluation(
        queries=scores.queries,
        items=len(y_NC),
        metrics=scores.metrics,
        random=random_ranking_metrics(y_QC, y_NC, k, **options),
        label_ap={c: ap for c, ap in zip(classes, label_ap, strict=False) if np.isfinite(ap)},
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class SamePlace:
    """Tiles of several scenes that look for their own place in the other scenes.

    Attributes
    ----------
    rows
        Position of each query among the tiles, (Q,).
    place_Q
        Number of the place of each query, from 0.
    scenes
        Number of scenes.
    found, chance
        By depth k: whether one of the first k hits shows the place of the query, 1 or 0 (Q,), and
        the probability of that in a random order.
    """

    rows: NDArray[np.int64]
    place_Q: NDArray[np.int64]
    scenes: int
    found: Mapping[int, NDArray[np.float64]]
    chance: Mapping[int, NDArray[np.float64]]


def find_same_place(
    z_ND: ArrayLike,
    tile_keys: Sequence[str] | NDArray[Any],
    scene_ids: Sequence[str] | NDArray[Any],
    k: Sequence[int],
    *,
    most_queries: int | None = None,
    seed: int = 0,
) -> SamePlace:
    """Let tiles look for their own place in other scenes: a ground truth without labels.

    Every tile whose place another scene shows too is a query; the tiles of all other scenes are
    the database. A query succeeds at k when one of its first k hits has its tile key.

    Parameters
    ----------
    z_ND
        Embeddings of tiles of several scenes.
    tile_keys, scene_ids
        Place and acquisition of each tile, length N.
    k
        Numbers of hits looked at.
    most_queries
        Take at most this many queries, drawn uniformly with ``seed``; the draw depends on the tiles
        and not on their embeddings.

    Raises
    ------
    ConfigError
        When the lengths differ or a k is not positive.
    """
    z_ND = np.asarray(z_ND)
    if not len(z_ND) == len(tile_keys) == len(scene_ids) or min(k, default=1) < 1:
        raise ConfigError(
            f"same-place recall: {len(z_ND)} embeddings, {len(tile_keys)} tile keys, "
            f"{len(scene_ids)} scene ids, k {tuple(k)}: expected equal lengths and k >= 1"
        )
    place_N = np.unique(np.asarray(tile_keys, dtype=str), return_inverse=True)[1].reshape(-1)
    scenes, scene_N = np.unique(np.asarray(scene_ids, dtype=str), return_inverse=True)
    scene_N = scene_N.reshape(-1)
    truths_N = _same_place_elsewhere(place_N, scene_N)
    chosen = np.flatnonzero(truths_N)
    if most_queries is not None and len(chosen) > most_queries:
        rng = np.random.default_rng(seed)
        chosen = np.sort(rng.choice(chosen, most_queries, replace=False))
    _, hits_QK = nearest(z_ND[chosen], z_ND, max(k, default=1), groups=(scene_N[chosen], scene_N))
    found_QK = (hits_QK >= 0) & (place_N[hits_QK] == place_N[chosen, None])
    others_Q = len(z_ND) - np.bincount(scene_N)[scene_N[chosen]]
    return SamePlace(
        rows=chosen,
        place_Q=np.unique(place_N[chosen], return_inverse=True)[1].reshape(-1),
        scenes=len(scenes),
        found={depth: found_QK[:, :depth].any(1).astype(float) for depth in k},
        chance={depth: _chance(truths_N[chosen], others_Q, depth) for depth in k},
    )


def same_place_recall(
    z_ND: ArrayLike,
    tile_keys: Sequence[str] | NDArray[Any],
    scene_ids: Sequence[str] | NDArray[Any],
    k: Sequence[int] = (1, 5, 10),
    *,
    most_queries: int | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Measure how often a tile finds its own place in other scenes: see `find_same_place`.

    Returns
    -------
    dict[str, float]
        ``recall@k`` and ``random recall@k`` for each k, ``queries`` and ``scenes``. Recall is NaN
        when no place occurs in two scenes.

    Raises
    ------
    ConfigError
        When the lengths differ or a k is not positive.
    """
    found = find_same_place(z_ND, tile_keys, scene_ids, k, most_queries=most_queries, seed=seed)
    result = {"queries": float(len(found.rows)), "scenes": float(found.scenes)}
    for depth in k:
        result[f"recall@{depth}"] = _mean(found.found[depth])
        result[f"random recall@{depth}"] = _mean(found.chance[depth])
    return result


def same_group_shares(
    z_QD: ArrayLike,
    group_Q: Sequence[str] | NDArray[Any],
    z_ND: ArrayLike,
    group_N: Sequence[str] | NDArray[Any],
    k: int,
    *,
    exclude_self: ArrayLike | None = None,
) -> NDArray[np.float64]:
    """Return the share of the first k hits of each query that belong to its group, (Q,).

    Parameters
    ----------
    z_QD, z_ND
        Embeddings of the queries and of the database.
    group_Q, group_N
        Group of each query and of each item: the class of its scene, say.
    k
        Number of hits looked at; no more than the database has.
    exclude_self
        Database position of each query itself, or -1; shape (Q,).

    Examples
    --------
    >>> z = np.eye(2)
    >>> same_group_shares(z, ["town", "sea"], z, ["town", "town"], k=1).tolist()
    [1.0, 0.0]
    """
    own_Q = np.full(len(group_Q), -1) if exclude_self is None else np.asarray(exclude_self)
    _, hits_QK = nearest(z_QD, z_ND, k, groups=(own_Q, np.arange(len(group_N))))
    is_same_QK = np.asarray(group_N)[hits_QK] == np.asarray(group_Q)[:, None]
    is_hit_QK = hits_QK >= 0
    shares_Q: NDArray[np.float64] = (is_same_QK & is_hit_QK).sum(1) / is_hit_QK.sum(1)
    return shares_Q


def _same_place_elsewhere(place_N: NDArray[np.int64], scene_N: NDArray[np.int64]) -> NDArray[Any]:
    """Count for each tile the tiles of the same place in other scenes."""
    both_N = place_N * (int(scene_N.max(initial=0)) + 1) + scene_N
    _, group_N, in_scene = np.unique(both_N, return_inverse=True, return_counts=True)
    counts_N: NDArray[Any] = np.bincount(place_N)[place_N] - in_scene[group_N.reshape(-1)]
    return counts_N


def _chance(truths_Q: NDArray[Any], others_Q: NDArray[Any], k: int) -> NDArray[np.float64]:
    """Probability that k of ``others`` items drawn at random hold one of ``truths``."""
    drawn_k = np.arange(k)
    left_Qk = others_Q[:, None] - drawn_k
    missing_Qk = np.clip(left_Qk - truths_Q[:, None], 0, None) / np.maximum(left_Qk, 1)
    chance_Q: NDArray[np.float64] = 1 - missing_Qk.prod(1)
    return chance_Q


def _mean(values: NDArray[Any]) -> float:
    return float(values.mean()) if len(values) else float("nan")
