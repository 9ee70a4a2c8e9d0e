r"""Published multi-label datasets of RGB images: DLRSD, WHDLD, UC Merced and ML-AID.

A frozen `Layout` describes the files of each dataset and `import_published` reads them all. Labels
come from a mask per image (DLRSD, WHDLD) or from a table (UC Merced, ML-AID). The files are found
at the top of the source or below it.

=========  ======================================================================================
DLRSD      ``Images/<scene>/<name>.tif`` and ``Labels/<scene>/<name>.png`` with class numbers from
           1 (grey or palette)
WHDLD      ``Images/<name>.jpg`` and ``ImagesPNG/<name>.png`` with a colour per class
UC Merced  ``Images/<scene>/<scene><NN>.tif`` and the first of ``LandUse_Multilabeled.txt``
           (tab-separated, a row per image, first column ``IMAGE\LABEL``), the same as ``.csv``, and
           ``LandUse_multilabels.mat`` (``labels``, 17 x 2100, images by scene and number)
ML-AID     ``multilabel.csv`` (as above) and ``<name>.jpg`` below ``images_tr`` and ``images_test``,
           which is the test split
=========  ======================================================================================

References
----------
Shao et al., Multilabel Remote Sensing Image Retrieval Based on Fully Convolutional Network, IEEE
JSTARS 2020 (DLRSD, WHDLD). Yang and Newsam, Bag-of-visual-words and spatial extensions for land-use
classification, ACM GIS 2010 (images of UC Merced). Chaudhuri et al., Multilabel Remote Sensing
Image Retrieval Using a Semisupervised Graph-Theoretic Method, IEEE TGRS 2018 (labels of UC Merced).
Hua et al., Relation Network for Multilabel Aerial Image Classification, IEEE TGRS 2020 (ML-AID).
"""

import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets.images import Files, ImageReader, count_classes, open_files, revision
from pipeline.datasets.rows import Rows, write_rows
from pipeline.datasets.spec import SplitRule
from pipeline.datasets.tables import first_twice, read_table
from storage.dataset import DatasetInfo
from storage.errors import ConfigError, NotFoundError, SceneError
from storage.location import Location
from storage.progress import ProgressSink, ignore
from storage.quarantine import Quarantine

Labels = NDArray[np.uint8]
_Samples = tuple[Mapping[str, str], Callable[[str], Labels], Mapping[str, Any]]
"""Path of each image by name, the labels of a name, and the origin of the labels."""

MIN_SHARE = 0.01
CLASSES = (
    *("airplane", "bare-soil", "buildings", "cars", "chaparral", "court", "dock", "field"),
    *("grass", "mobile-home", "pavement", "sand", "sea", "ship", "tanks", "trees", "water"),
)
"""The 17 classes of DLRSD, UC Merced and ML-AID."""
SCENES = (
    *("agricultural", "airplane", "baseballdiamond", "beach", "buildings", "chaparral"),
    *("denseresidential", "forest", "freeway", "golfcourse", "harbor", "intersection"),
    *("mediumresidential", "mobilehomepark", "overpass", "parkinglot", "river", "runway"),
    *("sparseresidential", "storagetanks", "tenniscourt"),
)
"""The 21 scene folders of UC Merced, 100 images each; the columns of the MATLAB table follow."""
_BANDS = ("red", "green", "blue")
_IMAGE_COLUMN = "IMAGE\\LABEL"


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Files of a published dataset, whose labels come from ``masks`` or from ``tables``.

    Attributes
    ----------
    name
        Name of the importer in a recipe.
    suffix
        Suffix of the image files.
    side_px, resolution_m
        Side of the images, and ground size of their pixels; None when unknown.
    classes
        Names of the classes, in the order of the mask values or table columns.
    masks, colours
        Folder of a PNG mask per image, parallel to ``Images``, and the RGB colour of each class;
        without colours the pixels are class numbers from 1.
    tables, test_folder
        File names of the table of 0/1 labels, of which the first existing one is read, and the
        folder whose images form the test split.
    """

    name: str
    suffix: str
    side_px: int
    resolution_m: float | None
    classes: tuple[str, ...] = CLASSES
    masks: str = ""
    colours: tuple[tuple[int, int, int], ...] = ()
    tables: tuple[str, ...] = ()
    test_folder: str | None = None


DLRSD = Layout(name="dlrsd", suffix=".tif", side_px=256, resolution_m=0.3048, masks="Labels")
WHDLD = Layout(
    name="whdld",
    suffix=".jpg",
    side_px=256,
    resolution_m=2.0,
    classes=("bare-soil", "building", "pavement", "road", "vegetation", "water"),
    masks="ImagesPNG",
    colours=(
        *((128, 128, 128), (255, 0, 0), (192, 192, 0)),
        *((255, 255, 0), (0, 255, 0), (0, 0, 255)),
    ),
)
UC_MERCED = Layout(
    name="uc-merced",
    suffix=".tif",
    side_px=256,  # a few images are some pixels smaller
    resolution_m=0.3048,
    tables=("LandUse_Multilabeled.txt", "LandUse_Multilabeled.csv", "LandUse_multilabels.mat"),
)
ML_AID = Layout(
    name="ml-aid",
    suffix=".jpg",
    side_px=600,
    resolution_m=None,
    tables=("multilabel.csv",),
    test_folder="images_test",
)


def import_published(
    layout: Layout,
    source: str | Location,
    uri: str | Location,
    *,
    min_share: float | None = None,
    tile_px: int | None = None,
    split: SplitRule | None = None,
    progress: ProgressSink = ignore,
) -> DatasetInfo:
    """Import a published dataset.

    Parameters
    ----------
    layout
        Files of the dataset.
    source
        Folder, or a ``.tar`` (also compressed) that contains the folder.
    uri
        Dataset to write.
    min_share
        For datasets with masks: smallest share of an image's pixels that makes a class one of its
        labels, 0 to 1 (default 0.01); with 0 a single pixel is enough.
    tile_px
        Side to resize the images to; None keeps the side of the layout.
    split
        Division of the images into splits, default 70 : 15 : 15. A dataset with a test split keeps
        it and divides the other images by ``split.val``.

    Raises
    ------
    NotFoundError
        A table, an image or a mask is missing; the message names the first one.
    ConfigError
        The table is malformed, or ``min_share`` is out of range or given for a table.
    SceneError
        A file cannot be decoded, or a mask has other classes.
    """
    side_px, rule = tile_px or layout.side_px, split or SplitRule()
    if layout.test_folder is not None:
        rule = replace(rule, test=0.0)
    resolution_m = layout.resolution_m and layout.resolution_m * layout.side_px / side_px
    with open_files(source) as files:
        read_samples = _read_masked if layout.masks else _read_tabled
        images, read_labels, origin = read_samples(layout, files, source, min_share)
        names = list(images)
        rows = Rows(
            sources=names,
            groups=names,
            splits=[
                "test" if layout.test_folder in PurePosixPath(path).parts else rule.of(name)
                for name, path in images.items()
            ],
            bands=_BANDS,
            classes=layout.classes,
            resolution_m=resolution_m,
            origin={
                "importer": layout.name,
                "source": str(source),
                **origin,
                "files_sha256": revision(files, images.values()),
                "tile_px": side_px,
                "split": repr(rule),
            },
        )

        reader = ImageReader(files, len(_BANDS), side_px)

        def read(row: int) -> tuple[NDArray[Any], Labels]:
            return reader.read(images[names[row]]), read_labels(names[row])

        return write_rows(uri, rows, read, progress)


def _read_masked(
    layout: Layout, files: Files, source: str | Location, min_share: float | None
) -> _Samples:
    share = MIN_SHARE if min_share is None else min_share
    if not 0 <= share < 1:
        raise ConfigError(f"{layout.name}: min_share {share} is not within 0 and 1")
    images, masks = _pairs(layout, files, source)
    masks_sha256 = revision(files, masks.values())

    def read_labels(name: str) -> Labels:
        return _mask_labels(layout, files, masks[name], share)

    return images, read_labels, {"masks_sha256": masks_sha256, "min_share": share}


def _pairs(
    layout: Layout, files: Files, source: str | Location
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the paths of images and masks by name, sorted; refuse the first unpaired name."""
    suffixes = {"Images": layout.suffix, layout.masks: ".png"}
    found: dict[str, dict[str, str]] = {folder: {} for folder in suffixes}
    for path in map(PurePosixPath, files.states):
        for depth, part in enumerate(path.parts[:2]):
            if path.suffix.lower() == suffixes.get(part):
                name = "/".join(path.with_suffix("").parts[depth + 1 :])
                if (other := found[part].setdefault(name, str(path))) != str(path):
                    raise ConfigError(
                        f"{layout.name}: {part}/{name} is there twice, as {other} and as {path}; "
                        "remove one of the files"
                    )
    names = sorted({name for paths in found.values() for name in paths})
    missing = [] if names else ["folder Images"]
    missing += [
        f"{folder}/{name}{suffix}"
        for name in names
        for folder, suffix in reversed(suffixes.items())
        if name not in found[folder]
    ]
    if missing:
        raise NotFoundError(
            f"{layout.name}: {missing[0]} is missing in {source}; it needs "
            f"Images/<name>{layout.suffix} and {layout.masks}/<name>.png"
        )
    images, masks = ({name: paths[name] for name in names} for paths in found.values())
    return images, masks


def _mask_labels(layout: Layout, files: Files, path: str, min_share: float) -> Labels:
    """Return 1 for each class that covers enough of a mask, shape (K,)."""
    counts, classes = count_classes(files, path, layout.colours), len(layout.classes)
    # Count 0 holds pixels without a class: an unknown colour, but plain background in numbers.
    if counts[classes + 1 :].any() or (layout.colours and counts[0]):
        raise SceneError(
            f"mask {path} has pixels of none of the {classes} classes of {layout.name}; replace it"
        )
    counts = np.pad(counts, (0, max(0, classes + 1 - len(counts))))[: classes + 1]
    share = counts[1:] / counts.sum()
    labels: Labels = ((share >= min_share) & (share > 0)).astype(np.uint8)
    return labels


def _read_tabled(
    layout: Layout, files: Files, source: str | Location, min_share: float | None
) -> _Samples:
    if min_share is not None:
        raise ConfigError(f"{layout.name}: the labels come from a table; leave `min_share` out")
    paths = list(files.states)
    table = _find_table(layout, paths, source)
    data = files.read(table)
    labels = _table_labels(layout, data, f"{layout.name}: {table}")
    images: dict[str, str] = {}
    for path in paths:
        name = PurePosixPath(path).stem
        if name not in labels or not path.lower().endswith(layout.suffix):
            continue
        if (other := images.setdefault(name, path)) != path:
            raise ConfigError(
                f"{layout.name}: image {name} is there twice, as {other} and as {path}; "
                "remove one of the files"
            )
    for name in labels:
        if name not in images:
            raise NotFoundError(
                f"{layout.name}: image {name}{layout.suffix} of {table} is missing in "
                f"{source}; unpack the images there"
            )
    table_sha256 = hashlib.sha256(data).hexdigest()
    return (
        {name: images[name] for name in labels},
        labels.__getitem__,
        {"table_sha256": table_sha256},
    )


def _find_table(layout: Layout, paths: list[str], source: str | Location) -> str:
    for table in layout.tables:
        for path in sorted(paths):
            if PurePosixPath(path).name == table:
                return path
    raise NotFoundError(
        f"{layout.name}: {' or '.join(layout.tables)} is missing in {source}; "
        "unpack the multi-labels there"
    )


def _table_labels(layout: Layout, data: bytes, where: str) -> Mapping[str, Labels]:
    """Return the labels (K,) of each image by its name without suffix, in the table's order."""
    read = _read_matlab if where.endswith(".mat") else _read_text
    names, labels = read(layout, data, where)
    if not np.isin(labels, (0, 1)).all():
        raise ConfigError(f"{where} holds labels that are not 0 or 1; download it again")
    if (pair := first_twice(names)) is not None:
        raise ConfigError(f"{where} lists image {names[pair[0]]} twice; download it again")
    return dict(zip(names, labels.astype(np.uint8), strict=True))


def _read_text(layout: Layout, data: bytes, where: str) -> tuple[list[str], NDArray[Any]]:
    table = read_table(data, where, _IMAGE_COLUMN)
    named = {name.replace(" ", "-"): cells for name, cells in table.columns.items()}
    table = replace(table, columns=named)
    for column in layout.classes:
        if column not in named:
            raise ConfigError(f"{where} has no column {column}; download it again")
    return list(named[_IMAGE_COLUMN]), table.flags(layout.classes)


def _read_matlab(layout: Layout, data: bytes, where: str) -> tuple[list[str], NDArray[Any]]:
    from scipy.io import loadmat

    with Quarantine(where) as fault:
        labels = np.asarray(loadmat(io.BytesIO(data), variable_names=["labels"])["labels"])
    if fault:
        raise ConfigError(f"{where} holds no readable `labels` ({fault.reason}); download it again")
    names = [f"{scene}{number:02d}" for scene in SCENES for number in range(100)]
    if labels.shape != (len(layout.classes), len(names)):
        raise ConfigError(
            f"{where}: `labels` has shape {labels.shape}, not "
            f"{(len(layout.classes), len(names))}; download it again"
        )
    return names, labels.T
