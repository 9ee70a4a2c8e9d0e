"""Scores of an encoder on a labelled dataset, beside its backbone's features and chance."""

from collections.abc import Mapping
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
from pipeline.datasets.embed import embed_images, project_features
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
    by_blend = {}
    for blend, z in weighted.items():
        z_QD, z_ND = np.split(z, [len(queries)])
        by_blend[blend] = evaluate_labels(
            z_QD,
            rows.y_QC,
            z_ND,
            rows.y_NC,
            dataset.classes,
            k=k,
            exclude_self=rows.exclude_self,
            rare_counts=rows.counts_C,
        )
    comparison = None
    if compared:
        own = {f"{OWN}, blend {blend}" if blend else OWN: z for blend, z in weighted.items()}
        frozen = {} if features is None else {FROZEN: features}
        beside = {RANDOM: random_vectors(len(chosen), 0)} | frozen | own
        split_up = {name: np.split(z, [len(queries)]) for name, z in beside.items()}
        near_Q = near_duplicates(
            *split_up[FROZEN if frozen else next(iter(own))], rows.exclude_self
        )
        pairs = {name: (z_QD, z_ND) for name, (z_QD, z_ND) in split_up.items()}
        comparison = compare(pairs, rows, dataset.classes, k, near_Q)
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
    search their own split, where the two cannot be told apart.
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
    return features, project_features(encoder, features)
