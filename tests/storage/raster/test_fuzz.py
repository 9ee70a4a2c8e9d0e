"""Mutated GeoTIFFs: each is read or refused by a house error, in bounded time and memory."""

import random
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp, Resampling

from storage.raster.geotiff import inspect
from storage.raster.picture import read_picture
from storage.raster.pixel_grid import PixelGrid, Window
from storage.raster.reader import SceneReader
from storage.scene import BandSource, MaskSource, Scene
from tests.support.fuzz import faults_of, mutate_bytes
from tests.support.rasters import CRS, HOME, ORIGIN, numbers, tiff

KINDS: dict[str, dict[str, Any]] = {
    "tiled": {"count": 2, "nodata": 5},
    "strips": {"count": 1, "tiled": False, "blockysize": 7, "compress": "lzw", "predictor": 2},
    "jpeg": {"count": 3, "dtype": "uint8", "compress": "jpeg", "photometric": "ycbcr"},
    "big": {"count": 1, "BIGTIFF": "YES", "dtype": "float32", "compress": "zstd", "predictor": 3},
    "mask": {"count": 1, "mask": np.ones((40, 48), bool), "scales": (0.5,), "offsets": (1.0,)},
    "alpha": {"count": 2, "colorinterp": [ColorInterp.gray, ColorInterp.alpha]},
    "motorola": {"count": 1, "ENDIANNESS": "BIG", "compress": "none", "dtype": "uint32"},
    "planar": {"count": 3, "interleave": "band", "compress": "packbits"},
}


@cache
def original(kind: str) -> bytes:
    how = dict(KINDS[kind])
    with tempfile.TemporaryDirectory() as folder:
        if kind == "jpeg":
            how["interleave"] = "pixel"
        array = numbers(how.pop("count"), dtype=how.pop("dtype", "uint16"))
        href = tiff(Path(folder) / "a.tif", array, **how)
        if kind == "tiled":
            with rasterio.open(href, "r+") as dataset:
                dataset.build_overviews([2], Resampling.average)
        return Path(href).read_bytes()


@cache
def sidecars() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.tif"
        tiff(path, numbers(1), mask=numbers(1)[0] > 50, internal=False)
        mask = Path(f"{path}.msk").read_bytes()
    band = "<NoDataValue>5</NoDataValue><Scale>2</Scale><ColorInterp>Alpha</ColorInterp>"
    srs = f"<SRS>{CRS}</SRS><GeoTransform>{ORIGIN[0]}, 10, 0, {ORIGIN[1]}, 0, -10</GeoTransform>"
    metadata = f'<PAMDataset>{srs}<PAMRasterBand band="1">{band}</PAMRasterBand></PAMDataset>'
    return {".msk": mask, ".msk.msk": mask, ".aux.xml": metadata.encode()}


def read_mutated(seed: int) -> None:
    """Read a mutated file, or a file beside which a mutated one lies, as scene or picture."""
    rng = random.Random(seed)
    data = original(rng.choice(list(KINDS)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.tif"
        if rng.random() < 0.3:
            path.write_bytes(data)
            suffix = rng.choice(list(sidecars()))
            Path(f"{path}{suffix}").write_bytes(mutate_bytes(sidecars()[suffix], rng))
        else:
            path.write_bytes(mutate_bytes(data, rng))
        ways = [
            lambda: inspect(str(path)).bbox,
            lambda: read_scene(str(path), PixelGrid(crs=CRS, resolution=10.0)),
            lambda: read_scene(str(path), PixelGrid(crs=CRS, resolution=rng.choice([5.0, 7.0]))),
            lambda: read_scene(str(path), PixelGrid(crs="EPSG:4326", resolution=1e-4)),
            lambda: read_picture(str(path)),
        ]
        rng.choice(ways)()


def read_scene(href: str, grid: PixelGrid) -> None:
    made = Scene(
        id="a",
        datetime=datetime(2024, 1, 5, tzinfo=UTC),
        bands=(BandSource(name="red", href=href),),
        mask=MaskSource(href=href, cloud_bits=(0,)),
    )
    with SceneReader(made, grid, overviews=grid.resolution == 7.0) as reader:
        extent = reader.extent
        size = {"width": min(extent.width, 64), "height": min(extent.height, 64)}
        reader.read(Window(column=extent.column, row=extent.row, **size))


@pytest.mark.parametrize("kind", KINDS)
def test_the_originals_are_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(original(kind))
    read_scene(str(path), PixelGrid(crs=CRS, resolution=10.0))
    assert read_picture(str(path)).values.shape[1:] == (HOME.height, HOME.width)


def test_a_message_that_is_no_text_prints_no_traceback(tmp_path: Path) -> None:
    """GDAL's message quotes the file; in a process of its own, where no test catches stderr."""
    path, data = tmp_path / "a.tif", original("mask")
    assert b"<Item name=" in data
    path.write_bytes(data.replace(b"<Item name=", b"<Item \xff    "))
    code = f"from storage.raster.picture import read_picture; read_picture({str(path)!r})"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (child.returncode, child.stderr) == (0, b"")


def test_a_hundred_mutated_files_are_read_or_refused() -> None:
    assert faults_of(read_mutated, range(100)) == []


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_four_thousand_mutated_files_are_read_or_refused() -> None:
    assert faults_of(read_mutated, range(1000, 5000)) == []
