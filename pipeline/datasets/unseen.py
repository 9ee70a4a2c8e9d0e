"""Scene classes that the training of an encoder never had, among the queries of a dataset.

A bundle states the digest of the dataset that it learned from. So the scene classes of the
training are known where that dataset is at hand, and not otherwise. A scene class is a group of
rows: a folder of images, or the column ``scene`` or ``group`` of a label table. Blocks of ground
and single images are none.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from encoders.bundle import Encoder
from pipeline.analysis.comparison import LEAST
from pipeline.datasets.archive_tiles import side_of_blocks
from storage.dataset import LabelledDataset
from storage.values import alike

_SHOWN = 12


def scene_classes(dataset: LabelledDataset) -> NDArray[np.str_] | None:
    """Return the scene class of each row (N,), or None where the dataset has none."""
    if "group" not in dataset.rows.columns or side_of_blocks(dataset) is not None:
        return None
    group = dataset.rows["group"].to_numpy(str)
    return group if len(set(group)) < len(group) else None


def learned_classes(encoder: Encoder, datasets: Iterable[LabelledDataset]) -> frozenset[str] | None:
    """Return the scene classes of the train rows that an encoder learned from.

    Names are those of :func:`storage.values.alike`. None: the encoder learned from none of the
    datasets, or from one without scene classes.
    """
    learned = encoder.spec.training.get("dataset")
    for dataset in datasets:
        if dataset.info.digest == learned and (group := scene_classes(dataset)) is not None:
            return frozenset(map(alike, group[dataset.indices("train")]))
    return None


def unseen_queries(
    dataset: LabelledDataset,
    queries: NDArray[np.int64],
    items: NDArray[np.int64],
    learned: frozenset[str] | None,
) -> tuple[NDArray[np.bool_], str]:
    """Tell which queries are of a scene class that training never had.

    Parameters
    ----------
    queries, items
        Rows of the queries and of the database. A class counts with two rows among them, so that a
        query has something to find.
    learned
        See `learned_classes`.

    Returns
    -------
    is_unseen_Q
        Which queries are, (Q,); none where they are fewer than `LEAST`.
    note
        A sentence about them, or why there are none.
    """
    none_Q = np.zeros(len(queries), dtype=bool)
    if learned is None:
        return none_Q, (
            "Which scene classes the training had is not known: the encoder learned from none of "
            "these datasets, or from one without scene classes."
        )
    group = scene_classes(dataset)
    if group is None:
        return none_Q, "The dataset has no scene classes, so none counts as left out of training."
    names, counts = np.unique(group[np.union1d(queries, items)], return_counts=True)
    unseen = [
        name
        for name, count in zip(names, counts, strict=True)
        if count > 1 and alike(name) not in learned
    ]
    is_unseen_Q = np.isin(group[queries], unseen)
    found = sorted(set(group[queries[is_unseen_Q]]))
    if not found:
        return none_Q, "Training had every scene class of the queries."
    if is_unseen_Q.sum() < LEAST:
        return none_Q, (
            f"Training lacked the scene classes {', '.join(found)}, of fewer than {LEAST} queries: "
            "too few to score."
        )
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return is_unseen_Q, (
        f"Training had no scene class of the name: {', '.join(found[:_SHOWN])}{more}."
    )
