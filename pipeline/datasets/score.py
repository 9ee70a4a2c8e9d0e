"""Scores of an encoder on a labelled dataset, beside its backbone's features and chance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from encoders.bundle import Encoder
from pipeline.analysis.comparison import (
    FROZEN,
    RANDOM,
    Comparison,
    LabelledRows,
    compare,
    near_duplicates,
    random_vectors,
)
from pipeline.analysis.evaluation import LabelEvaluation, Vectors, evaluate_labels
from pipeline.datasets.embed import embed_images
from storage.dataset import LabelledDataset, searched_splits
from storage.location import Location
from storage.progress import ProgressSink, ignore

OWN = "encoder"


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetScores:
    """Scores on one dataset.

    Attributes
    ----------
    uri
        The dataset.
    by_blend
        The scores by blend; of vectors of one part under the name "".
    comparison
        The same vectors by query, beside the backbone's features and random vectors; None where
        that was not asked for.
    rows, sources
        Row number and source of each query.
    """

    uri: str
    by_blend: Mapping[str, LabelEvaluation]
    comparison: Comparison | None
    rows: NDArray[np.int64]
    sources: NDArray[np.str_]


def score_dataset(
    encoder: Encoder,
    uri: str | Location,
    ways: Mapping[str, Vectors],
    *,
    split: str = "test",
    k: int = 50,
    compared: bool = False,
    progress: ProgressSink = ignore,
) -> DatasetScores:
    """Score the queries of a split against the rows that are known before it.

    Parameters
    ----------
    encoder, uri
        The encoder, and a dataset of its bands; its labels may be others than those it learned.
    ways
        See :func:`pipeline.analysis.evaluation.blends_to_score`.
    split, k
        Split of the queries, and depth of nDCG@k and similar metrics.
    compared
        Also score by query, beside the features before the head and random vectors.

    Raises
    ------
    ConfigError, EncoderMismatchError, NotFoundError
        The dataset is not there, or has no row to score, or other bands.
    """
    dataset = LabelledDataset.open(uri)
    queries, items = dataset.labelled(split), dataset.labelled(*searched_splits(split))
    rows = _labelled_rows(dataset, queries, items, own=split == "train")
    chosen = np.concatenate([queries, items])
    features, vectors = _embedded(encoder, dataset, chosen, compared, progress)
    weighted = {blend: weigh(vectors) for blend, weigh in ways.items()}
    by_blend = {
        blend: evaluate_labels(
            z[: len(queries)],
            rows.y_QC,
            z[len(queries) :],
            rows.y_NC,
            dataset.classes,
            k=k,
            exclude_self=rows.exclude_self,
            rare_counts=rows.counts_C,
        )
        for blend, z in weighted.items()
    }
    comparison = None
    if compared:
        own = {f"blend {blend}" if blend else OWN: z for blend, z in weighted.items()}
        frozen = {} if features is None else {FROZEN: features}
        known = vectors if features is None else features
        comparison = _compared(frozen | own, known, rows, dataset.classes, k)
    return DatasetScores(
        uri=str(uri),
        by_blend=by_blend,
        comparison=comparison,
        rows=queries,
        sources=dataset.rows["source"].to_numpy(str)[queries],
    )


def _labelled_rows(
    dataset: LabelledDataset, queries: NDArray[np.int64], items: NDArray[np.int64], *, own: bool
) -> LabelledRows:
    """Return the labels of queries and items, and their scene classes where both sides share some.

    Groups that lie in one split, such as blocks of ground, are no scene classes; ``own`` queries
    search their own split, where the two look the same.
    """
    group = dataset.rows.get("group", dataset.rows["source"]).to_numpy(str)
    shared = not own and np.isin(group[queries], group[items]).any()
    return LabelledRows(
        y_QC=dataset.labels[queries],
        y_NC=dataset.labels[items],
        counts_C=dataset.labels[dataset.labelled("train")].sum(axis=0).astype(float),
        group_Q=group[queries] if shared else None,
        group_N=group[items] if shared else None,
        exclude_self=np.arange(len(queries)) if own else None,
    )


def _compared(
    vectors: Mapping[str, NDArray[np.float32]],
    known: NDArray[np.float32],
    rows: LabelledRows,
    classes: Sequence[str],
    k: int,
) -> Comparison:
    """Compare vectors of the queries and items, and chance; ``known`` tells near-duplicates."""
    q = len(rows.y_QC)
    near_Q = near_duplicates(known[:q], known[q:], rows.exclude_self)
    beside = {RANDOM: random_vectors(len(known), 0), **vectors}
    pairs = {name: (z[:q], z[q:]) for name, z in beside.items()}
    return compare(pairs, rows, classes, k, near_Q)


def _embedded(
    encoder: Encoder,
    dataset: LabelledDataset,
    rows: NDArray[np.int64],
    compared: bool,
    progress: ProgressSink,
) -> tuple[NDArray[np.float32] | None, NDArray[np.float32]]:
    """Return the backbone's features of rows where they are compared, and the vectors."""
    if not compared or encoder.spec.head.get("kind") == "identity":
        return None, embed_images(encoder, dataset, rows, progress=progress)
    features = embed_images(encoder, dataset, rows, projected=False, progress=progress)
    return features, encoder.projected(features)
