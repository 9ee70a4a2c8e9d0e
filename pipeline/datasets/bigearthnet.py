"""Import of BigEarthNet v2 (reBEN): Sentinel-2 patches with 19 labels.

References
----------
Clasen et al., reBEN: Refined BigEarthNet Dataset for Remote Sensing Image Analysis, 2024.
"""

import hashlib
import io
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.datasets.images import ImageReader, open_files
from pipeline.datasets.rows import Rows, write_rows
from pipeline.datasets.tables import first_twice
from storage.catalog.presets import SENTINEL_2_BANDS
from storage.dataset import DatasetInfo
from storage.errors import ConfigError, NotFoundError
from storage.location import Location
from storage.progress import ProgressSink, ignore
from storage.quarantine import Quarantine

T = TypeVar("T")
BANDS = {name: file for name, file in SENTINEL_2_BANDS.items() if name != "cirrus"}
"""Common names of the twelve bands and the names of Sentinel-2; the importer accepts both."""

CLASSES = (
    "Urban fabric",
    "Industrial or commercial units",
    "Arable land",
    "Permanent crops",
    "Pastures",
    "Complex cultivation patterns",
    "Land principally occupied by agriculture, with significant areas of natural vegetation",
    "Agro-forestry areas",
    "Broad-leaved forest",
    "Coniferous forest",
    "Mixed forest",
    "Natural grassland and sparsely vegetated areas",
    "Moors, heathland and sclerophyllous vegetation",
    "Transitional woodland, shrub",
    "Beaches, dunes, sands",
    "Inland wetlands",
    "Coastal wetlands",
    "Inland waters",
    "Marine waters",
)
_TABLE, _PATCHES = "metadata.parquet", "BigEarthNet-S2"
_SIDE_PX, _RESOLUTION_M = 120, 10.0
_SPLITS = {"train": "train", "validation": "val", "test": "test"}


def import_bigearthnet(
    source: str | Location,
    uri: str | Location,
    *,
    bands: Sequence[str] = tuple(BANDS),
    tile_px: int | None = None,
    progress: ProgressSink = ignore,
) -> DatasetInfo:
    """Import BigEarthNet v2 with the published split.

    The source is a folder (local or remote) with ``metadata.parquet`` (columns ``patch_id``,
    ``labels``, ``split``) and ``BigEarthNet-S2/<tile>/<patch>/<patch>_<band>.tif``, one GeoTIFF per
    band, uint16; the tile of a patch is its name without the last two numbers. All bands are
    resampled to the 10 m grid of 120 x 120 px (bilinear).

    Parameters
    ----------
    source
        Folder.
    uri
        Dataset to write; 345 kB per patch with all twelve bands.
    bands
        Bands to import, in this order: ``red`` or ``B04``, and so on (see `BANDS`).
    tile_px
        Side to resize the patches to; None keeps 120 px.

    Raises
    ------
    NotFoundError
        The table or a band of a patch does not exist; the message names the first missing file.
    ConfigError
        A band is unknown, or the table is malformed.
    SceneError
        A file cannot be decoded.
    """
    chosen = [BANDS.get(band, band) for band in bands]
    for band, code in zip(bands, chosen, strict=True):
        if code not in BANDS.values():
            raise ConfigError(f"bigearthnet: no band {band!r}; choose of {', '.join(BANDS)}")
    side_px = tile_px or _SIDE_PX
    with open_files(source) as files:
        table = _needed(files.read, _TABLE, source)
        names, splits, labels = _read_table(table)
        tiles = [name.rsplit("_", 2)[0] for name in names]
        rows = Rows(
            sources=names,
            groups=tiles,
            splits=splits,
            bands=bands,
            classes=CLASSES,
            resolution_m=_RESOLUTION_M * _SIDE_PX / side_px,
            origin={
                "importer": "bigearthnet",
                "source": str(source),
                "table_sha256": hashlib.sha256(table).hexdigest(),
                "bands": chosen,
                "tile_px": side_px,
            },
        )

        reader = ImageReader(files, 1, side_px)

        def read(row: int) -> tuple[NDArray[Any], NDArray[np.uint8]]:
            folder = f"{_PATCHES}/{tiles[row]}/{names[row]}"
            paths = [f"{folder}/{names[row]}_{band}.tif" for band in chosen]
            layers = [_needed(reader.read, path, source) for path in paths]
            return np.concatenate(layers), labels[row]

        return write_rows(uri, rows, read, progress)


def _needed(read: Callable[[str], T], path: str, source: str | Location) -> T:
    try:
        return read(path)
    except NotFoundError as error:
        raise NotFoundError(
            f"bigearthnet: {path} is missing in {source}; it needs {_TABLE} and "
            f"{_PATCHES}/<tile>/<patch>/<patch>_<band>.tif"
        ) from error


def _read_table(data: bytes) -> tuple[list[str], list[str], NDArray[np.uint8]]:
    """Return the patches, their splits, and the labels (n, 19)."""
    with Quarantine(_TABLE) as fault:
        frame = pd.read_parquet(io.BytesIO(data), columns=["patch_id", "labels", "split"])
    if fault:
        raise ConfigError(
            f"bigearthnet: {_TABLE} is not a table with patch_id, labels and split "
            f"({fault.reason}); download it again"
        )
    names, splits = frame["patch_id"].tolist(), frame["split"].tolist()
    for name in names:
        if not isinstance(name, str) or not name or set(name) & {"/", "\\"}:
            raise ConfigError(f"bigearthnet: {_TABLE} has patch_id {name!r}, not a patch's name")
    if (pair := first_twice(names)) is not None:
        raise ConfigError(f"bigearthnet: {_TABLE} lists patch {names[pair[0]]} twice")
    for split in splits:
        if not isinstance(split, str) or split not in _SPLITS:
            raise ConfigError(
                f"bigearthnet: {_TABLE} has split {split!r}, not one of {', '.join(_SPLITS)}"
            )
    labels = np.zeros((len(names), len(CLASSES)), np.uint8)
    for row, listed in enumerate(frame["labels"]):
        if not isinstance(listed, np.ndarray | list):
            raise ConfigError(
                f"bigearthnet: {_TABLE} has labels {listed!r} of patch {names[row]}, not a list"
            )
        for label in listed:
            if label not in CLASSES:
                raise ConfigError(
                    f"bigearthnet: {_TABLE} has label {label!r}, which is none of the 19 classes"
                )
            labels[row, CLASSES.index(label)] = 1
    return names, [_SPLITS[split] for split in splits], labels
