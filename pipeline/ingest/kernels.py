"""The kernels of ingest, without Ray: scenes to pixels, pixels to vectors, rows to scenes."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.ingest.spec import IngestPlan
from pipeline.tiles.grid import grid_for_scene
from pipeline.tiles.read import TileBatch, TileCounts, local_revision, read_tiles
from storage.errors import EncoderMismatchError, SceneError
from storage.quarantine import Quarantine

logger = logging.getLogger(__name__)

Batch = dict[str, npt.NDArray[Any]]

_LOCAL_SCENES_AT_ONCE = 1
_REMOTE_SCENES_AT_ONCE = 4
_ROWS_TO_SEND = 256


def scenes_at_once(plan: IngestPlan) -> int:
    """Return the number of scenes that a process should read side by side.

    An object store takes long to answer, which threads hide; local reads compete for the CPU.
    """
    local = all(band.href.is_local for band in plan.todo[0].bands)
    return _LOCAL_SCENES_AT_ONCE if local else _REMOTE_SCENES_AT_ONCE


def require_planned_encoder(plan: IngestPlan, fingerprint: str) -> None:
    """Refuse an encoder other than that of the plan, which the archive names.

    Raises
    ------
    EncoderMismatchError
        The bundle was replaced after the plan was made.
    """
    planned = plan.archive.encoder_fingerprint
    if fingerprint != planned:
        raise EncoderMismatchError(
            f"encoder {plan.spec.encoder_uri} was replaced since the run was planned: it was "
            f"{planned[:16]} and is {fingerprint[:16]} now; restore that bundle, or run the "
            "command again for a new archive"
        )


class ReadScenes:
    """Turn scenes into batches of tile pixels; a scene that cannot be read is quarantined.

    Called with ``{"scene": (n,) indexes}``, it yields batches of rows. A tile row has ``status``
    0 and its pixels (C, h, w) float32, NaN where invalid. After its tiles, each scene yields one
    closing row of ``status`` 1 whose ``tiles`` counts them and whose ``note`` is JSON: the grid,
    or the reason why the scene is quarantined.
    """

    def __init__(self, plan: IngestPlan) -> None:
        self._scenes = plan.todo
        self._grid = plan.grid
        self._rules = plan.spec.rules
        self._batch_tiles = plan.spec.batch_tiles
        shape = (1, len(plan.archive.bands), plan.archive.tile_px, plan.archive.tile_px)
        self._no_tile = TileBatch(
            pixels=np.zeros(shape, np.float32),
            tiles=np.zeros((1, 2), np.int32),
            window=np.zeros((1, 4), np.int32),
            bbox=np.zeros((1, 4), np.float64),
            valid_fraction=np.zeros(1, np.float32),
            cloud_fraction=np.zeros(1, np.float32),
        )

    def __call__(self, batch: Batch) -> Iterator[Batch]:
        """Read the scenes that a batch names."""
        for index in batch["scene"].tolist():
            scene, counts, sent = self._scenes[index], TileCounts(), 0
            note: dict[str, Any] = {}
            files = ""
            with Quarantine(f"scene {scene.id}") as fault:
                files = local_revision(scene)
                grid = grid_for_scene(scene, self._grid)
                for part in read_tiles(
                    scene,
                    grid,
                    self._rules,
                    batch_size=self._batch_tiles,
                    counts=counts,
                ):
                    rows = _rows(index, part)
                    sent += len(part)
                    yield rows
                named = grid.naming(self._rules.edge)
                note = {"grid_id": named.id, "grid": named.to_dict(), "counts": asdict(counts)}
                if local_revision(scene) != files:
                    raise SceneError("its files were replaced while they were read; run again")
            if fault:
                logger.warning("scene %s: %s", scene.id, fault.reason)
                note = {"reason": fault.reason, "trace": fault.trace}
            # The rows that were sent, not the tiles that were counted: a scene that fails in its
            # middle has counted tiles that are never sent.
            text = json.dumps(note | {"files": files})
            yield _rows(index, self._no_tile, status=1, tiles=sent, note=text)


class EmbedTiles:
    """Turn a batch of tile pixels into vectors; everything else passes through."""

    def __init__(self, plan: IngestPlan, device: str | None) -> None:
        from encoders.bundle import load_encoder  # brings torch, which readers and driver lack

        self._encoder = load_encoder(plan.spec.encoder_uri, device=device, words=False)
        require_planned_encoder(plan, self._encoder.fingerprint)

    def __call__(self, batch: Batch) -> Batch:
        """Replace ``pixels`` (n, C, h, w) by ``embedding`` (n, D) float32."""
        pixels = batch.pop("pixels")
        vectors = np.zeros((len(pixels), self._encoder.dimension), np.float32)
        is_tile = batch["status"] == 0
        if is_tile.any():
            vectors[is_tile] = self._encoder(pixels if is_tile.all() else pixels[is_tile])
        return {**batch, "embedding": vectors}


class EmbedScenes:
    """Read and embed in one process, so that pixels never leave it.

    Several threads may call it: scenes are read side by side, which hides how long a file system
    or an object store takes to answer, and one batch at a time is encoded.
    """

    def __init__(self, plan: IngestPlan, device: str | None = "cpu") -> None:
        self._read = ReadScenes(plan)
        self._embed = EmbedTiles(plan, device)
        self._encoder_lock = Lock()

    def __call__(self, batch: Batch) -> Iterator[Batch]:
        """Yield the rows of the scenes that a batch names, their vectors instead of pixels."""
        waiting: list[Batch] = []
        for rows in self._read(batch):
            with self._encoder_lock:
                waiting.append(self._embed(rows))
            if sum(len(part["scene"]) for part in waiting) >= _ROWS_TO_SEND:
                yield _joined(waiting)
                waiting = []
        if waiting:
            yield _joined(waiting)


@dataclass(frozen=True, kw_only=True)
class SceneRows:
    """All rows of a scene, or the reason why the scene has none."""

    index: int
    note: Mapping[str, Any]
    columns: Batch

    def __len__(self) -> int:
        return len(self.columns["tile"])


class SceneCollector:
    """Join the rows of each scene; batches may arrive in any order and be cut anywhere."""

    def __init__(self) -> None:
        self._parts: dict[int, list[Batch]] = {}
        self._closing: dict[int, tuple[int, dict[str, Any]]] = {}

    def add(self, batch: Batch) -> Iterator[SceneRows]:
        """Take a batch; yield the scenes that it completes."""
        touched = np.unique(batch["scene"]).tolist()
        for index in touched:
            part = {name: values[batch["scene"] == index] for name, values in batch.items()}
            for position in np.flatnonzero(part["status"] == 1).tolist():
                tiles = int(part["tiles"][position])
                self._closing[index] = (tiles, json.loads(part["note"][position]))
            rows = part["status"] == 0
            self._parts.setdefault(index, []).append({n: v[rows] for n, v in part.items()})
        for index in touched:
            arrived = sum(len(part["tile"]) for part in self._parts[index])
            if index in self._closing and arrived >= self._closing[index][0]:
                yield self._take(index)

    def _take(self, index: int) -> SceneRows:
        _tiles, note = self._closing.pop(index)
        parts = self._parts.pop(index)
        columns = _joined(parts)
        # Row-major order of tiles, whatever order the batches came in.
        order = np.lexsort((columns["tile"][:, 0], columns["tile"][:, 1]))
        return SceneRows(index=index, note=note, columns={n: v[order] for n, v in columns.items()})


def _joined(parts: Sequence[Batch]) -> Batch:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _rows(index: int, part: TileBatch, *, status: int = 0, tiles: int = 0, note: str = "") -> Batch:
    count = len(part)
    return {
        "scene": np.full(count, index, np.int32),
        "status": np.full(count, status, np.int8),
        "tiles": np.full(count, tiles, np.int32),
        "note": np.full(count, note, dtype=object),
        "pixels": part.pixels,
        "tile": part.tiles,
        "window": part.window,
        "bbox": part.bbox,
        "valid_fraction": part.valid_fraction,
        "cloud_fraction": part.cloud_fraction,
    }
