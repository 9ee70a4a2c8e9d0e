"""Small scenes, an encoder for them, and the rows that an ingest of them leaves."""

from pathlib import Path

import numpy as np

from encoders.bundle import new_encoder, save_bundle
from encoders.spec import EncoderSpec
from storage.archive.reader import Archive
from storage.location import Location
from storage.raster.writer import write_geotiff

TILE_PX = 32
SIZE_PX = 4 * TILE_PX


def write_scene(folder: Path, name: str, seed: int, nodata_columns: int = 0) -> Path:
    """A three-band uint8 GeoTIFF of 4 x 4 tiles, its tiles on the 10 m grid of UTM 32 N."""
    pixels = np.random.default_rng(seed).integers(1, 255, (3, SIZE_PX, SIZE_PX), dtype=np.uint8)
    if nodata_columns:
        pixels[:, :, :nodata_columns] = 0
    path = folder / f"{name}.tif"
    east, north = 320 * 1000, 320 * 15000
    write_geotiff(
        str(path),
        pixels,
        "EPSG:32632",
        (10, 0, east, 0, -10, north),
        nodata=0,
        block_px=128,
        descriptions=("b1", "b2", "b3"),
    )
    return path


def make_bundle(folder: Path, seed: int = 0) -> str:
    """An untrained encoder of the scenes."""
    spec = EncoderSpec(
        backbone="tiny-cnn",
        bands=("b1", "b2", "b3"),
        band_mean=(128.0,) * 3,
        band_std=(70.0,) * 3,
        tile_px=TILE_PX,
        dimension=16,
    )
    save_bundle(new_encoder(spec, seed=seed), str(folder))
    return str(folder)


def rows_of(place: str | Location) -> set[tuple[str, str]]:
    """The (scene, tile key) of every row; none of them twice."""
    archive = Archive.open(place)
    pairs = []
    for segment in archive.segments:
        rows = archive.read_segment(segment.ordinal, ["scene", "tile_key"])
        pairs += list(zip(rows["scene"], rows["tile_key"], strict=True))
    assert len(pairs) == len(set(pairs)) == len(archive)
    return set(pairs)
