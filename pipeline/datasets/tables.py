"""UC Merced Land Use and AID with multi-labels, as datasets: the same labels in the same tables.

References
----------
Yang and Newsam, Bag-of-visual-words and spatial extensions for land-use classification, ACM GIS
2010 (images). Chaudhuri et al., Multilabel Remote Sensing Image Retrieval Using a Semisupervised
Graph-Theoretic Method, IEEE TGRS 2018 (labels). Hua et al., Relation Network for Multilabel
Aerial Image Classification, IEEE TGRS 2020 (AID).
"""

import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.datasets.images import Files, decode_image, open_files
from pipeline.datasets.rows import Rows, write_rows
from pipeline.datasets.spec import SplitRule
from storage.dataset import DatasetInfo
from storage.errors import ConfigError, NotFoundError
from storage.location import StorageOptions
from storage.progress import ProgressSink, quiet

_BANDS = ("red", "green", "blue")
_UC_MERCED_TABLES = (
    "LandUse_Multilabeled.txt",
    "LandUse_Multilabeled.csv",
    "LandUse_multilabels.mat",
)
_ML_AID_TABLES = ("multilabel.csv",)
_IMAGE_COLUMN = "IMAGE\\LABEL"
CLASSES = (
    *("airplane", "bare-soil", "buildings", "cars", "chaparral", "court", "dock", "field"),
    *("grass", "mobile-home", "pavement", "sand", "sea", "ship", "tanks", "trees", "water"),
)
SCENES = (
    *("agricultural", "airplane", "baseballdiamond", "beach", "buildings", "chaparral"),
    *("denseresidential", "forest", "freeway", "golfcourse", "harbor", "intersection"),
    *("mediumresidential", "mobilehomepark", "overpass", "parkinglot", "river", "runway"),
    *("sparseresidential", "storagetanks", "tenniscourt"),
)
"""The 21 scene classes, a folder each; the columns of the MATLAB table go by them, 100 each."""


def import_uc_merced(
    source: str,
    uri: str,
    *,
    tile_px: int | None = None,
    split: SplitRule | None = None,
    options: StorageOptions | None = None,
    progress: ProgressSink = quiet,
) -> DatasetInfo:
    r"""Import UC Merced with its 17 labels.

    Expected is a folder (or ``.tar``) with ``Images/<scene>/<scene><NN>.tif`` (RGB) and, anywhere
    below the source, a table of labels: ``LandUse_Multilabeled.txt`` (tab-separated, a row for
    each image, first column ``IMAGE\LABEL``), the same as ``LandUse_Multilabeled.csv``, or
    ``LandUse_multilabels.mat`` (``labels``, 17 x 2100, the images by scene and number). The first
    of them that is there is read.

    Parameters
    ----------
    source
        Folder, or a tar that holds one.
    uri
        Dataset to write.
    tile_px
        Images are resized to this; None makes 256 px of all (a few are smaller by some pixels).
    split
        How images are divided; default 70 : 15 : 15.

    Raises
    ------
    NotFoundError
        No table, or an image of the table is not there (the first one is named).
    ConfigError
        The table is not as described.
    SceneError
        An image cannot be decoded.
    """
    side_px = tile_px or 256
    layout = _Layout(
        name="uc-merced",
        tables=_UC_MERCED_TABLES,
        suffix=".tif",
        resolution_m=0.3048 * 256 / side_px,
    )
    rule = split or SplitRule()
    return _import(
        layout, source, uri, side_px, lambda name, _: rule.of(name), repr(rule), options, progress
    )


def import_ml_aid(
    source: str,
    uri: str,
    *,
    tile_px: int | None = None,
    split: SplitRule | None = None,
    options: StorageOptions | None = None,
    progress: ProgressSink = quiet,
) -> DatasetInfo:
    r"""Import ML-AID with its 17 labels and its own test split.

    Expected is a folder (or ``.tar``) with ``multilabel.csv`` (first column ``IMAGE\LABEL``, a row
    for each image) and the images ``<name>.jpg`` anywhere below ``images_tr`` and ``images_test``.
    Validation rows are drawn from those of ``images_tr`` (``split.val``). Parameters and errors are
    those of `import_uc_merced`; None for ``tile_px`` keeps 600 px.
    """
    layout = _Layout(name="ml-aid", tables=_ML_AID_TABLES, suffix=".jpg", resolution_m=None)
    rule = replace(split or SplitRule(), test=0.0)

    def split_of(name: str, path: str) -> str:
        return "test" if "images_test" in PurePosixPath(path).parts else rule.of(name)

    return _import(layout, source, uri, tile_px or 600, split_of, repr(rule), options, progress)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Layout:
    """What a dataset's files are called."""

    name: str
    tables: tuple[str, ...]
    suffix: str
    resolution_m: float | None


def _import(
    layout: _Layout,
    source: str,
    uri: str,
    side_px: int,
    split_of: Callable[[str, str], str],
    rule: str,
    options: StorageOptions | None,
    progress: ProgressSink,
) -> DatasetInfo:
    with open_files(source, options) as files:
        listed = files.names()
        table = _find(layout, listed, source)
        labels = _read_table(layout.name, files, table)
        images = {PurePosixPath(n).stem: n for n in listed if n.lower().endswith(layout.suffix)}
        for name in labels:
            if name not in images:
                raise NotFoundError(
                    f"{layout.name}: image {name}{layout.suffix} of {table} is missing in "
                    f"{source}; unpack the images there"
                )
        names = list(labels)
        rows = Rows(
            sources=names,
            groups=names,
            splits=[split_of(name, images[name]) for name in names],
            bands=_BANDS,
            classes=CLASSES,
            resolution_m=layout.resolution_m,
            origin={
                "importer": layout.name,
                "source": source,
                "table_sha256": hashlib.sha256(files.read(table)).hexdigest(),
                "tile_px": side_px,
                "split": rule,
            },
        )

        def read(row: int) -> tuple[NDArray[Any], NDArray[np.uint8]]:
            path = images[names[row]]
            return decode_image(files.read(path), path, side_px, len(_BANDS)), labels[names[row]]

        return write_rows(uri, rows, read, options=options, progress=progress)


def _find(layout: _Layout, listed: list[str], source: str) -> str:
    for wanted in layout.tables:
        for name in sorted(listed):
            if PurePosixPath(name).name == wanted:
                return name
    raise NotFoundError(
        f"{layout.name}: {' or '.join(layout.tables)} is missing in {source}; "
        "unpack the multi-labels there"
    )


def _read_table(dataset: str, files: Files, table: str) -> Mapping[str, NDArray[np.uint8]]:
    """Return the labels (17,) of each image by its name without suffix, in the table's order."""
    data = files.read(table)
    if table.endswith(".mat"):
        return _read_matlab(dataset, data, table)
    try:
        frame = pd.read_csv(io.BytesIO(data), sep=r"\t|[,;]", engine="python", index_col=False)
    except (ValueError, UnicodeDecodeError) as error:
        raise ConfigError(f"{dataset}: {table} is not a table ({error}); download it again") from (
            error
        )
    frame = frame.rename(columns=lambda name: str(name).strip().replace(" ", "-"))
    lacking = [name for name in (_IMAGE_COLUMN, *CLASSES) if name not in frame]
    if lacking:
        raise ConfigError(f"{dataset}: {table} has no column {lacking[0]}; download it again")
    return _checked(dataset, frame[_IMAGE_COLUMN].tolist(), frame[list(CLASSES)].to_numpy(), table)


def _read_matlab(dataset: str, data: bytes, table: str) -> Mapping[str, NDArray[np.uint8]]:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        labels = np.asarray(loadmat(io.BytesIO(data), variable_names=["labels"])["labels"])
    except (MatReadError, ValueError, TypeError, LookupError) as error:
        raise ConfigError(
            f"{dataset}: {table} holds no readable `labels` ({error}); download it again"
        ) from error
    names = [f"{scene}{number:02d}" for scene in SCENES for number in range(100)]
    if labels.shape != (len(CLASSES), len(names)):
        raise ConfigError(
            f"{dataset}: `labels` of {table} has shape {labels.shape}, not "
            f"{(len(CLASSES), len(names))}; download it again"
        )
    return _checked(dataset, names, labels.T, table)


def _checked(
    dataset: str, names: list[str], labels: NDArray[Any], table: str
) -> Mapping[str, NDArray[np.uint8]]:
    if not np.isin(labels, (0, 1)).all():
        raise ConfigError(f"{dataset}: {table} holds labels that are not 0 or 1; download it again")
    return dict(zip(map(str, names), labels.astype(np.uint8), strict=True))
