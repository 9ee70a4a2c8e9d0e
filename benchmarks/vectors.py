"""Vectors as an encoder makes them, and whole archives of them, for the benchmarks of the index.

A mixture of Gaussians on the sphere: thousands of clusters of unequal weight, each spread over few
directions (the spectrum decays), none along the axes. What a seed draws is always the same.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from storage.archive.ledger import LedgerEntry
from storage.archive.reader import Archive
from storage.archive.spec import ArchiveSpec
from storage.archive.writer import ArchiveWriter, SegmentRows, write_segment

Float32 = npt.NDArray[np.float32]

CHUNK_ROWS = 65_536
"""Rows of a chunk, and of a segment of an archive."""
SCENE_TILES = 64
"""Tiles a side of a scene, which is a square on one of :data:`DATES` days."""
DATES = 8
_SCENE_ROWS = SCENE_TILES**2
_TILE_DEGREES = 640 / 111_320
_GRID = "epsg32648-10-64"
_SEGMENTS_A_COMMIT = 16


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Clusters on the unit sphere; ``shift`` (0 to 1) moves every centre towards a new place."""

    dimension: int = 128
    clusters: int = 5000
    spread: float = 0.6
    shift: float = 0.0

    @cached_property
    def _spectrum(self) -> Float32:
        scale = np.arange(1, self.dimension + 1) ** -0.5
        return np.asarray(scale / np.linalg.norm(scale), dtype=np.float32)

    @cached_property
    def _rotation(self) -> Float32:
        square = np.random.default_rng(0).normal(size=(self.dimension, self.dimension))
        return np.asarray(np.linalg.qr(square)[0], dtype=np.float32)

    @cached_property
    def _centres(self) -> Float32:
        here, there = (
            np.random.default_rng(seed).normal(size=(self.clusters, self.dimension))
            for seed in (1, 2)
        )
        centres = (here * (1 - self.shift) + there * self.shift) * self._spectrum
        return np.asarray(centres / np.linalg.norm(centres, axis=1, keepdims=True), np.float32)

    @cached_property
    def _edges(self) -> npt.NDArray[np.float64]:
        weights = np.random.default_rng(3).lognormal(size=self.clusters)
        return np.cumsum(weights) / weights.sum()

    def draw(self, rows: int, *seed: int) -> Float32:
        """Return unit vectors (rows, D)."""
        rng = np.random.default_rng([4, *seed])
        cluster = np.searchsorted(self._edges[:-1], rng.random(rows))
        vectors = rng.standard_normal((rows, self.dimension), dtype=np.float32)
        vectors *= self.spread * self._spectrum
        vectors += self._centres[cluster]
        vectors = vectors @ self._rotation
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors


def clustered(
    rows: int, dimension: int = 128, clusters: int = 5000, seed: int = 0, shift: float = 0.0
) -> Iterator[Float32]:
    """Yield ``rows`` unit vectors in chunks (up to :data:`CHUNK_ROWS`, D).

    Other seeds draw other vectors of the same clusters: queries, for example.
    """
    mixture = Mixture(dimension=dimension, clusters=clusters, shift=shift)
    for number, start in enumerate(range(0, rows, CHUNK_ROWS)):
        yield mixture.draw(min(CHUNK_ROWS, rows - start), seed, number)


def make_archive(
    folder: Path, rows: int, dimension: int = 128, clusters: int = 5000, seed: int = 0
) -> str:
    """Return the URI of an archive of ``rows`` vectors; one that is there already is kept.

    Scenes of 64 x 64 tiles lie between 51 degrees south and north, each place seen on 8 days of
    three years; the places of one segment are neighbours. A million rows take about 5 seconds.
    """
    uri = str(folder / f"archive-{rows}-{dimension}-{clusters}-{seed}")
    if not Archive.exists(uri):
        _create(uri, dimension)
        add_rows(uri, rows, clusters=clusters, seed=seed)
    return uri


def archive_of(folder: Path, vectors: Float32) -> str:
    """Return the URI of a new archive of unit vectors (n, D), which lie as `make_archive` says."""
    uri = str(folder / "archive")
    _create(uri, vectors.shape[1])
    starts = range(0, len(vectors), CHUNK_ROWS)
    _commit(uri, (vectors[start : start + CHUNK_ROWS] for start in starts), 0)
    return uri


def _create(uri: str, dimension: int) -> None:
    spec = ArchiveSpec(
        encoder_fingerprint="be" * 32,
        encoder_uri="benchmark",
        dimension=dimension,
        bands=("red",),
        tile_px=64,
    )
    Archive.create(uri, spec)


def add_rows(
    uri: str, rows: int, clusters: int = 5000, seed: int = 0, shift: float = 0.0
) -> list[str]:
    """Commit ``rows`` rows as new segments; return the ids of their scenes."""
    dimension = Archive.open(uri).spec.dimension
    return _commit(uri, clustered(rows, dimension, clusters, seed, shift), seed)


def _commit(uri: str, vectors: Iterable[Float32], seed: int) -> list[str]:
    writer, archive = ArchiveWriter(uri), Archive.open(uri)
    scenes: list[str] = []
    chunks = enumerate(vectors)
    while some := list(islice(chunks, _SEGMENTS_A_COMMIT)):
        receipts, settled = [], []
        for number, vectors in some:
            segment, entries = _segment(vectors, seed, number)
            receipts.append(write_segment(writer.fork, segment, archive.spec))
            settled += entries
            scenes += segment.scenes
        writer.commit(receipts, settled, {_GRID: {"tile_px": 64}}, "benchmark")
    return scenes


def _segment(vectors: Float32, seed: int, number: int) -> tuple[SegmentRows, list[LedgerEntry]]:
    """Return scenes beside each other, somewhere, and what the ledger says of them."""
    rng = np.random.default_rng([5, seed, number])
    count = len(vectors)
    scene, within = np.divmod(np.arange(count), _SCENE_ROWS)
    names = tuple(f"S{seed}-{number:05d}-{i:02d}" for i in range(scene[-1] + 1))
    days = rng.integers(3 * 365, size=len(names)).astype("timedelta64[D]")
    tile = np.stack([within % SCENE_TILES, within // SCENE_TILES], axis=1)
    tile += rng.integers((-450, -140), (450, 140)) * SCENE_TILES
    tile[:, 0] += scene // DATES * SCENE_TILES
    corner = tile * _TILE_DEGREES
    columns = {
        "embedding": vectors,
        "scene_index": scene.astype(np.int32),
        "tile": tile.astype(np.int32),
        "window": np.zeros((count, 4), np.int32),
        "bbox": np.concatenate([corner, corner + _TILE_DEGREES], axis=1),
        "datetime": np.datetime64("2022-01-01", "ms") + days[scene],
        "valid_fraction": np.ones(count, np.float32),
        "cloud_fraction": rng.random(count, dtype=np.float32),
    }
    entries = [
        LedgerEntry(scene_id=name, state="embedded", fingerprint="v1", rows=rows, grid_id=_GRID)
        for name, rows in zip(names, np.bincount(scene).tolist(), strict=True)
    ]
    grids = (_GRID,) * len(names)
    segment = SegmentRows(id=f"bench-{seed}-{number}", scenes=names, grids=grids, columns=columns)
    return segment, entries
