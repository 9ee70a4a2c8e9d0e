"""Image files of a folder, an object store or a tar archive, read as equal tiles.

:mod:`storage.raster.picture` decodes the files.
"""

import hashlib
import lzma
import tarfile
import tempfile
import zlib
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from storage.errors import ConfigError, NotFoundError
from storage.location import Location, named_failures
from storage.raster.picture import Picture, read_codes, read_picture

Counts = NDArray[np.int64]

_PACK = np.array([65536, 256, 1])
_LUMINANCE = (19595 / 65536, 38470 / 65536, 7471 / 65536)
"""Weights of red, green and blue in a grey (ITU-R 601), as Pillow rounds them."""
_BESIDE = (".msk", ".aux.xml")
"""Suffixes of the files beside a TIFF that hold its mask, nodata, scale and offset."""


class Files(Protocol):
    """A read-only set of files by relative path."""

    @property
    def states(self) -> Mapping[str, str]:
        """A text by path of each file, which changes when the file is replaced."""

    def read(self, name: str) -> bytes:
        """Return the content of a file; raise NotFoundError if it does not exist."""

    def local(self, name: str) -> AbstractContextManager[Location]:
        """Keep a file on this machine for the block, with the files that describe it beside it.

        Raises
        ------
        NotFoundError
            The file does not exist.
        """


def revision(files: Files, names: Iterable[str]) -> str:
    """Return a digest that changes when one of some images, or a file beside it, is replaced."""
    states, digest = files.states, hashlib.sha256()
    for name in names:
        for part in (name, *(name + suffix for suffix in _BESIDE)):
            digest.update(f"{part}\n{states.get(part)}\n".encode())
    return digest.hexdigest()


class _Folder:
    def __init__(self, folder: Location) -> None:
        self._folder = folder
        self._listed: dict[str, str] = {}

    @property
    def states(self) -> Mapping[str, str]:
        if not self._listed:
            fs, path = self._folder.filesystem()
            with named_failures(self._folder):
                found = fs.find(path, detail=True)
            root = path.rstrip("/") + "/"
            self._listed = {
                name.removeprefix(root): f"{about['size']} {about.get('ETag', about.get('mtime'))}"
                for name, about in sorted(found.items())
            }
        return self._listed

    def read(self, name: str) -> bytes:
        return (self._folder / name).read()

    @contextmanager
    def local(self, name: str) -> Iterator[Location]:
        place = self._folder / name
        if not place.is_local:
            # Files beside an image in an object store are known if its folder has been listed.
            with _copied(self, name, self._listed, self._folder) as copy:
                yield copy
        elif place.path.is_file():
            yield place
        else:
            raise NotFoundError(f"{place} does not exist; check the path")


class _Tar:
    """Members of a tar archive, read one by one without unpacking to disk."""

    def __init__(self, archive: tarfile.TarFile, source: Location) -> None:
        self._archive, self._source = archive, source
        with _readable(source):
            self._members = {m.name.removeprefix("./"): m for m in archive if m.isfile()}
        self.states = {name: f"{m.size} {m.mtime}" for name, m in self._members.items()}

    def read(self, name: str) -> bytes:
        member = self._members.get(name)
        if member is None:
            raise NotFoundError(f"{self._source} holds no {name}")
        with _readable(self._source):
            stream = self._archive.extractfile(member)
            return stream.read() if stream else b""

    def local(self, name: str) -> AbstractContextManager[Location]:
        return _copied(self, name, self._members, self._source)


@contextmanager
def _readable(source: Location) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise ConfigError(f"{source} is not a readable tar ({error}); download it again") from error


@contextmanager
def _copied(files: Files, name: str, known: Container[str], source: Location) -> Iterator[Location]:
    """Copy a file, and the files beside it that are known, to a folder for the block."""
    beside = [name + suffix for suffix in _BESIDE if name + suffix in known]
    with tempfile.TemporaryDirectory(prefix="skysift-image-") as scratch:
        for part in (name, *beside):
            (Path(scratch) / PurePosixPath(part).name).write_bytes(files.read(part))
        copy = Location(str(Path(scratch) / PurePosixPath(name).name))
        yield copy.with_drivers(source.drivers)


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
        with _readable(source):
            archive = tarfile.open(path)  # noqa: SIM115
        with archive:
            yield _Tar(archive, source)


class ImageReader:
    """Reads images as equal tiles, and refuses images whose numbers cannot mean the same.

    Parameters
    ----------
    files
        The source.
    bands
        Number of bands. PNG and JPEG are converted between one band (grey) and three (red, green,
        blue); an alpha band is one of the bands where it makes up their number, else transparent
        pixels are missing.
    tile_px
        Side of the tiles: images are cropped to the central square and resized.
    """

    def __init__(self, files: Files, bands: int, tile_px: int) -> None:
        self._files, self._bands, self._tile_px = files, bands, tile_px
        self._numbers: dict[str, str] = {}

    def read(self, path: str, name: str | None = None) -> NDArray[Any]:
        """Return the tile (bands, tile_px, tile_px) of a file; see `Picture.tile` for its dtype.

        Parameters
        ----------
        path
            The file.
        name
            Its name in messages, instead of the path.

        Raises
        ------
        NotFoundError
            The file does not exist.
        ConfigError
            The file has another number of bands, or other numbers than the images before.
        SceneError
            The file cannot be decoded.
        """
        name = name or path
        picture = _read(self._files, path, name, self._bands)
        kind = _kind(picture.dtype)
        if kind not in self._numbers and self._numbers:
            (other, first), *_ = self._numbers.items()
            raise ConfigError(
                f"image {name} holds {kind} ({picture.dtype}), image {first} {other}; bring the "
                "images to one type, or state a scale in their tags"
            )
        self._numbers.setdefault(kind, name)
        values = _in_bands(picture, name, self._bands)
        return replace(picture, values=values).tile(self._tile_px)


def image_side(files: Files, path: str, name: str) -> int:
    """Return the shorter side of an image in pixels; raise SceneError if it cannot be decoded."""
    _, height, width = _read(files, path, name).values.shape
    return int(min(height, width))


def count_classes(files: Files, path: str, colours: Sequence[tuple[int, int, int]] = ()) -> Counts:
    """Return the number of pixels of each class in a mask.

    Parameters
    ----------
    files, path
        The mask, a PNG file.
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
    with files.local(path) as place:
        if not colours:
            return np.bincount(read_codes(place, f"mask {path}").ravel())
        picture = read_picture(place, name=f"mask {path}")
    values = np.nan_to_num(_in_bands(picture, path, 3), nan=-1).astype(np.int64)
    # One integer per colour: comparing packed values is faster than comparing three channels.
    packed = values.transpose(1, 2, 0) @ _PACK
    codes = [int(np.dot(colour, _PACK)) for colour in colours]
    counts = np.array([0, *(np.count_nonzero(packed == code) for code in codes)], dtype=np.int64)
    counts[0] = packed.size - counts.sum()
    return counts


def _read(files: Files, path: str, name: str, bands: int | None = None) -> Picture:
    with files.local(path) as place:
        return read_picture(place, bands=bands, name=f"image {name}")


def _kind(dtype: np.dtype[Any]) -> str:
    """Return a name that types share whose numbers may mean the same, as among bands of a scene."""
    if dtype.kind == "f":
        return "reals"
    return "bytes" if dtype.itemsize == 1 else "whole numbers"


def _in_bands(picture: Picture, name: str, bands: int) -> NDArray[np.float32]:
    values, found = picture.values, len(picture.values)
    if found == bands:
        return values
    if picture.encoding == "TIFF":
        raise ConfigError(f"image {name} has {found} bands, not {bands}; name its bands")
    if (found, bands) == (1, 3):
        return np.repeat(values, 3, axis=0)
    if (found, bands) == (3, 1):
        grey = np.tensordot(np.array(_LUMINANCE), values.astype(np.float64), axes=1)
        return np.floor(grey + 0.5)[None].astype(np.float32)
    raise ConfigError(
        f"image {name} has {found} bands, not {bands}; name 1, 3 or 4 bands for PNG and JPEG, "
        "4 if the files have alpha"
    )
