"""What searching and building cost by size, from constants that this machine measures.

The unit of work is a query for ten hits on one core. Of an index with 4-bit codes it is made of

    fixed + centres * centre + probed lists * rows of a list * row + candidates * candidate

and the constants are those of the project's own code: FAISS's comparison with centres and scan of
codes, its selection of candidates, and their exact scores.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.vectors import Mixture, make_archive
from pipeline.indexing.driver import build_index
from pipeline.indexing.plan import row_bytes
from pipeline.indexing.spec import IndexSpec
from pipeline.search.hits import merge
from storage.index.plan import candidates_for
from storage.index.quantizer import (
    TRAINING_ROWS_PER_CENTRE,
    ShardIndexBuilder,
    ShardParameters,
    loaded,
    scannable,
    set_threads,
    train,
)
from storage.index.search import SearchResult
from storage.index.vectors import HalfVectors

K, RERANK, PROBES = 10, 8, 16
_ITERATIONS = 5  # of the whole sample: most see a quarter of it
_ROWS, _COPIES, _LISTS, _QUERIES = 131_072, 32, 512, 512
_PAGE = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class Constants:
    """Costs on one core of this machine, in nanoseconds.

    Attributes
    ----------
    dimension
        Of the vectors that they were measured with.
    centre, assign
        To compare a query of a batch with one centre; and a row, of which only the nearest counts.
    fixed
        Of a query in the scan, whatever it probes.
    row
        To compare one code.
    candidate
        To select one candidate more, and to score it with its vector in the system's cache.
    disk
        To read one candidate's vector from this disk, where it is not in memory; the simulation
        has it there.
    add
        To encode one row, without finding its list.
    carry
        To read one row, copy and hash its vector and columns, and measure recall with it.
    merge
        To merge the answer of one search node into that of a query.
    """

    dimension: int
    centre: float
    assign: float
    fixed: float
    row: float
    candidate: float
    disk: float
    add: float
    carry: float
    merge: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Archive:
    """An archive's size, and the lists of its index."""

    rows: int
    dimension: int
    lists: int
    probes: int = PROBES
    rerank: int = RERANK

    @property
    def parameters(self) -> ShardParameters:
        """The codes: 4 bits for every two dimensions."""
        return ShardParameters(
            kind="ivf_pq4", dimension=self.dimension, nlist=self.lists, pq_bytes=self.dimension // 4
        )

    @property
    def memory_bytes(self) -> int:
        """Memory of the codes, ids and columns; exact vectors stay on disk."""
        return self.rows * row_bytes(self.parameters, 0, reranks=True)

    @property
    def disk_bytes(self) -> int:
        """Size of the exact vectors."""
        return 2 * self.dimension * self.rows


def cpu_ns(
    constants: Constants,
    archive: Archive,
    nodes: int = 1,
    lists: float | None = None,
    *,
    centres: bool = True,
) -> float:
    """Return the CPU time of a query on one node that holds one part in ``nodes`` of the rows.

    ``lists`` are the lists probed there, each with one part in ``nodes`` of its rows; a node that
    holds whole lists has ``nodes`` 1. ``centres`` is False where another node compares them.
    """
    c, probed = constants, archive.probes if lists is None else lists
    rows = probed * archive.rows / archive.lists / nodes
    compared = archive.lists * c.centre if centres else 0
    return c.fixed + compared + rows * c.row + candidates_for(K, archive.rerank) * c.candidate


def build_hours(
    constants: Constants,
    archive: Archive,
    cores: int,
    rows_per_centre: int = TRAINING_ROWS_PER_CENTRE,
) -> float:
    """Return the hours to build an index with some cores."""
    return _build_ns(constants, archive, rows_per_centre) / cores / 3.6e12


def _build_ns(constants: Constants, archive: Archive, rows_per_centre: int) -> float:
    compared = (_ITERATIONS * archive.lists * rows_per_centre + archive.rows) * archive.lists
    return compared * constants.assign + archive.rows * (constants.add + constants.carry)


def measured(dimension: int, cores: int) -> Constants:
    """Measure the constants; needs a session of Ray with some cores."""
    alone = _on_one_thread(dimension)
    return replace(alone, carry=_carry_ns(alone, cores))


def _carry_ns(constants: Constants, cores: int) -> float:
    """Return what building an index takes for each row besides what a thread was seen to take.

    Of two builds that differ in their rows only, since starting takes time too.
    """
    taken = []
    for rows in (_ROWS, 4 * _ROWS):
        archive = Archive(rows=rows, dimension=constants.dimension, lists=_LISTS)
        spec = IndexSpec(kind="ivf_pq4", shards=cores, nlist=_LISTS, sample_rows=64 * _LISTS)
        with tempfile.TemporaryDirectory() as folder:
            uri = make_archive(Path(folder), rows, constants.dimension)
            started = time.perf_counter_ns()
            build_index(uri, f"{folder}/index", spec)
            whole = cores * (time.perf_counter_ns() - started)
        taken.append(whole - _build_ns(constants, archive, 64))
    return max(taken[1] - taken[0], 0) / (3 * _ROWS)


def _on_one_thread(dimension: int) -> Constants:
    set_threads(1)
    parameters = ShardParameters(
        kind="ivf_pq4", dimension=dimension, nlist=_LISTS, pq_bytes=dimension // 4
    )
    mixture = Mixture(dimension=dimension)
    rows, queries = mixture.draw(_ROWS, 0), mixture.draw(_QUERIES, 1)
    trained = train(rows[: 64 * _LISTS], parameters)
    builder = ShardIndexBuilder(trained)
    halves, positions = rows.astype(np.float16), np.arange(_ROWS)
    added = _ns(lambda: builder.add(positions, halves), 1) / _ROWS
    centres = builder.loaded.lists.quantizer
    centre = _ns(lambda: centres.search(queries, PROBES)) / _QUERIES / _LISTS
    nearest = _ns(lambda: centres.search(rows, 1), 1) / _ROWS
    with tempfile.TemporaryDirectory() as folder:
        builder.save(path := Path(folder) / "rows.faiss", _ROWS)
        once = np.fromfile(path, np.uint8)
        disk = _disk_ns(Path(folder) / "disk")
    large = ShardIndexBuilder(trained)
    large.reserve(_COPIES * loaded(once).list_rows)
    for copy in range(_COPIES):  # codes that no cache holds
        large.merge_from(once, copy * _ROWS + positions)
    lists = scannable(large.loaded.lists)
    found = {}
    few, many = (candidates_for(K, rerank) for rerank in (RERANK, 8 * RERANK))
    for probes, depth in ((4, few), (16, few), (16, many)):
        lists.nprobe = probes
        found[probes, depth] = _ns(lambda d=depth: lists.search(queries, d), 3) / _QUERIES
    scanned = _COPIES * _ROWS / _LISTS
    row = (found[16, few] - found[4, few]) / 12 / scanned
    select = (found[16, many] - found[16, few]) / (many - few)
    fixed = found[4, few] - 4 * scanned * row - _LISTS * centre - few * select
    return Constants(
        dimension=dimension,
        centre=centre,
        assign=nearest / _LISTS,
        fixed=max(fixed, 0),
        row=row,
        candidate=select + _candidate_ns(dimension, queries),
        disk=disk,
        add=max(added - nearest, 0),
        carry=0.0,
        merge=_merge_ns(),
    )


def _ns(call: Callable[[], object], turns: int = 5) -> float:
    taken = []
    for _ in range(turns):
        started = time.perf_counter_ns()
        call()
        taken.append(time.perf_counter_ns() - started)
    return statistics.median(taken)


def _candidate_ns(dimension: int, queries: np.ndarray) -> float:
    """Return the time to score a candidate anywhere in a file of 2 GB that the system caches."""
    shape = 2**30 // dimension, dimension
    with tempfile.TemporaryFile() as file:
        vectors = np.memmap(file, np.float16, "w+", shape=shape)
        for start in range(0, shape[0], 2**17):
            vectors[start : start + 2**17] = 1
        stored = HalfVectors.stored([vectors])
        stored.compile()
        some = np.random.default_rng(0).integers(0, shape[0], (len(queries), 80))
        stored.scores(queries, some)
        return _ns(lambda: stored.scores(queries, some)) / some.size


def _disk_ns(path: Path, pages: int = 2**17, reads: int = 2000) -> float:
    """Return the time to read one page of this disk that the system does not have in memory."""
    with path.open("wb", buffering=0) as file:
        for _ in range(pages // 256):
            file.write(os.urandom(256 * _PAGE))
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    places = np.random.default_rng(0).integers(0, pages, reads).tolist()
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        return _ns(lambda: [os.pread(file.fileno(), _PAGE, p * _PAGE) for p in places], 1) / reads


def _merge_ns(answers: int = 64) -> float:
    rng = np.random.default_rng(0)
    scores = -np.sort(-rng.random((answers, 1, K)).astype(np.float32))
    parts = [
        SearchResult(scores=own, rows=number + np.zeros((1, K), np.int64), places=one)
        for number, own in enumerate(scores)
        for one in [(number << 32) + np.arange(K)[None]]
    ]
    return _ns(lambda: merge(parts, 1, K, lambda places: {}), 50) / answers
