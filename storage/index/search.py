"""Search several shards as if they were one.

FAISS proposes candidates from each shard; this module asks again where equal or nearly equal
scores may have been cut off, scores exactly what is left and merges by (score, tile key, scene
id). So at exhaustive ``nprobe`` the answer is the brute-force answer, however rows are sharded.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from storage.errors import ConfigError, NotFoundError
from storage.geometry import Mask
from storage.index.filter import Filter
from storage.index.quantizer import set_threads
from storage.index.ranking import (
    Float32,
    Float64,
    Int64,
    RowKeys,
    best_in_order,
    canonical_queries,
    kth_largest,
    pair_scores,
)
from storage.index.shard import Probes, RowMask, Shard, ShardGroup, take_rows
from storage.index.sidecar import Columns, join_rows

Asked = tuple[ShardGroup, RowMask]
"""A group, and its rows that may be returned."""
_FEW = 0.8  # of the rows: with more, hardly a list is without one
_MOST_LISTS = 0.95  # which of all lists these are is not worth asking
# Costs in nanoseconds, measured; only their ratios matter and only speed depends on them.
_TEST_ROW_NS, _SCORE_VALUE_NS, _DECODE_VALUE_NS, _MULTIPLY_NS = 1.5, 0.2, 5.0, 0.15


def effective_nprobe(queries: int, k: int, nprobe: int, asked: Sequence[Asked]) -> int | None:
    """Return how many lists to look into; None says that scanning the selected rows is better.

    Lists without a selected row do not count. Of the others so many are probed that about as many
    selected rows are seen as rows without a filter, and twice as many as wanted: a filter that
    selects whole clusters leaves few lists, one that selects here and there is probed widely.
    """
    nlist, dimension = asked[0][0].nlist, asked[0][0].dimension
    rows = sum(len(group.shards[i]) for group, selection in asked for i in selection.shards)
    matching = sum(selection.count for _, selection in asked)
    if nprobe >= nlist and any(group.reranks for group, _ in asked):
        return None
    among = _lists_in_question(asked)
    lists = nlist if among is None else int(np.count_nonzero(among))
    wanted = max(nprobe * rows / matching, 2 * k * nlist / matching)
    width = min(lists, math.ceil(wanted))
    if matching < sum(len(group) for group, _ in asked):
        held = sum(int(group.list_rows[among].sum()) for group, _ in asked)
        probing = _TEST_ROW_NS * held + _SCORE_VALUE_NS * dimension * matching
        scanning = _DECODE_VALUE_NS / queries + _MULTIPLY_NS
        if scanning * matching * dimension < probing * width / lists:
            return None
    return width


def nearest_lists(queries: Float32, width: int, asked: Sequence[Asked]) -> Probes:
    """Return the nearest lists of those that hold selected rows."""
    return asked[0][0].probes(queries, width, _lists_in_question(asked))


def _lists_in_question(asked: Sequence[Asked]) -> Mask | None:
    """Return which lists (nlist,) hold a selected row; None where hardly one does not."""
    rows = sum(len(group) for group, _ in asked)
    if sum(selection.count for _, selection in asked) >= rows * _FEW:
        return None
    among: Mask = np.logical_or.reduce([group.lists_with(selection) for group, selection in asked])
    return among if np.count_nonzero(among) < len(among) * _MOST_LISTS else None


EVERY_LIST = 2**31
"""An ``nprobe`` that is always exhaustive."""
_SPARE = 2
_CANDIDATES_AT_ONCE = 4_000_000
_BLOCK_QUERIES = 1024
_FEW_HITS = 2048  # whose columns one thread takes


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchResult:
    """The best rows of each query.

    ``scores`` (Q, k) float32, highest first and -inf where there are fewer rows; ``rows`` (Q, k)
    int64 archive rows, -1 there; ``columns`` what the side-car knows of the rows that are there,
    query by query.
    """

    scores: Float32
    rows: Int64
    columns: Columns


@dataclass(frozen=True, kw_only=True, slots=True)
class _Best:
    """The best rows of some queries (m,): query, rank and score, and their group and position."""

    query: Int64
    rank: Int64
    score: Float32
    group: Int64
    position: Int64

    @classmethod
    def joined(cls, parts: Sequence["_Best"]) -> "_Best":
        names = cls.__slots__
        return cls(**{n: np.concatenate([getattr(part, n) for part in parts]) for n in names})

    def __getitem__(self, at: Int64) -> "_Best":
        return _Best(**{name: getattr(self, name)[at] for name in self.__slots__})


@dataclass(frozen=True, kw_only=True, slots=True)
class _Candidates:
    """What a group proposes: scores and positions (Q, depth), and the lists it looked into."""

    group: ShardGroup
    selection: RowMask
    scores: Float32
    positions: Int64
    probes: Probes | None

    @property
    def exact(self) -> bool:
        """Whether its rows were compared one by one."""
        return self.probes is None


class ShardSet:
    """Shards that share their trained quantizers, searched together.

    Parameters
    ----------
    shards
        Shards whose names tell them apart. Those that are not mapped are read into memory.
    nprobe
        Lists to look into when a search does not say.
    rerank
        Candidates per wanted result that lossy shards read exact vectors for.
    on_scan
        Told of each pass: queries, lists looked into, and the rows compared in each shard.
    together
        The group of each shard by name; those of a group are read into one FAISS index, which is
        fast to search as a whole. One group for all by default.
    threads
        How many blocks of a batch of queries are searched at the same time.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        nprobe: int = 1,
        rerank: int = 1,
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
        self._groups = [ShardGroup(some) for some in grouped.values()]
        self._nprobe = nprobe
        self._rerank = rerank
        self._classes = len(shards[0].sidecar.classes)
        self._on_scan = on_scan
        self._threads = threads
        # FAISS itself would search preassigned lists with one thread, and ranking has none.
        self._pool = ThreadPoolExecutor(threads, "shards", set_threads, (1,))

    def __len__(self) -> int:
        return sum(map(len, self.shards.values()))

    def search(
        self,
        vectors: Float32 | Float64,
        k: int,
        where: Filter | None = None,
        nprobe: int | None = None,
        names: Collection[str] | None = None,
    ) -> SearchResult:
        """Return the k best rows of each query.

        Parameters
        ----------
        vectors
            Queries (Q, D), finite, of any length but zero.
        k
            How many rows to return of each query.
        where
            Which rows may be returned.
        nprobe
            Lists to look into, widened for selective filters; all of them for exact answers.
        names
            Shards to search; all of them by default.

        Raises
        ------
        ConfigError
            The queries, k, nprobe or the filter make no sense.
        NotFoundError
            A shard is not in this set.
        """
        queries = canonical_queries(vectors, self._groups[0].dimension)
        return self.search_canonical(queries, k, where, nprobe, names)

    def search_canonical(
        self,
        queries: Float64,
        k: int,
        where: Filter | None = None,
        nprobe: int | None = None,
        names: Collection[str] | None = None,
    ) -> SearchResult:
        """Do what :meth:`search` does, for queries (Q, D) that are canonical already."""
        if k < 1 or (nprobe is not None and nprobe < 1):
            raise ConfigError(f"search: k is {k} and nprobe {nprobe}; both start at 1")
        asked = self._selected(where or Filter(), names)
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        rows = np.full((len(queries), k), -1, dtype=np.int64)
        found: list[Columns] = []
        owners: list[Int64] = []
        there = min(k, sum(selection.count for _, selection in asked))
        rounds = self._rounds(np.arange(len(queries)), k, nprobe or self._nprobe, asked)
        while there and rounds:
            block, width = rounds.pop(0)
            best = self._pass(queries[block], k, width, asked)
            short = np.bincount(best.query, minlength=len(block)) < there
            if short.any() and width < EVERY_LIST:  # the lists did not hold enough rows
                rounds += self._rounds(block[short], k, EVERY_LIST, asked)
                best = best[np.flatnonzero(~short[best.query])]
            columns, owner = self._columns(best, asked), block[best.query]
            scores[owner, best.rank] = best.score
            rows[owner, best.rank] = columns["row"]
            found.append(columns)
            owners.append(owner)
        joined = join_rows(found, self._classes)
        if len(owners) > 1:
            order = np.argsort(np.concatenate(owners), kind="stable")
            joined = {name: values[order] for name, values in joined.items()}
        return SearchResult(scores=scores, rows=rows, columns=joined)

    def find(self, where: Filter, limit: int, names: Collection[str] | None = None) -> Columns:
        """Return the first ``limit`` rows that match, in (tile key, scene id) order by shard.

        Raises
        ------
        ConfigError
            The filter names a class that the archive does not have.
        NotFoundError
            A shard is not in this set.
        """
        parts = [
            group.sidecar.take(positions[:limit])
            for group, selection in self._selected(where, names)
            for _, positions in group.split(selection.positions)
        ]
        return join_rows(parts, self._classes)

    def _selected(self, where: Filter, names: Collection[str] | None) -> list[Asked]:
        """Return the groups that hold rows of the named shards which match, with those rows."""
        unknown = sorted(set(names or ()) - set(self.shards))
        if unknown:
            raise NotFoundError(f"shards {', '.join(unknown)} are not loaded here")
        names = self.shards if names is None else names
        asked = [(group, group.select(where, names)) for group in self._groups]
        return [(group, selection) for group, selection in asked if selection.count]

    def _depth(self, k: int) -> int:
        reranks = any(group.reranks for group in self._groups)
        return max(k * self._rerank, k + _SPARE) if reranks else k + _SPARE

    def _rounds(
        self, queries: Int64, k: int, nprobe: int, asked: Sequence[Asked]
    ) -> list[tuple[Int64, int]]:
        """Cut queries into passes whose candidates and probes fit in memory."""
        if not asked:
            return []
        lists = min(nprobe, asked[0][0].nlist)
        values = max(self._depth(k) * len(asked), lists)
        step = max(_CANDIDATES_AT_ONCE // values, 1)
        return [(queries[at], nprobe) for at in _blocks(len(queries), step)]

    def _pass(self, queries: Float64, k: int, nprobe: int, asked: Sequence[Asked]) -> _Best:
        """Return the k best rows of each query, block by block.

        Queries whose nearest list is the same follow each other: they find it in the cache.
        """
        queries32 = queries.astype(np.float32)  # exact: multiples of 2**-24 up to 1
        width = effective_nprobe(len(queries), k, nprobe, asked)
        step = max(min(_BLOCK_QUERIES, -(-len(queries) // self._threads)), 1)
        if len(queries) <= step:
            probes = nearest_lists(queries32, width, asked) if width else None
            return self._best(queries, k, asked, probes)
        all_probes, blocks = None, _blocks(len(queries), step)
        if width:
            probed = self._pool.map(lambda at: nearest_lists(queries32[at], width, asked), blocks)
            all_probes = Probes.joined(list(probed))
            order = np.argsort(all_probes.lists[:, 0], kind="stable")
            blocks = [order[at] for at in blocks]

        def best(at: Int64) -> _Best:
            return self._best(queries[at], k, asked, all_probes and all_probes[at])

        answers = zip(blocks, self._pool.map(best, blocks), strict=True)
        whole = _Best.joined([replace(found, query=at[found.query]) for at, found in answers])
        return whole[np.argsort(whole.query, kind="stable")]

    def _columns(self, best: _Best, asked: Sequence[Asked]) -> Columns:
        """Return what the side-cars know of rows, in their order."""
        blocks = _blocks(len(best.query), max(-(-len(best.query) // self._threads), _FEW_HITS))
        groups = [group for group, _ in asked]

        def taken(at: Int64) -> Columns:
            return take_rows(groups, best.group[at], best.position[at])

        parts = map(taken, blocks) if len(blocks) == 1 else self._pool.map(taken, blocks)
        return join_rows(list(parts), self._classes)

    def _best(
        self,
        queries: Float64,
        k: int,
        asked: Sequence[Asked],
        probes: Probes | None,
    ) -> _Best:
        """Return the k best rows, query by query."""
        parts = self._candidates(queries, k, asked, probes)
        proposed = np.concatenate([part.scores for part in parts], axis=1)
        reranks = any(part.group.reranks and not part.exact for part in parts)
        floor = (
            kth_largest(proposed, k * self._rerank)
            if reranks
            else kth_largest(proposed, k) - np.float32(parts[0].group.margin)
        )
        settled = [_rescore(queries, part, floor, reranks) for part in parts]
        query = np.concatenate([found[0] for found in settled])
        score = np.concatenate([found[1] for found in settled])
        position = np.concatenate([found[2] for found in settled])
        part = np.repeat(np.arange(len(parts)), [len(found[0]) for found in settled])
        shard, shard_keys = _numbered(parts, [found[2] for found in settled])
        kept, rank = best_in_order(query, score, shard, position, k, shard_keys)
        places = {id(one): place for place, (one, _) in enumerate(asked)}
        group = np.array([places[id(one.group)] for one in parts])[part[kept]]
        return _Best(
            query=query[kept],
            rank=rank,
            score=score[kept],
            group=group,
            position=position[kept],
        )

    def _candidates(
        self,
        queries: Float64,
        k: int,
        asked: Sequence[Asked],
        probes: Probes | None,
    ) -> list[_Candidates]:
        queries32 = queries.astype(np.float32)
        parts = []
        for group, selection in asked:
            if probes is None:
                found = [
                    group.scan(queries, min(k, len(rows)), rows)
                    for _, rows in group.split(selection.positions)
                ]
            else:
                depth = min(self._depth(k), selection.count)
                found = [group.nearest(queries32, depth, probes, selection)]
            parts += [
                _Candidates(
                    group=group, selection=selection, scores=scores, positions=at, probes=probes
                )
                for scores, at in found
            ]
            self._report(group, len(queries), probes, selection)
        return parts

    def _report(
        self, group: ShardGroup, queries: int, probes: Probes | None, selection: RowMask
    ) -> None:
        if self._on_scan is None:
            return
        if probes is None:
            parts = group.split(selection.positions)
            compared = {group.shards[number].name: queries * len(part) for number, part in parts}
            self._on_scan(queries, 0, compared)
        else:
            self._on_scan(queries, probes.lists.size, group.rows_in(probes, selection))


def _rescore(
    queries: Float64, part: _Candidates, floor: Float32, reranks: bool
) -> tuple[Int64, Float32, Int64]:
    """Return (query, exact score, position) of a part's candidates that reach the floor (Q,).

    Where FAISS's list ends above the floor, equal scores may have been cut off: then every row
    above the floor is asked for. Reranking shards approximate, so their list is taken as it is.
    """
    group, keep = part.group, part.positions >= 0
    if part.probes is None:
        query, column = np.nonzero(keep)
        return query, part.scores[query, column], part.positions[query, column]
    keep &= part.scores >= floor[:, None]
    cut = keep[:, -1] & (part.scores.shape[1] < part.selection.count) & (not reranks)
    keep[cut] = False
    query, column = np.nonzero(keep)
    owners, positions = [query], [part.positions[query, column]]
    for i in np.flatnonzero(cut).tolist():
        at, least = slice(i, i + 1), float(floor[i])
        one = queries[at].astype(np.float32)
        positions.append(group.above(one, least, part.probes[at], part.selection))
        owners.append(np.full(len(positions[-1]), i))
    query, position = np.concatenate(owners), np.concatenate(positions)
    return query, pair_scores(queries, query, lambda some: group.decode(position[some])), position


def _blocks(count: int, step: int) -> list[Int64]:
    return [np.arange(start, min(start + step, count)) for start in range(0, count, step)]


def _numbered(parts: Sequence[_Candidates], positions: Sequence[Int64]) -> tuple[Int64, RowKeys]:
    """Return the number of each row's shard over all parts, and what names rows of a shard."""
    firsts = np.cumsum([0, *(len(one.group.shards) for one in parts)])
    rows = zip(firsts, parts, positions, strict=False)
    number = np.concatenate([first + one.group.numbers_of(at) for first, one, at in rows])

    def keys(shard: int, at: Int64) -> list[tuple[str, str]]:
        owner = int(np.searchsorted(firsts, shard, side="right")) - 1
        return parts[owner].group.sidecar.keys(at)

    return number, keys
