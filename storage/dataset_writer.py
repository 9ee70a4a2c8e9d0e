"""Writes a labelled dataset batch by batch: nothing is visible before it is complete.

:mod:`storage.dataset` describes the files and reads them.

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
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from storage.dataset import (
    DESCRIPTION_FILE,
    FILES,
    FORMAT,
    SOFT_FORMAT,
    SPLITS,
    DatasetInfo,
    evenly,
)
from storage.errors import ConfigError
from storage.location import Location, sha256_of_file
from storage.values import alike, is_running, json_digest

logger = logging.getLogger(__name__)

_STATISTICS_ROWS = 4096


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
            sha256={name: sha256_of_file(self._folder / name) for name in FILES},
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
            for name in FILES:
                (self._target / name).upload(self._folder / name)
            (self._target / DESCRIPTION_FILE).write(text)
            return
        target = self._target.path
        (self._folder / DESCRIPTION_FILE).write_bytes(text)
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
    if target.exists() and not {path.name for path in target.iterdir()} <= {
        *FILES,
        DESCRIPTION_FILE,
    }:
        raise ConfigError(f"{target} holds something that is not a dataset; choose another output")
    stem = f".writing-{target.name}.{socket.gethostname()}."
    for left in target.parent.glob(f"{glob.escape(stem)}*"):
        pid = left.name.removeprefix(stem).partition(".")[0]
        if pid.isdecimal() and not is_running(int(pid)):
            shutil.rmtree(left, ignore_errors=True)
    folder = target.parent / f"{stem}{os.getpid()}.{uuid.uuid4().hex[:8]}"
    folder.mkdir(parents=True)
    return folder
