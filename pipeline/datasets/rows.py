"""What importers share: the rows they found, how rows are split, and writing them as a dataset.

An importer lists its rows first, which is quick and names what is missing early; pixels are read
when a row is written. Where a dataset rests is `storage.dataset`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.dataset import DatasetInfo, DatasetWriter, read_info
from storage.errors import ConfigError, NotFoundError
from storage.location import StorageOptions
from storage.progress import Progress, ProgressSink

_BATCH = 64

ReadRow = Callable[[int], tuple[NDArray[Any], NDArray[np.uint8]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """The rows of a source, in order, and what is the same for all of them.

    Attributes
    ----------
    sources, groups, splits
        Of each row: its name, what it shares a split with, and the split.
    bands, classes, resolution_m
        As `storage.dataset.DatasetInfo` has them.
    origin
        What the dataset is made from; another origin is another dataset.
    """

    sources: Sequence[str]
    groups: Sequence[str]
    splits: Sequence[str]
    bands: Sequence[str]
    classes: Sequence[str]
    resolution_m: float | None
    origin: Mapping[str, Any]


def write_rows(
    uri: str,
    rows: Rows,
    read: ReadRow,
    *,
    options: StorageOptions | None,
    progress: ProgressSink,
) -> DatasetInfo:
    """Write a dataset, or return the one that is there when it was made from the same.

    Parameters
    ----------
    uri
        Dataset to write.
    rows
        What there is.
    read
        Returns the pixels (C, H, W) and the labels (K,) of a row, given its number.
    """
    if (done := finished(uri, rows.origin, options)) is not None:
        return done
    count = len(rows.sources)
    with DatasetWriter(
        uri,
        bands=rows.bands,
        classes=rows.classes,
        resolution_m=rows.resolution_m,
        origin=rows.origin,
        options=options,
    ) as writer:
        for start in range(0, count, _BATCH):
            chosen = range(start, min(start + _BATCH, count))
            pixels, labels = zip(*(read(row) for row in chosen), strict=True)
            columns = {"source": rows.sources, "group": rows.groups, "split": rows.splits}
            part = {name: list(values[start : chosen.stop]) for name, values in columns.items()}
            writer.append(np.stack(pixels), np.stack(labels), part)
            progress(Progress(stage="import", done=chosen.stop, total=count, unit="images"))
        return writer.finish()


def finished(
    uri: str, origin: Mapping[str, Any], options: StorageOptions | None
) -> DatasetInfo | None:
    """Return the dataset at a URI when it was made from exactly this; else None."""
    try:
        found = read_info(uri, options)
    except (NotFoundError, ConfigError):
        return None
    same = dict(found.origin) == json.loads(json.dumps(origin))
    return found if same else None
