"""The cost of an ingest before it runs: tiles, bytes to read, disk, memory.

Headers are opened, pixels are not. The numbers are upper bounds where a bound exists (tiles before
any is skipped, files read whole) and stated models elsewhere (memory).
"""

import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.ingest.kernels import scenes_at_once
from pipeline.ingest.spec import IngestPlan
from pipeline.tiles.grid import grid_for_scene
from pipeline.tiles.read import count_tiles, read_each
from storage.errors import SkysiftError
from storage.location import Location
from storage.progress import Progress, ProgressSink, ignore
from storage.quarantine import Quarantine
from storage.scene import Scene

SAMPLE_SCENES = 64
"""Number of scenes that a check before a run opens; a dry run opens all."""
_RAY_BYTES = 700_000_000
_PROCESS_BYTES = 450_000_000
_GDAL_CACHE_BYTES = 128_000_000
_STRIP_LIMIT_BYTES = 256 * 1024 * 1024
_SEGMENT_BYTES = 48_000
_SCENE_BYTES = 400
_ROW_BYTES_BESIDE_THE_VECTOR = 76


@dataclass(frozen=True, kw_only=True, slots=True)
class IngestCost:
    """The cost of a plan.

    Parameters
    ----------
    archive_uri
        The archive that would grow.
    tiles
        At most: tiles without data or under clouds are skipped.
    read_bytes
        Size of all files; less is read where a scene reaches beyond no tile.
    archive_bytes
        That the archive grows by, if every tile is kept and nothing compresses.
    free_bytes
        Free on the archive's disk; None for an object store.
    memory_bytes
        Of all processes of a run on this machine: Ray's own (0.7 GB), a process per CPU (450 MB,
        a cache of blocks, strips and batches of the scenes that it reads side by side), the rows
        that wait for a commit.
        Ray's object store and a large encoder come on top.
    machine_bytes
        Memory of this machine, or the limit of its container; None when a cluster does the work.
    unreadable
        Scenes that would be quarantined, and why.
    """

    archive_uri: str
    tiles: int
    read_bytes: int
    archive_bytes: int
    free_bytes: int | None
    memory_bytes: int
    machine_bytes: int | None
    unreadable: Mapping[str, str] = field(default_factory=dict)

    @property
    def fits_disk(self) -> bool:
        """Whether the archive's disk has room for the rows."""
        return self.free_bytes is None or self.archive_bytes <= self.free_bytes

    @property
    def fits_memory(self) -> bool:
        """Whether the machine's memory has room for the run."""
        return self.machine_bytes is None or self.memory_bytes <= self.machine_bytes

    def require_room(self) -> None:
        """Refuse a run that cannot fit the archive's disk or this machine's memory.

        Raises
        ------
        SkysiftError
            The run cannot fit.
        """
        if not self.fits_memory:
            raise SkysiftError(
                f"this run would take about {self.memory_bytes:,} bytes of memory, but this "
                f"machine has {self.machine_bytes:,}; use fewer CPUs (cluster.cpus), smaller "
                "batches (ingest.batch_tiles), or a cluster (cluster.address)"
            )
        if not self.fits_disk:
            raise SkysiftError(
                f"archive {self.archive_uri} would grow by {self.archive_bytes:,} bytes for "
                f"{self.tiles:,} tiles, but its disk has {self.free_bytes:,} free; free some "
                "space, choose another place, or take fewer scenes (--since, --until, --bbox)"
            )

    def summary(self) -> dict[str, Any]:
        """Return the costs as plain values, for printing."""
        return {
            "tiles_at_most": self.tiles,
            "read_bytes": self.read_bytes,
            "archive_bytes": self.archive_bytes,
            "free_bytes": self.free_bytes,
            "memory_bytes": self.memory_bytes,
            "machine_bytes": self.machine_bytes,
            "fits": self.fits_disk and self.fits_memory,
            "scenes_unreadable": dict(self.unreadable),
        }


def estimate_cost(
    plan: IngestPlan,
    *,
    sample_scenes: int | None = None,
    cpus: int | None = None,
    on_cluster: bool = False,
    progress: ProgressSink = ignore,
) -> IngestCost:
    """Open the headers of a plan's scenes and add up the cost of embedding them.

    Parameters
    ----------
    plan
        Result of :func:`pipeline.ingest.driver.plan_ingest`.
    sample_scenes
        Number of scenes to open, evenly spread over the plan; their mean stands for the others.
        None opens all.
    cpus
        CPUs of the run; all of this machine's when None.
    on_cluster
        Another machine's memory will be used, not this one's.
    progress
        Receives scenes opened.
    """
    chosen: Sequence[Scene] = plan.todo
    if sample_scenes is not None and len(chosen) > sample_scenes:
        chosen = [chosen[i] for i in np.linspace(0, len(chosen) - 1, sample_scenes).astype(int)]
    counts: list[int] = []
    sizes: dict[str, int] = {}
    unreadable: dict[str, str] = {}
    # Whatever a scene raises here, ingest will quarantine the scene for the same reason.
    for number, (scene, outcome) in enumerate(read_each(chosen, partial(_scene_cost, plan)), 1):
        if isinstance(outcome, Quarantine):
            unreadable[scene.id] = outcome.reason
        else:
            counts.append(outcome[0])
            sizes |= outcome[1]
        progress(Progress(stage="estimate", done=number, total=len(chosen), unit="scenes"))
    scale = len(plan.todo) / max(len(chosen), 1)
    tiles = math.ceil(sum(counts) * scale)
    return IngestCost(
        archive_uri=str(plan.spec.archive_uri),
        tiles=tiles,
        read_bytes=math.ceil(sum(sizes.values()) * scale),
        archive_bytes=_archive_bytes(plan, tiles, math.ceil(len(counts) * scale)),
        free_bytes=_free_bytes(Location.of(plan.spec.archive_uri)),
        memory_bytes=_memory_bytes(plan, max(counts), cpus or os.cpu_count() or 1) if counts else 0,
        machine_bytes=None if on_cluster else machine_bytes(),
        unreadable=unreadable,
    )


def machine_bytes(groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the memory of this machine, or the limit of its container."""
    sizes = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    limits = (groups / "memory.max", groups / "memory" / "memory.limit_in_bytes")
    texts = (limit.read_text().strip() for limit in limits if limit.is_file())
    return min([*sizes, *(int(text) for text in texts if text.isdecimal())])


def _scene_cost(plan: IngestPlan, scene: Scene) -> tuple[int, dict[str, int]]:
    """Return the tiles of a scene, and the sizes of its files by URI."""
    tiles = count_tiles(scene, grid_for_scene(scene, plan.grid), plan.spec.rules)
    return tiles, {href.uri: href.size_bytes() for href in scene.hrefs}


def _row_bytes(plan: IngestPlan) -> int:
    return _ROW_BYTES_BESIDE_THE_VECTOR + len(plan.archive.classes)


def _archive_bytes(plan: IngestPlan, tiles: int, scenes: int) -> int:
    """Return the size of the rows of that many tiles, their vectors in float16."""
    if not tiles:
        return scenes * _SCENE_BYTES
    per_scene = max(math.ceil(tiles / max(scenes, 1)), 1)
    segment_rows = math.ceil(plan.spec.segment_rows / per_scene) * per_scene
    return (
        tiles * (plan.archive.dimension * 2 + _row_bytes(plan))
        + math.ceil(tiles / segment_rows) * _SEGMENT_BYTES
        + scenes * _SCENE_BYTES
    )


def _memory_bytes(plan: IngestPlan, most_tiles: int, cpus: int) -> int:
    """Return the model that :class:`IngestCost` states, one process a CPU.

    ``most_tiles`` are those of the largest scene; its strip is a row of a square of tiles.
    """
    tile_bytes = len(plan.archive.bands) * plan.archive.tile_px**2 * 4
    strip_bytes = min(math.ceil(math.sqrt(most_tiles)) * tile_bytes, _STRIP_LIMIT_BYTES)
    scene = 3 * strip_bytes + 2 * plan.spec.batch_tiles * tile_bytes
    worker = _PROCESS_BYTES + _GDAL_CACHE_BYTES + scenes_at_once(plan) * scene
    waiting = plan.spec.segment_rows + most_tiles
    driver = _PROCESS_BYTES + 2 * waiting * (plan.archive.dimension * 4 + _row_bytes(plan))
    return _RAY_BYTES + cpus * worker + driver


def _free_bytes(archive: Location) -> int | None:
    if not archive.is_local:
        return None
    folder = archive.path.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
