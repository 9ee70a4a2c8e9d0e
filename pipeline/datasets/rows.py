"""Rows of an imported source, and writing the rows as a dataset.

An importer lists its rows first, which is fast and reports missing files early; pixels are read
when a row is written. The format of a dataset is in :mod:`storage.dataset`, the division into
splits in :mod:`pipeline.datasets.spec`.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.dataset import DatasetInfo, check_files, read_info
from storage.dataset_writer import DatasetWriter
from storage.errors import ConfigError, CorruptIndexError, NotFoundError, SceneError
from storage.location import Location
from storage.progress import Progress, ProgressSink

logger = logging.getLogger(__name__)

_BATCH = 64
READER = 2
"""Number of the way in which pixels are read; datasets of an earlier way are imported again."""

ReadRow = Callable[[int], tuple[NDArray[Any], NDArray[np.uint8]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """The rows of a source, in order, and the properties of the dataset.

    Attributes
    ----------
    sources, groups, splits
        Name, group and split of each row; the rows of a group share a split.
    bands, classes, resolution_m
        As in `storage.dataset.DatasetInfo`.
    origin
        Provenance of the dataset; another origin is another dataset.
    """

    sources: Sequence[str]
    groups: Sequence[str]
    splits: Sequence[str]
    bands: Sequence[str]
    classes: Sequence[str]
    resolution_m: float | None
    origin: Mapping[str, Any]


def write_rows(
    uri: str | Location, rows: Rows, read: ReadRow, progress: ProgressSink
) -> DatasetInfo:
    """Write a dataset, or return an existing dataset with the same origin.

    Parameters
    ----------
    uri
        Dataset to write.
    rows
        The rows of the source.
    read
        Returns the pixels (C, H, W) and the labels (K,) of a row number.
    """
    rows = replace(rows, origin={**rows.origin, "reader": READER})
    if (done := finished(uri, rows.origin)) is not None:
        return done
    count = len(rows.sources)
    with DatasetWriter(
        uri,
        bands=rows.bands,
        classes=rows.classes,
        resolution_m=rows.resolution_m,
        origin=rows.origin,
    ) as writer:
        for start in range(0, count, _BATCH):
            chosen = range(start, min(start + _BATCH, count))
            pixels, labels = zip(*(read(row) for row in chosen), strict=True)
            columns = {"source": rows.sources, "group": rows.groups, "split": rows.splits}
            part = {name: list(values[start : chosen.stop]) for name, values in columns.items()}
            _check_valid(pixels, part["source"])
            writer.append(_stacked(pixels, writer.dtype), np.stack(labels), part)
            progress(Progress(stage="import", done=chosen.stop, total=count, unit="images"))
        return writer.finish()


def _check_valid(pixels: Sequence[NDArray[Any]], sources: Sequence[str]) -> None:
    for image, source in zip(pixels, sources, strict=True):
        if image.dtype.kind == "f" and np.isnan(image).all():
            raise SceneError(f"image {source} has no valid pixel; leave it out of the table")


def _stacked(pixels: Sequence[NDArray[Any]], stored: np.dtype[Any] | None) -> NDArray[Any]:
    """Return images of one type: that of all of them and of the dataset, else float32."""
    dtypes = {image.dtype for image in pixels} | ({stored} if stored else set())
    dtype = dtypes.pop() if len(dtypes) == 1 else np.dtype(np.float32)
    return np.stack(pixels).astype(dtype, copy=False)


def finished(uri: str | Location, origin: Mapping[str, Any]) -> DatasetInfo | None:
    """Return the dataset at a URI if it has exactly this origin and no file is damaged."""
    try:
        info = read_info(uri)
        if dict(info.origin) != json.loads(json.dumps(origin)):
            return None
        check_files(Location.of(uri), info)
    except CorruptIndexError as error:
        logger.warning("importing again: %s", error)
        return None
    except (NotFoundError, ConfigError):
        return None
    return info
