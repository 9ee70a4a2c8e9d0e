"""Import of a folder of images with a CSV table of labels."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets.images import Files, ImageReader, image_side, open_files, revision
from pipeline.datasets.rows import Rows, write_rows
from pipeline.datasets.spec import SplitRule
from pipeline.datasets.tables import Table, first_twice, read_table
from storage.dataset import SPLITS, DatasetInfo
from storage.errors import ConfigError, NotFoundError
from storage.location import Location
from storage.progress import ProgressSink, ignore
from storage.values import alike

logger = logging.getLogger(__name__)

_NO_CLASS = ("image", "split", "scene", "group")


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
    ``group``, and one 0/1 column for each class; see `pipeline.datasets.tables`. Rows of a group
    share a split. GeoTIFFs may have any number of bands; all images of a dataset have the same
    kind of numbers and number of bands; see `pipeline.datasets.images`.

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
        The table is malformed, or names a class, an image or a group twice; an image has other
        bands or other numbers than the others.
    SceneError
        An image cannot be decoded, or has no valid pixel.
    """
    rule = split or SplitRule()
    with open_files(source) as files:
        where = _find_table(files, table, source)
        data = files.read(where)
        listed = _read_list(data, where, rule)
        paths = [_path(files, where, name) for name in listed.images]
        tile_px = tile_px or image_side(files, paths[0], listed.images[0])
        reader = ImageReader(files, len(bands), tile_px)
        rows = Rows(
            sources=listed.images,
            groups=listed.groups,
            splits=listed.splits,
            bands=bands,
            classes=listed.classes,
            resolution_m=resolution_m,
            origin={
                "importer": "folder",
                "source": str(source),
                "table_sha256": hashlib.sha256(data).hexdigest(),
                "files_sha256": revision(files, paths),
                "bands": list(bands),
                "tile_px": tile_px,
                "split": repr(rule),
            },
        )

        def read(row: int) -> tuple[NDArray[Any], NDArray[np.uint8]]:
            return reader.read(paths[row], listed.images[row]), listed.labels[row]

        return write_rows(uri, rows, read, progress)


@dataclass(frozen=True, kw_only=True, slots=True)
class _List:
    """The images of a table, in order, and the labels (n, K) of their classes."""

    images: list[str]
    groups: list[str]
    splits: list[str]
    classes: tuple[str, ...]
    labels: NDArray[np.uint8]


def _find_table(files: Files, table: str, source: str | Location) -> str:
    paths = [name for name in files.states if PurePosixPath(name).name == table]
    if not paths:
        raise NotFoundError(f"{source} holds no {table}; name the CSV file with the labels")
    return min(paths, key=lambda path: (path.count("/"), path))


def _read_list(data: bytes, where: str, rule: SplitRule) -> _List:
    table = read_table(data, where, "image")
    columns = table.columns
    classes = tuple(name for name in columns if name not in _NO_CLASS)
    if not classes:
        raise ConfigError(
            f"{where} has no column of a class; the columns besides {', '.join(_NO_CLASS)} are "
            "the classes, and hold 0 and 1"
        )
    if not table.lines:
        raise ConfigError(f"{where} lists no image; fill it")
    for name in _NO_CLASS:
        if "" in (cells := columns.get(name, ())):
            line = table.lines[cells.index("")]
            raise ConfigError(f"{where}, line {line} has no {name}; fill the cell")
    images = _paths(table)
    kind = next((name for name in ("group", "scene") if name in columns), None)
    groups = list(columns[kind]) if kind else images
    splits = list(columns.get("split") or map(rule.of, groups))
    for line, split in zip(table.lines, splits, strict=True):
        if split not in SPLITS:
            raise ConfigError(
                f"{where}, line {line}: split {split!r} is not one of {', '.join(SPLITS)}"
            )
    if kind:
        _check_groups(table, kind, splits)
    labels = table.flags(classes)
    return _List(images=images, groups=groups, splits=splits, classes=classes, labels=labels)


def _paths(table: Table) -> list[str]:
    """Return the paths of the images; refuse a path that is listed twice or leaves its folder."""
    paths = [PurePosixPath(name.replace("\\", "/")) for name in table.columns["image"]]
    for path, name in zip(paths, table.columns["image"], strict=True):
        if path.is_absolute() or ".." in path.parts:
            raise ConfigError(
                f"image {name} of {table.where} lies outside its folder; give paths within it"
            )
    images = [str(path) for path in paths]
    if (pair := first_twice(images)) is not None:
        first, second = (table.lines[row] for row in pair)
        raise ConfigError(
            f"{table.where} lists image {images[pair[0]]} twice, on lines {first} and {second}; "
            "keep one of the lines"
        )
    return images


def _check_groups(table: Table, kind: str, splits: Sequence[str]) -> None:
    """Refuse groups, and warn of scenes, that lie in several splits."""
    first: dict[str, int] = {}
    for row, group in enumerate(table.columns[kind]):
        other = first.setdefault(alike(group), row)
        if splits[other] == splits[row]:
            continue
        said = (
            f"{table.where}: {kind} {group!r} is in {splits[other]} (line {table.lines[other]}) "
            f"and in {splits[row]} (line {table.lines[row]})"
        )
        if kind == "group":
            raise ConfigError(f"{said}; give the rows of a group one split, and names that differ")
        logger.warning("%s: figures on images of scenes seen in training are too good", said)
        return


def _path(files: Files, table: str, name: str) -> str:
    """Return the path of an image: in ``images/`` beside the table, or beside the table."""
    folder = PurePosixPath(table).parent
    for candidate in (str(folder / "images" / name), str(folder / name)):
        if candidate in files.states:
            return candidate
    raise NotFoundError(
        f"image {name} of {table} is neither in {folder / 'images'} nor in {folder}; "
        "put the images there"
    )
