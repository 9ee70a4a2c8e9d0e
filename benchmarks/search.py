"""Search through the actors against FAISS in one process and LanceDB, at equal recall.

The peers are one FAISS index of float16 lists, and FAISS's fastest kind, 4-bit codes in the
fast-scan layout refined by float16 vectors. Both are in this process, with the same threads, tuned
to the same recall@10 as ours. What the actors add is a message, exact scores, ties in order and
filters.
``--full`` measures the sizes of docs/performance.md.
"""

import argparse
import shutil
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import ray

from benchmarks.measure import Row, in_turns, publish, rested, seconds
from benchmarks.vectors import clustered, make_archive
from pipeline.indexing.driver import build_index
from pipeline.indexing.spec import IndexSpec
from pipeline.runtime.cluster import ray_session
from pipeline.search.searcher import Searcher
from storage.archive.reader import Archive
from storage.index.files import VerifiedFiles
from storage.index.filter import Filter
from storage.index.manifest import read_manifest
from storage.index.quantizer import set_threads
from storage.index.shard import ShardGroup

try:
    import lancedb
except ImportError:  # a peer, which the project does not need
    lancedb = None

K, RECALL, DIMENSION = 10, 0.95, 128
PLAIN, BEST = "FAISS float16 lists", "FAISS fast-scan codes, refined"
_GOALS = {(PLAIN, 2048): 2.5, (PLAIN, 256): 2.0, (BEST, 2048): 0.85, (BEST, 256): 0.75}
_JUDGED, _BATCHES, _TURNS = 256, (2048, 256), 7
_QUERIES_IN_A_ROW = 8192
_PROBES = (2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 64, 96, 128, 192, 256)
Queries = np.ndarray[Any, Any]
Found = list[list[int]]


@dataclass(frozen=True, kw_only=True)
class Size:
    """A set of vectors; few clusters leave them with little structure."""

    rows: int
    dimension: int
    clusters: int = 5000

    def __str__(self) -> str:
        return f"{self.rows:,} x {self.dimension} in {self.clusters:,} clusters"


FULL = (
    Size(rows=1_000_000, dimension=128),
    Size(rows=1_000_000, dimension=128, clusters=20),
    Size(rows=1_000_000, dimension=512),
    Size(rows=200_000, dimension=768),
)


@dataclass(frozen=True, kw_only=True)
class World:
    """Rows of an archive, queries of the same clusters, and the true neighbours."""

    archive: str
    folder: Path
    threads: int
    dimension: int
    columns: dict[str, Any]
    queries: Queries
    selective: Filter

    def truth(self, where: Filter) -> Found:
        """Return the rows of the K nearest of the first queries, by brute force."""
        positions = np.flatnonzero(self.keep(where))
        vectors = self.columns["embedding"][positions].astype(np.float32)
        best = np.zeros((_JUDGED, 0), np.int64)
        scores = np.zeros((_JUDGED, 0), np.float32)
        for start in range(0, len(positions), 65_536):
            part = positions[start : start + 65_536]
            fresh = self.queries[:_JUDGED] @ vectors[start : start + 65_536].T
            scores = np.concatenate([scores, fresh], axis=1)
            best = np.concatenate([best, np.broadcast_to(part, fresh.shape)], axis=1)
            top = np.argpartition(-scores, min(K, scores.shape[1] - 1), axis=1)[:, :K]
            scores = np.take_along_axis(scores, top, axis=1)
            best = np.take_along_axis(best, top, axis=1)
        rows: Found = self.columns["row"][best].tolist()
        return rows

    def keep(self, where: Filter) -> np.ndarray[Any, Any]:
        """Return the mask of the rows that a box and a time range let through."""
        west, south, east, north = self.columns["bbox"].T
        mask = np.ones(len(west), bool)
        if where.bbox:
            left, bottom, right, top = where.bbox
            mask &= (west <= right) & (east >= left) & (south <= top) & (north >= bottom)
        start, end = where.interval
        if start is not None and end is not None:
            mask &= (self.columns["datetime"] >= start) & (self.columns["datetime"] <= end)
        return mask


def recall(found: Sequence[Sequence[int]], truth: Found) -> float:
    """Return recall@K of the first queries."""
    pairs = zip(found, truth, strict=False)
    return statistics.fmean(len(set(a) & set(b)) / len(b) for a, b in pairs)


def make_world(folder: Path, size: Size, threads: int) -> World:
    """Make an archive, and a filter of about 1 % of its rows by place and time."""
    uri = make_archive(folder, size.rows, size.dimension, size.clusters)
    archive = Archive.open(uri)
    names = ["row", "embedding", "bbox", "datetime"]
    parts = [archive.read_segment(segment.ordinal, names) for segment in archive.segments]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in names}
    columns["datetime"] = columns["datetime"].astype("datetime64[ms]")
    queries = next(clustered(max(_BATCHES), size.dimension, size.clusters, seed=99))
    since, until = np.quantile(columns["datetime"].astype(np.int64), (0.3, 0.7)).astype("M8[ms]")
    world = World(
        archive=uri,
        folder=folder,
        threads=threads,
        dimension=size.dimension,
        columns=columns,
        queries=queries,
        selective=Filter(since=str(since) + "Z", until=str(until) + "Z"),
    )
    middle = columns["bbox"][np.argsort(columns["bbox"][:, 0])[len(queries) // 2 :: 997][0]]
    for reach in 1.3 ** np.arange(-20, 22):  # degrees around a place, until 1 % is let through
        west, south = max(middle[0] - reach, -179), max(middle[1] - reach, -89)
        box = (west, south, min(middle[2] + reach, 179), min(middle[3] + reach, 89))
        where = replace(world.selective, bbox=tuple(map(float, box)))
        if world.keep(where).mean() >= 0.01:
            break
    return replace(world, selective=where)


class InProcess:
    """One FAISS index with all rows in this process, tuned to the recall; FAISS as it comes.

    ``refined`` scores candidates again with float16 vectors, by FAISS's `IndexRefine`.
    """

    def __init__(self, index_uri: str, truth: Found, world: World, *, refined: bool) -> None:
        (entry,) = read_manifest(index_uri).shards
        self._shard = ShardGroup([VerifiedFiles(index_uri).load(entry)])
        self._lists = self._shard.index
        self._rows = self._shard.sidecar.row
        self._refined: Any = None
        if refined:
            self._vectors = _float16(world, self._rows)
            self._refined = faiss.IndexRefine(self._lists, self._vectors)
        self.search = (self._refined or self._lists).search
        set_threads(world.threads)
        self.recall = self._tune(world, truth, (1, 2, 4, 8, 16, 32) if refined else (1,))

    def _tune(self, world: World, truth: Found, factors: Sequence[int]) -> float:
        """Choose the fastest pair of nprobe and candidates per hit; return the recall."""
        best = (float("inf"), _PROBES[-1], factors[-1], 0.0)
        for factor in factors:
            for nprobe in _PROBES:
                self._set(nprobe, factor)
                found = self.search(world.queries[:_JUDGED], K)[1]
                reached = recall(self._rows[found].tolist(), truth)
                if reached >= RECALL:
                    took = min(seconds(lambda: self.search(world.queries, K)) for _ in range(3))
                    best = min(best, (took, nprobe, factor, reached))
                    break
        self._set(*best[1:3])
        return best[3]

    def _set(self, nprobe: int, factor: int) -> None:
        self.nprobe, self.factor, self._lists.nprobe = nprobe, factor, nprobe
        if self._refined:
            self._refined.k_factor = factor


def _float16(world: World, rows: np.ndarray[Any, Any]) -> Any:
    """Return a flat FAISS index of the vectors of rows, as float16."""
    flat = faiss.IndexScalarQuantizer(
        world.dimension, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
    )
    order = np.argsort(world.columns["row"])[np.argsort(np.argsort(rows))]
    flat.train(np.zeros((1, world.dimension), np.float32))
    for start in range(0, len(order), 65_536):
        part = world.columns["embedding"][order[start : start + 65_536]]
        flat.add(part.astype(np.float32))
    return flat


class Lance:
    """LanceDB's IVF-PQ with as many partitions as we have lists, tuned to the same recall."""

    def __init__(self, world: World, lists: int) -> None:
        west, south, east, north = world.columns["bbox"].T
        vectors = world.columns["embedding"].astype(np.float32)
        table = pa.table(
            {
                "row": world.columns["row"],
                "vector": pa.FixedSizeListArray.from_arrays(vectors.ravel(), DIMENSION),
                "west": west, "south": south, "east": east, "north": north,
                "datetime": world.columns["datetime"],
            }
        )  # fmt: skip
        self._table = lancedb.connect(world.folder / "lance").create_table("rows", table)
        self._table.create_index(
            metric="cosine", num_partitions=lists, num_sub_vectors=16, vector_column_name="vector"
        )
        for column in ("west", "south", "datetime"):
            self._table.create_scalar_index(column)

    def tune(self, world: World, truth: Found, where: str | None) -> float:
        """Choose the least probes and refinement that reach the recall; return that recall."""
        for self.nprobes in _PROBES:
            for self.refine in (4, 10, 20):
                found = self.search(world.queries[:_JUDGED], where)
                reached = recall(found, truth)
                if reached >= RECALL:
                    return reached
        return reached

    def search(self, queries: Queries, where: str | None) -> Found:
        """Return the rows of the hits of each query, in one call for all of them."""
        query = self._table.search(list(queries) if len(queries) > 1 else queries[0])
        query = query.nprobes(self.nprobes).refine_factor(self.refine).limit(K)
        if where:
            query = query.where(where, prefilter=True)
        table = query.select(["row"]).to_arrow()
        owner = table["query_index"].to_numpy() if len(queries) > 1 else np.zeros(len(table), int)
        row = table["row"].to_numpy()
        return [row[owner == number].tolist() for number in range(len(queries))]


def _sql(where: Filter) -> str:
    assert where.bbox is not None
    left, bottom, right, top = where.bbox
    start, end = where.interval
    return (
        f"west <= {right} AND east >= {left} AND south <= {top} AND north >= {bottom} AND "
        f"datetime >= timestamp '{start}' AND datetime <= timestamp '{end}'"
    )


def _blocks(queries: Queries, size: int) -> Callable[[], Queries]:
    turn = iter(range(10**9))
    return lambda: queries[(next(turn) * size) % (len(queries) - size + 1) :][:size]


def _tuned(world: World, searcher: Searcher, truth: Found) -> tuple[int, float]:
    """Return the least nprobe of ours that reaches the recall, and that recall."""
    for nprobe in _PROBES:
        found = searcher.search(world.queries[:_JUDGED], K, nprobe=nprobe).rows
        if (reached := recall(found.tolist(), truth)) >= RECALL:
            break
    return nprobe, reached


def _against_faiss(
    world: World, peers: dict[str, InProcess], searcher: Searcher, name: str
) -> list[Row]:
    rows = []
    nprobe, reached = _tuned(world, searcher, world.truth(Filter()))
    ask = partial(searcher.search, nprobe=nprobe)
    ours_is = f"{searcher.manifest.parameters.kind}, {nprobe} lists"
    for peer_name, peer in peers.items():
        for size in _BATCHES:
            block = _blocks(world.queries, size)
            ours, theirs, ratio = in_turns(
                lambda b=block: ask(b(), K),
                lambda b=block, p=peer: p.search(b(), K),
                _TURNS,
                calls=_QUERIES_IN_A_ROW // size,
            )
            rows.append(
                Row(
                    what=f"batch of {size}, {name}, beside {peer_name}",
                    ours=size / ours,
                    unit="queries/s",
                    peer=size / theirs,
                    against=peer_name,
                    ratio=1 / ratio,
                    goal=_GOALS[peer_name, size],
                    note=f"recall@10 {reached:.3f} ({ours_is}), FAISS {peer.recall:.3f} "
                    f"({peer.nprobe} lists, {peer.factor} candidates per hit)",
                )
            )
    ours, theirs, nothing = _single(world, peers[BEST], ask)
    rows.append(
        Row(
            what=f"one query, {name}",
            ours=1000 * ours,
            unit="ms",
            peer=1000 * theirs,
            against=BEST,
            ratio=1000 * (ours - theirs),
            goal=1.0,
            direction="at most",
            note="The ratio is the milliseconds added at p50. A Ray actor that returns a query at "
            f"once takes {1000 * nothing:.1f} ms; ours is asked through a socket.",
        )
    )
    return rows


@ray.remote(num_cpus=0)
class Echo:
    """An actor that does nothing."""

    def answer(self, query: Queries) -> Queries:
        """Return what came."""
        return query


def _single(
    world: World, bare: InProcess, ask: Callable[..., object]
) -> tuple[float, float, float]:
    """Return the median seconds of single queries: ours, FAISS and an idle actor, in turns."""
    ours, peer, nothing = [], [], []
    echo = Echo.remote()
    for number in range(300):
        query = world.queries[number % _JUDGED][None]
        ours.append(rested(lambda q=query: ask(q, K)))
        peer.append(rested(lambda q=query: bare.search(q, K)))
        nothing.append(rested(lambda q=query: ray.get(echo.answer.remote(q))))
    ray.kill(echo)
    own, other, idle = (statistics.median(took[50:]) for took in (ours, peer, nothing))
    return own, other, idle


def _against_lance(world: World, searcher: Searcher, lists: int) -> list[Row]:
    lance, rows = Lance(world, lists), []
    nprobe, _ = _tuned(world, searcher, world.truth(Filter()))
    for name, where in (("all rows", Filter()), ("1 % by box and time", world.selective)):
        truth = world.truth(where)
        share = world.keep(where).mean()
        sql = _sql(where) if where else None
        reached = lance.tune(world, truth, sql)
        ask = partial(searcher.search, k=K, where=where, nprobe=nprobe)
        own = recall(ask(world.queries[:_JUDGED]).rows.tolist(), truth)
        block = _blocks(world.queries, 256)
        ours, peer, ratio = in_turns(
            lambda b=block, a=ask: a(b()), lambda b=block, w=sql: lance.search(b(), w), _TURNS
        )
        rows.append(
            Row(
                what=f"batch of 256, {name} ({share:.1%} of the rows)",
                ours=256 / ours,
                unit="queries/s",
                peer=256 / peer,
                against="LanceDB IVF-PQ",
                ratio=1 / ratio,
                goal=3.0,
                note=f"recall@10 {own:.3f}, LanceDB {reached:.3f} "
                f"({lance.nprobes} probes, refined {lance.refine}-fold)",
            )
        )
    return rows


def _deep(world: World, searcher: Searcher, size: Size) -> Row:
    took = [
        seconds(lambda q=query: searcher.search(q, 10_000).table()) for query in world.queries[:7]
    ]
    middle = statistics.median(took)
    return Row(
        what=f"k = 10,000 with metadata as a table, 8 shards of {size}",
        ours=middle, unit="s", ratio=middle, goal=1.0, direction="at most",
    )  # fmt: skip


def measure(folder: Path, size: Size, threads: int) -> list[Row]:
    """Return every figure for a size."""
    world = make_world(folder, size, threads)
    lists = int(4 * size.rows**0.5) // 64 * 64
    exact = IndexSpec(
        kind="ivf_flat", shards=1, nlist=lists, sample_rows=min(size.rows, 48 * lists)
    )
    ours = replace(exact, kind="auto")
    build_index(world.archive, str(folder / "exact"), exact)
    indexes = {}
    for shards in (1, 8):
        indexes[shards] = str(folder / f"index-{shards}")
        build_index(world.archive, indexes[shards], replace(ours, shards=shards))
    truth = world.truth(Filter())
    peers = {
        PLAIN: InProcess(str(folder / "exact"), truth, world, refined=False),
        BEST: InProcess(indexes[1], truth, world, refined=True),
    }
    rows = []
    for shards, replicas in ((1, 1), (8, 1), (8, 2)):
        searcher = Searcher.connect(indexes[shards], replicas=replicas)
        name = f"{shards} shards of {size}"
        name += f", {replicas} replicas" if replicas > 1 else ""
        rows += _against_faiss(world, peers, searcher, name)
        if shards == 8 and replicas == 1:
            rows.append(_deep(world, searcher, size))
            if lancedb is not None and size.dimension == DIMENSION:
                rows += _against_lance(world, searcher, lists)
        searcher.stop()
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--full", action="store_true", help="the sizes of docs/performance.md")
    parser.add_argument("--rows", type=int, default=100_000, help="number of rows")
    parser.add_argument("--dimension", type=int, default=DIMENSION)
    parser.add_argument("--clusters", type=int, default=5000, help="fewer have less structure")
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args(arguments)
    one = Size(rows=chosen.rows, dimension=chosen.dimension, clusters=chosen.clusters)
    for number, size in enumerate(FULL if chosen.full else (one,)):
        folder = Path(tempfile.mkdtemp(prefix="bench-search-"))
        try:
            with ray_session(cpus=chosen.threads):
                publish("search", measure(folder, size, chosen.threads), partial=number > 0)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
