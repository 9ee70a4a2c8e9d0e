"""Search several shards as one index, as a :class:`storage.index.plan.SearchPlan` says.

FAISS proposes candidates from each shard; this module asks again where equal or nearly equal
scores may have been cut off, scores the remaining candidates exactly and merges them by (score,
tile key, scene id). So at exhaustive ``nprobe`` the answer is the brute-force answer, however rows
are sharded.
"""

import ctypes
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from storage.errors import NotFoundError
from storage.index.files import VerifiedFiles
from storage.index.manifest import IndexManifest
from storage.index.plan import (
    EVERY_LIST,
    PassPlan,
    SearchPlan,
    lists_with_rows,
    plan_pass,
)
from storage.index.quantizer import set_threads
from storage.index.ranking import (
    Float32,
    Int64,
    best_in_order,
)
from storage.index.shard import Probes, RowMask, Shard, ShardGroup
from storage.index.sidecar import Columns, join_rows, row_keys
from storage.location import Location

T = TypeVar("T")
Block = TypeVar("Block", Float32, Int64)

Float16 = npt.NDArray[np.float16]

Selection = tuple[ShardGroup, RowMask]
"""A group of shards, and the rows of it that may be returned."""
Best = tuple[Float32, Int64]
"""Scores (Q, k) of the best rows, and their numbers in the set; -inf and -1 where there are fewer.

A number counts through the rows of the groups in their order.
"""
_BLOCK_QUERIES = 1024
_LEAST_QUERIES = 8  # waking another thread takes longer than answering as many
_BLOCK_VALUES = 2**20  # vectors of a block stay in the cache
_DEEPER = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchResult:
    """The best rows of each query.

    ``scores`` (Q, k) float32, highest first and -inf where there are fewer rows; ``rows`` (Q, k)
    int64 archive rows, -1 where there are fewer; ``places`` (Q, k) int64, -1 likewise: the number
    of a row's shard times 2**32, plus its position there. :meth:`ShardSet.columns` reads the
    columns of places.
    """

    scores: Float32
    rows: Int64
    places: Int64


class ShardSet:
    """Shards that share their trained quantizers, searched together.

    Parameters
    ----------
    shards
        Shards with different names. Those that are not mapped are read into memory.
    on_scan
        Receives the cost of each pass: queries, lists probed, and the rows compared in each shard.
    threads
        The number of blocks of a batch of queries that are searched at the same time.
    groups
        The number of the group of each shard by name; the shards of a group are read into one
        FAISS index, which is searched faster than several. One group for all by default.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        on_scan: Callable[[int, int, Mapping[str, int]], None] | None = None,
        threads: int = 1,
        groups: Mapping[str, int] | None = None,
    ) -> None:
        self.shards = {shard.name: shard for shard in shards}
        grouped: dict[str | int, list[Shard]] = {}
        for shard in shards:
            number = groups[shard.name] if groups else 0
            alone = isinstance(shard.data, Path)
            grouped.setdefault(shard.name if alone else number, []).append(shard)
        self._groups = [ShardGroup(members) for members in grouped.values()]
        self._classes = len(shards[0].sidecar.classes)
        self._ordered = [shard for group in self._groups for shard in group.shards]
        # The number of the first row of each group and of each shard.
        self._firsts = np.cumsum([0, *(group.rows for group in self._groups)])[:-1]
        self._starts = np.cumsum([0, *(shard.rows for shard in self._ordered)])[:-1]
        self._shard_numbers = np.array([shard.number for shard in self._ordered])
        self._on_scan = on_scan
        self._threads = threads
        self._pool = ThreadPoolExecutor(max(threads - 1, 1), "shards", set_threads, (1,))

    @classmethod
    def load(
        cls,
        index: Location,
        manifest: IndexManifest,
        names: Mapping[str, int] | None = None,
        on_scan: Callable[[int, int, Mapping[str, int]], None] | None = None,
        threads: int | None = None,
    ) -> "ShardSet":
        """Load shards of an index version from their verified files.

        Parameters
        ----------
        index, manifest
            The index version.
        names
            The shards to load, each with the number of its group; all, in one group, by default.
        on_scan
            As in the constructor.
        threads
            Threads of one search; the CPUs of this machine by default.

        Raises
        ------
        CorruptIndexError
            A file is missing or differs from the manifest.
        """
        threads, files = threads or len(os.sched_getaffinity(0)), VerifiedFiles(index)
        set_threads(threads)
        entries = [entry for entry in manifest.shards if names is None or entry.name in names]
        shards = [files.load(entry, mapped=manifest.mapped) for entry in entries]
        loaded = cls(shards, on_scan, threads, names)
        # The GNU C library keeps freed memory: a quarter of a process with 30 million rows.
        if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
            trim(0)
        return loaded

    def search(self, plan: SearchPlan, queries: Float32) -> SearchResult:
        """Return the ``plan.k`` best rows of each canonical query (Q, D).

        Canonical values are multiples of 2**-24 up to 1, which float32 holds exactly.

        Raises
        ------
        ConfigError
            The plan's filter names a class that the archive does not have.
        NotFoundError
            A shard of the plan is not in this set.
        """
        set_threads(1)  # for this thread; blocks of queries are divided among threads instead
        selections = self._selections(plan)
        present = min(plan.k, sum(selection.count for _, selection in selections))
        if present and len(queries):
            scores, numbers = self._best(queries, plan, selections, plan.nprobe)
            # Probed lists may hold fewer than k selected rows.
            short = np.flatnonzero(numbers[:, present - 1] < 0)
            if len(short) and plan.nprobe < EVERY_LIST:
                wide = self._best(queries[short], plan, selections, EVERY_LIST)
                scores[short], numbers[short] = wide
        else:
            scores = np.full((len(queries), plan.k), -np.inf, dtype=np.float32)
            numbers = np.full((len(queries), plan.k), -1, dtype=np.int64)
        return SearchResult(
            scores=scores, rows=self._archive_rows(numbers), places=self._places(numbers)
        )

    def columns(self, places: Int64) -> Columns:
        """Return the side-cars' columns of the rows at places (m,) of this set, in their order."""
        order = np.argsort(self._shard_numbers)
        shard = order[np.searchsorted(self._shard_numbers[order], places >> 32)]
        return self._taken(self._starts[shard] + (places & 0xFFFFFFFF))

    def compile(self) -> None:
        """Load the parts that make many searches faster; a single search is over before."""
        for group in self._groups:
            group.compile()

    def project(self, plan: SearchPlan, directions: Float32) -> dict[str, Float16]:
        """Return the dot products (n, m) of all rows of the plan's shards with directions (m, D).

        By the shard's name, in the order of its rows; deleted rows are among them.

        Raises
        ------
        NotFoundError
            A shard of the plan is not in this set.
        """
        step = max(_BLOCK_VALUES // directions.shape[1], 1)
        found: dict[str, Float16] = {}
        for name in self._known(plan):
            group, start = self._place_of(name)

            def products(block: Int64, group: ShardGroup = group) -> Float16:
                vectors = group.decode(block).astype(np.float32, copy=False)
                return np.asarray(vectors @ directions.T, dtype=np.float16)

            positions = start + np.arange(self.shards[name].rows)
            found[name] = np.concatenate(self._each(products, _blocks(positions, step)))
        return found

    def explain(self, plan: SearchPlan) -> PassPlan:
        """Return how :meth:`search` would compare queries with rows."""
        return plan_pass(plan, self._selections(plan))

    def find(self, plan: SearchPlan, vectors: bool = False) -> Columns:
        """Return the first ``plan.k`` rows of each shard that match, by (tile key, scene id).

        Their vectors (m, D) float32 are the column ``vector`` with ``vectors``.

        Raises
        ------
        ConfigError
            The plan's filter names a class that the archive does not have.
        NotFoundError
            A shard of the plan is not in this set.
        """
        parts = []
        for group, selection in self._selections(plan):
            for _, positions in group.split(selection.positions):
                first = positions[: plan.k]
                parts.append(group.sidecar.take(first))
                if vectors:
                    parts[-1]["vector"] = group.decode(first).astype(np.float32)
        return join_rows(parts, self._classes)

    def page(self, plan: SearchPlan, start: int) -> Columns:
        """Return the first ``plan.k`` rows of one shard that match, from a position on.

        The column ``position`` is the position of each in the shard.

        Raises
        ------
        ConfigError
            The plan's filter names a class that the archive does not have.
        NotFoundError
            The shard of the plan is not in this set.
        """
        (name,) = self._known(plan)
        group, first = self._place_of(name)
        positions = group.select(plan.where, plan.shards).positions
        chosen = positions[np.searchsorted(positions, first + start) :][: plan.k]
        return {**group.sidecar.take(chosen), "position": chosen - first}

    def _selections(self, plan: SearchPlan) -> list[Selection]:
        """Return the groups of the plan's shards that hold matching rows, with those rows."""
        self._known(plan)
        selections = [(group, group.select(plan.where, plan.shards)) for group in self._groups]
        return [(group, selection) for group, selection in selections if selection.count]

    def _known(self, plan: SearchPlan) -> tuple[str, ...]:
        """Return the names of the plan's shards, all of which are in this set."""
        unknown = sorted(set(plan.shards) - set(self.shards))
        if unknown:
            raise NotFoundError(f"shards {', '.join(unknown)} are not loaded here")
        return plan.shards

    def _place_of(self, name: str) -> tuple[ShardGroup, int]:
        """Return the group of a shard, and the position of its first row there."""
        number = self._ordered.index(self.shards[name])
        owner = int(np.searchsorted(self._firsts, self._starts[number], side="right")) - 1
        return self._groups[owner], int(self._starts[number] - self._firsts[owner])

    def _best(
        self, queries: Float32, plan: SearchPlan, selections: Sequence[Selection], nprobe: int
    ) -> Best:
        """Return the k best rows of each query in ``nprobe`` lists or all rows, block by block."""
        work = plan_pass(plan, selections, nprobe)
        centres = selections[0][0]  # all groups have the same centres
        among = None if work.lists == work.nlist else lists_with_rows(selections)

        def answered(block: Float32) -> Best:
            if not work.nprobe:
                return self._scanned(block, work, selections)
            probes = centres.probes(block, work.nprobe, among)
            if len(block) == 1:
                return self._probed(block, work, selections, probes)
            # Queries with the same nearest list follow each other: the list stays in the cache.
            order = np.argsort(probes.lists[:, 0], kind="stable")
            scores, numbers = self._probed(block[order], work, selections, probes[order])
            back = np.argsort(order)
            return scores[back], numbers[back]

        share = max(-(-len(queries) // self._threads), _LEAST_QUERIES)
        most = max(work.queries // self._threads, 1)
        parts = self._each(answered, _blocks(queries, min(share, most, _BLOCK_QUERIES)))
        if len(parts) == 1:
            return parts[0]
        scores, numbers = zip(*parts, strict=True)
        return np.concatenate(scores), np.concatenate(numbers)

    def _each(self, work: Callable[[Block], T], blocks: Sequence[Block]) -> list[T]:
        """Return the results of all blocks, computed by the pool and by this thread.

        A thread that only waited would be one more to wake up, and the system may then run two
        others on one processor.
        """
        todo, done = iter(enumerate(blocks)), {}

        def some() -> None:
            for number, block in todo:
                done[number] = work(block)

        others = [self._pool.submit(some) for _ in blocks[1 : self._threads]]
        some()
        for other in others:
            if not other.cancel():  # the pool may still be busy with another batch
                other.result()
        return [done[number] for number in range(len(blocks))]

    def _scanned(self, queries: Float32, work: PassPlan, selections: Sequence[Selection]) -> Best:
        """Return the k best rows of each query (Q, D) among all selected rows."""
        found = []
        for group, selection in selections:
            scores, positions = group.scan(queries, work.k, selection.positions)
            found.append((scores, self._numbered(group, positions)))
            if self._on_scan:
                compared = {
                    group.shards[number].name: len(queries) * len(rows)
                    for number, rows in group.split(selection.positions)
                }
                self._on_scan(len(queries), 0, compared)
        scores, numbers = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
        return best_in_order(scores, numbers, work.k, self._starts, self._keys)

    def _probed(
        self,
        queries: Float32,
        work: PassPlan,
        selections: Sequence[Selection],
        probes: Probes,
    ) -> Best:
        """Return the k best rows of each query (Q, D) in the lists that it probes.

        FAISS proposes candidates by its own scores. Of exact codes they differ from the exact
        scores by rounding, so each row within the rounding error of the k-th is rescored. Of lossy
        codes they are approximate: then the best ``work.rescored`` over all groups are rescored,
        without those that share the score of the first one left out, which FAISS may have cut
        anywhere. So neither the number of shards nor the size of a batch decides which rows are
        rescored. Where a group may have cut off rows that count, it is asked again for more.
        """
        proposed, numbers, last = self._proposed(queries, work.candidates, selections, probes)
        margin = np.float32(selections[0][0].margin)
        cut_at, margin = (work.rescored, margin) if work.rescored else (work.k - 1, -margin)
        cut = proposed[:, cut_at : cut_at + 1]  # nothing where there are fewer candidates
        floor = cut + margin if cut.size else np.full((len(queries), 1), -np.inf, np.float32)
        keep = proposed >= floor
        kept = keep.sum(axis=1)
        floor = floor[:, 0]
        done = (floor == -np.inf) | (last < floor) & (kept >= work.k)
        everything = bool(done.all())
        if not everything:
            keep, kept, numbers = keep[done], kept[done], numbers[done]
        numbers = np.where(keep, numbers, -1)[:, : kept.max(initial=0)]
        exact = self._scores(queries if everything else queries[done], numbers)
        best = best_in_order(exact, numbers, work.k, self._starts, self._keys)
        if everything:
            return best
        scores = np.empty((len(queries), work.k), dtype=np.float32)
        found = np.empty((len(queries), work.k), dtype=np.int64)
        scores[done], found[done] = best
        deeper = work.deeper(_DEEPER)
        for block in _blocks(np.flatnonzero(~done), deeper.queries):
            again = self._probed(queries[block], deeper, selections, probes[block])
            scores[block], found[block] = again
        return scores, found

    def _proposed(
        self,
        queries: Float32,
        depth: int,
        selections: Sequence[Selection],
        probes: Probes,
    ) -> tuple[Float32, Int64, Float32]:
        """Return FAISS's candidates of each query: scores (Q, C), numbers (Q, C), and the last.

        The highest scores come first. The last (Q,) is the highest score that a candidate which
        was cut off may have; -inf where no group has more.
        """
        found = []
        last = np.full(len(queries), -np.inf, dtype=np.float32)
        for group, selection in selections:
            some = min(depth, selection.count)
            scores, positions = group.nearest(queries, some, probes, selection)
            found.append((scores, self._numbered(group, positions)))
            if some < selection.count:
                np.maximum(last, scores[:, -1], out=last)
            if self._on_scan:
                self._on_scan(len(queries), probes.lists.size, group.rows_in(probes, selection))
        if len(found) == 1:
            return *found[0], last
        scores, numbers = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
        best_first = np.argsort(-scores, axis=1, kind="stable")
        scores, numbers = (np.take_along_axis(part, best_first, 1) for part in (scores, numbers))
        return scores, numbers, last

    def _numbered(self, group: ShardGroup, positions: Int64) -> Int64:
        """Return the numbers of rows of a group in the set; -1 stays."""
        first = int(self._firsts[self._groups.index(group)])
        return positions if not first else np.where(positions < 0, -1, positions + first)

    def _split(self, numbers: Int64) -> list[tuple[ShardGroup, Int64, Int64]]:
        """Return each group that holds some of the rows (m,), their places in m and positions."""
        owner = np.searchsorted(self._firsts, numbers, side="right") - 1
        present: list[int] = np.unique(owner).tolist()
        members = [np.flatnonzero(owner == number) for number in present]
        return [
            (self._groups[number], at, numbers[at] - self._firsts[number])
            for number, at in zip(present, members, strict=True)
        ]

    def _scores(self, queries: Float32, numbers: Int64) -> Float32:
        """Return the exact scores (Q, C) of rows (Q, C); -inf where a number is -1."""
        if len(self._groups) == 1:
            return self._groups[0].scores(queries, numbers)
        scores = np.full(numbers.shape, -np.inf, dtype=np.float32)
        for group, first in zip(self._groups, self._firsts.tolist(), strict=True):
            own = (numbers >= first) & (numbers < first + group.rows)
            if own.any():
                found = group.scores(queries, np.where(own, numbers - first, -1))
                np.maximum(scores, found, out=scores)
        return scores

    def _taken(self, numbers: Int64) -> Columns:
        """Return the side-cars' columns of rows (m,), in their order."""
        if len(self._groups) == 1:
            return self._groups[0].sidecar.take(numbers)
        parts = self._split(numbers)
        joined = join_rows([group.sidecar.take(rows) for group, _, rows in parts], self._classes)
        back = np.argsort(np.concatenate([at for _, at, _ in parts] or [numbers]))
        return {name: values[back] for name, values in joined.items()}

    def _keys(self, numbers: Int64) -> list[tuple[str, str]]:
        return row_keys(self._taken(numbers))

    def _archive_rows(self, numbers: Int64) -> Int64:
        """Return the archive rows of rows (Q, k); -1 stays."""
        present = np.maximum(numbers, 0)
        if len(self._groups) == 1:
            rows = self._groups[0].sidecar.row.take(present)
        else:
            rows = np.empty(numbers.shape, dtype=np.int64)
            for group, at, positions in self._split(present.ravel()):
                rows.ravel()[at] = group.sidecar.row.take(positions)
        return np.where(numbers < 0, -1, rows)

    def _places(self, numbers: Int64) -> Int64:
        """Return the places of rows (Q, k) in their shards; -1 stays."""
        shard = np.searchsorted(self._starts, numbers, side="right") - 1
        places = (self._shard_numbers[shard] << 32) + numbers - self._starts[shard]
        return np.where(numbers < 0, -1, places)


def _blocks(items: Block, size: int) -> list[Block]:
    return [items[start : start + size] for start in range(0, len(items), size)]
