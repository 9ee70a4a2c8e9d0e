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
    scene_scores_by_query,
)
from pipeline.analysis.evaluation import LabelEvaluation, Vectors, evaluate_labels
from pipeline.datasets.embed import embed_images
from pipeline.datasets.unseen import scene_classes, unseen_queries
from storage.dataset import LabelledDataset, searched_splits
from storage.progress import ProgressSink, ignore

OWN = "encoder"
Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """Queries of a dataset or an archive, and the scores of several vectors for each.

    Attributes
    ----------
    uri
        The dataset or archive.
    sources, rows
        Source of each query, and its row number in a dataset; None in an archive.
    comparison
        The encoder's vectors beside the backbone's features and random vectors.
    note
        Sentences about the queries; may be empty.
    """

    uri: str
    sources: NDArray[np.str_]
    comparison: Comparison
    rows: Ints | None = None
    note: str = ""

    def __len__(self) -> int:
        return len(self.sources)


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetScores:
    """Scores on one dataset.

    Attributes
    ----------
    uri
        The dataset.
    by_blend
        The scores by blend; of vectors of one part under the name "".
    compared
        The same vectors by query, beside others; None where that was not asked for.
    unseen
        Queries of scene classes that training never had, which search all other rows; None where
        there are none or they are not known, which the note of ``compared`` says.
    """

    uri: str
    by_blend: Mapping[str, LabelEvaluation]
    compared: Compared | None = None
    unseen: Compared | None = None


def score_dataset(
    encoder: Encoder,
    dataset: LabelledDataset,
    uri: str,
    ways: Mapping[str, Vectors],
    *,
    split: str = "test",
    k: int = 50,
    compared: bool = False,
    learned: frozenset[str] | None = None,
    progress: ProgressSink = ignore,
) -> DatasetScores:
    """Score the queries of a split against the rows that are known before it.

    Parameters
    ----------
    encoder, dataset, uri
        The encoder, and a dataset of its bands; its labels may be others than those it learned.
    ways
        See :func:`pipeline.analysis.evaluation.blends_to_score`.
    split, k
        Split of the queries, and depth of nDCG@k and similar metrics.
    compared
        Also score by query, beside the features before the head and random vectors.
    learned
        Scene classes of the training: see :func:`pipeline.datasets.unseen.learned_classes`.

    Raises
    ------
    ConfigError, EncoderMismatchError
        The dataset has no row to score, or other bands.
    """
    queries, items = dataset.labelled(split), dataset.labelled(*searched_splits(split))
    rows = _labelled_rows(dataset, queries, items, own=split == "train")
    chosen, q = np.concatenate([queries, items]), len(queries)
    features, vectors = _embedded(encoder, dataset, chosen, compared, progress)
    weighted = {blend: weigh(vectors) for blend, weigh in ways.items()}
    by_blend = {
        blend: evaluate_labels(
            z[:q],
            rows.y_QC,
            z[q:],
            rows.y_NC,
            dataset.classes,
            k=k,
            exclude_self=rows.exclude_self,
            rare_counts=rows.counts_C,
        )
        for blend, z in weighted.items()
    }
    if not compared:
        return DatasetScores(uri=uri, by_blend=by_blend)
    known = vectors if features is None else features
    beside = side_by_side(features, weighted)
    pairs = {name: (z[:q], z[q:]) for name, z in beside.items()}
    near_Q = near_duplicates(known[:q], known[q:], rows.exclude_self)
    source = dataset.rows["source"].to_numpy(str)
    is_unseen_Q, note = unseen_queries(dataset, queries, items, learned)
    unseen = np.flatnonzero(is_unseen_Q)
    return DatasetScores(
        uri=uri,
        by_blend=by_blend,
        compared=Compared(
            uri=uri,
            rows=queries,
            sources=source[queries],
            comparison=compare(pairs, rows, dataset.classes, k, near_Q),
            note="" if len(unseen) else note,
        ),
        unseen=Compared(
            uri=uri,
            rows=queries[unseen],
            sources=source[queries[unseen]],
            comparison=_by_scene(dataset, chosen, unseen, beside),
            note=note,
        )
        if len(unseen)
        else None,
    )


def side_by_side(features: Floats | None, weighted: Mapping[str, Floats]) -> dict[str, Floats]:
    """Return vectors of the same rows by name: chance, the backbone's features, the encoder's.

    Parameters
    ----------
    features
        Of the backbone (N, F); None for an encoder without a head, whose vectors they are.
    weighted
        The encoder's vectors (N, D) by blend; of one part under the name "".
    """
    own = {f"blend {blend}" if blend else OWN: z for blend, z in weighted.items()}
    frozen = {} if features is None else {FROZEN: features}
    return {RANDOM: random_vectors(len(next(iter(own.values()))), 0), **frozen, **own}


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


def _by_scene(
    dataset: LabelledDataset, rows: Ints, positions: Ints, vectors: Mapping[str, Floats]
) -> Comparison:
    """Compare vectors of rows, those at some positions being queries that search all others."""
    group = scene_classes(dataset)
    assert group is not None, "queries of a scene class"
    labelled = LabelledRows(
        y_QC=dataset.labels[rows[positions]],
        y_NC=dataset.labels[rows],
        counts_C=dataset.labels[rows].sum(axis=0).astype(float),
        group_Q=group[rows[positions]],
        group_N=group[rows],
        exclude_self=positions,
    )
    return Comparison(
        by_query={
            name: scene_scores_by_query(z[positions], z, labelled) for name, z in vectors.items()
        },
        items=len(rows) - 1,
    )


def _embedded(
    encoder: Encoder,
    dataset: LabelledDataset,
    rows: Ints,
    compared: bool,
    progress: ProgressSink,
) -> tuple[Floats | None, Floats]:
    """Return the backbone's features of rows where they are compared, and the vectors."""
    if not compared or encoder.spec.head.get("kind") == "identity":
        return None, embed_images(encoder, dataset, rows, progress=progress)
    features = embed_images(encoder, dataset, rows, projected=False, progress=progress)
    return features, encoder.projected(features)
