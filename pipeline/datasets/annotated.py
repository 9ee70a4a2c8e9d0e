"""Import of labels that people gave to suggested tiles, in the file of their annotation program.

The source is a folder of :mod:`pipeline.datasets.suggest`. Pixels are those of its dataset
``tiles``, never those of the pictures; :mod:`pipeline.datasets.annotations` reads the labels.
"""

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets.annotations import read_annotations
from pipeline.datasets.archive_tiles import append_rows
from pipeline.datasets.rows import finished
from pipeline.datasets.spec import SplitRule
from pipeline.datasets.suggest import TILES
from storage.dataset import DatasetInfo, LabelledDataset
from storage.dataset_writer import DatasetWriter
from storage.errors import ConfigError
from storage.location import Location
from storage.progress import Progress, ProgressSink, ignore


def import_annotated(
    source: str | Location,
    uri: str | Location,
    *,
    table: str,
    add_to: str | Location | None = None,
    split: SplitRule | None = None,
    progress: ProgressSink = ignore,
) -> DatasetInfo:
    """Import the suggested tiles that have labels by now.

    Parameters
    ----------
    source
        Folder that `skysift dataset suggest` wrote.
    uri
        Dataset to write.
    table
        Name of the file of labels in the folder: Label Studio's JSON or JSON-MIN, COCO or GeoJSON.
    add_to
        Labelled dataset whose rows come first; the new rows then are train rows, and take the place
        of rows of the same source. None for the new rows alone.
    split
        Division of the new rows alone, by the blocks of their ground.

    Raises
    ------
    NotFoundError
        The folder, its tiles or the file of labels does not exist.
    ConfigError
        The file cannot be read, names an unknown class or tile, or ``add_to`` has other bands,
        classes or tile sizes.
    """
    tiles = LabelledDataset.open(Location.of(source) / TILES)
    data = (Location.of(source) / table).read()
    chosen, labels = _labelled_rows(tiles, read_annotations(data, table, tiles.classes), table)
    base, rule = None if add_to is None else LabelledDataset.open(add_to), split or SplitRule()
    origin = {
        "importer": "annotated",
        "source": str(source),
        "tiles": tiles.info.digest,
        "table_sha256": hashlib.sha256(data).hexdigest(),
        "add_to": None if base is None else base.info.digest,
        "split": repr(rule),
    }
    if (done := finished(uri, origin)) is not None:
        return done
    if base is not None:
        _require_alike(tiles, base)
    sources = tiles.rows["source"].iloc[chosen].tolist()
    more: dict[str, list[Any]] = {"soft": [False] * len(chosen)}
    if base is None and "group" in tiles.rows.columns:
        more["split"] = [rule.of(group) for group in tiles.rows["group"].iloc[chosen]]
    tiles.rows = tiles.rows.drop(columns="number")
    with DatasetWriter(
        uri,
        bands=tiles.bands,
        classes=tiles.classes,
        resolution_m=tiles.resolution_m,
        origin=origin,
        normalisation=None if base is None else (base.info.band_mean, base.info.band_std),
    ) as writer:
        if base is not None:
            kept = np.flatnonzero(~base.rows["source"].isin(sources))
            soft = {"soft": base.is_soft[kept].tolist()}
            append_rows(writer, base, kept, base.soft_labels[kept], soft)
        append_rows(writer, tiles, chosen, labels, more)
        progress(Progress(stage="import", done=len(chosen), total=len(tiles), unit="images"))
        return writer.finish()


def _labelled_rows(
    tiles: LabelledDataset, labels: dict[int, NDArray[np.uint8]], table: str
) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Return the rows that have labels, and the labels (n, K)."""
    row_of = {number: row for row, number in enumerate(tiles.rows["number"].tolist())}
    if unknown := labels.keys() - row_of.keys():
        raise ConfigError(
            f"{table}: tile {min(unknown)} is not among the {len(tiles)} suggested tiles; give the "
            "folder that the labels belong to"
        )
    numbers = sorted(labels)
    rows = np.array([row_of[number] for number in numbers], np.int64)
    return rows, np.stack([labels[number] for number in numbers])


def _require_alike(tiles: LabelledDataset, base: LabelledDataset) -> None:
    for name in ("bands", "classes", "tile_px"):
        ours, theirs = getattr(tiles, name), getattr(base, name)
        if ours != theirs:
            raise ConfigError(
                f"annotated: the suggested tiles have {name} {ours}, the dataset to add to has "
                f"{theirs}; suggest tiles for that dataset"
            )
