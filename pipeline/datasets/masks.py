"""DLRSD and WHDLD: images with a class for every pixel, as multi-label datasets.

An image's labels are the classes that cover at least ``min_share`` of its pixels. Both have
256 x 256 px images and no split of their own.

References
----------
Shao et al., Multilabel Remote Sensing Image Retrieval Based on Fully Convolutional Network,
IEEE JSTARS 2020 (both datasets).
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets.images import Files, decode_image, decode_mask, open_files
from pipeline.datasets.rows import Rows, write_rows
from pipeline.datasets.spec import SplitRule
from storage.dataset import DatasetInfo
from storage.errors import ConfigError, NotFoundError, SceneError
from storage.location import StorageOptions
from storage.progress import ProgressSink, quiet

MIN_SHARE = 0.01
_BANDS = ("red", "green", "blue")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Layout:
    """Where a dataset keeps what; ``colours`` is empty where masks hold class numbers from 1."""

    name: str
    images: str
    masks: str
    suffix: str
    classes: tuple[str, ...]
    resolution_m: float
    colours: tuple[tuple[int, int, int], ...] = ()
    side_px: int = 256


_DLRSD = _Layout(
    name="dlrsd",
    images="Images",
    masks="Labels",
    suffix=".tif",
    classes=(
        *("airplane", "bare-soil", "buildings", "cars", "chaparral", "court", "dock", "field"),
        *("grass", "mobile-home", "pavement", "sand", "sea", "ship", "tanks", "trees", "water"),
    ),
    resolution_m=0.3048,
)
_WHDLD = _Layout(
    name="whdld",
    images="Images",
    masks="ImagesPNG",
    suffix=".jpg",
    classes=("bare-soil", "building", "pavement", "road", "vegetation", "water"),
    resolution_m=2.0,
    colours=(
        *((128, 128, 128), (255, 0, 0), (192, 192, 0)),
        *((255, 255, 0), (0, 255, 0), (0, 0, 255)),
    ),
)


def import_dlrsd(
    source: str,
    uri: str,
    *,
    min_share: float = MIN_SHARE,
    tile_px: int | None = None,
    split: SplitRule | None = None,
    options: StorageOptions | None = None,
    progress: ProgressSink = quiet,
) -> DatasetInfo:
    """Import DLRSD: the images of UC Merced with a mask each, 17 classes.

    Expected is a folder (or ``.tar``) with ``Images/<scene>/<name>.tif`` (RGB) and
    ``Labels/<scene>/<name>.png`` (grey or palette, pixels 1 to 17 in the classes' order:
    airplane, bare-soil, ... water), at the top or one folder below.

    Parameters
    ----------
    source
        Folder, or a tar that holds one.
    uri
        Dataset to write.
    min_share
        Least share of an image's pixels that makes a class one of its labels, 0 to 1; with 0 one
        pixel is enough.
    tile_px
        Images are resized to this; None keeps 256 px.
    split
        How images are divided; default 70 : 15 : 15.

    Raises
    ------
    NotFoundError
        An image has no mask, or a mask no image (the first one is named).
    SceneError
        A file cannot be decoded, or a mask has other classes.
    """
    return _import(
        _DLRSD, source, uri, min_share, tile_px or _DLRSD.side_px, split, options, progress
    )


def import_whdld(
    source: str,
    uri: str,
    *,
    min_share: float = MIN_SHARE,
    tile_px: int | None = None,
    split: SplitRule | None = None,
    options: StorageOptions | None = None,
    progress: ProgressSink = quiet,
) -> DatasetInfo:
    """Import WHDLD: 4,940 images of Wuhan with a mask each, 6 classes.

    Expected is a folder (or ``.tar``) with ``Images/<name>.jpg`` (RGB) and
    ``ImagesPNG/<name>.png`` whose colours are the classes: bare-soil 128 128 128, building
    255 0 0, pavement 192 192 0, road 255 255 0, vegetation 0 255 0, water 0 0 255; at the top or
    one folder below. Parameters and errors are those of `import_dlrsd`.
    """
    return _import(
        _WHDLD, source, uri, min_share, tile_px or _WHDLD.side_px, split, options, progress
    )


def _import(
    layout: _Layout,
    source: str,
    uri: str,
    min_share: float,
    tile_px: int,
    split: SplitRule | None,
    options: StorageOptions | None,
    progress: ProgressSink,
) -> DatasetInfo:
    if not 0 <= min_share < 1:
        raise ConfigError(f"{layout.name}: min_share {min_share} is not within 0 and 1")
    split = split or SplitRule()
    with open_files(source, options) as files:
        pairs = _pairs(layout, files, source)
        names = list(pairs)
        rows = Rows(
            sources=names,
            groups=names,
            splits=[split.of(name) for name in names],
            bands=_BANDS,
            classes=layout.classes,
            resolution_m=layout.resolution_m * layout.side_px / tile_px,
            origin={
                "importer": layout.name,
                "source": source,
                "names_sha256": hashlib.sha256("\n".join(names).encode()).hexdigest(),
                "min_share": min_share,
                "tile_px": tile_px,
                "split": repr(split),
            },
        )

        def read(row: int) -> tuple[NDArray[Any], NDArray[np.uint8]]:
            image, mask = pairs[names[row]]
            pixels = decode_image(files.read(image), image, tile_px, len(_BANDS))
            return pixels, _labels(layout, files.read(mask), mask, min_share)

        return write_rows(uri, rows, read, options=options, progress=progress)


def _pairs(layout: _Layout, files: Files, source: str) -> Mapping[str, tuple[str, str]]:
    """Return image and mask of every name, sorted; NotFoundError names the first that lacks one."""
    kinds = {layout.images: layout.suffix, layout.masks: ".png"}
    found: dict[str, dict[str, str]] = {kind: {} for kind in kinds}
    for path in map(PurePosixPath, files.names()):
        for depth, part in enumerate(path.parts[:2]):
            if path.suffix.lower() == kinds.get(part):
                found[part]["/".join(path.with_suffix("").parts[depth + 1 :])] = str(path)
    images, masks = found[layout.images], found[layout.masks]
    expected = (
        f"{layout.name}: {{}} is missing in {source}; it needs "
        f"{layout.images}/<name>{layout.suffix} and {layout.masks}/<name>.png"
    )
    if not images and not masks:
        raise NotFoundError(expected.format(f"folder {layout.images}"))
    for name in sorted(images.keys() | masks.keys()):
        if name not in masks:
            raise NotFoundError(expected.format(f"{layout.masks}/{name}.png"))
        if name not in images:
            raise NotFoundError(expected.format(f"{layout.images}/{name}{layout.suffix}"))
    return {name: (images[name], masks[name]) for name in sorted(images)}


def _labels(layout: _Layout, data: bytes, name: str, min_share: float) -> NDArray[np.uint8]:
    counts = decode_mask(data, name, layout.colours)
    count = len(layout.classes)
    if counts[count + 1 :].any() or (layout.colours and counts[0]):
        raise SceneError(
            f"mask {name} has pixels of none of the {count} classes of {layout.name}; replace it"
        )
    counts = np.pad(counts, (0, max(0, count + 1 - len(counts))))[: count + 1]
    share = counts[1:] / counts.sum()
    present: NDArray[np.uint8] = ((share >= min_share) & (share > 0)).astype(np.uint8)
    return present
