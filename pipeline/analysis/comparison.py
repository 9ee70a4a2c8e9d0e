"""Several vectors of the same rows, scored side by side by query, with intervals of differences.

What a head learned shows beside what its backbone knew (the features before the head) and beside
chance (random vectors). Labels that a query or two decide are left out of the means over labels.

Shapes: Q queries, N database rows, D dimension, C labels, M labels that are scored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from encoders.metrics import rare_labels, score_retrieval
from encoders.ranking import nearest
from pipeline.analysis.evaluation import same_group_shares
from pipeline.analysis.intervals import Difference, paired_difference, plain_mean

Values = NDArray[np.float64]
ByQuery = Mapping[str, Values]
"""Columns by name: a score of each query (Q,), or of each query for each of M labels (Q, M)."""
FROZEN, RANDOM = "frozen features", "random vectors"
RANDOM_DIMENSION = 128
LEAST = 5
"""Queries and relevant items that a label needs to be scored."""
TWIN = 0.93
"""Cosine of features from which two images count as nearly equal: of a MobileNetV2, looked at, they
are the same kind of texture or the same place beside it."""
TWINLESS = ", no twins"
"""End of the name of a column without the queries that have a nearly equal item."""
SCENE_HITS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledRows:
    """The labels of queries and of the database that they search.

    Attributes
    ----------
    y_QC, y_NC
        Multi-hot labels.
    counts_C
        Training counts of the labels, which define the rare third.
    group_Q, group_N
        Scene class of each row; None where the dataset has none.
    exclude_self
        Database position of each query itself, or -1, (Q,); None where none is in the database.
    """

    y_QC: NDArray[np.uint8]
    y_NC: NDArray[np.uint8]
    counts_C: Values
    group_Q: NDArray[np.str_] | None = None
    group_N: NDArray[np.str_] | None = None
    exclude_self: NDArray[np.int64] | None = None

    @property
    def scored_C(self) -> NDArray[np.bool_]:
        """Which labels have at least `LEAST` queries and as many relevant items, (C,)."""
        enough: NDArray[np.bool_] = (self.y_QC.sum(0) >= LEAST) & (self.y_NC.sum(0) >= LEAST)
        return enough


def scores_by_query(
    z_QD: ArrayLike, z_ND: ArrayLike, rows: LabelledRows, k: int
) -> dict[str, Values]:
    """Return the columns of a comparison for some vectors, by query.

    Parameters
    ----------
    z_QD, z_ND
        Vectors of the queries and of the database, compared by cosine.
    rows
        Their labels.
    k
        Depth of nDCG@k.

    Returns
    -------
    dict[str, ndarray]
        Columns of :mod:`encoders.metrics` (Q,). ``macro mAP`` and ``rare mAP`` have a column for
        each label (Q, M): with `LEAST` and more queries and relevant items; ``rare mAP, any`` of
        every label that has a query. ``same scene@10``, the share of the first 10 hits of the
        query's scene class, where the rows have scene classes.
    """
    found = score_retrieval(
        z_QD,
        rows.y_QC,
        z_ND,
        rows.y_NC,
        k,
        exclude_self=rows.exclude_self,
        rare_counts=rows.counts_C,
    )
    assert found.label_ap is not None
    assert found.label_ap_QC is not None
    scored_C = np.where(rows.scored_C, found.label_ap, np.nan)
    columns = {
        f"nDCG@{k}": found.by_query[f"nDCG@{k}"],
        "macro mAP": found.label_ap_QC[:, np.isfinite(scored_C)],
        "rare mAP": _rare(rows, found.label_ap_QC, scored_C),
        "rare mAP, any": _rare(rows, found.label_ap_QC, found.label_ap),
        **{name: found.by_query[name] for name in ("mAP J>=0.6", "Jaccard@10", "surplus@10")},
    }
    if rows.group_Q is not None and rows.group_N is not None:
        columns[f"same scene@{SCENE_HITS}"] = _same_scene(z_QD, z_ND, rows, SCENE_HITS)
    return columns


def scene_scores_by_query(
    z_QD: ArrayLike, z_ND: ArrayLike, rows: LabelledRows
) -> dict[str, Values]:
    """Return how alike the hits of queries are, by query (Q,), for rows that have scene classes.

    Returns
    -------
    dict[str, ndarray]
        ``same scene@1`` and ``same scene@10``, the share of the first hits of the query's scene
        class, and ``Jaccard@10`` of the labels.
    """
    found = score_retrieval(
        z_QD, rows.y_QC, z_ND, rows.y_NC, SCENE_HITS, exclude_self=rows.exclude_self, full=False
    )
    return {
        **{f"same scene@{k}": _same_scene(z_QD, z_ND, rows, k) for k in (1, SCENE_HITS)},
        "Jaccard@10": found.by_query["Jaccard@10"],
    }


def _same_scene(z_QD: ArrayLike, z_ND: ArrayLike, rows: LabelledRows, k: int) -> Values:
    assert rows.group_Q is not None
    assert rows.group_N is not None
    return same_group_shares(
        z_QD,
        rows.group_Q,
        z_ND,
        rows.group_N,
        min(k, len(rows.y_NC)),
        exclude_self=rows.exclude_self,
    )


def _rare(rows: LabelledRows, label_ap_QC: Values, label_ap_C: Values) -> Values:
    """Return the columns of the rare third of the labels that have a score, (Q, M)."""
    if not np.isfinite(label_ap_C).any():
        return label_ap_QC[:, :0]
    rare: Values = label_ap_QC[:, rare_labels(rows.counts_C, label_ap_C)]
    return rare


def near_duplicates(
    x_QF: ArrayLike, x_NF: ArrayLike, exclude_self: ArrayLike | None = None, *, cosine: float = TWIN
) -> NDArray[np.bool_]:
    """Return which queries have a nearly equal item in the database, (Q,), by their features.

    Examples
    --------
    >>> near_duplicates([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.1], [1.0, 1.0]]).tolist()
    [True, False]
    """
    x_QF, x_NF = np.asarray(x_QF), np.asarray(x_NF)
    own_Q = np.full(len(x_QF), -1) if exclude_self is None else np.asarray(exclude_self)
    cosine_Q1, _ = nearest(x_QF, x_NF, 1, groups=(own_Q, np.arange(len(x_NF))))
    is_near_Q: NDArray[np.bool_] = cosine_Q1[:, 0] >= cosine
    return is_near_Q


def random_vectors(count: int, seed: int) -> NDArray[np.float32]:
    """Return vectors (count, 128) whose neighbours are chance."""
    shape = count, RANDOM_DIMENSION
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Vectors of the same rows, scored by query.

    Attributes
    ----------
    by_query
        Columns by query of each vectors, by name: chance first, then `FROZEN`, then the others.
    items
        Number of rows of the database.
    is_near_Q
        Which queries have a nearly equal item, (Q,); None where that is not looked at.
    left_out
        Labels that some query has, and that are too few for the means over labels.
    together_Q
        Which queries the bootstrap draws together: see
        :func:`pipeline.analysis.intervals.paired_difference`.
    """

    by_query: Mapping[str, ByQuery]
    items: int
    is_near_Q: NDArray[np.bool_] | None = None
    left_out: Sequence[str] = ()
    together_Q: NDArray[np.int64] | None = None

    @property
    def means(self) -> dict[str, dict[str, float]]:
        """Mean of each column over the queries, then over the labels, by vectors."""
        return {
            name: {column: plain_mean(values) for column, values in columns.items()}
            for name, columns in self.by_query.items()
        }

    @property
    def differences(self) -> dict[str, dict[str, dict[str, Difference]]]:
        """How far each own vectors are above `FROZEN` and above `RANDOM`, by a paired bootstrap."""
        others = [name for name in (FROZEN, RANDOM) if name in self.by_query]
        return {
            name: {other: above(columns, self.by_query[other], self.together_Q) for other in others}
            for name, columns in self.by_query.items()
            if name not in others
        }


def above(
    ours: ByQuery, others: ByQuery, together_Q: NDArray[np.int64] | None = None
) -> dict[str, Difference]:
    """Return how far each column of ours is above that of others, by a paired bootstrap."""
    return {
        name: paired_difference(values, others[name], together_Q=together_Q)
        for name, values in ours.items()
    }


def compare(
    vectors: Mapping[str, tuple[ArrayLike, ArrayLike]],
    rows: LabelledRows,
    classes: Sequence[str],
    k: int,
    is_near_Q: NDArray[np.bool_],
) -> Comparison:
    """Score vectors of the same rows by query, with nDCG once more without near-duplicates.

    Parameters
    ----------
    vectors
        Vectors of the queries (Q, D) and of the database (N, D) by name, in the order to show.
    rows, classes
        The labels of the rows, and the names of the C labels.
    k
        Depth of nDCG@k, at most the size of the database.
    is_near_Q
        Which queries have a nearly equal item: see `near_duplicates`.
    """
    by_query = {}
    for name, (z_QD, z_ND) in vectors.items():
        columns = scores_by_query(z_QD, z_ND, rows, k)
        del columns["rare mAP, any"]
        ndcg_Q = columns[f"nDCG@{k}"]
        by_query[name] = columns | {f"nDCG@{k}{TWINLESS}": np.where(is_near_Q, np.nan, ndcg_Q)}
    asked_C = rows.y_QC.any(0) & ~rows.scored_C
    left_out = [name for name, is_asked in zip(classes, asked_C, strict=True) if is_asked]
    return Comparison(
        by_query=by_query, items=len(rows.y_NC), is_near_Q=is_near_Q, left_out=left_out
    )
