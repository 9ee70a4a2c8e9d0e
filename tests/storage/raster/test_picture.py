"""Pictures: a PNG or JPEG as Pillow shows it, a GeoTIFF as a scene's reader reads it."""

import io
import struct
import time
import zlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rasterio.transform import Affine

from storage.errors import ConfigError, SceneError
from storage.raster.picture import Picture, read_codes, read_picture
from storage.raster.pixel_grid import PixelGrid
from storage.raster.reader import SceneReader
from storage.scene import BandSource, Scene

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
PLACE = Affine(10, 0, 600_000, 0, -10, 1_500_000)
RGB = np.random.default_rng(3).integers(0, 256, (12, 16, 3)).astype(np.uint8)


def tiff(path: Path, array: np.ndarray, **profile: Any) -> str:
    """Write (bands, h, w)."""
    mask, scales = profile.pop("mask", None), profile.pop("scales", None)
    offsets = profile.pop("offsets", None)
    count, height, width = array.shape
    profile = {"crs": "EPSG:32648", "transform": PLACE} | profile
    shape = {"count": count, "height": height, "width": width, "dtype": array.dtype}
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "w", driver="GTiff", **shape, **profile) as dataset,
    ):
        if scales:
            dataset.scales, dataset.offsets = scales, offsets
        dataset.write(array)
        if mask is not None:
            dataset.write_mask(mask)
    return str(path)


def png(rows: bytes, width: int, height: int, depth: int, colour: int, *chunks: bytes) -> bytes:
    """Return a PNG of packed rows, each with a zero before it; ``chunks`` are name and content."""

    def chunk(content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
        )

    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [header, *chunks, b"IDAT" + zlib.compress(rows), b"IEND"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(map(chunk, parts))


def grey_png(depth: int, levels: list[int], *chunks: bytes) -> bytes:
    """Return a PNG of one row of greys of 1, 2 or 4 bits."""
    bits = "".join(f"{level:0{depth}b}" for level in levels).ljust(8 * 64, "0")
    return png(b"\0" + int(bits, 2).to_bytes(64), len(levels), 1, depth, 0, *chunks)


# --- PNG and JPEG: what a viewer shows -----------------------------------------------------------


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


PICTURES = {
    "rgb.png": lambda path: Image.fromarray(RGB).save(path),
    "rgb.jpg": lambda path: Image.fromarray(RGB).save(path),
    "progressive.jpg": lambda path: Image.fromarray(RGB).save(path, progressive=True),
    "cmyk.jpg": lambda path: Image.fromarray(RGB).convert("CMYK").save(path),
    "palette.png": lambda path: Image.fromarray(RGB).quantize(9).save(path),
    "named-wrong.png": lambda path: Image.fromarray(RGB).save(path, "JPEG"),
    "no-suffix": lambda path: Image.fromarray(RGB).save(path, "PNG"),
    **{
        f"turned-{n}.jpg": lambda path, n=n: Image.fromarray(RGB).save(path, exif=turned(n))
        for n in range(1, 9)
    },
    "turned.png": lambda path: Image.fromarray(RGB).save(path, exif=turned(6)),
}


def rotated(shown: np.ndarray, orientation: int) -> np.ndarray:
    """Apply an EXIF orientation, as its standard tells."""
    return {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a),
    }[orientation](shown)


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_what_a_viewer_shows(tmp_path: Path, name: str):
    PICTURES[name](tmp_path / name)
    with Image.open(tmp_path / name) as image:
        orientation = image.getexif().get(0x0112, 1)
        expected = rotated(np.asarray(image.convert("RGB")), orientation)
    picture = read_picture(tmp_path / name)  # type: ignore[arg-type]
    assert (picture.dtype, picture.values.dtype) == (np.uint8, np.float32)
    np.testing.assert_array_equal(picture.values, expected.transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
def test_transparent_pixels_are_missing_and_the_rest_is_shown(tmp_path: Path, mode: str):
    path = str(tmp_path / "a.png")
    alpha = np.where(np.arange(16) < 4, 0, np.where(np.arange(16) < 8, 90, 255))
    alpha = np.broadcast_to(alpha, (12, 16)).astype(np.uint8)
    image = Image.fromarray(RGB)
    if mode in ("LA", "RGBA"):
        image = image.convert(mode)
        image.putalpha(Image.fromarray(alpha))
        image.save(path)
    elif mode == "P":
        image = image.quantize(16)
        image.save(path, transparency=3)
        alpha = np.where(np.asarray(image) == 3, 0, 255)
    else:
        image = image.convert(mode)
        hidden = int(np.asarray(image)[5, 5])
        image.save(path, transparency=hidden)
        alpha = np.where(np.asarray(image) == hidden, 0, 255)
    colours = "L" if mode in ("1", "L", "LA") else "RGB"
    expected = np.atleast_3d(np.asarray(image.convert(colours), np.float32)).transpose(2, 0, 1)
    values = read_picture(path).values
    np.testing.assert_array_equal(values, np.where(alpha == 0, np.nan, expected))
    assert np.isnan(values).any()


def test_alpha_is_a_band_where_it_is_asked_for(tmp_path: Path):
    rgba = np.dstack([RGB, RGB[..., 0] % 2])
    path = str(tmp_path / "a.png")
    Image.fromarray(rgba).save(path)
    np.testing.assert_array_equal(read_picture(path, bands=4).values, rgba.transpose(2, 0, 1))
    assert np.isnan(read_picture(path, bands=3).values).any()
    np.testing.assert_array_equal(
        read_picture(path, [3]).values[0][rgba[..., 3] > 0], rgba[rgba[..., 3] > 0][:, 2]
    )
    with pytest.raises(SceneError, match=r"3 band\(s\), but band number 4"):
        read_picture(path, [4])


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_greys_of_few_bits_span_black_to_white(tmp_path: Path, depth: int):
    levels = list(range(2**depth))
    (tmp_path / "a.png").write_bytes(grey_png(depth, levels))
    shown = [level * 255 // levels[-1] for level in levels]
    assert read_picture(str(tmp_path / "a.png")).values[0, 0].tolist() == shown
    assert read_codes(str(tmp_path / "a.png"))[0].tolist() == levels
    (tmp_path / "b.png").write_bytes(grey_png(depth, levels, b"tRNS\0\1"))
    missing = np.isnan(read_picture(str(tmp_path / "b.png")).values[0, 0])
    assert np.flatnonzero(missing).tolist() == [1]


def test_grey_pngs_of_16_bits_keep_their_numbers(tmp_path: Path):
    numbers = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    path = str(tmp_path / "a.png")
    Image.fromarray(numbers).save(path)
    picture = read_picture(path)
    assert picture.dtype == np.uint16
    np.testing.assert_array_equal(picture.values[0], numbers)
    np.testing.assert_array_equal(picture.tile(16)[0], numbers)
    np.testing.assert_array_equal(read_codes(path), numbers)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in numbers)
    (tmp_path / "b.png").write_bytes(png(rows, 16, 16, 16, 0, b"tRNS\1\1"))
    assert np.argwhere(np.isnan(read_picture(str(tmp_path / "b.png")).values[0])).tolist() == [
        [0, 1]
    ]


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_colours_of_16_bits_are_refused(tmp_path: Path, colour: int, channels: int):
    row = b"\0" + bytes(range(2 * 4 * channels))
    (tmp_path / "a.png").write_bytes(png(row * 4, 4, 4, 16, colour))
    with Image.open(tmp_path / "a.png") as image:
        image.load()  # Pillow reads the file, with 8 bits less
    with pytest.raises(SceneError, match=r"a\.png is a PNG of 16-bit colours.*GeoTIFF"):
        read_picture(str(tmp_path / "a.png"))


def test_a_flipped_bit_of_a_png_is_found(tmp_path: Path):
    buffer = io.BytesIO()
    Image.fromarray(RGB * 0 + 7).save(buffer, "PNG")
    whole = buffer.getvalue()
    for at in range(41, len(whole) - 16):
        (tmp_path / "a.png").write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with pytest.raises(SceneError, match=r"a\.png is not a readable picture"):
            read_picture(str(tmp_path / "a.png"))


# --- GeoTIFF: what ingest reads ------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    dtype=st.sampled_from(["uint8", "int8", "uint16", "int16", "uint32", "float32", "float64"]),
    count=st.integers(1, 4),
    missing=st.sampled_from(["", "nodata", "mask", "alpha"]),
    scaled=st.booleans(),
    below=st.booleans(),
    interleave=st.sampled_from(["band", "pixel"]),
)
def test_a_geotiff_is_read_as_a_scene_is(
    tmp_path_factory: pytest.TempPathFactory,
    dtype: str,
    count: int,
    missing: str,
    scaled: bool,
    below: bool,
    interleave: str,
):
    array = np.random.default_rng(count).integers(0, 120, (count, 12, 16)).astype(dtype)
    more: dict[str, Any] = {"interleave": interleave, "photometric": "MINISBLACK"}
    if below:  # the rows run northwards
        more["transform"] = Affine(10, 0, 600_000, 0, 10, 1_499_880)
    if missing == "nodata":
        more["nodata"] = int(array[0, 3, 4])
    elif missing == "mask":
        more["mask"] = array[0] > 40
    elif missing == "alpha":
        array = np.insert(array, 1, np.where(array[0] > 40, 100, 0), axis=0)
        more["alpha"] = "YES"  # the band after the first
    if scaled:
        more |= {"scales": [0.5] * len(array), "offsets": [-3.0] * len(array)}
    href = tiff(tmp_path_factory.mktemp("tiff") / "a.tif", array, **more)
    picture = read_picture(href)
    with rasterio.open(href) as dataset:
        colours = [i for i, kind in enumerate(dataset.colorinterp, 1) if kind.name != "alpha"]
    assert len(colours) == count
    made = Scene(
        id="a",
        datetime=datetime(2020, 1, 1, tzinfo=UTC),
        bands=tuple(BandSource(name=str(i), href=href, index=i) for i in colours),
    )
    with SceneReader(made, PixelGrid(crs="EPSG:32648", resolution=10.0)) as reader:
        expected = reader.read(reader.extent).values
    np.testing.assert_array_equal(picture.values, expected)
    assert np.isnan(expected).any() == bool(missing)
    assert picture.dtype == (np.float32 if scaled else np.dtype(dtype))


def test_a_palette_of_a_tiff_is_shown_and_its_codes_are_one_band(tmp_path: Path):
    index = Image.fromarray(RGB).quantize(16)
    codes = np.asarray(index)
    colours = np.array(index.getpalette()).reshape(-1, 3)
    href = tiff(tmp_path / "a.tif", codes[None], photometric="palette")
    with rasterio.open(href, "r+") as dataset:
        entries = {i: (*map(int, colour), 255) for i, colour in enumerate(colours)}
        dataset.write_colormap(1, entries)
    shown = np.asarray(index.convert("RGB"), np.float32).transpose(2, 0, 1)
    np.testing.assert_array_equal(read_picture(href).values, shown)
    np.testing.assert_array_equal(read_picture(href, bands=3).tile(12), shown[:, :, 2:14])
    for given_ in ({"indexes": [1]}, {"bands": 1}):
        np.testing.assert_array_equal(read_picture(href, **given_).values[0], codes)  # type: ignore[arg-type]


def test_the_cmyk_of_a_tiff_becomes_rgb(tmp_path: Path):
    inks = np.asarray(Image.fromarray(RGB).convert("CMYK"))
    href = tiff(tmp_path / "a.tif", inks.transpose(2, 0, 1), photometric="CMYK")
    expected = np.asarray(Image.fromarray(inks, "CMYK").convert("RGB"), np.float32)
    np.testing.assert_array_equal(read_picture(href).values, expected.transpose(2, 0, 1))
    assert len(read_picture(href, [1, 2, 3, 4]).values) == 4


def test_a_chip_without_georeference_is_a_picture(tmp_path: Path):
    array = np.random.default_rng(7).integers(0, 200, (3, 12, 16)).astype(np.uint16)
    href = tiff(tmp_path / "a.tif", array, crs=None, transform=None, nodata=9)
    np.testing.assert_array_equal(
        read_picture(href, [2, 3]).values, np.where(array[1:] == 9, np.nan, array[1:])
    )


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
@pytest.mark.parametrize("holes", [False, True])
def test_a_tile_keeps_small_whole_numbers(dtype: str, holes: bool):
    values = np.random.default_rng(1).integers(0, 100, (2, 8, 10)).astype(np.float32)
    values[0, 3, 4] = np.nan if holes else 5
    tile = Picture(values=values, dtype=np.dtype(dtype), encoding="TIFF").tile(8)
    kept = dtype in ("uint8", "int16", "uint16") and not holes
    assert tile.dtype == (dtype if kept else "float32")
    np.testing.assert_array_equal(tile, values[:, :, 1:9])


# --- refusals ------------------------------------------------------------------------------------


def many_scans(scans: int) -> bytes:
    """Return a JPEG whose last scan is repeated."""
    buffer = io.BytesIO()
    Image.effect_noise((512, 512), 90).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    last, end = data.rindex(b"\xff\xda"), data.rindex(b"\xff\xd9")
    return data[:end] + data[last:end] * scans + b"\xff\xd9"


REFUSED = {
    "empty.png": (lambda: b"", "no PNG, JPEG or GeoTIFF"),
    "text.jpg": (lambda: b"no", "no PNG, JPEG or GeoTIFF"),
    "animation.gif": (lambda: b"GIF89a", "no PNG, JPEG or GeoTIFF"),
    "start.png": (lambda: b"\x89PNG", "cannot be decoded"),
    "size.png": (lambda: png(b"", 60_000, 60_000, 8, 2), "cannot be decoded"),
    "text.png": (
        lambda: png(b"\0\0", 1, 1, 8, 0, b"zTXtA\0\0" + zlib.compress(bytes(64_000_000))),
        "cannot be decoded",
    ),
    "depth.png": (lambda: png(b"\0\0", 1, 1, 7, 0), "cannot be decoded"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_crafted_picture_is_refused_in_time(tmp_path: Path, name: str):
    content, word = REFUSED[name]
    (tmp_path / name).write_bytes(content())
    before_s = time.monotonic()
    with pytest.raises(SceneError, match=f"the image is not a readable picture: .*{word}"):
        read_picture(str(tmp_path / name), name="the image")
    assert time.monotonic() - before_s < 5


def test_a_jpeg_of_many_scans_is_refused(tmp_path: Path):
    (tmp_path / "a.jpg").write_bytes(many_scans(2000))
    with pytest.raises(ConfigError, match=r"a\.jpg has 2,0.. scans, at most 100 are taken"):
        read_picture(str(tmp_path / "a.jpg"))


def test_a_picture_with_many_pixels_or_a_huge_block_is_refused(tmp_path: Path):
    href = tiff(tmp_path / "a.tif", np.zeros((5, 64, 64), np.uint8))
    with pytest.raises(ConfigError, match="64 x 64 pixels in 5 bands, at most 5,000"):
        read_picture(href, most_px=5000)
    shape = {"width": 16, "height": 16, "dtype": "uint8", "compress": "deflate"}
    rasterio.open(tmp_path / "c.tif", "w", driver="GTiff", count=2000, **shape).close()
    with pytest.raises(ConfigError, match=r"c\.tif has 2000 bands, at most 1000"):
        read_picture(str(tmp_path / "c.tif"))
    side, shape = 32_768, shape | {"count": 1}
    tile = {"tiled": True, "blockxsize": side, "blockysize": side, "SPARSE_OK": True}
    rasterio.open(tmp_path / "b.tif", "w", driver="GTiff", **shape, **tile).close()
    with pytest.raises(ConfigError, match=r"b\.tif has tiles of 1,073,741,824 pixels"):
        read_picture(str(tmp_path / "b.tif"))
