"""How a search is answered: all of its decisions, made before any vector is compared.

A decision is made where its facts are. :func:`plan_search` reads the manifest: which shards can
hold a match, and how widely to probe them. :func:`plan_pass` reads the columns of loaded shards:
how many rows the filter selects, whether to probe lists or to scan the selected rows, and how many
candidates to take. :mod:`storage.index.search` executes the plan.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from storage.display import Described
from storage.errors import ConfigError
from storage.geometry import Mask
from storage.index.filter import Filter, may_match

if TYPE_CHECKING:
    from storage.index.manifest import IndexManifest
    from storage.index.shard import RowMask, ShardGroup

EVERY_LIST = 2**31
"""An ``nprobe`` that is always exhaustive."""
_SPARE = 2
_MEASURED_HITS = 10  # for which the candidates per hit are measured
CANDIDATES_AT_ONCE = 4_000_000
"""Most candidates of the queries of one pass."""
_NEARLY_ALL_ROWS = 0.8  # above this share of selected rows, hardly any list is without one
_NEARLY_ALL_LISTS = 0.95  # above this share of lists, restricting the search for centres costs more
# Costs in nanoseconds, measured; only their ratios matter and only speed depends on them.
_TEST_ROW_NS, _SCORE_VALUE_NS, _SCAN_VALUE_NS = 1.5, 0.2, 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class PassPlan:
    """How the loaded shards of one search node compare queries with rows.

    Attributes
    ----------
    k
        Hits of each query.
    selected, rows
        Rows that the filter selects, of the rows of the shards.
    nprobe, lists, nlist
        Nearest lists that each query probes, the lists that hold a selected row, and all lists.
        ``nprobe`` is 0 where the selected rows are scanned exactly instead.
    candidates, rescored
        Candidates that each FAISS index proposes for a query, and the candidates whose exact scores
        are computed. ``rescored`` is 0 where FAISS's scores are exact but for rounding: then the
        candidates within the rounding error of the k-th are rescored.
    queries
        Most queries at once, whose candidates and probes fit in memory.
    """

    k: int
    selected: int
    rows: int = 0
    nprobe: int = 0
    lists: int = 0
    nlist: int = 0
    candidates: int = 0
    rescored: int = 0
    queries: int = 1

    def deeper(self, times: int) -> "PassPlan":
        """Return a plan with ``times`` as many candidates of each query."""
        return replace(
            self,
            candidates=self.candidates * times,
            rescored=self.rescored * times,
            queries=max(self.queries // times, 1),
        )

    def __str__(self) -> str:
        if not self.selected:
            return "no row selected"
        selected = f"{self.selected:,} of {self.rows:,} rows selected"
        if not self.nprobe:
            return f"{selected}: scan them exactly"
        rescored = f"{self.rescored:,}" if self.rescored else "those near the last hit"
        return (
            f"{selected}: probe {self.nprobe:,} of {self.nlist:,} lists ({self.lists:,} hold a "
            f"selected row), {self.candidates:,} candidates, rescore {rescored}"
        )


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class SearchPlan(Described):
    """How an index answers a search; also the message to a search node.

    Attributes
    ----------
    k, where
        Hits of each query, and the rows that may be among them.
    shards, all_shards
        Names of the shards that can hold a match by their place and time, and the number of shards
        of the index.
    rows, all_rows
        Live rows of ``shards`` and of the index.
    nprobe_requested, nprobe
        Lists to probe as requested or tuned, and widened by the share of rows that lie in other
        shards. A search node widens further for the rows that the filter leaves out.
    rerank
        Candidates per hit that lossy shards rescore with exact vectors; see
        :func:`candidates_for`.
    passes
        The plan of each search node; empty except in :meth:`Searcher.explain`.

    Examples
    --------
    >>> print(SearchPlan(k=5, where=Filter(), shards=("shard-00001",), all_shards=4, rows=100,
    ...                  all_rows=400, nprobe_requested=2, nprobe=8))
    5 hits of each query
    1 of 4 shards can hold a match, 100 of 400 rows
    nprobe 2, widened to 8 for the shards left out
    """

    k: int
    shards: tuple[str, ...]
    where: Filter
    all_shards: int = 0
    rows: int = 0
    all_rows: int = 0
    nprobe_requested: int = 1
    nprobe: int = 1
    rerank: int = 1
    passes: tuple[PassPlan, ...] = ()

    def facts(self) -> dict[str, Any]:
        """Return shards, rows, lists to probe, and the plan of each search node."""
        return {
            "hits of each query": self.k,
            "shards": f"{len(self.shards):,} of {self.all_shards:,} can hold a match",
            "rows": f"{self.rows:,} of {self.all_rows:,}",
            "lists to probe": f"{self.nprobe:,}, requested {self.nprobe_requested:,}",
            **{f"node {number}": str(work) for number, work in enumerate(self.passes)},
        }

    def __str__(self) -> str:
        widened = self.nprobe > self.nprobe_requested
        suffix = f", widened to {self.nprobe:,} for the shards left out" if widened else ""
        node = "node {}: {}" if len(self.passes) > 1 else "{1}"
        return "\n".join(
            [
                f"{self.k:,} hits of each query",
                f"{len(self.shards):,} of {self.all_shards:,} shards can hold a match, "
                f"{self.rows:,} of {self.all_rows:,} rows",
                f"nprobe {self.nprobe_requested:,}{suffix}",
                *(node.format(number, work) for number, work in enumerate(self.passes)),
            ]
        )


def plan_search(
    manifest: "IndexManifest", k: int, where: Filter | None = None, nprobe: int | None = None
) -> SearchPlan:
    """Choose the shards to search and how widely, from the manifest alone.

    A filter that leaves out whole shards leaves fewer rows in every list, so more lists are probed.
    Search nodes hold some of the shards and cannot tell.

    Raises
    ------
    ConfigError
        k or nprobe is out of range, or the filter names a class that the archive does not have.
    """
    where, rows = where or Filter(), manifest.rows
    if not 1 <= k <= rows:
        raise ConfigError(
            f"search: k is {k}, but index version {manifest.version} holds {rows} rows; "
            f"give 1 to {rows}"
        )
    if nprobe is not None and nprobe < 1:
        raise ConfigError(f"search: nprobe is {nprobe}; give at least 1")
    unknown = sorted(set(where.labels) - set(manifest.classes))
    if unknown:
        raise ConfigError(
            f"search: no class is named {', '.join(map(repr, unknown))}; the archive has "
            f"{', '.join(manifest.classes) or 'no labels'}"
        )
    shards = [s for s in manifest.shards if not where or may_match(where, s.bbox, s.since, s.until)]
    rows_left = sum(shard.live_rows for shard in shards)
    nprobe = nprobe or manifest.nprobe
    return SearchPlan(
        k=k,
        where=where,
        shards=tuple(shard.name for shard in shards),
        all_shards=len(manifest.shards),
        rows=rows_left,
        all_rows=rows,
        nprobe_requested=nprobe,
        nprobe=math.ceil(nprobe * rows / rows_left) if rows_left else nprobe,
        rerank=manifest.rerank,
    )


def plan_pass(
    plan: SearchPlan,
    selections: "Sequence[tuple[ShardGroup, RowMask]]",
    nprobe: int | None = None,
) -> PassPlan:
    """Choose how loaded shards compare queries with the rows that a filter selects.

    Lists without a selected row are left out. Of the other lists, enough are probed to see about as
    many selected rows as a search without a filter sees rows, and at least twice as many as hits:
    a filter that selects whole clusters leaves few lists, a filter that selects scattered rows
    is probed widely. The number of queries decides nothing, so a query gets the same answer alone
    and in a batch.

    Parameters
    ----------
    plan
        The search.
    selections
        The groups of shards that hold selected rows, with those rows.
    nprobe
        Lists to probe instead of the plan's number.
    """
    nprobe, k = nprobe or plan.nprobe, plan.k
    selected = sum(selection.count for _, selection in selections)
    if not selected:
        return PassPlan(k=k, selected=0)
    nlist = selections[0][0].nlist
    reranks = any(group.reranks for group, _ in selections)
    rows = sum(group.shards[number].rows for group, s in selections for number in s.shards)
    # One more than are rescored shows which score is the first to be left out.
    rescored = candidates_for(k, plan.rerank) if reranks else 0
    candidates = max(rescored + 1, k + _SPARE)
    values = max(candidates * len(selections), min(nprobe, nlist))
    at_once = max(CANDIDATES_AT_ONCE // values, 1)
    lists, held = nlist, sum(group.rows for group, _ in selections)
    if selected < held * _NEARLY_ALL_ROWS:
        among = lists_with_rows(selections)
        if np.count_nonzero(among) < nlist * _NEARLY_ALL_LISTS:
            lists = int(np.count_nonzero(among))
            held = sum(int(group.list_rows[among].sum()) for group, _ in selections)
    width = min(lists, math.ceil(max(nprobe * rows, 2 * k * nlist) / selected))
    # Lossy codes approximate however many lists are probed: only a scan of exact vectors is exact.
    scan = nprobe >= nlist and reranks
    if selected < sum(group.rows for group, _ in selections):
        dimension = selections[0][0].dimension
        probing = (_TEST_ROW_NS * held + _SCORE_VALUE_NS * dimension * selected) * width / lists
        scan |= _SCAN_VALUE_NS * dimension * selected < probing
    return PassPlan(
        k=k,
        selected=selected,
        rows=rows,
        nprobe=0 if scan else width,
        lists=lists,
        nlist=nlist,
        candidates=candidates,
        rescored=rescored,
        queries=at_once,
    )


def candidates_for(k: int, rerank: int) -> int:
    """Return the candidates to rescore for k hits.

    ``rerank`` candidates per hit are enough for ten hits; one hit needs as many in all, and more
    hits need fewer each, since the rows around the last one lie ever closer to it in rank.

    Examples
    --------
    >>> [candidates_for(k, 4) for k in (1, 10, 100, 1000, 10_000)]
    [40, 40, 269, 1949, 15335]
    """
    if k <= _MEASURED_HITS:
        return _MEASURED_HITS * rerank
    return math.ceil(k * (1 + (rerank - 1) * math.pow(_MEASURED_HITS / k, 0.25)))


def lists_with_rows(selections: "Sequence[tuple[ShardGroup, RowMask]]") -> Mask:
    """Return the mask (nlist,) of the lists that hold a selected row."""
    lists: Mask = np.logical_or.reduce([group.lists_with(rows) for group, rows in selections])
    return lists
