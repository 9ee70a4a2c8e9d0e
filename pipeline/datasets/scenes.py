"""Import of the tiles of scenes, labelled by a land-cover raster."""

import hashlib
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pyproj import CRS

from pipeline.analysis.landcover import TileLabels
from pipeline.analysis.statistics import BandStatistics
from pipeline.datasets.rows import READER, finished
from pipeline.datasets.spec import SplitRule
from pipeline.tiles.grid import TileGrid, grid_for_scene
from pipeline.tiles.read import TileBatch, read_tiles
from pipeline.tiles.spec import GridSpec, TileRules
from storage.dataset import DatasetInfo
from storage.dataset_writer import DatasetWriter
from storage.errors import ConfigError
from storage.location import Location
from storage.progress import Progress, ProgressSink, ignore
from storage.quarantine import none_readable, set_aside
from storage.scene import Scene

logger = logging.getLogger(__name__)

_BATCH = 64
_EARTH_RADIUS_M = 6_371_008.8


def import_scenes(
    scenes: Sequence[Scene],
    grid: GridSpec,
    labels: TileLabels | Sequence[TileLabels],
    uri: str | Location,
    *,
    bands: Sequence[str],
    rules: TileRules | None = None,
    split: SplitRule | None = None,
    block_tiles: int = 4,
    statistics: BandStatistics | None = None,
    left_out: dict[str, str] | None = None,
    progress: ProgressSink = ignore,
) -> DatasetInfo:
    """Import the tiles of scenes, with labels by tile key.

    Tiles without a label are left out. Blocks of ``block_tiles`` x ``block_tiles`` neighbouring
    tiles share a split over all acquisitions, so the ground of the test split is not in the
    training split.

    Parameters
    ----------
    scenes, bands
        Scenes with these bands, in this order.
    grid, rules
        Grid and selection of the tiles; see `pipeline.tiles.read`.
    labels
        Labels by tile key, from `pipeline.analysis.landcover`; one table for each grid.
    uri
        Dataset to write.
    statistics
        Statistics of the bands for normalisation; measured on the train tiles when None.
    left_out
        Receives the scenes that cannot be read, with their reasons; None allows none. Scenes that
        are in it already are not read.

    Raises
    ------
    ConfigError
        The tables have different classes, no tile has a label, or a scene has other bands.
    SceneError
        A scene cannot be read; with ``left_out``, no scene can.

    Notes
    -----
    A scene whose pixels end early leaves no tile. The origin of such a dataset names the scene, so
    that the next import is made whole again.
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
    table = _LabelTable.of([labels] if isinstance(labels, TileLabels) else list(labels))
    placed = _placed(scenes, grid, left_out)
    origin = {
        "importer": "scenes",
        "reader": READER,
        "scenes": {scene.id: scene.fingerprint for scene, _ in placed},
        "grids": sorted({tiles.id for _, tiles in placed}),
        "bands": list(bands),
        "labels_sha256": table.digest,
        "rules": repr((rules, split, block_tiles)),
        "normalisation": [statistics.mean, statistics.std] if statistics else None,
    }
    if (done := finished(uri, origin)) is not None:
        return done
    resolutions = {_resolution_m(tiles) for _, tiles in placed}
    with DatasetWriter(
        uri,
        bands=bands,
        classes=table.classes,
        resolution_m=resolutions.pop() if len(resolutions) == 1 else None,
        origin=origin,
        normalisation=(statistics.mean, statistics.std) if statistics else None,
    ) as writer:
        damaged: dict[str, str] = {}
        for number, (scene, tiles) in enumerate(placed, start=1):
            count = writer.count
            for batch in _read(scene, tiles, rules, None if left_out is None else damaged):
                _append_tiles(writer, scene, tiles, batch, table, split, block_tiles)
            if scene.id in damaged:
                writer.truncate(count)
            progress(Progress(stage="import", done=number, total=len(placed), unit="scenes"))
        if damaged and len(damaged) == len(placed):
            raise none_readable(damaged)
        info = writer.finish(damaged)
    if left_out is not None:
        left_out |= damaged
    return info


def _placed(
    scenes: Sequence[Scene], grid: GridSpec, left_out: dict[str, str] | None
) -> list[tuple[Scene, TileGrid]]:
    """Return the scenes that can be opened, with their grids."""
    placed: list[tuple[Scene, TileGrid]] = []
    for scene in scenes:
        if scene.id not in (left_out or ()):
            with set_aside(scene.id, left_out):
                placed.append((scene, grid_for_scene(scene, grid)))
    if left_out and not placed:
        raise none_readable(left_out)
    if len(names := {tiles.id for _, tiles in placed}) > 1:
        logger.warning(
            "the scenes lie on %d grids (%s): ground that two of them share can be in train and in "
            "test, and scores are then too good; give one grid.crs",
            *(len(names), ", ".join(sorted(names))),
        )
    return placed


@dataclass(frozen=True, slots=True)
class _LabelTable:
    """Labels by tile key, of all grids."""

    classes: tuple[str, ...]
    rows: Mapping[str, NDArray[np.uint8]]
    digest: str

    @classmethod
    def of(cls, tables: Sequence[TileLabels]) -> "_LabelTable":
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
    """Return the ground size of a grid's pixel; a size in degrees is measured along a meridian."""
    crs = CRS.from_user_input(grid.crs)
    if crs.is_geographic:
        return round(math.radians(grid.resolution) * _EARTH_RADIUS_M, 3)
    return float(grid.resolution * crs.axis_info[0].unit_conversion_factor)


def _read(
    scene: Scene, grid: TileGrid, rules: TileRules, left_out: dict[str, str] | None
) -> Iterator[TileBatch]:
    with set_aside(scene.id, left_out):
        yield from read_tiles(scene, grid, rules, batch_size=_BATCH)


def _append_tiles(
    writer: DatasetWriter,
    scene: Scene,
    grid: TileGrid,
    batch: TileBatch,
    table: _LabelTable,
    split: SplitRule,
    block_tiles: int,
) -> None:
    keys = [grid.key(int(column), int(row)) for column, row in batch.tiles]
    labelled = [i for i, key in enumerate(keys) if key in table.rows and table.rows[key].any()]
    if not labelled:
        return
    blocks = [f"{grid.id}/{c // block_tiles}/{r // block_tiles}" for c, r in batch.tiles[labelled]]
    writer.append(
        batch.pixels[labelled],
        np.stack([table.rows[keys[i]] for i in labelled]),
        {
            "source": [f"{scene.id}/{keys[i]}" for i in labelled],
            "group": blocks,
            "split": [split.of(block) for block in blocks],
            "scene": [scene.id] * len(labelled),
            "tile_key": [keys[i] for i in labelled],
        },
    )
