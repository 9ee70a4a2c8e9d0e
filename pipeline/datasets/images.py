"""Image files of a folder, an object store or a tar archive, read and decoded."""

import io
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from storage.errors import ConfigError, NotFoundError, SceneError
from storage.location import Location
from storage.raster.geotiff import decode_square, shorter_side

Counts = NDArray[np.int64]

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_PACK = np.array([65536, 256, 1])


class Files(Protocol):
    """A read-only set of files by relative path."""

    def names(self) -> list[str]:
        """Return the paths of all files."""

    def read(self, name: str) -> bytes:
        """Return the content of a file; raise NotFoundError if it does not exist."""


class _Folder:
    def __init__(self, folder: Location) -> None:
        self._folder = folder

    def names(self) -> list[str]:
        root = self._folder.absolute.uri.rstrip("/") + "/"
        return [file.uri.removeprefix(root) for file in self._folder.list()]

    def read(self, name: str) -> bytes:
        return (self._folder / name).read()


class _Tar:
    """Members of a tar archive, read one by one without unpacking to disk."""

    def __init__(self, archive: tarfile.TarFile, source: Location) -> None:
        self._archive, self._source = archive, source
        self._members = {m.name.removeprefix("./"): m for m in archive if m.isfile()}

    def names(self) -> list[str]:
        return list(self._members)

    def read(self, name: str) -> bytes:
        member = self._members.get(name)
        stream = self._archive.extractfile(member) if member is not None else None
        if stream is None:
            raise NotFoundError(f"{self._source} holds no {name}")
        with stream:
            return stream.read()


@contextmanager
def open_files(source: str | Location) -> Iterator[Files]:
    """Open a folder or a ``.tar`` (also compressed), local or remote, for the block.

    Raises
    ------
    NotFoundError
        The tar does not exist.
    ConfigError
        The tar cannot be read.
    """
    source = Location.of(source)
    if ".tar" not in PurePosixPath(source.uri).suffixes and not source.uri.endswith(".tgz"):
        yield _Folder(source)
        return
    with tempfile.TemporaryDirectory(prefix="skysift-import-") as scratch:
        path = source.path if source.is_local else Path(scratch) / "source.tar"
        if not source.is_local:
            source.download(path)
        if not path.is_file():
            raise NotFoundError(f"{source} does not exist; check the path")
        try:
            with tarfile.open(path) as archive:
                yield _Tar(archive, source)
        except tarfile.TarError as error:
            raise ConfigError(
                f"{source} is not a readable tar ({error}); download it again"
            ) from error


def decode_image(data: bytes, name: str, tile_px: int, bands: int) -> NDArray[Any]:
    """Return the central square of an image as (bands, tile_px, tile_px).

    Parameters
    ----------
    data, name
        Content and name of the file. A name that ends in ``.tif`` or ``.tiff`` is read as GeoTIFF
        (`storage.raster.geotiff.decode_square`), others as PNG or JPEG.
    tile_px
        Side of the result; squares of another size are resized (bilinear, filtered when shrinking).
    bands
        Number of bands of the file. PNG and JPEG are converted to 1 (grey), 3 (RGB) or 4 (RGBA)
        bands, uint8.

    Raises
    ------
    ConfigError
        The file has another number of bands.
    SceneError
        The file cannot be decoded.
    """
    if _is_tiff(name):
        tiff = decode_square(data, name, tile_px)
        if len(tiff) != bands:
            raise ConfigError(f"image {name} has {len(tiff)} bands, not {bands}; name its bands")
        return tiff
    if bands not in _MODES:
        raise ConfigError(
            f"image {name}: {bands} bands cannot come from PNG or JPEG; name 1, 3 or 4 bands"
        )
    with _opened(data, name) as image:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.convert(_MODES[bands]).crop((left, top, left + side, top + side))
        if side != tile_px:
            square = square.resize((tile_px, tile_px), Image.Resampling.BILINEAR)
        pixels = np.asarray(square, dtype=np.uint8).reshape(tile_px, tile_px, bands)
        return pixels.transpose(2, 0, 1)


def decode_mask(data: bytes, name: str, colours: Sequence[tuple[int, int, int]] = ()) -> Counts:
    """Return the number of pixels of each class in a mask.

    Parameters
    ----------
    data, name
        Content and name of a PNG file.
    colours
        RGB colour of each class, in order; without colours the value of a pixel (grey, or index
        into the palette) is the number of its class, from 1.

    Returns
    -------
    ndarray
        Pixel counts by class number, int64; entry 0 counts the pixels without a class.

    Raises
    ------
    SceneError
        The file cannot be decoded, or holds colours although none are given.
    """
    with _opened(data, name) as image:
        if not colours and image.mode not in ("L", "P"):
            raise SceneError(
                f"mask {name} is {image.mode}, not one class number a pixel; "
                "give grey or palette masks"
            )
        values = np.asarray(image.convert("RGB") if colours else image, dtype=np.int64)
    if not colours:
        return np.bincount(values.ravel())
    # One integer per colour: comparing packed values is faster than comparing three channels.
    packed = values @ _PACK
    codes = [int(np.dot(colour, _PACK)) for colour in colours]
    counts = np.array([0, *(np.count_nonzero(packed == code) for code in codes)], dtype=np.int64)
    counts[0] = packed.size - counts.sum()
    return counts


def image_side(data: bytes, name: str) -> int:
    """Return the shorter side of an image in pixels; raise SceneError if it cannot be decoded."""
    if _is_tiff(name):
        return shorter_side(data, name)
    with _opened(data, name) as image:
        return min(image.size)


def _is_tiff(name: str) -> bool:
    return name.lower().endswith((".tif", ".tiff"))


@contextmanager
def _opened(data: bytes, name: str) -> Iterator[Image.Image]:
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            yield image
    except (UnidentifiedImageError, OSError) as error:
        raise SceneError(
            f"image {name} is not a readable PNG or JPEG ({error}); replace it"
        ) from error
