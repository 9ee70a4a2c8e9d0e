"""Tile labels for a set of scenes, whatever grids they are on."""

from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.analysis.landcover import TileLabels, join_labels, tile_labels
from pipeline.search.detections import RIGHT, WRONG
from pipeline.tiles.grid import TileGrid, grid_crs, grid_for_scene
from pipeline.tiles.spec import GridSpec
from storage.errors import ConfigError
from storage.formats import read_records
from storage.location import Location
from storage.progress import ProgressSink, ignore
from storage.quarantine import none_readable, set_aside
from storage.raster.reader import SceneReader
from storage.scene import Scene

_MARKS = (RIGHT, WRONG)


def label_scenes(
    scenes: Sequence[Scene],
    grid: GridSpec,
    landcover: str | Location,
    classes: Mapping[int, str],
    *,
    min_fraction: float = 0.05,
    left_out: dict[str, str] | None = None,
    progress: ProgressSink = ignore,
) -> TileLabels:
    """Label every tile that the scenes cover, from a land-cover raster.

    Parameters
    ----------
    scenes
        At least one.
    grid
        How they are cut; ``native`` scenes may lie on several grids.
    landcover
        URI of a single-band GeoTIFF of class values, in any CRS.
    classes
        Pixel value to class name.
    min_fraction
        Share of a tile from which a class is a label of it.
    left_out
        Receives the scenes that cannot be read, with their reasons; None allows none.

    Raises
    ------
    SceneError
        The raster or a scene cannot be read; with ``left_out``, no scene can.
    ConfigError
        The grid's CRS is not a CRS.
    """
    grid_crs(grid)  # a wrong one would leave out every scene
    grids: dict[str, TileGrid] = {}
    tiles: dict[str, list[np.ndarray]] = {}
    for scene in scenes:
        with set_aside(scene.id, left_out):
            tile_grid = grid_for_scene(scene, grid)
            with SceneReader(scene, tile_grid.pixels) as reader:
                covered = tile_grid.tiles_over(reader.extent)
            grids[tile_grid.id] = tile_grid
            tiles.setdefault(tile_grid.id, []).append(covered)
    if left_out and not grids:
        raise none_readable(left_out)
    parts = [
        tile_labels(
            landcover,
            grids[name],
            np.unique(np.concatenate(tiles[name]), axis=0),
            classes,
            min_fraction=min_fraction,
            progress=progress,
        )
        for name in grids
    ]
    return join_labels(parts)


def marked_labels(uri: str | Location) -> TileLabels:
    """Label the tiles of a file of marks with the classes ``right`` and ``wrong``.

    Parameters
    ----------
    uri
        GeoJSON or GeoParquet whose features have ``tile_key`` and ``mark``. A mark is of one
        acquisition, its label of every acquisition of the tile.

    Raises
    ------
    NotFoundError
        There is no such file.
    ConfigError
        The file is neither, or no feature is a tile with a mark.
    """
    keys: dict[str, set[str]] = {}
    for record in read_records(uri):
        if record.get("tile_key") and record.get("mark") in _MARKS:
            keys.setdefault(record["tile_key"], set()).add(record["mark"])
    if not keys:
        raise ConfigError(
            f"{uri}: no feature has a tile_key and a mark, right or wrong; "
            "`skysift detect --marks-out` writes such a file"
        )
    fractions = [[mark in marks for mark in _MARKS] for marks in keys.values()]
    return TileLabels(
        tile_keys=np.array(list(keys), dtype=object),
        fractions=np.array(fractions, dtype=np.float32),
        mapped=np.ones(len(keys), dtype=np.float32),
        classes=_MARKS,
        min_fraction=1.0,
    )
