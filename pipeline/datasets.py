"""Importers: from what people have to a labelled dataset (`storage.datasets`).

Each importer says which layout it expects and names the first thing that is missing. An import
that is already there, made from the same source with the same settings, is returned as it is.
"""

import hashlib
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pyproj import CRS

from pipeline.image_files import MODES, Files, decode_image, image_side, open_files
from pipeline.landcover import TileLabels
from pipeline.statistics import BandStatistics
from pipeline.tiling import GridSpec, TileBatch, TileGrid, TileRules, grid_for_scene, read_tiles
from storage.datasets import SPLITS, DatasetInfo, DatasetWriter, read_info
from storage.errors import ConfigError, NotFoundError
from storage.object_store import StorageOptions
from storage.progress import Progress, ProgressSink, quiet
from storage.scenes import Scene

_BATCH = 64
_EARTH_RADIUS_M = 6_371_008.8


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitRule:
    """How rows without a split of their own are divided.

    Rows of one group share a split, which is drawn from a hash of the group's name, so it does not
    depend on order and a larger import keeps the split of the rows it had.

    Attributes
    ----------
    val, test
        Expected share of each; the rest is train.
    seed
        Another seed draws another division.
    """

    val: float = 0.15
    test: float = 0.15
    seed: int = 0

    def __post_init__(self) -> None:
        if self.val < 0 or self.test < 0 or self.val + self.test >= 1:
            raise ConfigError(
                f"split: val {self.val} and test {self.test} must not be negative, and "
                "leave train rows"
            )

    def of(self, group: str) -> str:
        """Return the split of a group.

        Examples
        --------
        >>> SplitRule(val=0.0, test=0.0).of("anything")
        'train'
        """
        digest = hashlib.sha256(f"{self.seed}:{group}".encode()).digest()
        draw = int.from_bytes(digest[:8]) / 2**64
        return "test" if draw < self.test else "val" if draw < self.test + self.val else "train"


def import_folder(
    source: str,
    uri: str,
    *,
    table: str = "labels.csv",
    tile_px: int | None = None,
    bands: Sequence[str] = ("red", "green", "blue"),
    resolution_m: float | None = None,
    split: SplitRule | None = None,
    options: StorageOptions | None = None,
    progress: ProgressSink = quiet,
) -> DatasetInfo:
    """Import images listed in a CSV table.

    The table has a column ``image`` (path of a PNG or JPEG below ``images/`` beside the table, or
    beside the table itself), optionally ``split`` (train, val or test) and ``scene`` or ``group``,
    and one 0/1 column for each class.

    Parameters
    ----------
    source
        Folder, or a ``.tar`` (also compressed) that holds one.
    uri
        Dataset to write.
    table
        Name of the CSV file.
    tile_px
        Images of another size are cut to their central square and resized to this. None takes the
        size of the first image.
    bands
        Names for the channels: one for grey, three for RGB, four for RGBA files.
    resolution_m
        Ground size of a pixel when it is known.
    split
        Used when the table has no column ``split``.

    Raises
    ------
    NotFoundError
        The source, the table or an image is not there (the first one is named).
    ConfigError
        The table is not as described.
    SceneError
        An image cannot be decoded.
    """
    if len(bands) not in MODES:
        raise ConfigError(
            f"images of {len(bands)} bands ({', '.join(bands)}) cannot come from PNG or JPEG; "
            "name 1, 3 or 4 bands"
        )
    with open_files(source, options) as files:
        where = _find_table(files, table, source)
        frame, classes = _read_table(files.read(where), where, split or SplitRule())
        tile_px = tile_px or _first_size(files, where, frame)
        origin = {
            "importer": "folder",
            "source": source,
            "table_sha256": hashlib.sha256(files.read(where)).hexdigest(),
            "bands": list(bands),
            "tile_px": tile_px,
        }
        if (done := _finished(uri, origin, options)) is not None:
            return done
        with DatasetWriter(
            uri,
            bands=bands,
            classes=classes,
            resolution_m=resolution_m,
            origin=origin,
            options=options,
        ) as writer:
            for start in range(0, len(frame), _BATCH):
                part = frame.iloc[start : start + _BATCH]
                images = [
                    decode_image(_image_data(files, where, name), name, tile_px, len(bands))
                    for name in part["source"]
                ]
                rows = {name: part[name].tolist() for name in ("source", "group", "split")}
                writer.append(np.stack(images), part[list(classes)].to_numpy(np.uint8), rows)
                done_rows = start + len(part)
                progress(Progress(stage="import", done=done_rows, total=len(frame), unit="images"))
            return writer.finish()


def import_scenes(
    scenes: Sequence[Scene],
    grid: GridSpec,
    labels: TileLabels | Sequence[TileLabels],
    uri: str,
    *,
    bands: Sequence[str],
    rules: TileRules | None = None,
    split: SplitRule | None = None,
    block_tiles: int = 4,
    statistics: BandStatistics | None = None,
    options: StorageOptions | None = None,
    progress: ProgressSink = quiet,
) -> DatasetInfo:
    """Import the tiles of scenes, labelled by their tile keys.

    Tiles without a label are left out. Blocks of ``block_tiles`` x ``block_tiles`` neighbouring
    tiles share a split over all acquisitions, so no ground of the test split was trained on.

    Parameters
    ----------
    scenes, bands
        Scenes whose bands are these, in this order.
    grid, rules
        How scenes are cut; see `pipeline.tiling`.
    labels
        Labels by tile key, from `pipeline.landcover`; one for each grid where there are several.
    uri
        Dataset to write.
    statistics
        Of the same bands, to normalise by; the train tiles are measured when None.

    Raises
    ------
    ConfigError
        The labels disagree on their classes, no tile has one, or a scene has other bands.
    SceneError
        A scene cannot be read.
    """
    for scene in scenes:
        if scene.band_names != tuple(bands):
            raise ConfigError(
                f"scene {scene.id} has bands {', '.join(scene.band_names)}, the dataset "
                f"{', '.join(bands)}; read the catalog with the dataset's bands"
            )
    rules, split = rules or TileRules(), split or SplitRule()
    if rules.edge == "shift":
        raise ConfigError(
            "tile rule edge 'shift' makes tiles overlap across the blocks of a split, so that "
            "training would see validation ground; give 'pad' or 'drop' for a dataset"
        )
    book = _LabelBook.of([labels] if isinstance(labels, TileLabels) else list(labels))
    grids = [grid_for_scene(scene, grid, options) for scene in scenes]
    origin = {
        "importer": "scenes",
        "scenes": {scene.id: scene.fingerprint for scene in scenes},
        "grids": sorted({one.id for one in grids}),
        "bands": list(bands),
        "labels_sha256": book.digest,
        "rules": repr((rules, split, block_tiles)),
        "normalisation": [statistics.mean, statistics.std] if statistics else None,
    }
    if (done := _finished(uri, origin, options)) is not None:
        return done
    resolutions = {_resolution_m(one) for one in grids}
    with DatasetWriter(
        uri,
        bands=bands,
        classes=book.classes,
        resolution_m=resolutions.pop() if len(resolutions) == 1 else None,
        origin=origin,
        normalisation=(statistics.mean, statistics.std) if statistics else None,
        options=options,
    ) as writer:
        for number, (scene, tiles) in enumerate(zip(scenes, grids, strict=True), start=1):
            for batch in read_tiles(scene, tiles, rules, batch_size=_BATCH, options=options):
                _append_tiles(writer, scene, tiles, batch, book, split, block_tiles)
            progress(Progress(stage="import", done=number, total=len(scenes), unit="scenes"))
        return writer.finish()


importers: Mapping[str, Callable[..., DatasetInfo]] = MappingProxyType(
    {"folder": import_folder, "scenes": import_scenes}
)
"""Importers by the name that recipes use."""


@dataclass(frozen=True, slots=True)
class _LabelBook:
    """Labels by tile key."""

    classes: tuple[str, ...]
    rows: Mapping[str, NDArray[np.uint8]]
    digest: str

    @classmethod
    def of(cls, tables: Sequence[TileLabels]) -> "_LabelBook":
        if not tables or any(table.classes != tables[0].classes for table in tables):
            raise ConfigError(
                "tile labels: the tables have different classes, or there is none; "
                "label every grid with the same classes"
            )
        rows: dict[str, NDArray[np.uint8]] = {}
        digest = hashlib.sha256()
        for table in tables:
            rows.update(zip(table.tile_keys.tolist(), table.labels, strict=True))
            digest.update("\n".join(table.tile_keys.tolist()).encode())
            digest.update(np.ascontiguousarray(table.labels).tobytes())
        return cls(tables[0].classes, rows, digest.hexdigest())


def _resolution_m(grid: TileGrid) -> float:
    """Return the ground size of a grid's pixel; of degrees, along a meridian."""
    crs = CRS.from_user_input(grid.crs)
    if crs.is_geographic:
        return round(math.radians(grid.resolution) * _EARTH_RADIUS_M, 3)
    return float(grid.resolution * crs.axis_info[0].unit_conversion_factor)


def _append_tiles(
    writer: DatasetWriter,
    scene: Scene,
    grid: TileGrid,
    batch: TileBatch,
    book: _LabelBook,
    split: SplitRule,
    block_tiles: int,
) -> None:
    keys = [grid.key(int(column), int(row)) for column, row in batch.tiles]
    kept = [i for i, key in enumerate(keys) if key in book.rows and book.rows[key].any()]
    if not kept:
        return
    blocks = [f"{grid.id}/{c // block_tiles}/{r // block_tiles}" for c, r in batch.tiles[kept]]
    writer.append(
        batch.pixels[kept],
        np.stack([book.rows[keys[i]] for i in kept]),
        {
            "source": [f"{scene.id}/{keys[i]}" for i in kept],
            "group": blocks,
            "split": [split.of(block) for block in blocks],
            "scene": [scene.id] * len(kept),
            "tile_key": [keys[i] for i in kept],
        },
    )


def _finished(
    uri: str, origin: Mapping[str, Any], options: StorageOptions | None
) -> DatasetInfo | None:
    """Return the dataset at a URI when it was made from exactly this."""
    try:
        found = read_info(uri, options)
    except (NotFoundError, ConfigError):
        return None
    same = dict(found.origin) == json.loads(json.dumps(origin))
    return found if same else None


def _find_table(files: Files, table: str, source: str) -> str:
    found = sorted(
        (name for name in files.names() if PurePosixPath(name).name == table),
        key=lambda name: (name.count("/"), name),
    )
    if not found:
        raise NotFoundError(f"{source} holds no {table}; name the CSV file with the labels")
    return found[0]


def _read_table(data: bytes, where: str, split: SplitRule) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Return a table with ``source``, ``group``, ``split`` and one 0/1 column for each class."""
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
