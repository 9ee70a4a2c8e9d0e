"""Search through the actors against FAISS in one process and LanceDB, at equal recall.

The peers are one FAISS index of float16 lists, and FAISS's fastest kind, 4-bit codes in the
fast-scan layout refined by float16 vectors. Both are in this process, with the same threads, tuned
to the same recall@10 as ours. What the actors add is a message, exact scores, ties in order and
filters. ``--peers`` names a Python in which other libraries are installed, which are then measured
on the same vectors by :mod:`benchmarks.search_peers`.
``--full`` measures the sizes of docs/performance.md.
"""

import argparse
import json
import shutil
import statistics
import subprocess
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
from benchmarks.real_vectors import VIEWS, reduced, view_features
from benchmarks.results import DATA
from benchmarks.vectors import archive_of, clustered, make_archive
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

K, RECALL, HIGH_RECALL, DIMENSION = 10, 0.95, 0.99, 128
PLAIN, BEST = "FAISS float16 lists", "FAISS fast-scan codes, refined"
_GOALS = {(PLAIN, 2048): 2.5, (PLAIN, 256): 2.0, (BEST, 2048): 0.85, (BEST, 256): 0.75}
_JUDGED, _BATCHES, _TURNS = 256, (2048, 256), 5
_QUERIES_IN_A_ROW = 4096
_PROBES = (2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 64, 96, 128, 192, 256)
Queries = np.ndarray[Any, Any]
Found = list[list[int]]


@dataclass(frozen=True, kw_only=True)
class Size:
    """A set of vectors; few clusters leave them with little structure, none are views of images."""

    rows: int
    dimension: int
    clusters: int = 5000

    def __str__(self) -> str:
        of = f"in {self.clusters:,} clusters" if self.clusters else "of images"
        return f"{self.rows:,} x {self.dimension} {of}"


FULL = (
    Size(rows=1_000_000, dimension=128),
    Size(rows=1_000_000, dimension=128, clusters=20),
    Size(rows=1_000_000, dimension=512),
    Size(rows=200_000, dimension=768),
    Size(rows=100_000, dimension=512, clusters=0),
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


def make_vectors(folder: Path, size: Size, scratch: Path) -> tuple[str, Queries]:
    """Make an archive; return its URI and queries that are not in it.

    Queries of images are views of images none of which are in the archive.
    """
    if size.clusters:
        uri = make_archive(folder, size.rows, size.dimension, size.clusters)
        return uri, next(clustered(max(_BATCHES), size.dimension, size.clusters, seed=99))
    sources = [DATA / "aid_multilabel_150px.tar", DATA / "ucm_multilabel_256px.tar"]
    backbone = DATA / "weights" / "mobilenet_v2_imagenet_folded"
    vectors = reduced(view_features(sources, backbone, scratch), size.dimension)
    views = vectors.reshape(-1, VIEWS, size.dimension)
    views = views[np.random.default_rng(0).permutation(len(views))]
    apart = -(-max(_BATCHES) // VIEWS)  # images
    queries = views[:apart].reshape(-1, size.dimension)[: max(_BATCHES)]
    queries = np.random.default_rng(2).permutation(queries)  # the judged ones are of all images
    rows = np.random.default_rng(1).permutation(views[apart:].reshape(-1, size.dimension))
    return archive_of(folder, rows[: size.rows]), queries


def make_world(folder: Path, size: Size, threads: int, scratch: Path) -> World:
    """Make an archive, and a filter of about 1 % of its rows by place and time."""
    uri, queries = make_vectors(folder, size, scratch)
    archive = Archive.open(uri)
    names = ["row", "embedding", "bbox", "datetime"]
    parts = [archive.read_segment(segment.ordinal, names) for segment in archive.segments]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in names}
    columns["datetime"] = columns["datetime"].astype("datetime64[ms]")
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

    def __init__(self, index_uri: str, world: World, *, refined: bool) -> None:
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

    def tune(self, world: World, truth: Found, wanted: float) -> None:
        """Choose the fastest nprobe and candidates per hit that reach a recall, or the most."""
        factors = (1, 2, 4, 8, 16, 32, 64) if self._refined else (1,)
        best = (float("inf"), _PROBES[-1], factors[-1], 0.0)
        for factor in factors:
            for nprobe in _PROBES:
                self._set(nprobe, factor)
                found = self.search(world.queries[:_JUDGED], K)[1]
                reached = recall(self._rows[found].tolist(), truth)
                if reached >= wanted:
                    took = min(seconds(lambda: self.search(world.queries, K)) for _ in range(3))
                    best = min(best, (took, nprobe, factor, reached))
                    break
        if not best[3]:
            best = (*best[:3], reached)  # of the most lists and candidates
        self._set(*best[1:3])
        self.recall = best[3]

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


def _tuned(
    world: World, searcher: Searcher, truth: Found, wanted: float = RECALL
) -> tuple[int, float]:
    """Return the least nprobe of ours that reaches a recall, and that recall."""
    for nprobe in _PROBES:
        found = searcher.search(world.queries[:_JUDGED], K, nprobe=nprobe).rows
        if (reached := recall(found.tolist(), truth)) >= wanted:
            break
    return nprobe, reached


def _against_faiss(
    world: World,
    peers: dict[str, InProcess],
    searcher: Searcher,
    name: str,
    truth: Found,
    wanted: float = RECALL,
) -> list[Row]:
    rows = []
    for peer in peers.values():
        peer.tune(world, truth, wanted)
    nprobe, reached = _tuned(world, searcher, truth, wanted)
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
                    goal=_GOALS[peer_name, size] if wanted == RECALL else None,
                    note=f"recall@10 {reached:.3f} ({ours_is}), FAISS {peer.recall:.3f} "
                    f"({peer.nprobe} lists, {peer.factor} candidates per hit)",
                )
            )
    if wanted != RECALL:
        return rows
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
        seconds(lambda q=query: searcher.search(q, 10_000).to_arrow())
        for query in world.queries[:7]
    ]
    middle = statistics.median(took)
    return Row(
        what=f"k = 10,000 with metadata as a table, 8 shards of {size}",
        ours=middle, unit="s", ratio=middle, goal=1.0, direction="at most",
    )  # fmt: skip


def _against_others(
    world: World, searcher: Searcher, truth: Found, name: str, python: str
) -> list[Row]:
    """Return a row for each library that is installed in another Python."""
    order = np.argsort(world.columns["row"])
    positions = np.searchsorted(world.columns["row"][order], np.asarray(truth))
    np.save(world.folder / "vectors.npy", world.columns["embedding"][order].astype(np.float32))
    np.save(world.folder / "queries.npy", world.queries)
    np.save(world.folder / "truth.npy", positions)
    script = Path(__file__).with_name("search_peers.py")
    command = [python, str(script), str(world.folder), str(world.threads), str(RECALL)]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    ask = partial(searcher.search, k=K, nprobe=_tuned(world, searcher, truth)[0])
    rows = []
    for peer in map(json.loads, answer.splitlines()):
        for size in _BATCHES:
            block = _blocks(world.queries, size)
            took = [rested(lambda b=block: ask(b())) for _ in range(_TURNS)]
            ours, theirs = size / statistics.median(took), peer[f"batch of {size}"]
            rows.append(
                Row(
                    what=f"batch of {size}, {name}, beside {peer['name']}",
                    ours=ours,
                    unit="queries/s",
                    peer=theirs,
                    against=peer["name"],
                    ratio=ours / theirs,
                    note=f"{peer['name']} {peer['version']}: {peer['setting']}, recall@10 "
                    f"{peer['recall']:.3f}, {peer['bytes_a_row']:.0f} bytes a row, built in "
                    f"{peer['build_s']:.0f} s; in a process of its own, not in turns",
                )
            )
    return rows


def measure(folder: Path, size: Size, options: argparse.Namespace) -> list[Row]:
    """Return every figure for a size."""
    world = make_world(folder, size, options.threads, options.scratch)
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
    best, high = str(folder / "best"), str(folder / "index-high")
    build_index(world.archive, best, replace(exact, kind="ivf_pq4"))
    build_index(world.archive, high, replace(ours, recall=HIGH_RECALL))
    truth = world.truth(Filter())
    peers = {
        PLAIN: InProcess(str(folder / "exact"), world, refined=False),
        BEST: InProcess(best, world, refined=True),
    }
    rows = []
    for shards, replicas in ((1, 1), (8, 1), (8, 2)):
        searcher = Searcher.connect(indexes[shards], replicas=replicas)
        name = f"{shards} {'shards' if shards > 1 else 'shard'} of {size}"
        name += f", {replicas} replicas" if replicas > 1 else ""
        rows += _against_faiss(world, peers, searcher, name, truth)
        if shards == 1 and options.peers:
            rows += _against_others(world, searcher, truth, name, options.peers)
        if shards == 8 and replicas == 1:
            rows.append(_deep(world, searcher, size))
            if lancedb is not None and size.dimension == DIMENSION:
                rows += _against_lance(world, searcher, lists)
        searcher.stop()
    searcher = Searcher.connect(high)
    name = f"1 shard of {size}, recall {HIGH_RECALL}"
    rows += _against_faiss(world, peers, searcher, name, truth, HIGH_RECALL)
    searcher.stop()
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--full", action="store_true", help="the sizes of docs/performance.md")
    parser.add_argument("--rows", type=int, default=100_000, help="number of rows")
    parser.add_argument("--dimension", type=int, default=DIMENSION)
    parser.add_argument(
        "--clusters", type=int, default=5000, help="fewer have less structure; 0: views of images"
    )
    parser.add_argument("--peers", help="a Python with usearch, hnswlib, ScaNN or SVS")
    parser.add_argument("--scratch", type=Path, help="keeps the vectors of images")
    parser.add_argument("--partial", action="store_true", help="keep the figures of other sizes")
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args(arguments)
    one = Size(rows=chosen.rows, dimension=chosen.dimension, clusters=chosen.clusters)
    for number, size in enumerate(FULL if chosen.full else (one,)):
        folder = Path(tempfile.mkdtemp(prefix="bench-search-"))
        options = argparse.Namespace(**vars(chosen) | {"scratch": chosen.scratch or folder})
        try:
            with ray_session(cpus=chosen.threads):
                rows = measure(folder, size, options)
                publish("search", rows, partial=chosen.partial or number > 0)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
