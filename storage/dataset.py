"""A labelled dataset opened for reading: equal tiles and their labels, laid out for random batches.

A folder holds ``images.npy`` (N, C, H, W), ``labels.npy`` (N, K; 0 and 1 as bytes, or float32
where some are probabilities), ``rows.parquet`` (where each image came from, and its split) and,
written last, ``dataset.json`` (bands, classes, statistics, hashes, and its own hash). Opening a
dataset compares every file with its hash. Images are memory-mapped, so a random batch costs its own
bytes. A remote dataset is copied once per machine. `storage.dataset_writer` writes datasets,
`pipeline.datasets.importers` makes them from what people have.

Shape legend: N rows, C bands, H and W pixels, K classes.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock
from numpy.typing import NDArray

from storage.display import Described
from storage.errors import ConfigError, CorruptIndexError, NotFoundError
from storage.location import Location, sha256_of_file
from storage.values import check_types, json_digest, refuse_later

FORMAT = "skysift-dataset/1"
SOFT_FORMAT = "skysift-dataset/2"  # holds probabilities, which a reader of bytes would take for 0
SPLITS = ("train", "val", "test")
DESCRIPTION_FILE = "dataset.json"
FILES = ("images.npy", "labels.npy", "rows.parquet")
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
                f"dataset {folder}: images, labels and rows have shapes {found}, "
                f"{DESCRIPTION_FILE} says images {expected} and {len(info.classes)} classes; "
                f"{_REMEDY}"
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


def read_info(uri: str | Location) -> DatasetInfo:
    """Read only the description of a dataset.

    Raises
    ------
    NotFoundError
        There is no dataset at the URI.
    ConfigError
        ``dataset.json`` is malformed.
    """
    document = Location.of(uri) / DESCRIPTION_FILE
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
        for name in FILES:
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
                    f"dataset file {file} hashes to {found[:16]}, {DESCRIPTION_FILE} says "
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
            for name in FILES:
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
