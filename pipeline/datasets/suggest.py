"""Tiles to label next, by coverage, in a folder that annotation programs open.

The folder holds ``tiles/``, a dataset of the tiles without labels, with their own pixels;
``images/``, a picture of each for people; ``label-studio.json`` with ``label-studio.xml`` (tasks
and labelling interface), ``coco.json``, and ``tiles.geojson`` where the tiles have a place.
:mod:`pipeline.datasets.annotated` reads the labels back.

Shapes: N candidates, M labelled rows, F features.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoders.bundle import Encoder, load_encoder
from encoders.projection import half_whitened
from pipeline.datasets.annotations import (
    coco_images,
    geojson_tiles,
    label_studio_config,
    label_studio_tasks,
    picture_name,
)
from pipeline.datasets.archive_tiles import (
    ArchiveTiles,
    append_rows,
    append_tiles,
    block_of,
    side_of_blocks,
    tiles_beside,
)
from pipeline.datasets.coverage import covering_rows
from pipeline.datasets.embed import embed_images
from pipeline.datasets.spec import SuggestSpec
from storage.archive.reader import Archive
from storage.dataset import LabelledDataset
from storage.dataset_writer import DatasetWriter
from storage.errors import ConfigError
from storage.geometry import geojson
from storage.location import Location
from storage.progress import ProgressSink, ignore

TILES = "tiles"
"""Name of the dataset of the tiles in the folder."""
_DIRECTIONS = 128
Draw = Callable[[LabelledDataset], Callable[[int], bytes]]
"""Returns how a row of a dataset becomes a PNG."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Suggestion:
    """Suggested tiles: their folder and number, and the rows that counted as covered."""

    output: str
    suggested: int
    candidates: int
    labelled: int
    left_out: dict[str, str]


def suggest_tiles(
    archive: Archive,
    dataset: LabelledDataset | None,
    output: Location,
    spec: SuggestSpec,
    draw: Draw,
    *,
    block_tiles: int = 4,
    progress: ProgressSink = ignore,
) -> Suggestion:
    """Suggest tiles of an archive, beside the ground of a labelled dataset.

    Parameters
    ----------
    archive
        Archive whose scenes can be read.
    dataset
        Its labelled rows count as covered; None for a first dataset.
    output
        Folder to write.
    draw
        Draws the pictures.
    block_tiles
        Tiles on a side of a block of the splits of a first dataset.

    Raises
    ------
    ConfigError
        The folder holds suggestions already, there is no tile beside the dataset, or classes are
        given twice or not at all.
    EncoderMismatchError
        The dataset has other bands than the archive's encoder.
    SceneError
        No scene can be read.
    """
    classes = _classes(dataset, spec)
    _require_new(output)
    tiles = tiles_beside(dataset, archive, spec.candidates, spec.seed)
    side = block_tiles if dataset is None else side_of_blocks(dataset) or block_tiles
    features = tiles.embedding.astype(np.float32)
    covered = features[:0]
    if dataset is not None:
        known = dataset.labelled("train", "val", "test")
        covered = embed_images(load_encoder(archive.encoder), dataset, known, progress=progress)
    chosen = tiles.at(_chosen(features, covered, spec.rows, progress))
    writer = DatasetWriter(
        output / TILES,
        bands=archive.spec.bands,
        classes=classes,
        resolution_m=None if dataset is None else dataset.resolution_m,
        origin={"importer": "suggest", "archive": archive.uri, "snapshot": archive.snapshot}
        | asdict(spec),
    )
    none = np.zeros((len(chosen), len(classes)), np.uint8)
    more: dict[str, list[Any]] = {
        "number": list(range(1, len(chosen) + 1)),
        "group": [block_of(key, side) for key in chosen.tile_key.tolist()],
    }
    with writer:
        left_out = append_tiles(writer, archive, chosen, none, more, progress)
        writer.finish(left_out)
    made = LabelledDataset.open(output / TILES)
    _write_files(output, made, draw(made))
    records = _records(archive, chosen, set(made.rows["number"]))
    (output / "tiles.geojson").write(geojson_tiles(records, classes))
    return _report(output, made, len(tiles), len(covered), left_out)


def suggest_rows(
    dataset: LabelledDataset,
    encoder: Encoder,
    output: Location,
    spec: SuggestSpec,
    draw: Draw,
    *,
    progress: ProgressSink = ignore,
) -> Suggestion:
    """Suggest rows of a dataset that have no label, or probabilities for labels.

    Parameters
    ----------
    encoder
        Encoder of the dataset's bands, whose backbone gives the features.
    dataset, output, spec, draw
        As for :func:`suggest_tiles`.

    Raises
    ------
    ConfigError
        The folder holds suggestions already, or every row is labelled.
    EncoderMismatchError
        The dataset has other bands than the encoder.
    """
    _require_new(output)
    is_known = dataset.labels.any(axis=1) & ~dataset.is_soft
    others = np.flatnonzero(~is_known & (dataset.split == "train"))
    if not len(others):
        raise ConfigError(
            "suggest: every train row of the dataset has labels; give an archive with --from"
        )
    rng = np.random.default_rng(spec.seed)
    others = np.sort(rng.permutation(others)[: spec.candidates])
    known = np.flatnonzero(is_known)
    rows = np.concatenate([known, others])
    features = embed_images(encoder, dataset, rows, projected=False, progress=progress)
    covered, features = features[: len(known)], features[len(known) :]
    chosen = others[_chosen(features, covered, spec.rows, progress)]
    info = dataset.info
    with DatasetWriter(
        output / TILES,
        bands=info.bands,
        classes=info.classes,
        resolution_m=info.resolution_m,
        origin={"importer": "suggest", "dataset": info.digest, **asdict(spec)},
    ) as writer:
        none = np.zeros((len(chosen), len(info.classes)), np.uint8)
        numbers = list(range(1, len(chosen) + 1))
        append_rows(writer, dataset, chosen, none, {"number": numbers})
        writer.finish()
    made = LabelledDataset.open(output / TILES)
    _write_files(output, made, draw(made))
    return _report(output, made, len(others), len(known), {})


def _chosen(
    features_NF: NDArray[np.float32],
    covered_MF: NDArray[np.float32],
    rows: int,
    progress: ProgressSink,
) -> NDArray[np.int64]:
    """Return the positions of the rows that cover best, the most useful first."""
    together = np.concatenate([covered_MF, features_NF])
    if len(together) < 2:
        return np.zeros(1, np.int64)
    white, known = half_whitened(together, _DIRECTIONS), len(covered_MF)
    return covering_rows(white[known:], white[:known], rows, progress=progress)


def _classes(dataset: LabelledDataset | None, spec: SuggestSpec) -> tuple[str, ...]:
    if dataset is not None:
        if spec.classes:
            raise ConfigError(
                f"suggest: the dataset has the classes {', '.join(dataset.classes)}; leave --class "
                "out, or --dataset for a first dataset"
            )
        return dataset.classes
    if not spec.classes:
        raise ConfigError(
            "suggest: there are no names of classes; give each with --class, or a labelled dataset "
            "with --dataset"
        )
    return spec.classes


def _require_new(output: Location) -> None:
    if (output / TILES / "dataset.json").exists():
        raise ConfigError(
            f"{output} holds suggested tiles, whose numbers labels may refer to; choose another "
            "folder"
        )


def _write_files(output: Location, tiles: LabelledDataset, png: Callable[[int], bytes]) -> None:
    """Write pictures, tasks, interface and COCO; the most useful tile comes first."""
    order = np.argsort(tiles.rows["number"].to_numpy())
    numbers = tiles.rows["number"].to_numpy()[order].tolist()
    for row, number in zip(order.tolist(), numbers, strict=True):
        (output / picture_name(number)).write(picture := png(row))
    side_px = int.from_bytes(picture[16:20])  # the width in the header of a PNG
    names = [name for name in ("tile_key", "scene") if name in tiles.rows.columns]
    about = [{name: tiles.rows[name].iloc[row] for name in names} for row in order.tolist()]
    (output / "label-studio.json").write(label_studio_tasks(numbers, about))
    (output / "label-studio.xml").write(label_studio_config(tiles.classes).encode())
    (output / "coco.json").write(coco_images(numbers, side_px, tiles.classes))


def _records(archive: Archive, tiles: ArchiveTiles, kept: set[int]) -> list[dict[str, Any]]:
    """Return number, picture, scene, date and ground of the tiles that could be read."""
    names = ("tile_key", "scene", "datetime", "grid", "tile", "bbox")
    columns = archive.read(tiles.row, names)
    grounds = geojson(archive.footprints(columns))
    return [
        {
            "number": place + 1,
            "image": picture_name(place + 1),
            "tile_key": str(columns["tile_key"][place]),
            "scene": str(columns["scene"][place]),
            "datetime": f"{np.datetime_as_string(columns['datetime'][place], unit='s')}Z",
            "bbox": columns["bbox"][place].tolist(),
            "geometry": ground,
        }
        for place, ground in enumerate(grounds)
        if place + 1 in kept
    ]


def _report(
    output: Location,
    made: LabelledDataset,
    candidates: int,
    labelled: int,
    left_out: dict[str, str],
) -> Suggestion:
    return Suggestion(
        output=str(output),
        suggested=len(made),
        candidates=candidates,
        labelled=labelled,
        left_out=left_out,
    )
