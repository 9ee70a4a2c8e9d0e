"""Tiles of an archive, or of other scenes, that join a dataset beside the ground that it holds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.tiles.grid import TileGrid
from pipeline.tiles.read import read_tiles
from pipeline.tiles.spec import TileRules
from storage.archive.reader import Archive
from storage.archive.samples import uniform_rows
from storage.dataset import LabelledDataset
from storage.dataset_writer import DatasetWriter
from storage.errors import ConfigError
from storage.index.sidecar import TILE_KEY
from storage.progress import Progress, ProgressSink
from storage.quarantine import none_readable, set_aside
from storage.scene import Scene

_BATCH, _LARGEST_BLOCK = 64, 256
SceneTiles = tuple[Scene, TileGrid, TileRules]
"""A scene, the tiles to cut it into, and the rules for keeping them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ArchiveTiles:
    """Rows of an archive: id, vector and place of each, by position."""

    row: NDArray[np.int64]
    embedding: NDArray[np.float32]
    scene: NDArray[np.object_]
    grid: NDArray[np.object_]
    tile_key: NDArray[np.object_]

    def __len__(self) -> int:
        return len(self.row)

    def at(self, positions: NDArray[Any]) -> "ArchiveTiles":
        """Return some of the rows, by position or by a mask."""
        return ArchiveTiles(**{f.name: getattr(self, f.name)[positions] for f in fields(self)})


def block_of(tile_key: str, block_tiles: int) -> str:
    """Return the name of the block of a dataset's splits in which a tile lies.

    Examples
    --------
    >>> block_of("epsg32632-10-16/2003/-30000", 4)
    'epsg32632-10-16/500/-7500'
    """
    grid, column, row = tile_key.rsplit("/", 2)
    return f"{grid}/{int(column) // block_tiles}/{int(row) // block_tiles}"


def side_of_blocks(dataset: LabelledDataset) -> int | None:
    """Return the tiles on a side of the blocks of a dataset's splits, as its rows show it.

    None without places, and for groups that are no blocks of tiles. The validation and test rows
    are looked at: they come from the import, as the blocks do.
    """
    if not {"tile_key", "group"} <= set(dataset.rows.columns):
        return None
    placed = dataset.rows[dataset.split != "train"].dropna(subset=["tile_key", "group"])
    pairs = list(zip(placed["tile_key"], placed["group"], strict=True))
    if not all(TILE_KEY.fullmatch(str(key)) for key, _ in pairs):
        return None
    sides = range(1, _LARGEST_BLOCK + 1)
    return next((s for s in sides if all(block_of(key, s) == group for key, group in pairs)), None)


def blocks_kept_apart(dataset: LabelledDataset) -> Callable[[str], bool]:
    """Return whether a tile, by its key, lies in a block of a dataset's validation or test rows."""
    side = side_of_blocks(dataset)
    if side is None:
        return lambda _: False
    apart = set(dataset.rows["group"][dataset.split != "train"])
    return lambda key: block_of(key, side) in apart


def tiles_beside(
    dataset: LabelledDataset | None, archive: Archive, rows: int, seed: int
) -> ArchiveTiles:
    """Draw rows of an archive uniformly, without those on the ground of a dataset.

    Tiles that the dataset holds are left out, and those in a block of its validation or test rows.

    Raises
    ------
    ConfigError
        No tile is left.
    """
    names = [field.name for field in fields(ArchiveTiles)]
    columns = archive.read(uniform_rows(archive, rows, seed), names)
    tiles = ArchiveTiles(**{name: columns[name] for name in names})
    if dataset is not None:
        tiles = tiles.at(~_on_its_ground(dataset, tiles.tile_key.tolist()))
    if not len(tiles):
        raise ConfigError(
            f"archive {archive.uri} has no tile beside the ground of the dataset; ingest more "
            "scenes"
        )
    return tiles


def _on_its_ground(dataset: LabelledDataset, keys: list[str]) -> NDArray[np.bool_]:
    """Tell which tiles the dataset holds, or lie in a block of its validation or test rows."""
    held = set(dataset.rows["tile_key"]) if "tile_key" in dataset.rows.columns else set()
    is_apart = blocks_kept_apart(dataset)
    return np.array([key in held or is_apart(key) for key in keys])


def append_rows(
    writer: DatasetWriter,
    dataset: LabelledDataset,
    chosen: NDArray[np.int64],
    labels: NDArray[Any],
    more: Mapping[str, Sequence[Any]],
) -> None:
    """Append rows of a dataset in their order, with these labels (n, K) and further columns."""
    for start in range(0, len(chosen), _BATCH):
        part = slice(start, start + _BATCH)
        table = dataset.rows.iloc[chosen[part]]
        rows = {str(name): values.tolist() for name, values in table.items()}
        rows |= {name: list(values[part]) for name, values in more.items()}
        writer.append(np.asarray(dataset.images[chosen[part]]), labels[part], rows)


def append_tiles(
    writer: DatasetWriter,
    archive: Archive,
    tiles: ArchiveTiles,
    labels: NDArray[Any],
    more: Mapping[str, Sequence[Any]],
    progress: ProgressSink,
) -> dict[str, str]:
    """Append tiles of an archive as `append_scenes` does."""
    cut = partial(scene_tiles, archive)
    return append_scenes(writer, cut, tiles.scene, tiles.tile_key, labels, more, progress)


def scene_tiles(archive: Archive, scene_id: str) -> SceneTiles:
    """Return a scene of an archive, and how the archive cut it.

    Raises
    ------
    NotFoundError
        The archive has no tiles of the scene, or does not know its files.
    """
    scene, entry = archive.scene(scene_id), archive.ledger.entries[scene_id]
    grid = TileGrid.from_dict(archive.ledger.grids[entry.grid_id or ""])
    return scene, grid, TileRules(**archive.spec.rules)


def append_scenes(
    writer: DatasetWriter,
    cut: Callable[[str], SceneTiles],
    scene: NDArray[np.object_],
    tile_key: NDArray[np.object_],
    labels: NDArray[Any],
    more: Mapping[str, Sequence[Any]],
    progress: ProgressSink,
) -> dict[str, str]:
    """Append tiles, scene by scene, all of the train split; return the scenes left out.

    Parameters
    ----------
    cut
        Returns a scene with its grid and rules, by its id.
    scene, tile_key
        Scene and key of each tile, (n,).
    labels, more
        Labels (n, K) and further columns of the tiles, by position.

    Raises
    ------
    SceneError
        No scene can be read.
    """
    left_out: dict[str, str] = {}
    before, scenes = writer.count, sorted(set(scene.tolist()))
    for number, scene_id in enumerate(scenes, start=1):
        count, chosen = writer.count, np.flatnonzero(scene == scene_id)
        position = dict(zip(tile_key[chosen].tolist(), chosen.tolist(), strict=True))
        with set_aside(scene_id, left_out):
            _append_scene(writer, cut(scene_id), position, labels, more)
        if scene_id in left_out:
            writer.truncate(count)
        progress(Progress(stage="read", done=number, total=len(scenes), unit="scenes"))
    if writer.count == before:
        raise none_readable(left_out)
    return left_out


def _append_scene(
    writer: DatasetWriter,
    cut: SceneTiles,
    position: Mapping[str, int],
    labels: NDArray[Any],
    more: Mapping[str, Sequence[Any]],
) -> None:
    """Append the tiles of a scene whose keys have a position in labels and further columns."""
    scene, grid, rules = cut
    named = grid.naming(rules.edge)
    for batch in read_tiles(scene, grid, rules, batch_size=_BATCH):
        keys = named.keys(batch.tiles)
        found = [i for i, key in enumerate(keys) if key in position]
        if found:
            places = [position[keys[i]] for i in found]
            rows: dict[str, list[Any]] = {
                "source": [f"{scene.id}/{keys[i]}" for i in found],
                "split": ["train"] * len(found),
                "scene": [scene.id] * len(found),
                "tile_key": [keys[i] for i in found],
                **{name: [values[place] for place in places] for name, values in more.items()},
            }
            writer.append(np.asarray(batch.pixels[found], np.float32), labels[places], rows)
