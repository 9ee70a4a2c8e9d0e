"""Tile labels for a set of scenes, whatever grids they are on."""

from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.analysis.landcover import TileLabels, join_labels, tile_labels
from pipeline.tiles.grid import TileGrid, grid_for_scene
from pipeline.tiles.spec import GridSpec
from storage.location import Location
from storage.progress import ProgressSink, ignore
from storage.quarantine import required
from storage.raster.reader import SceneReader
from storage.scene import Scene


def label_scenes(
    scenes: Sequence[Scene],
    grid: GridSpec,
    landcover: str | Location,
    classes: Mapping[int, str],
    *,
    min_fraction: float = 0.05,
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

    Raises
    ------
    SceneError
        A scene or the raster cannot be read.
    """
    grids: dict[str, TileGrid] = {}
    tiles: dict[str, list[np.ndarray]] = {}
    for scene in scenes:
        with required(f"scene {scene.id}"):
            tile_grid = grid_for_scene(scene, grid)
            with SceneReader(scene, tile_grid.pixels) as reader:
                covered = tile_grid.tiles_over(reader.extent)
        grids[tile_grid.id] = tile_grid
        tiles.setdefault(tile_grid.id, []).append(covered)
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
