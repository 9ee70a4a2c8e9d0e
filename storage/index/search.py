"""Search several shards as one index, as a :class:`storage.index.plan.SearchPlan` says.

FAISS proposes candidates from each shard; this module asks again where equal or nearly equal
scores may have been cut off, scores the remaining candidates exactly and merges them by (score,
tile key, scene id). So at exhaustive ``nprobe`` the answer is the brute-force answer, however rows
are sharded.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from storage.errors import NotFoundError
from storage.index.files import VerifiedFiles
from storage.index.manifest import IndexManifest
from storage.index.plan import EVERY_LIST, PassPlan, SearchPlan, lists_with_rows, plan_pass
from storage.index.quantizer import set_threads
from storage.index.ranking import (
    Float32,
    Int64,
    RowKeys,
    best_in_order,
    kth_largest,
    pair_scores,
)
from storage.index.shard import Probes, RowMask, Shard, ShardGroup, take_rows
from storage.index.sidecar import Columns, join_rows
from storage.location import Location

Selection = tuple[ShardGroup, RowMask]
"""A group of shards, and the rows of it that may be returned."""
Best = Columns
"""The best rows (m,) of some queries: query, rank and score, and their group and position."""
_BLOCK_QUERIES = 1024
_BLOCK_HITS = 2048  # fewer hits are not worth a second thread


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchResult:
    """The best rows of each query.

    ``scores`` (Q, k) float32, highest first and -inf where there are fewer rows; ``rows`` (Q, k)
    int64 archive rows, -1 where there are fewer; ``columns`` the side-car's columns of the rows
    that are present, query by query.
    """

    scores: Float32
    rows: Int64
    columns: Columns


@dataclass(frozen=True, kw_only=True, slots=True)
class _Candidates:
    """The candidates of a group: scores and positions (Q, depth); no probes after a scan."""

    group: ShardGroup
    selection: RowMask
    scores: Float32
    positions: Int64
    probes: Probes | None


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
        self._on_scan = on_scan
        self._threads = threads
        # FAISS itself would search preassigned lists with one thread, and ranking has none.
        self._pool = ThreadPoolExecutor(threads, "shards", set_threads, (1,))

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
        return cls(shards, on_scan, threads, names)

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
        set_threads(self._threads)  # OpenMP keeps the number for each calling thread
        selections = self._selections(plan)
        shape = len(queries), plan.k
        scores = np.full(shape, -np.inf, dtype=np.float32)
        rows = np.full(shape, -1, dtype=np.int64)
        present = min(plan.k, sum(selection.count for _, selection in selections))
        parts: list[Columns] = []
        owners: list[Int64] = []
        pending, nprobe = np.arange(len(queries) if present else 0), plan.nprobe
        while len(pending):
            work = plan_pass(plan, selections, len(pending), nprobe)
            again: list[Int64] = []
            for block in (pending[part] for part in _blocks(len(pending), work.queries)):
                best = self._pass(queries[block], work, selections)
                if nprobe < EVERY_LIST:  # probed lists may hold fewer than k selected rows
                    short = np.bincount(best["query"], minlength=len(block)) < present
                    again.append(block[short])
                    best = {name: values[~short[best["query"]]] for name, values in best.items()}
                columns, owner = self._columns(best, selections), block[best["query"]]
                scores[owner, best["rank"]] = best["score"]
                rows[owner, best["rank"]] = columns["row"]
                parts.append(columns)
                owners.append(owner)
            pending, nprobe = np.concatenate(again or [pending[:0]]), EVERY_LIST
        joined = join_rows(parts, self._classes)
        if len(owners) > 1:
            order = np.argsort(np.concatenate(owners), kind="stable")
            joined = {name: values[order] for name, values in joined.items()}
        return SearchResult(scores=scores, rows=rows, columns=joined)

    def explain(self, plan: SearchPlan, queries: int) -> PassPlan:
        """Return how :meth:`search` would compare a number of queries with rows."""
        return plan_pass(plan, self._selections(plan), queries)

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

    def _selections(self, plan: SearchPlan) -> list[Selection]:
        """Return the groups of the plan's shards that hold matching rows, with those rows."""
        unknown = sorted(set(plan.shards) - set(self.shards))
        if unknown:
            raise NotFoundError(f"shards {', '.join(unknown)} are not loaded here")
        selections = [(group, group.select(plan.where, plan.shards)) for group in self._groups]
        return [(group, selection) for group, selection in selections if selection.count]

    def _pass(self, queries: Float32, work: PassPlan, selections: Sequence[Selection]) -> Best:
        """Return the k best rows of each query, block by block.

        Queries with the same nearest list follow each other, which keeps the list in the cache.
        """
        centres = selections[0][0]  # all groups have the same centres
        among = None if work.lists == work.nlist else lists_with_rows(selections)
        step = max(min(_BLOCK_QUERIES, -(-len(queries) // self._threads)), 1)
        if len(queries) <= step:
            probes = centres.probes(queries, work.nprobe, among) if work.nprobe else None
            return self._best(queries, work, selections, probes)
        blocks, all_probes = _blocks(len(queries), step), None
        if work.nprobe:
            parts = self._pool.map(
                lambda block: centres.probes(queries[block], work.nprobe, among), blocks
            )
            all_probes = Probes.joined(list(parts))
            order = np.argsort(all_probes.lists[:, 0], kind="stable")
            blocks = [order[block] for block in blocks]

        def best_of(block: Int64) -> Best:
            probes = all_probes and all_probes[block]
            best = self._best(queries[block], work, selections, probes)
            return {**best, "query": block[best["query"]]}

        whole = join_rows(list(self._pool.map(best_of, blocks)), self._classes)
        order = np.argsort(whole["query"], kind="stable")
        return {name: values[order] for name, values in whole.items()}

    def _columns(self, best: Best, selections: Sequence[Selection]) -> Columns:
        """Return the side-cars' columns of rows, in their order."""
        group, position = best["group"], best["position"]
        blocks = _blocks(len(group), max(-(-len(group) // self._threads), _BLOCK_HITS))
        groups = [group for group, _ in selections]
        if len(blocks) == 1:
            return take_rows(groups, group, position)
        parts = self._pool.map(
            lambda block: take_rows(groups, group[block], position[block]), blocks
        )
        return join_rows(list(parts), self._classes)

    def _best(
        self,
        queries: Float32,
        work: PassPlan,
        selections: Sequence[Selection],
        probes: Probes | None,
    ) -> Best:
        """Return the k best rows, query by query."""
        parts = self._candidates(queries, work, selections, probes)
        proposed = np.concatenate([part.scores for part in parts], axis=1)
        # FAISS scores exact codes within a margin, so a row of the k best is at most that far below
        # the k-th candidate. It only approximates lossy codes: there the best candidates over all
        # groups are rescored, so their number does not grow with the number of shards.
        reranks = probes is not None and work.rescored > 0
        floor = (
            kth_largest(proposed, work.rescored)
            if reranks
            else kth_largest(proposed, work.k) - np.float32(parts[0].group.margin)
        )
        rescored = [_rescore(queries, part, floor, reranks) for part in parts]
        query, score, position = (
            np.concatenate([columns[i] for columns in rescored]) for i in range(3)
        )
        part = np.repeat(np.arange(len(parts)), [len(columns[0]) for columns in rescored])
        shard, keys = _numbered(parts, [columns[2] for columns in rescored])
        best, rank = best_in_order(query, score, shard, position, work.k, keys)
        numbers = {id(group): number for number, (group, _) in enumerate(selections)}
        group = np.array([numbers[id(part.group)] for part in parts])[part[best]]
        return {
            "query": query[best],
            "rank": rank,
            "score": score[best],
            "group": group,
            "position": position[best],
        }

    def _candidates(
        self,
        queries: Float32,
        work: PassPlan,
        selections: Sequence[Selection],
        probes: Probes | None,
    ) -> list[_Candidates]:
        parts = []
        for group, selection in selections:
            if probes is None:
                # Each shard by itself: positions order equal scores within a shard only.
                split = group.split(selection.positions)
                found = [group.scan(queries, min(work.k, len(rows)), rows) for _, rows in split]
                compared = {group.shards[n].name: len(queries) * len(rows) for n, rows in split}
            else:
                depth = min(work.candidates, selection.count)
                found = [group.nearest(queries, depth, probes, selection)]
                compared = group.rows_in(probes, selection) if self._on_scan else {}
            parts += [
                _Candidates(
                    group=group,
                    selection=selection,
                    scores=scores,
                    positions=positions,
                    probes=probes,
                )
                for scores, positions in found
            ]
            if self._on_scan:
                self._on_scan(len(queries), 0 if probes is None else probes.lists.size, compared)
        return parts


def _rescore(
    queries: Float32, part: _Candidates, floor: Float32, reranks: bool
) -> tuple[Int64, Float32, Int64]:
    """Return (query, exact score, position) of the candidates that reach the floor (Q,).

    Where the last candidate of a query is above the floor, rows of equal score may have been cut
    off: then a range search returns every row above the floor. Candidates of shards that rerank are
    approximate, so they are taken as they are.
    """
    group, keep = part.group, part.positions >= 0
    if part.probes is None:  # a scan scores exactly
        query, column = np.nonzero(keep)
        return query, part.scores[query, column], part.positions[query, column]
    keep &= part.scores >= floor[:, None]
    cut = keep[:, -1] & (part.scores.shape[1] < part.selection.count) & (not reranks)
    keep[cut] = False
    query, column = np.nonzero(keep)
    owners, positions = [query], [part.positions[query, column]]
    for i in np.flatnonzero(cut).tolist():
        single, least = slice(i, i + 1), float(floor[i])
        probes = part.probes[single]
        positions.append(group.above(queries[single], least, probes, part.selection))
        owners.append(np.full(len(positions[-1]), i))
    query, position = np.concatenate(owners), np.concatenate(positions)
    return query, pair_scores(queries, query, lambda pairs: group.decode(position[pairs])), position


def _blocks(count: int, step: int) -> list[Int64]:
    return [np.arange(start, min(start + step, count)) for start in range(0, count, step)]


def _numbered(parts: Sequence[_Candidates], positions: Sequence[Int64]) -> tuple[Int64, RowKeys]:
    """Return the number of each row's shard over all parts, and the function that names its rows.

    Equal scores are ordered by position within a shard and by name between shards.
    """
    firsts = np.cumsum([0, *(len(part.group.shards) for part in parts)])
    rows = zip(firsts, parts, positions, strict=False)
    number = np.concatenate([first + part.group.numbers_of(p) for first, part, p in rows])

    def keys(shard: int, position: Int64) -> list[tuple[str, str]]:
        owner = int(np.searchsorted(firsts, shard, side="right")) - 1
        return parts[owner].group.sidecar.keys(position)

    return number, keys
