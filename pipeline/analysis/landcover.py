"""Labels for tiles from a land-cover raster: which classes cover how much of each tile.

The raster may have any CRS and resolution; it is read by nearest neighbour on the tiles' own
grid, one Dask task for each block of neighbouring tiles.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from io import BytesIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from dask.delayed import delayed
from numpy.typing import NDArray

from pipeline.runtime.dask import Scheduler, compute
from pipeline.tiles.grid import TileGrid
from storage.errors import ConfigError
from storage.location import Location
from storage.progress import Progress, ProgressSink, ignore
from storage.raster.pixel_grid import Window
from storage.raster.reader import read_categorical
from storage.values import alike

_BLOCK_TILES = 16
_TASKS_PER_GRAPH = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class TileLabels:
    """Class fractions and multi-hot labels of tiles.

    Attributes
    ----------
    tile_keys
        Keys of the tiles; str objects (n,).
    fractions
        Share of the tile's mapped pixels that each class covers; float32 (n, classes).
    mapped
        Share of the tile's pixels where the raster has data; float32 (n,).
    classes
        Class names, in the order of the columns.
    min_fraction
        Share from which a class is a label of the tile.
    labels
        1 where a class is a label; uint8 (n, classes). Follows from the others.
    """

    tile_keys: NDArray[np.object_]
    fractions: NDArray[np.float32]
    mapped: NDArray[np.float32]
    classes: tuple[str, ...]
    min_fraction: float
    labels: NDArray[np.uint8] = field(init=False)

    def __post_init__(self) -> None:
        multi_hot = (self.fractions >= np.float32(self.min_fraction)).astype(np.uint8)
        object.__setattr__(self, "labels", multi_hot)

    def __len__(self) -> int:
        return len(self.tile_keys)

    def to_parquet(self, uri: str | Location) -> None:
        """Write a Parquet file with one row a tile and one column of fractions a class."""
        columns = {"tile_key": pa.array(self.tile_keys.tolist(), pa.string())}
        columns["mapped"] = pa.array(self.mapped)
        columns |= {
            f"class:{c}": pa.array(self.fractions[:, i]) for i, c in enumerate(self.classes)
        }
        about = json.dumps({"classes": self.classes, "min_fraction": self.min_fraction})
        table = pa.table(columns).replace_schema_metadata({"skysift": about})
        sink = BytesIO()
        pq.write_table(table, sink)
        Location.of(uri).write(sink.getvalue())

    @classmethod
    def from_parquet(cls, uri: str | Location) -> "TileLabels":
        """Read labels that :meth:`to_parquet` wrote.

        Raises
        ------
        ConfigError
            The Parquet file holds something else.
        """
        table = pq.read_table(BytesIO(Location.of(uri).read()))
        about = (table.schema.metadata or {}).get(b"skysift")
        if about is None:
            raise ConfigError(f"{uri} holds no tile labels; make them with `tile_labels`")
        facts = json.loads(about)
        classes = tuple(facts["classes"])
        fractions = [table[f"class:{name}"].to_numpy() for name in classes]
        return cls(
            tile_keys=np.array(table["tile_key"].to_pylist(), object),
            fractions=np.stack(fractions, axis=1).astype(np.float32),
            mapped=table["mapped"].to_numpy().astype(np.float32),
            classes=classes,
            min_fraction=facts["min_fraction"],
        )


def tile_labels(
    landcover: str | Location,
    grid: TileGrid,
    tiles: NDArray[np.int32],
    classes: Mapping[int, str],
    *,
    min_fraction: float = 0.05,
    scheduler: Scheduler = "threads",
    progress: ProgressSink = ignore,
) -> TileLabels:
    """Compute the class fractions of tiles from a land-cover raster.

    Parameters
    ----------
    landcover
        URI of a single-band GeoTIFF of class values, in any CRS.
    tiles
        Columns and rows of the tiles on the grid; int32 (n, 2).
    classes
        Pixel value to class name. Pixels of other values, except nodata, count as mapped ground
        of no class.

    Returns
    -------
    TileLabels
        In the order of ``tiles``.

    Raises
    ------
    SceneError
        The raster cannot be read.
    ConfigError
        There is no class, or ``min_fraction`` is not within (0, 1].
    """
    if not classes or not 0 < min_fraction <= 1:
        raise ConfigError(
            f"land cover needs at least one class and 0 < min_fraction <= 1, got {len(classes)} "
            f"classes and {min_fraction}; correct the mapping"
        )
    if len(set(map(alike, classes.values()))) < len(classes):
        raise ConfigError(
            f"land cover: two values have one class in {dict(classes)}; give each class one value"
        )
    landcover = Location.of(landcover).absolute  # workers of a cluster have another directory
    counter = delayed(_count_classes)
    groups = _neighbours(tiles)
    counts = np.zeros((len(tiles), len(classes) + 1), np.int64)
    for start in range(0, len(groups), _TASKS_PER_GRAPH):
        part = groups[start : start + _TASKS_PER_GRAPH]
        tasks = [counter(landcover, grid, tiles[members], tuple(classes)) for members in part]
        for members, found in zip(part, compute(tasks, scheduler), strict=True):
            counts[members] = found
        done = sum(len(members) for members in groups[: start + len(part)])
        progress(Progress(stage="tile labels", done=done, total=len(tiles), unit="tiles"))
    mapped = counts[:, -1]
    return TileLabels(
        tile_keys=np.array(grid.keys(tiles), object),
        fractions=(counts[:, :-1] / np.maximum(mapped, 1)[:, None]).astype(np.float32),
        mapped=(mapped / grid.tile_px**2).astype(np.float32),
        classes=tuple(classes.values()),
        min_fraction=min_fraction,
    )


def join_labels(parts: Sequence[TileLabels]) -> TileLabels:
    """Join the labels of several grids or rasters into one table.

    Raises
    ------
    ConfigError
        There is none, or they differ in classes or threshold.
    """
    if len({(part.classes, part.min_fraction) for part in parts}) != 1:
        raise ConfigError(
            f"{len(parts)} label tables do not have one list of classes and one min_fraction; "
            "compute them with the same settings"
        )
    return TileLabels(
        tile_keys=np.concatenate([part.tile_keys for part in parts]),
        fractions=np.concatenate([part.fractions for part in parts]),
        mapped=np.concatenate([part.mapped for part in parts]),
        classes=parts[0].classes,
        min_fraction=parts[0].min_fraction,
    )


def _neighbours(tiles: NDArray[np.int32]) -> list[NDArray[np.int64]]:
    """Group the indices of tiles that lie in one square of the grid."""
    if not len(tiles):
        return []
    squares = np.floor_divide(tiles, _BLOCK_TILES)
    _, square_of = np.unique(squares, axis=0, return_inverse=True)
    order = np.argsort(square_of, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(square_of[order])) + 1)


def _count_classes(
    landcover: str | Location,
    grid: TileGrid,
    tiles: NDArray[np.int32],
    values: tuple[int, ...],
) -> NDArray[np.int64]:
    """Count the pixels of each class, and of all mapped ground, in neighbouring tiles.

    Returns
    -------
    ndarray
        int64 (n, classes + 1); the last column counts the mapped pixels.
    """
    windows = [grid.window(int(column), int(row)) for column, row in tiles]
    around = reduce(Window.union, windows)
    image, known = read_categorical(landcover, grid.pixels, around)
    counts = np.zeros((len(tiles), len(values) + 1), np.int64)
    for i, window in enumerate(windows):
        part = window.slices_in(around)
        tile = image[part][known[part]]
        counts[i, :-1] = [np.count_nonzero(tile == value) for value in values]
        counts[i, -1] = len(tile)
    return counts
