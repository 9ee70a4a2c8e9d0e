"""An importer of one's own: code that lists the labelled images of a source and reads each.

The code is found by :mod:`encoders.plugins`. The dataset names the code, its options and the digest
of its source; :mod:`pipeline.datasets.rows` writes the dataset as for the importers of this folder.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from encoders.plugins import Plugin, raised_by
from pipeline.datasets.images import open_files, revision
from pipeline.datasets.rows import Rows, write_rows
from pipeline.datasets.spec import SplitRule
from storage.dataset import SPLITS, DatasetInfo
from storage.errors import ConfigError, NotFoundError, SceneError, SkysiftError
from storage.location import Location
from storage.progress import ProgressSink, ignore


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """The images that an importer of one's own found in a source.

    Attributes
    ----------
    names
        Name of each image, N different ones, in the order of the dataset's rows.
    bands, classes
        Names of the C bands and the K classes.
    read
        Called with a row number, 0 to N - 1; returns the pixels (C, H, W) and the labels (K,) of
        0 and 1. All images have one size. Pixels are integers of 8 or 16 bits or become float32,
        with NaN for an invalid pixel.
    groups
        Group of each image, whose images share a split; None makes each image a group.
    splits
        Split of each image (train, val, test); None divides the groups by ``dataset.split``.
    resolution_m
        Ground size of a pixel in metres; None when unknown.
    """

    names: Sequence[str]
    bands: Sequence[str]
    classes: Sequence[str]
    read: Callable[[int], tuple[ArrayLike, ArrayLike]]
    groups: Sequence[str] | None = None
    splits: Sequence[str] | None = None
    resolution_m: float | None = None


def import_own(
    plugin: Plugin,
    source: str | Location,
    uri: str | Location,
    *,
    options: Mapping[str, Any] | None = None,
    split: SplitRule | None = None,
    progress: ProgressSink = ignore,
) -> DatasetInfo:
    """Import a dataset by code of the user's.

    Parameters
    ----------
    plugin
        The code: called with the files of the source (`pipeline.datasets.images.Files`) and the
        options, it returns `LabelledImages`.
    source
        Folder, or a ``.tar`` (also compressed) that contains the folder.
    uri
        Dataset to write.
    options
        Keyword arguments for the code, plain values.
    split
        Division of images without a split, default 70 : 15 : 15.

    Raises
    ------
    ConfigError
        The code cannot be imported, raises, or returns anything else.
    NotFoundError
        The source is missing or empty.
    SceneError
        An image cannot be read.
    """
    given, rule = dict(options or {}), split or SplitRule()
    maker = plugin.load_maker()
    with open_files(source) as files:
        if not files.states:
            raise NotFoundError(f"{source} holds no files; check the path")
        with _code_of(plugin, f"called with the files of {source} and {given or 'no options'}"):
            listed = maker(files, **given)
        if not isinstance(listed, LabelledImages):
            raise ConfigError(
                f"{plugin}: it returned a {type(listed).__name__}, expected skysift.LabelledImages"
            )
        names, groups, splits = _checked(plugin, listed, rule)
        rows = Rows(
            sources=names,
            groups=groups,
            splits=splits,
            bands=listed.bands,
            classes=listed.classes,
            resolution_m=listed.resolution_m,
            origin={
                "importer": plugin.name,
                "importer_options": given,
                "importer_sha256": plugin.digest,
                "source": str(source),
                "files_sha256": revision(files, files.states),
                "split": repr(rule),
            },
        )
        return write_rows(uri, rows, _ReadOwn(plugin, listed, names), progress)


def _checked(
    plugin: Plugin, listed: LabelledImages, rule: SplitRule
) -> tuple[list[str], list[str], list[str]]:
    """Return names, groups and splits of the rows."""
    names = [str(name) for name in listed.names]
    if len(set(names)) != len(names) or not names:
        fault = "lists an image twice" if names else "found no image in the source"
        raise ConfigError(f"{plugin}: it {fault}; `names` holds a name of its own for each image")
    groups = names if listed.groups is None else [str(group) for group in listed.groups]
    splits = list(map(rule.of, groups)) if listed.splits is None else list(listed.splits)
    for what, values in (("groups", groups), ("splits", splits)):
        if len(values) != len(names):
            raise ConfigError(f"{plugin}: {len(names)} names, but {len(values)} {what}")
    if unknown := set(splits) - set(SPLITS):
        raise ConfigError(
            f"{plugin}: split {min(map(str, unknown))!r} is not one of {', '.join(SPLITS)}"
        )
    return names, groups, splits


class _ReadOwn:
    """Reads a row by the user's code and checks the result; all images have the first one's size.

    Parameters
    ----------
    plugin, listed, names
        The code, the images that it found, and their names.
    """

    def __init__(self, plugin: Plugin, listed: LabelledImages, names: Sequence[str]) -> None:
        self._plugin, self._listed, self._names = plugin, listed, names
        self._side_px: int | None = None

    def __call__(self, row: int) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        name = self._names[row]
        with _code_of(self._plugin, f"reading image {name}"):
            found = self._listed.read(row)
            values, flags = (np.asarray(part) for part in found)
        bands, classes = len(self._listed.bands), len(self._listed.classes)
        side_px = self._side_px or (values.shape[-1] if values.ndim else 0)
        expected = (bands, side_px, side_px)
        if values.shape != expected or not values.size or values.dtype.kind not in "uif":
            raise SceneError(
                f"{self._plugin}: image {name} is {values.dtype} {values.shape}, expected numbers "
                f"{expected}: bands, height and width, one square size for all images"
            )
        self._side_px = side_px
        if flags.shape != (classes,) or not np.isin(flags, (0, 1)).all():
            raise SceneError(
                f"{self._plugin}: the labels of image {name} are {flags.dtype} {flags.shape}, "
                f"expected 0 or 1 for each of the {classes} classes"
            )
        if values.dtype not in (np.uint8, np.int8, np.uint16, np.int16):
            values = values.astype(np.float32)
        return values, flags.astype(np.uint8)


@contextmanager
def _code_of(plugin: Plugin, doing: str) -> Iterator[None]:
    """Name the code, and the line of it, in an error of any type; the project's own errors pass."""
    try:
        yield
    except SkysiftError:
        raise
    except Exception as error:  # whatever code of others raises
        raise ConfigError(f"{plugin}: {doing} it raised {raised_by(error)}; correct it") from error
