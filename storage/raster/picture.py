"""Pictures: query pictures and the images of labelled datasets, from PNG, JPEG and TIFF.

A PNG or JPEG gives the colours that a viewer shows. A TIFF gives the numbers that ingest reads, by
the same :mod:`storage.raster.layer`. The first bytes of a file decide its kind, never its name.
:mod:`storage.raster.reader` reads scenes.

Shape legend: C bands, h and w pixels.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from storage.errors import ConfigError, SceneError, SkysiftError
from storage.location import Location
from storage.raster.geotiff import RASTER_SUFFIXES, alpha_index, cause, environment, opened
from storage.raster.layer import by_nodata, gaps_of, plain_layer
from storage.raster.pixel_grid import Float32, Window
from storage.scene import BandSource

_KINDS = {
    b"\x89PNG": "PNG",
    b"\xff\xd8\xff": "JPEG",
    **dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "TIFF"),
}
_SCAN, _MOST_SCANS = b"\xff\xda", 100
"""The marker of a scan of a JPEG. Cameras write up to 20; the decoder needs a pass for each."""
_MOST_BLOCK_BYTES = 256 * 1024 * 1024
"""Size of one decoded block of a TIFF: a file of some kilobytes may state any size."""
_PNG_GREY = 0
"""The colour type of a grey PNG: byte 25 of the file, after its depth in bits."""
_MOST_BANDS = 1000
"""Bands of a TIFF that are read: GDAL takes time by the square of the number of bands."""
_CMYK = ["cyan", "magenta", "yellow", "black"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """Pixels of a picture.

    Attributes
    ----------
    values
        float32 (C, h, w), NaN where the picture has no data or is transparent.
    dtype
        Type of the numbers in the file; float32 where a scale or an offset was applied to them.
    encoding
        PNG, JPEG or TIFF.
    """

    values: Float32
    dtype: np.dtype[Any]
    encoding: str

    def tile(self, side_px: int) -> npt.NDArray[Any]:
        """Return the central square as (C, side_px, side_px); see :func:`fit_picture`.

        The result has the dtype of the file for whole numbers of 8 or 16 bits of which none is
        missing, else float32.
        """
        values = fit_picture(self.values, side_px)
        small = self.dtype.kind in "iu" and self.dtype.itemsize <= 2
        if small and np.isfinite(self.values).all():
            return np.rint(values).astype(self.dtype)
        return values


def read_picture(
    href: str | Location,
    indexes: Sequence[int] | None = None,
    *,
    bands: int | None = None,
    most_px: int | None = None,
    name: str | None = None,
) -> Picture:
    """Read a whole picture: PNG, JPEG or TIFF, georeferenced or not.

    Transparent pixels (alpha 0) are missing, unless the alpha band is among the bands that are
    read. A palette becomes red, green and blue, and so does CMYK. The EXIF orientation of a PNG or
    JPEG is applied. Grey PNGs of 16 bits keep their numbers; colours of 16 bits are refused.

    Parameters
    ----------
    href
        The picture.
    indexes
        Bands to read, from 1, as the file numbers them; all but alpha when None.
    bands
        Number of bands that the caller expects. A picture of that many bands including alpha is
        read with alpha as a band; the numbers of a TIFF with a palette are kept for one band.
    most_px
        Largest number of pixels, in up to four bands.
    name
        Name of the picture in messages, instead of ``href``.

    Raises
    ------
    SceneError
        The file is not such a picture, is damaged, or lacks a band.
    ConfigError
        The picture is larger than ``most_px``, or its header states more work than any picture
        needs: scans of a JPEG, bands and tiles of a TIFF.
    NotFoundError
        The file does not exist.
    """
    place = Location.of(href)
    with _named(place, name or str(href)):
        if place.uri.lower().endswith(RASTER_SUFFIXES):  # of which GDAL reads parts only
            return _read_tiff(place, indexes, bands, most_px)
        data = place.read()
        kind = _kind(data, place)
        if kind == "TIFF":
            return _read_tiff(place, indexes, bands, most_px)
        return _read_encoded(data, kind, place, indexes, bands, most_px)


def read_codes(href: str | Location, name: str | None = None) -> npt.NDArray[np.int64]:
    """Read a grey or palette PNG as the numbers that the file stores, (h, w) int64.

    Raises
    ------
    SceneError
        The file is not such a PNG, or is damaged.
    NotFoundError
        The file does not exist.
    """
    place = Location.of(href)
    with _named(place, name or str(href)):
        data = place.read()
        with _opened(data, "PNG", place) as image:
            if image.mode not in ("1", "L", "P", "I;16"):
                raise SceneError(
                    f"{place} is {image.mode}, not one class number a pixel; "
                    "give grey or palette masks"
                )
            codes = np.asarray(image, np.int64)
            # Pillow scales greys of fewer bits up to 8; 1-bit greys become False and True.
            return codes // _grey_step(data[24]) if image.mode == "L" else codes


def fit_picture(values: Float32, tile_px: int) -> Float32:
    """Cut the largest centred square out of a picture and resize it to a tile.

    Shrinking averages, enlarging interpolates linearly; a tile-sized picture stays as it is.
    Invalid pixels do not count; a pixel of the tile is invalid when no pixel under it is valid.

    Parameters
    ----------
    values
        (C, h, w) float32, NaN where invalid.
    tile_px
        Size of the tile in pixels.

    Examples
    --------
    >>> fit_picture(np.array([[[9, 1, 3, 9], [9, 5, 7, 9]]], dtype=np.float32), 1)
    array([[[4.]]], dtype=float32)
    """
    height, width = values.shape[1:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = values[:, top : top + side, left : left + side]
    if side == tile_px:
        return square
    method = Image.Resampling.BOX if side > tile_px else Image.Resampling.BILINEAR

    def resized(band: Float32) -> Float32:
        picture = Image.fromarray(np.ascontiguousarray(band, dtype=np.float32))
        return np.asarray(picture.resize((tile_px, tile_px), method), dtype=np.float32)

    tile = np.empty((len(values), tile_px, tile_px), dtype=np.float32)
    for number, band in enumerate(square):
        valid = np.isfinite(band)
        if valid.all():
            tile[number] = resized(band)
            continue
        weight = resized(valid.astype(np.float32))
        total = resized(np.where(valid, band, 0).astype(np.float32))
        tile[number] = np.divide(
            total, weight, out=np.full_like(total, np.nan), where=weight > 1e-6
        )
    return tile


def _kind(data: bytes, place: Location) -> str:
    for start, kind in _KINDS.items():
        if data.startswith(start):
            return kind
    raise SceneError(
        f"{place} is not a readable picture: it is no PNG, JPEG or GeoTIFF file; "
        "convert it to one of these"
    )


@contextmanager
def _named(place: Location, label: str) -> Iterator[None]:
    """Turn every fault of a decoder into a SceneError that names the picture."""
    try:
        yield
    except SkysiftError as error:
        raise type(error)(str(error).replace(str(place), label)) from error
    except Exception as error:  # a decoder raises errors of any type on crafted bytes
        raise SceneError(
            f"{label} is not a readable picture: it cannot be decoded ({cause(error)}); replace it"
        ) from error


def _read_tiff(
    place: Location, indexes: Sequence[int] | None, bands: int | None, most_px: int | None
) -> Picture:
    with environment(place), opened(place, georeferenced=False) as dataset:
        _check_size(place, dataset.width, dataset.height, dataset.count, most_px)
        _check_block(place, dataset)
        alpha = alpha_index(dataset) if bands != dataset.count else 0
        chosen = indexes or [index for index in dataset.indexes if index != alpha]
        _check_indexes(place, chosen, dataset.count)
        if len(chosen) > _MOST_BANDS:
            raise ConfigError(f"{place} has {len(chosen)} bands, at most {_MOST_BANDS} are taken")
        sources = [BandSource(name=str(index), href=place, index=index) for index in chosen]
        whole = Window(column=0, row=0, width=dataset.width, height=dataset.height)
        # A picture without a place has rows from the top; a scene from the bottom is turned over.
        flipped = not dataset.transform.is_identity and dataset.transform.e > 0
        values = np.full((len(sources), dataset.height, dataset.width), np.nan, np.float32)
        scaled = False
        for group in by_nodata(dataset, sources):
            part = [sources[number] for number in group]
            gaps = gaps_of(dataset, part, chosen)
            layer = plain_layer(dataset, part, group, whole, gaps, flipped)
            layer.read_into(values, whole)
            scaled |= any(scale != 1 for scale in layer.scales) or any(layer.offsets)
        dtype = np.dtype(np.float32 if scaled else dataset.dtypes[chosen[0] - 1])
        names = [colour.name for colour in dataset.colorinterp]
        if indexes is None and names[0] == "palette" and bands != 1:
            values, dtype = _coloured(values[0], dataset.colormap(1)), np.dtype(np.uint8)
        elif indexes is None and names == _CMYK:
            values = _from_cmyk(values)
        return Picture(values=values, dtype=dtype, encoding="TIFF")


def _read_encoded(
    data: bytes,
    kind: str,
    place: Location,
    indexes: Sequence[int] | None,
    bands: int | None,
    most_px: int | None,
) -> Picture:
    with _opened(data, kind, place, most_px) as image:
        depth = data[24] if kind == "PNG" else 8
        if depth == 16 and data[25] != _PNG_GREY:
            raise SceneError(
                f"{place} is a PNG of 16-bit colours, which would lose 8 bits; "
                "convert it to GeoTIFF"
            )
        numbers, alpha = _shown(image, depth)
    if bands is not None and alpha is not None and bands == len(numbers) + 1:
        numbers, alpha = np.concatenate([numbers, alpha[None]]), None
    chosen = range(1, len(numbers) + 1) if indexes is None else indexes
    _check_indexes(place, chosen, len(numbers))
    values = numbers[[index - 1 for index in chosen]].astype(np.float32)
    if alpha is not None:
        values[:, alpha == 0] = np.nan
    return Picture(values=values, dtype=numbers.dtype, encoding=kind)


@contextmanager
def _opened(
    data: bytes, kind: str, place: Location, most_px: int | None = None
) -> Iterator[Image.Image]:
    """Open a PNG or JPEG whose header and checksums are right."""
    scans = data.count(_SCAN) if kind == "JPEG" else 0
    if scans > _MOST_SCANS:
        raise ConfigError(
            f"{place} has {scans:,} scans, at most {_MOST_SCANS} are taken; save it again"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd metadata, which are not used
        with Image.open(BytesIO(data), formats=(kind,)) as image:
            _check_size(place, *image.size, len(image.getbands()), most_px)
            image.verify()  # the checksums of a PNG, which decoding does not compare
        with Image.open(BytesIO(data), formats=(kind,)) as image:
            yield image


def _shown(image: Image.Image, depth: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any] | None]:
    """Return the bands (C, h, w) of a picture as a viewer shows them, and alpha (h, w)."""
    ImageOps.exif_transpose(image, in_place=True)
    key = image.info.get("transparency")
    if image.mode == "P":
        image = image.convert("RGB" if key is None else "RGBA")
    elif image.mode in ("1", "CMYK"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    numbers = np.atleast_3d(np.asarray(image)).transpose(2, 0, 1)
    if image.mode == "I":  # 16 bits in releases of Pillow before 11
        numbers = numbers.astype(np.uint16)
    if image.mode in ("LA", "RGBA"):
        return numbers[:-1], numbers[-1]
    if key is None:
        return numbers, None
    # A PNG names its transparent colour in its own depth; Pillow scales the greys, not that.
    transparent = numbers == np.reshape(np.multiply(key, _grey_step(depth)), (-1, 1, 1))
    return numbers, np.where(transparent.all(axis=0), 0, 255).astype(numbers.dtype)


def _grey_step(depth: int) -> int:
    """Return the factor by which Pillow scales the greys of 2 and 4 bits of a PNG."""
    return 255 // (2**depth - 1) if depth in (2, 4) else 1


def _coloured(codes: Float32, colours: dict[int, tuple[int, int, int, int]]) -> Float32:
    """Return the colours (3, h, w) of palette codes (h, w); NaN where missing or transparent."""
    table = np.full((max(colours) + 1, 3), np.nan, np.float32)
    for code, (red, green, blue, alpha) in colours.items():
        if alpha:
            table[code] = red, green, blue
    known = np.isfinite(codes) & (codes < len(table))
    values = table[np.where(known, codes, 0).astype(np.int64)]
    values[~known] = np.nan
    return values.transpose(2, 0, 1)


def _from_cmyk(values: Float32) -> Float32:
    """Return red, green and blue (3, h, w) of cyan, magenta, yellow and black, all 0 to 255."""
    missing = np.isnan(values).any(axis=0)
    inks = np.nan_to_num(values).astype(np.uint8).transpose(1, 2, 0)
    rgb = np.asarray(Image.fromarray(inks, "CMYK").convert("RGB"), np.float32).transpose(2, 0, 1)
    return np.where(missing, np.float32(np.nan), rgb)


def _check_size(place: Location, width: int, height: int, count: int, most_px: int | None) -> None:
    """Refuse a picture that would decode to far more bytes than its file has."""
    if most_px is not None and max(width * height, width * height * count // 4) > most_px:
        raise ConfigError(
            f"{place} has {width} x {height} pixels in {count} bands, at most {most_px:,} "
            "are taken (in 4 bands); crop it to the part to search for"
        )


def _check_block(place: Location, dataset: Any) -> None:
    """Refuse a TIFF of which a block is larger than any picture: GDAL decodes whole blocks."""
    rows, columns = dataset.block_shapes[0]
    pixel_bytes = sum(np.dtype(name).itemsize for name in dataset.dtypes)
    if rows * columns * pixel_bytes > _MOST_BLOCK_BYTES:
        raise ConfigError(
            f"{place} has tiles of {rows * columns:,} pixels, which take more than "
            f"{_MOST_BLOCK_BYTES:,} bytes each; write it with tiles of 512 x 512 pixels"
        )


def _check_indexes(place: Location, indexes: Sequence[int], count: int) -> None:
    for index in indexes:
        if not 1 <= index <= count:
            raise SceneError(f"{place} has {count} band(s), but band number {index} was requested")
