"""Mutated pictures: each is read or refused, in time and in bounds of memory."""

import io
import random
import struct
import tempfile
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.transform import Affine

from storage.raster.picture import read_codes, read_picture
from tests.support.fuzz import faults_of, mutate_bytes


@cache
def samples() -> dict[str, bytes]:
    """Return small pictures of every kind that is read, by file name."""
    rgb = np.random.default_rng(3).integers(0, 256, (40, 48, 3)).astype(np.uint8)
    image, exif = Image.fromarray(rgb), Image.Exif()
    exif[0x0112] = 6
    stored: dict[str, bytes] = {}

    def keep(name: str, picture: Image.Image, **options: object) -> None:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG" if name.endswith("jpg") else "PNG", **options)
        stored[name] = buffer.getvalue()

    keep("rgb.png", image)
    keep("turned.png", image, exif=exif)
    keep("palette.png", image.quantize(16), transparency=3)
    keep("bits.png", image.convert("1"))
    keep("alpha.png", image.convert("RGBA"), icc_profile=bytes(200))
    keep("deep.png", Image.fromarray(rgb[..., 0].astype(np.uint16) * 99))
    keep("rgb.jpg", image)
    keep("progressive.jpg", image, progressive=True, exif=exif)
    keep("cmyk.jpg", image.convert("CMYK"))
    for name, array, options in (
        ("bytes.tif", rgb, {"compress": "deflate", "photometric": "RGB"}),
        ("tiled.tif", rgb.astype(np.uint16), {"tiled": True, "blockxsize": 16, "blockysize": 16}),
        ("reals.tif", rgb[..., :1].astype(np.float32), {"nodata": 7.0, "compress": "lzw"}),
        ("jpeg.tif", rgb, {"compress": "jpeg", "photometric": "YCBCR", "interleave": "pixel"}),
        ("palette.tif", rgb[..., :1], {"photometric": "PALETTE"}),
        ("big.tif", rgb, {"BIGTIFF": "YES"}),
    ):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            shape = {"height": 40, "width": 48, "count": array.shape[2], "dtype": array.dtype}
            place = {"crs": "EPSG:32648", "transform": Affine(10, 0, 6e5, 0, -10, 15e5)}
            with rasterio.open(path, "w", driver="GTiff", **shape, **place, **options) as out:
                out.write(array.transpose(2, 0, 1))
            stored[name] = path.read_bytes()
    return stored


def sealed(data: bytes) -> bytes:
    """Return a PNG whose chunks have the checksums of their content."""
    out, at = bytearray(data), 8
    while at + 12 <= len(out):
        (size,) = struct.unpack_from(">I", out, at)
        end = at + 8 + size
        if end + 4 > len(out):
            break
        struct.pack_into(">I", out, end, zlib.crc32(out[at + 4 : end]))
        at = end + 4
    return bytes(out)


def read_mutated(seed: int) -> None:
    """Read the picture of a seed as a query, as an image of a dataset, and as a mask."""
    rng = random.Random(seed)
    name = rng.choice(sorted(samples()))
    data = mutate_bytes(samples()[name], rng)
    if name.endswith("png") and rng.random() < 0.7:  # deeper than the checksums
        data = sealed(data)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        if name.endswith("png") and rng.random() < 0.2:
            read_codes(str(path))
        else:
            bands = rng.choice([None, 1, 3, 4])
            read_picture(str(path), bands=bands, most_px=1 << 24).tile(16)


def test_mutated_pictures_are_read_or_refused():
    assert faults_of(read_mutated, range(200)) == []


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_thousand_mutated_pictures_are_read_or_refused():
    assert faults_of(read_mutated, range(1000, 3000)) == []
