"""A labelled dataset at rest: equal tiles and their labels, laid out for random batches.

A folder holds ``images.npy`` (N, C, H, W), ``labels.npy`` (N, K; 0 and 1 as bytes, or float32
where some are probabilities), ``rows.parquet`` (where each image came from, and its split) and,
written last, ``dataset.json`` (bands, classes, statistics, hashes, and its own hash). Opening a
dataset compares every file with its hash. Images are memory-mapped, so a random batch costs its own
bytes. A remote dataset is copied once per machine. `pipeline.datasets.importers` makes datasets.

Shape legend: N rows, C bands, H and W pixels, K classes.
"""

import errno
import glob
import hashlib
import json
import logging
import math
import os
import shutil
import socket
import tempfile
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
import pandas as pd
from filelock import FileLock
from numpy.typing import NDArray

from storage.display import Described
from storage.errors import ConfigError, CorruptIndexError, NotFoundError
from storage.location import Location, sha256_of_file
from storage.values import alike, check_types, is_running, json_digest, refuse_later

logger = logging.getLogger(__name__)

FORMAT = "skysift-dataset/1"
SOFT_FORMAT = "skysift-dataset/2"  # holds probabilities, which a reader of bytes would take for 0
SPLITS = ("train", "val", "test")
_INFO = "dataset.json"
_STATISTICS_ROWS = 4096
_FILES = ("images.npy", "labels.npy", "rows.parquet")
_REMEDY = "import it again with `skysift dataset import`"


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetInfo:
    """Content of ``dataset.json``.

    Attributes
    ----------
    bands, classes
        Names in the order of the channels and of the label columns.
    tile_px
        Height and width of every image.
    resolution_m
        Ground size of a pixel, None when unknown.
    count
        Number of rows N.
    band_mean, band_std
        Statistics of the valid pixels of the train rows (of all rows when there is none), over an
        even sample of at most 4,096 rows.
    origin
        Source of the dataset, as its importer describes it.
    sha256
        Hash of each data file.
    """

    bands: tuple[str, ...]
    classes: tuple[str, ...]
    tile_px: int
    count: int
    band_mean: tuple[float, ...]
    band_std: tuple[float, ...]
    sha256: Mapping[str, str]
    resolution_m: float | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """SHA-256 (hexadecimal) over the content; where it came from does not count."""
        content = {name: value for name, value in asdict(self).items() if name != "origin"}
        return json_digest(content)


class LabelledDataset(Described):
    """A dataset opened for reading.

    Attributes
    ----------
    info
        Content of ``dataset.json``, as are ``bands``, ``classes``, ``tile_px``, ``resolution_m``.
    images
        Memory map (N, C, H, W), read-only; NaN is an invalid pixel of a float image.
    labels
        Multi-hot labels (N, K), uint8; a probability of .5 or more is 1.
    soft_labels
        Labels (N, K) to learn from: ``labels`` itself, or float32 probabilities in [0, 1].
    rows
        One row of provenance per image: ``source``, ``split`` and further columns of the importer.
    is_soft
        Whether the labels of each row are probabilities, (N,) bool: the column ``soft`` of the
        rows, since a probability may be 0 or 1, else whether a label is neither.
    split
        Split of each row, (N,) object: train, val or test.
    """

    def __init__(self, folder: Path, info: DatasetInfo) -> None:
        self.info = info
        self.bands, self.classes = info.bands, info.classes
        self.tile_px, self.resolution_m = info.tile_px, info.resolution_m
        try:
            self.images: NDArray[Any] = np.load(folder / "images.npy", mmap_mode="r")
            self.soft_labels: NDArray[Any] = np.load(folder / "labels.npy")
            self.rows = pd.read_parquet(folder / "rows.parquet")
        except (OSError, ValueError) as error:
            raise CorruptIndexError(
                f"dataset {folder}: a file is missing or damaged ({error}); {_REMEDY}"
            ) from error
        self.labels = hard_labels(self.soft_labels)
        is_between = (self.soft_labels != self.labels).any(axis=1)
        self.is_soft: NDArray[np.bool_] = np.asarray(self.rows.get("soft", is_between), dtype=bool)
        self.split = self.rows["split"].to_numpy(dtype=object)
        expected = (info.count, len(info.bands), info.tile_px, info.tile_px)
        found = (self.images.shape, self.labels.shape, len(self.rows))
        if found != (expected, (info.count, len(info.classes)), info.count):
            raise CorruptIndexError(
                f"dataset {folder}: images, labels and rows have shapes {found}, {_INFO} says "
                f"images {expected} and {len(info.classes)} classes; {_REMEDY}"
            )

    @classmethod
    def open(
        cls,
        uri: str | Location,
        *,
        cache: Path | None = None,
    ) -> "LabelledDataset":
        """Open a dataset; a remote one is copied to ``cache`` first, once per content.

        ``cache`` None means ``SKYSIFT_CACHE`` or the system's temporary folder.

        Raises
        ------
        NotFoundError
            The dataset or one of its files does not exist.
        ConfigError
            ``dataset.json`` is malformed.
        CorruptIndexError
            A file differs from ``dataset.json``.
        """
        place = Location.of(uri)
        info = read_info(place)
        if not place.is_local:
            return cls(_cached(place, info, cache), info)
        check_files(place, info)
        return cls(place.path, info)

    def __len__(self) -> int:
        return self.info.count

    def facts(self) -> dict[str, Any]:
        """Return images, splits, bands, tile size and classes."""
        return {
            "images": len(self),
            "splits": {split: len(self.indices(split)) for split in SPLITS},
            "bands": self.bands,
            "tiles of": f"{self.tile_px} px",
            "pixel": None if self.resolution_m is None else f"{self.resolution_m:g} m",
            "classes": self.classes,
            "rows of probabilities": int(self.is_soft.sum()) or None,
        }

    def indices(self, *splits: str) -> NDArray[np.int64]:
        """Return the row numbers of these splits in ascending order, (n,) int64."""
        return np.flatnonzero(np.isin(self.split, splits)).astype(np.int64)

    def labelled(self, *splits: str) -> NDArray[np.int64]:
        """Return the rows of these splits whose labels are known: not those of probabilities."""
        rows = self.indices(*splits)
        return rows[~self.is_soft[rows]]


def hard_labels(soft_NK: NDArray[Any]) -> NDArray[np.uint8]:
    """Return labels of 0 and 1: a probability of .5 or more is 1."""
    return soft_NK if soft_NK.dtype == np.uint8 else (soft_NK >= 0.5).astype(np.uint8)


def searched_splits(split: str) -> tuple[str, ...]:
    """Return the splits that the queries of a split search: those known when it is scored.

    The validation rows select a model, and so are queries against the train rows only; the test
    rows come last and search both.

    Examples
    --------
    >>> searched_splits("val"), searched_splits("test")
    (('train',), ('train', 'val'))
    """
    return ("train", "val") if split == "test" else ("train",)


def evenly(rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Return at most this many of the rows, evenly spaced.

    Examples
    --------
    >>> evenly(np.arange(10), 4).tolist()
    [0, 3, 6, 9]
    """
    positions = np.linspace(0, len(rows) - 1, min(len(rows), most)).astype(int)
    sample: NDArray[np.int64] = rows[positions]
    return sample


class DatasetWriter:
    """Writes a dataset batch by batch; nothing is visible at its URI before `finish`.

    Use it as a context manager: leaving the block without `finish` discards the dataset.

    Parameters
    ----------
    uri
        Folder to create; an existing dataset is replaced.
    bands, classes
        Names in the order of the channels and of the label columns.
    resolution_m
        Ground size of a pixel, None when unknown.
    origin
        Plain values that describe the source of the dataset.
    normalisation
        Mean and standard deviation of each band where they are known better than from the train
        rows, which are measured when None.
    """

    def __init__(
        self,
        uri: str | Location,
        *,
        bands: Sequence[str],
        classes: Sequence[str],
        resolution_m: float | None = None,
        origin: Mapping[str, Any] | None = None,
        normalisation: tuple[Sequence[float], Sequence[float]] | None = None,
    ) -> None:
        if not classes or len(set(map(alike, classes))) != len(classes):
            raise ConfigError(
                f"dataset {uri}: classes {tuple(classes)} must be unique, at least 1; names that "
                "differ in case or blanks only are one name"
            )
        if len(set(map(alike, bands))) != len(bands):
            raise ConfigError(f"dataset {uri}: bands {tuple(bands)} must differ; name each once")
        self._target = Location.of(uri)
        self._bands, self._classes = tuple(bands), tuple(classes)
        self._more: dict[str, Any] = {
            "resolution_m": resolution_m,
            "origin": json.loads(json.dumps(origin or {})),
        }
        self._normalisation = normalisation
        self._folder = _working_folder(self._target)
        self._images: BinaryIO = (self._folder / "images.npy").open("wb")
        self._labels: list[NDArray[np.float32]] = []
        self._rows: list[pd.DataFrame] = []
        self._shape: tuple[int, ...] = ()
        self._dtype: np.dtype[Any] | None = None

    @property
    def count(self) -> int:
        """Number of rows so far."""
        return sum(len(part) for part in self._labels)

    @property
    def dtype(self) -> np.dtype[Any] | None:
        """The dtype of the images so far; None before the first batch."""
        return self._dtype

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._images.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def append(
        self, images: NDArray[Any], labels: NDArray[Any], rows: Mapping[str, Sequence[Any]]
    ) -> None:
        """Add a batch.

        Parameters
        ----------
        images
            (n, C, H, W), one dtype for the whole dataset; NaN is an invalid pixel. The first
            float32 batch turns a dataset of integers of 8 or 16 bits into float32.
        labels
            (n, K) of 0 and 1, or probabilities; stored as float32 if a label is neither 0 nor 1.
        rows
            Columns of length n, ``source`` and ``split`` among them.

        Raises
        ------
        ConfigError
            A shape, dtype, label or split does not fit.
        """
        table = pd.DataFrame(dict(rows))
        if images.dtype == np.float32 and self._dtype is not None:
            self._widen()
        self._check(images, labels, table)
        if self._dtype is None:
            self._dtype, self._shape = images.dtype, images.shape[1:]
            self._write_header(0)
        self._images.write(np.ascontiguousarray(images).tobytes())
        self._labels.append(np.asarray(labels, dtype=np.float32))
        self._rows.append(table)

    def truncate(self, count: int) -> None:
        """Drop the batches after the first ``count`` rows."""
        while self.count > count:
            self._labels.pop()
            self._rows.pop()
        if self._dtype is not None:
            self._images.seek(0)
            self._write_header(count)
            row_bytes = self._dtype.itemsize * math.prod(self._shape)
            self._images.seek(count * row_bytes, os.SEEK_CUR)
            self._images.truncate()

    def finish(self, left_out: Mapping[str, str] | None = None) -> DatasetInfo:
        """Complete the files and move them to the URI; ConfigError when no row was appended.

        ``left_out`` names parts of the source that could not be read, with reasons. The origin
        records them, and so differs from that of the whole source.
        """
        if left_out:
            self._more["origin"]["left_out"] = dict(left_out)
        count = self.count
        if count == 0:
            raise ConfigError(
                f"dataset {self._target}: nothing to write; the source has no usable row"
            )
        self._images.seek(0)
        self._write_header(count)
        self._images.close()
        labels = np.concatenate(self._labels)
        soft = not np.isin(labels, (0, 1)).all()
        np.save(self._folder / "labels.npy", labels if soft else labels.astype(np.uint8))
        rows = pd.concat(self._rows, ignore_index=True)
        rows.to_parquet(self._folder / "rows.parquet")
        mean, std = self._statistics(rows)
        info = DatasetInfo(
            bands=self._bands,
            classes=self._classes,
            tile_px=self._shape[-1],
            count=count,
            band_mean=mean,
            band_std=std,
            sha256={name: sha256_of_file(self._folder / name) for name in _FILES},
            **self._more,
        )
        self._warn_of_twins(rows)
        self._publish(info, SOFT_FORMAT if soft else FORMAT)
        return info

    def _check(self, images: NDArray[Any], labels: NDArray[Any], rows: pd.DataFrame) -> None:
        n, size = len(images), images.shape[-1]
        shape = self._shape or (len(self._bands), size, size)
        if images.shape != (n, *shape) or images.dtype != (self._dtype or images.dtype):
            raise ConfigError(
                f"dataset {self._target}: images are {images.dtype} {images.shape}, expected "
                f"{self._dtype or images.dtype} {(n, *shape)}; bring them to one size and type"
            )
        expected = (n, len(self._classes))
        if labels.shape != expected or not ((labels >= 0) & (labels <= 1)).all():
            raise ConfigError(
                f"dataset {self._target}: labels of shape {labels.shape} must be 0 or 1, or "
                f"probabilities between, in {expected}"
            )
        complete = {"source", "split"} <= set(rows.columns) and len(rows) == n
        if not complete or not rows["split"].isin(SPLITS).all():
            raise ConfigError(
                f"dataset {self._target}: rows need {n} values of `source` and of `split` "
                f"({', '.join(SPLITS)})"
            )

    def _widen(self) -> None:
        """Rewrite images of small integers as float32, which holds them exactly."""
        if self._dtype is None or self._dtype.kind not in "iu" or self._dtype.itemsize > 2:
            return
        path = self._folder / "images.npy"
        self._images.seek(0)
        self._write_header(self.count)
        self._images.close()
        narrow = path.rename(self._folder / "narrow.npy")
        self._images, self._dtype = path.open("wb"), np.dtype(np.float32)
        self._write_header(0)
        stored = iter(np.load(narrow, mmap_mode="r"))
        for rows in self._rows:
            images = np.stack([next(stored) for _ in range(len(rows))]).astype(np.float32)
            self._images.write(images.tobytes())
        narrow.unlink()

    def _write_header(self, count: int) -> None:
        # NumPy pads the header so that the first axis may grow in place.
        form = np.lib.format.dtype_to_descr(np.dtype(self._dtype))
        header = {"descr": form, "fortran_order": False, "shape": (count, *self._shape)}
        np.lib.format.write_array_header_1_0(self._images, header)

    def _statistics(self, rows: pd.DataFrame) -> tuple[tuple[float, ...], tuple[float, ...]]:
        if self._normalisation is not None:
            mean, std = self._normalisation
            return tuple(mean), tuple(std)
        train = np.flatnonzero(rows["split"] == "train")
        chosen = evenly(train if len(train) else np.arange(len(rows)), _STATISTICS_ROWS)
        images = np.load(self._folder / "images.npy", mmap_mode="r")
        return _band_statistics((images[row] for row in chosen), self._target)

    def _warn_of_twins(self, rows: pd.DataFrame) -> None:
        """Warn if images of two splits have the same pixels."""
        first: dict[bytes, tuple[str, str]] = {}
        twins: list[str] = []
        images = np.load(self._folder / "images.npy", mmap_mode="r")
        for image, source, split in zip(images, rows["source"], rows["split"], strict=True):
            digest = hashlib.blake2b(image.tobytes(), digest_size=16).digest()
            name, other = first.setdefault(digest, (source, split))
            if other != split:
                twins.append(f"{source} ({split}) and {name} ({other})")
        if twins:
            logger.warning(
                "dataset %s: %d images have the pixels of an image of another split, for example "
                "%s; scores on them are too good: give equal images one group, or remove them",
                *(self._target, len(twins), twins[0]),
            )

    def _publish(self, info: DatasetInfo, stated: str) -> None:
        content = {"format": stated, **asdict(info)}
        content["seal"] = json_digest(content)
        text = (json.dumps(content, indent=2) + "\n").encode()
        if not self._target.is_local:
            for name in _FILES:
                (self._target / name).upload(self._folder / name)
            (self._target / _INFO).write(text)
            return
        target = self._target.path
        (self._folder / _INFO).write_bytes(text)
        replaced = self._folder.with_name(f"{self._folder.name}.replaced")
        while True:
            try:
                self._folder.rename(target)
                return
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            with suppress(FileNotFoundError):  # another import has just moved the old dataset
                target.rename(replaced)
            shutil.rmtree(replaced, ignore_errors=True)


def _band_statistics(
    images: Iterable[NDArray[Any]], place: Location
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation of each band over the valid pixels of (C, H, W) images."""
    count, total, squares = (np.zeros(1) for _ in range(3))
    for image in images:
        values = np.asarray(image, dtype=np.float64).reshape(len(image), -1)
        valid = np.isfinite(values)
        values = np.where(valid, values, 0.0)
        count = count + valid.sum(1)
        total = total + values.sum(1)
        squares = squares + np.square(values).sum(1)
    if not count.all():
        raise ConfigError(
            f"dataset {place}: band {int(count.argmin()) + 1} has no valid pixel; leave it out"
        )
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
    # A constant band carries nothing; a deviation of 1 keeps it harmless.
    std = np.where(std > 1e-12 * np.maximum(1.0, np.abs(mean)), std, 1.0)
    return tuple(map(float, mean)), tuple(map(float, std))


def _working_folder(place: Location) -> Path:
    """Return an empty folder to write in, on the target's disk when that is local.

    Its name holds the process, so that two imports of one target do not share a folder, and the
    next import removes the folder of a killed import.
    """
    if not place.is_local:
        return Path(tempfile.mkdtemp(prefix="skysift-dataset-"))
    target = place.path.absolute()
    if target.exists() and not {path.name for path in target.iterdir()} <= {*_FILES, _INFO}:
        raise ConfigError(f"{target} holds something that is not a dataset; choose another output")
    stem = f".writing-{target.name}.{socket.gethostname()}."
    for left in target.parent.glob(f"{glob.escape(stem)}*"):
        pid = left.name.removeprefix(stem).partition(".")[0]
        if pid.isdecimal() and not is_running(int(pid)):
            shutil.rmtree(left, ignore_errors=True)
    folder = target.parent / f"{stem}{os.getpid()}.{uuid.uuid4().hex[:8]}"
    folder.mkdir(parents=True)
    return folder


def read_info(uri: str | Location) -> DatasetInfo:
    """Read only the description of a dataset.

    Raises
    ------
    NotFoundError
        There is no dataset at the URI.
    ConfigError
        ``dataset.json`` is malformed.
    """
    document = Location.of(uri) / _INFO
    try:
        data = document.read()
    except NotFoundError as error:
        raise NotFoundError(f"{error}; `skysift dataset import` makes a dataset") from error
    try:
        content = json.loads(data)
        seal = content.pop("seal", None)
        stated = content["format"]
        refuse_later(f"dataset {uri}", stated, SOFT_FORMAT)
        if stated in (FORMAT, SOFT_FORMAT) and seal not in (None, json_digest(content)):
            raise ValueError("its hash differs")
        del content["format"]
        names = ("bands", "classes", "band_mean", "band_std")
        info = DatasetInfo(**{**content, **{name: tuple(content[name]) for name in names}})
        check_types(info)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{document} is malformed ({type(error).__name__}: {error}); import the dataset again"
        ) from error
    if stated not in (FORMAT, SOFT_FORMAT):
        raise ConfigError(
            f"{document} is of format {stated}, not {FORMAT} or {SOFT_FORMAT}; import the dataset "
            "again"
        )
    return info


def check_files(place: Location, info: DatasetInfo) -> None:
    """Compare the data files of a dataset with their hashes.

    Raises
    ------
    CorruptIndexError
        A file is missing or differs.
    """
    with tempfile.TemporaryDirectory(prefix="skysift-dataset-") as scratch:
        for name in _FILES:
            file = place / name
            path = file.path if file.is_local else Path(scratch) / name
            try:
                if not file.is_local:
                    file.download(path)
                found = sha256_of_file(path)
            except (NotFoundError, FileNotFoundError) as error:
                raise CorruptIndexError(f"dataset file {file} is missing; {_REMEDY}") from error
            if found != info.sha256.get(name):
                raise CorruptIndexError(
                    f"dataset file {file} hashes to {found[:16]}, {_INFO} says "
                    f"{str(info.sha256.get(name))[:16]}; {_REMEDY}"
                )


def _cached(place: Location, info: DatasetInfo, cache: Path | None) -> Path:
    """Copy a remote dataset to this machine, unless that content is here already."""
    default = Path(os.environ.get("SKYSIFT_CACHE", tempfile.gettempdir()))
    root = cache or default / f"skysift-datasets-{os.getuid()}"
    folder = root / info.digest[:32]
    if _is_sound(folder, info):
        return folder
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    with FileLock(root / f"{folder.name}.lock"):
        if _is_sound(folder, info):
            return folder  # another process has just copied it
        part = Path(tempfile.mkdtemp(prefix=".copying-", dir=root))
        try:
            for name in _FILES:
                (place / name).download(part / name)
            try:
                check_files(Location(str(part)), info)
            except CorruptIndexError as error:
                raise CorruptIndexError(f"dataset {place}: {error}") from error
            shutil.rmtree(folder, ignore_errors=True)  # a damaged copy
            part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return folder


def _is_sound(folder: Path, info: DatasetInfo) -> bool:
    try:
        check_files(Location(str(folder)), info)
    except CorruptIndexError:
        return False
    return True
