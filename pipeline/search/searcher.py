"""Search an index from anywhere: a driver, a Ray task or actor, or a process without Ray.

:class:`Searcher` is a thin client. It prunes shards by place and time, sends each search actor one
message for all of its shards, merges the answers by (score, tile key, scene id) and says which
snapshot they are from and what share of the shards answered.
"""

import math
import time
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.search.fleet import ActorPool, PartialResult, require_ray
from pipeline.search.hits import AboveScore, Hits, merge
from pipeline.search.node import SearchNode
from storage.errors import ConfigError, SearchUnavailableError
from storage.index.filter import Filter, may_match
from storage.index.manifest import IndexManifest, read_manifest
from storage.index.ranking import Float64, canonical_queries
from storage.index.sidecar import hit_table, join_rows, row_keys
from storage.location import StorageOptions, absolute_uri

_RECOVERY_POLL_S = 0.1
_FIRST_DEPTH, _DEEPER, _HITS_AT_ONCE = 64, 8, 200_000


class Searcher:
    """A client of one version of an index; :meth:`connect` or :meth:`local` makes one.

    Safe to share between threads. Pickles by connecting again where it is unpickled.
    """

    def __init__(
        self,
        index_uri: str,
        manifest: IndexManifest,
        options: StorageOptions | None,
        backend: ActorPool | SearchNode,
        recovery_s: float = 0.0,
    ) -> None:
        self.index_uri = index_uri
        self.manifest = manifest
        self._options = options
        self._backend = backend
        self._recovery_s = recovery_s

    @classmethod
    def connect(
        cls,
        index_uri: str,
        *,
        version: str | None = None,
        options: StorageOptions | None = None,
        replicas: int = 1,
        timeout_s: float = 60.0,
        recovery_s: float = 30.0,
    ) -> "Searcher":
        """Meet the search actors of an index, or start them: one on each node.

        Parameters
        ----------
        index_uri
            The folder of the index.
        version
            The version to search; the current one by default, also after later updates.
        options
            Where the object store is; also sent to the actors.
        replicas
            On how many actors each shard is; copies are on different nodes when there are enough.
        timeout_s
            How long an actor may take before another copy is asked.
        recovery_s
            How long a complete answer may wait for an actor to come back when no copy is left.

        Raises
        ------
        NotFoundError
            There is no such index or version.
        SearchUnavailableError
            This process is not connected to Ray.
        """
        if replicas < 1:
            raise ConfigError(f"search: replicas is {replicas}; give at least 1")
        require_ray()
        index_uri = absolute_uri(index_uri)
        manifest = read_manifest(index_uri, version, options)
        fleet = ActorPool(
            index_uri,
            manifest.version,
            [shard.name for shard in manifest.shards],
            options=options,
            replicas=replicas,
            timeout_s=timeout_s,
        )
        return cls(index_uri, manifest, options, fleet, recovery_s)

    @classmethod
    def local(
        cls,
        index_uri: str,
        *,
        version: str | None = None,
        options: StorageOptions | None = None,
    ) -> "Searcher":
        """Load all shards into this process: no Ray, no failover.

        Raises
        ------
        NotFoundError
            There is no such index or version.
        CorruptIndexError
            A file is missing or is not what the manifest says.
        """
        index_uri = absolute_uri(index_uri)
        manifest = read_manifest(index_uri, version, options)
        node = SearchNode(index_uri, manifest.version, None, options)
        node.ready()
        return cls(index_uri, manifest, options, node)

    def __reduce__(self) -> tuple[Any, ...]:
        replicas = self._backend.placement.replicas if isinstance(self._backend, ActorPool) else 0
        return _reopen, (self.index_uri, self.manifest.version, self._options, replicas)

    def search(
        self,
        vectors: npt.ArrayLike,
        k: int = 10,
        where: Filter | None = None,
        *,
        nprobe: int | None = None,
        require_complete: bool = True,
    ) -> Hits:
        """Return the k most similar rows of each query.

        Parameters
        ----------
        vectors
            Queries (Q, D), or one (D,), of the index's encoder; any length but zero.
        k
            How many rows to return of each query.
        where
            Which rows may be returned.
        nprobe
            Lists to look into instead of the tuned number; as many as there are for exact answers.
        require_complete
            Raise when a shard has no copy that answers, instead of saying so in the hits.

        Raises
        ------
        ConfigError
            The queries, k, nprobe or the filter make no sense.
        SearchUnavailableError
            A shard did not answer, and a complete answer is required.
        """
        queries = canonical_queries(vectors, self.manifest.parameters.dimension)
        return self._answer(queries, k, where or Filter(), nprobe, require_complete)

    def search_above(
        self,
        vectors: npt.ArrayLike,
        score: float,
        where: Filter | None = None,
        *,
        limit: int = 10_000,
        nprobe: int | None = None,
        require_complete: bool = True,
    ) -> Hits:
        """Return every row whose score is at least ``score``, up to ``limit`` rows a query.

        Queries with more such rows get the best of them and are named in ``Hits.truncated``.
        Searches deeper, eight times each turn, until a query's last row is below the score.

        Parameters
        ----------
        vectors
            Queries (Q, D), or one (D,).
        score
            Least cosine similarity, from -1 to 1.
        where, nprobe, require_complete
            As in :meth:`search`.
        limit
            Most rows of one query.

        Raises
        ------
        ConfigError
            The queries, the score, the limit, nprobe or the filter make no sense.
        SearchUnavailableError
            A shard did not answer, and a complete answer is required.
        """
        if not -1 <= score <= 1:
            raise ConfigError(f"search: score is {score}; give a cosine similarity in [-1, 1]")
        if limit < 1:
            raise ConfigError(f"search: limit is {limit}; give at least 1")
        queries = canonical_queries(vectors, self.manifest.parameters.dimension)
        if not len(queries):
            raise ConfigError("search: there is no query; give at least one vector")
        where = where or Filter()
        deepest = min(limit + 1, self.manifest.rows)
        found = AboveScore(len(queries), score, limit)
        waiting, depth = np.arange(len(queries)), min(_FIRST_DEPTH, deepest)
        while len(waiting):
            step, deeper = max(_HITS_AT_ONCE // depth, 1), []
            for start in range(0, len(waiting), step):
                block = waiting[start : start + step]
                hits = self._answer(queries[block], depth, where, nprobe, require_complete)
                deeper.append(found.take(block, hits, last=depth == deepest))
            waiting, depth = np.concatenate(deeper), min(depth * _DEEPER, deepest)
        return found.hits()

    def find(self, where: Filter, limit: int = 1000) -> pa.Table:
        """Return the first rows that match a filter, by (tile key, scene id), without a query.

        Raises
        ------
        ConfigError
            The filter names a class that the archive does not have.
        SearchUnavailableError
            A shard did not answer.
        """
        self._check(1, None, where)
        gathered = self._gather("find", self._in_question(where), (where, limit), True)
        columns = join_rows(gathered.answers, len(self.manifest.classes))
        keys = row_keys(columns)
        first = sorted(range(len(keys)), key=keys.__getitem__)[:limit]
        at = np.array(first, dtype=np.int64)
        return hit_table({n: v[at] for n, v in columns.items()}, self.manifest.classes)

    def stop(self) -> None:
        """End the search actors of this version, for all clients; a local searcher has none."""
        if isinstance(self._backend, ActorPool):
            self._backend.stop()

    def _answer(
        self, queries: Float64, k: int, where: Filter, nprobe: int | None, complete: bool
    ) -> Hits:
        """Answer canonical queries (Q, D)."""
        self._check(k, nprobe, where)
        names = self._in_question(where)
        sent = queries.astype(np.float32)  # exact: multiples of 2**-24 up to 1
        lists = self._widened(nprobe, names)
        gathered = self._gather("search", names, (sent, k, where, lists), complete)
        merged = merge(gathered.answers, len(queries), k, len(self.manifest.classes))
        return Hits(
            scores=merged.scores,
            rows=merged.rows,
            coverage=1 - len(gathered.missing) / len(names) if names else 1.0,
            missing=tuple(sorted(gathered.missing)),
            snapshot=self.manifest.snapshot,
            version=self.manifest.version,
            columns=merged.columns,
            classes=self.manifest.classes,
        )

    def _check(self, k: int, nprobe: int | None, where: Filter) -> None:
        if not 1 <= k <= self.manifest.rows:
            raise ConfigError(
                f"search: k is {k}, but index version {self.manifest.version} holds "
                f"{self.manifest.rows} rows; give 1 to {self.manifest.rows}"
            )
        if nprobe is not None and nprobe < 1:
            raise ConfigError(f"search: nprobe is {nprobe}; give at least 1")
        unknown = sorted(set(where.labels) - set(self.manifest.classes))
        if unknown:
            raise ConfigError(
                f"search: no class is named {', '.join(map(repr, unknown))}; the archive has "
                f"{', '.join(self.manifest.classes) or 'no labels'}"
            )

    def _widened(self, nprobe: int | None, names: list[str]) -> int | None:
        """Return the lists to look into: more when a filter leaves out whole shards.

        A search node widens by the share of the rows it is asked for; it does not know the others.
        """
        shards = self.manifest.shards
        asked = sum(shard.live_rows for shard in shards if shard.name in names)
        if not asked or asked == self.manifest.rows:
            return nprobe
        return math.ceil((nprobe or self.manifest.nprobe) * self.manifest.rows / asked)

    def _in_question(self, where: Filter) -> list[str]:
        return [
            shard.name
            for shard in self.manifest.shards
            if not where or may_match(where, shard.bbox, shard.since, shard.until)
        ]

    def _gather(
        self, method: str, names: list[str], arguments: tuple[Any, ...], complete: bool
    ) -> PartialResult:
        if not names:
            return PartialResult(answers=[], missing={})
        if isinstance(self._backend, SearchNode):
            answer = getattr(self._backend, method)(*arguments, names)
            return PartialResult(answers=[answer], missing={})
        gathered = self._backend.gather(method, names, arguments)
        deadline = time.monotonic() + self._recovery_s
        while complete and gathered.may_recover and time.monotonic() < deadline:
            time.sleep(_RECOVERY_POLL_S)
            more = self._backend.gather(method, list(gathered.missing), arguments)
            gathered = replace(more, answers=gathered.answers + more.answers)
        if gathered.missing and complete:
            name, reason = min(gathered.missing.items())
            others = len(gathered.missing) - 1
            raise SearchUnavailableError(
                f"index {self.index_uri}: {name}{f' and {others} more' if others else ''} of "
                f"{len(names)} shards did not answer ({reason}); try again, raise replicas, "
                "or allow incomplete answers"
            )
        return gathered


def _reopen(
    index_uri: str, version: str, options: StorageOptions | None, replicas: int
) -> Searcher:
    if not replicas:
        return Searcher.local(index_uri, version=version, options=options)
    return Searcher.connect(index_uri, version=version, options=options, replicas=replicas)
