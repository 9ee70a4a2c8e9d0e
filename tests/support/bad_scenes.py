"""GeoTIFFs that a scene cannot be made of, one function for each kind; each takes path and seed."""

import random
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import rasterio
from PIL import Image
from rasterio.transform import from_origin

from tests.support.fuzz import mutate_bytes
from tests.support.ingest_world import SIZE_PX, write_scene

_FORMATS = {3: "H", 4: "I", 12: "d"}
PROJECTED, GEOGRAPHIC, USER_DEFINED = (3072, 1), (2048, 2), (3072, 3)


def hand_made(
    size_px: int = 64,
    *,
    pixel: float = 10.0,
    x: float = 500_000.0,
    y: float = 2_000_000.0,
    epsg: int = 32648,
    key: tuple[int, int] = PROJECTED,
    tile_px: int = 0,
    bands: int = 3,
    more: tuple[tuple[int, int, list[int]], ...] = (),
) -> bytes:
    """A TIFF of bytes with the numbers that are given, true or not, in its tags.

    With ``tile_px`` all its blocks are missing. ``more`` are tags as (number, type, values).
    """
    data = b"" if tile_px else bytes(range(1, 201)) * (bands * size_px**2 // 200 + 1)
    data = data[: bands * size_px**2]
    code, model = key
    geokeys = [1, 1, 0, 3, 1024, 0, 1, model, 1025, 0, 1, 1, code, 0, 1, epsg]
    tags = [
        *((256, 4, [size_px]), (257, 4, [size_px]), (258, 3, [8] * bands), (259, 3, [1])),
        *((262, 3, [1]), (277, 3, [bands]), (284, 3, [1]), (339, 3, [1] * bands)),
        *([(338, 3, [0] * (bands - 1))] if bands > 1 else []),
        *((33550, 12, [pixel, pixel, 0.0]), (33922, 12, [0.0, 0.0, 0.0, x, y, 0.0])),
        (34735, 3, geokeys),
        *more,
    ]
    if tile_px:
        blocks = [0] * (-(-size_px // tile_px)) ** 2
        tags += [(322, 4, [tile_px]), (323, 4, [tile_px]), (324, 4, blocks), (325, 4, blocks)]
    else:
        tags += [(273, 4, [8]), (278, 4, [size_px]), (279, 4, [len(data)])]
    out, rows = bytearray(b"II*\0\0\0\0\0" + data), []
    for tag, kind, values in sorted(tags):
        raw = struct.pack("<" + _FORMATS[kind] * len(values), *values)
        if len(raw) > 4:
            out += b"\0" * (len(out) % 2)
            raw, place = struct.pack("<I", len(out)), raw
            out += place
        rows.append(struct.pack("<HHI", tag, kind, len(values)) + raw.ljust(4, b"\0"))
    out += b"\0" * (len(out) % 2)
    out[4:8] = struct.pack("<I", len(out))
    return bytes(out + struct.pack("<H", len(rows)) + b"".join(rows) + bytes(4))


def _by_hand(**numbers: object) -> Callable[[Path, int], None]:
    return lambda path, seed: _write(path, hand_made(**numbers))  # type: ignore[arg-type]


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _whole(path: Path, seed: int) -> bytes:
    return write_scene(path.parent, path.stem, seed).read_bytes()


def _torn(path: Path, seed: int) -> None:
    path.write_bytes(_whole(path, seed)[:9000])


def _damaged_in_its_middle(path: Path, seed: int) -> None:
    """Strips of the whole width, of which the first are sound."""
    pixels = np.random.default_rng(seed).integers(1, 255, (3, SIZE_PX, SIZE_PX), dtype=np.uint8)
    place = {"crs": "EPSG:32632", "transform": from_origin(320_000, 4_800_000, 10, 10)}
    size = {"count": 3, "height": SIZE_PX, "width": SIZE_PX, "dtype": "uint8"}
    with rasterio.open(path, "w", compress="deflate", blockysize=32, **size, **place) as target:
        target.write(pixels)
        target.descriptions = ("b1", "b2", "b3")
    with rasterio.open(path) as source:
        at = int(source.get_tag_item("BLOCK_OFFSET_0_2", "TIFF", bidx=1))
    data = bytearray(path.read_bytes())
    data[at : at + 200] = random.Random(seed).randbytes(200)
    path.write_bytes(data)


def _complex(path: Path, seed: int, dtype: str = "complex_int16") -> None:
    place = {"crs": "EPSG:32632", "transform": from_origin(320_000, 4_800_000, 10, 10)}
    with rasterio.open(path, "w", count=3, height=64, width=64, dtype=dtype, **place) as target:
        target.write(np.ones((3, 64, 64), np.complex64))


def _picture(path: Path, seed: int) -> None:
    Image.fromarray(np.ones((64, 64, 3), np.uint8)).save(path, "PNG")


BAD: Mapping[str, Callable[[Path, int], None]] = {
    "torn": _torn,
    "empty": lambda path, seed: path.touch(),
    "noise": lambda path, seed: _write(path, random.Random(seed).randbytes(999)),
    "picture": _picture,
    "damaged-in-its-middle": _damaged_in_its_middle,
    "complex": _complex,
    "one-band": _by_hand(bands=1),
    "origin-nan": _by_hand(x=float("nan")),
    "origin-infinite": _by_hand(y=float("inf")),
    "origin-1e300": _by_hand(x=1e300),
    "beyond-the-pole": _by_hand(y=2e7),
    "pixel-1e-9": _by_hand(pixel=1e-9),
    "pixel-0": _by_hand(pixel=0.0),
    "pixel-nan": _by_hand(pixel=float("nan")),
    "degrees-called-metres": _by_hand(pixel=1e-4, x=105.0, y=18.0),
    "metres-called-degrees": _by_hand(epsg=4326, key=GEOGRAPHIC),
    "latitude-95": _by_hand(pixel=1e-4, x=10.0, y=95.0, epsg=4326, key=GEOGRAPHIC),
    "longitude-2000": _by_hand(pixel=1e-4, x=2000.0, y=5.0, epsg=4326, key=GEOGRAPHIC),
    "heights": _by_hand(epsg=5773),
    "geocentric": _by_hand(epsg=4978),
    "no-such-crs": _by_hand(epsg=29999),
    "axes-of-its-own": _by_hand(epsg=32767, key=USER_DEFINED),
    "claims-1e6-px": _by_hand(size_px=10**6, tile_px=32768),
    "claims-1e5-px": _by_hand(size_px=10**5, tile_px=16384),
    "claims-2e9-px": _by_hand(size_px=2 * 10**9, tile_px=2**28),
}
"""All of them are quarantined."""


def mutated(path: Path, seed: int) -> None:
    """Write a scene with a few changed bytes, which may be a scene still."""
    path.write_bytes(mutate_bytes(_whole(path, seed), random.Random(seed)))
