"""Scenes of two dates of one ground, the second one brighter."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from storage.raster.writer import write_geotiff

SIDE, TILE_PX = 6, 16


def write_scenes(folder: Path, bands: Sequence[str]) -> None:
    """Write two GeoTIFFs of SIDE x SIDE tiles; level and roughness of a tile are its own."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    level, rough = (
        rng.uniform(low, high, (len(bands), SIDE, SIDE)).repeat(TILE_PX, 1).repeat(TILE_PX, 2)
        for low, high in ((600, 1400), (0, 300))
    )
    for date, light in (("20230501", 1.0), ("20240501", 1.5)):
        ground = level + rough * rng.normal(size=level.shape)
        write_geotiff(
            str(folder / f"site_{date}.tif"),
            (ground * light).clip(1, 9999).astype(np.uint16),
            "EPSG:32632",
            (10, 0, 160 * 2000, 0, -10, 160 * 30000),
            nodata=0,
            block_px=128,
            descriptions=bands,
        )
