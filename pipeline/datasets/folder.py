"""Import of a folder of images with a CSV table of labels."""

import hashlib
import io
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.datasets.images import Files, decode_image, image_side, open_files
from pipeline.datasets.rows import Rows, write_rows
from pipeline.datasets.spec import SplitRule
from storage.dataset import SPLITS, DatasetInfo
from storage.errors import ConfigError, NotFoundError
from storage.location import Location
from storage.progress import ProgressSink, ignore


def import_folder(
    source: str | Location,
    uri: str | Location,
    *,
    table: str = "labels.csv",
    tile_px: int | None = None,
    bands: Sequence[str] = ("red", "green", "blue"),
    resolution_m: float | None = None,
    split: SplitRule | None = None,
    progress: ProgressSink = ignore,
) -> DatasetInfo:
    """Import images listed in a CSV table.

    The table has a column ``image`` (path of a PNG, JPEG or GeoTIFF, relative to the table or to
    ``images/`` beside the table), optionally ``split`` (train, val or test) and ``scene`` or
    ``group``, and one 0/1 column for each class. GeoTIFFs keep their type and may have any number
    of bands; all images of a dataset have the same type and number of bands.

    Parameters
    ----------
    source
        Folder, or a ``.tar`` (also compressed) that contains the folder.
    uri
        Dataset to write.
    table
        Name of the CSV file.
    tile_px
        Side of the tiles: images are cropped to the central square and resized. None takes the size
        of the first image.
    bands
        Names of the channels: one for grey, three for RGB, four for RGBA files, or one per band of
        a GeoTIFF.
    resolution_m
        Ground size of a pixel, if known.
    split
        Division into splits for a table without a column ``split``.

    Raises
    ------
    NotFoundError
        The source, the table or an image does not exist; the message names the first missing file.
    ConfigError
        The table is malformed.
    SceneError
        An image cannot be decoded.
    """
    with open_files(source) as files:
        where = _find_table(files, table, source)
        frame, classes = _read_table(files.read(where), where, split or SplitRule())
        tile_px = tile_px or _first_size(files, where, frame)
        rows = Rows(
            sources=frame["source"].tolist(),
            groups=frame["group"].tolist(),
            splits=frame["split"].tolist(),
            bands=bands,
            classes=classes,
            resolution_m=resolution_m,
            origin={
                "importer": "folder",
                "source": str(source),
                "table_sha256": hashlib.sha256(files.read(where)).hexdigest(),
                "bands": list(bands),
                "tile_px": tile_px,
            },
        )
        labels = frame[list(classes)].to_numpy(np.uint8)

        def read(row: int) -> tuple[NDArray[Any], NDArray[np.uint8]]:
            name = rows.sources[row]
            data = _image_data(files, where, name)
            return decode_image(data, name, tile_px, len(bands)), labels[row]

        return write_rows(uri, rows, read, progress)


def _find_table(files: Files, table: str, source: str | Location) -> str:
    paths = [name for name in files.names() if PurePosixPath(name).name == table]
    if not paths:
        raise NotFoundError(f"{source} holds no {table}; name the CSV file with the labels")
    return min(paths, key=lambda path: (path.count("/"), path))


def _read_table(data: bytes, where: str, split: SplitRule) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Return a table with ``source``, ``group``, ``split`` and 0/1 columns, and the classes."""
    try:
        frame = pd.read_csv(io.BytesIO(data))
    except (ValueError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where} is not a CSV table ({error}); correct it") from error
    if "image" not in frame:
        raise ConfigError(f"{where} has no column `image`; it has {', '.join(frame.columns)}")
    classes = tuple(c for c in frame.columns if c not in {"image", "split", "scene", "group"})
    wrong = [c for c in classes if not frame[c].isin((0, 1)).all()]
    if wrong or not classes:
        raise ConfigError(
            f"{where}: column {wrong[0] if wrong else 'of a class'} must hold 0 and 1 only; "
            "the columns besides image, split, scene and group are the classes"
        )
    frame["source"] = frame["image"].astype(str)
    kind = next((name for name in ("group", "scene") if name in frame), "source")
    frame["group"] = frame[kind].astype(str)
    if "split" not in frame:
        frame["split"] = [split.of(name) for name in frame["source"]]
    if not frame["split"].isin(SPLITS).all():
        odd = frame.loc[~frame["split"].isin(SPLITS), "split"].iloc[0]
        raise ConfigError(f"{where}: split {odd!r} is not one of {', '.join(SPLITS)}")
    return frame, classes


def _first_size(files: Files, table: str, frame: pd.DataFrame) -> int:
    if frame.empty:
        raise ConfigError(f"{table} lists no image; fill it")
    name = str(frame["source"].iloc[0])
    return image_side(_image_data(files, table, name), name)


def _image_data(files: Files, table: str, name: str) -> bytes:
    folder = PurePosixPath(table).parent
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise ConfigError(f"image {name} of {table} lies outside its folder; give paths within it")
    for candidate in (folder / "images" / name, folder / name):
        try:
            return files.read(str(candidate))
        except NotFoundError:
            continue
    raise NotFoundError(
        f"image {name} of {table} is neither in {folder / 'images'} nor in {folder}; "
        "put the images there"
    )
