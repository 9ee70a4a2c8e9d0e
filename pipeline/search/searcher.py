"""Search an index from anywhere: a driver, a Ray task or actor, or a process without Ray.

:class:`Searcher` is a thin client. It plans a search from the manifest, sends each search actor one
message for all of its shards, merges the answers by (score, tile key, scene id) and reports the
snapshot of the answer and the share of the shards that answered.
"""

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.search.distinct import DISTINCT, answer_places
from pipeline.search.fleet import ActorPool, PartialResult, require_ray
from pipeline.search.hits import Hits, merge, together
from pipeline.search.marks import UNLABELLED_ROWS
from storage.display import Described, box_in_words
from storage.errors import ConfigError, NotFoundError, SearchUnavailableError
from storage.index.filter import Filter
from storage.index.manifest import IndexManifest, read_manifest, shard_name, shard_number
from storage.index.plan import SearchPlan, plan_search
from storage.index.ranking import Float32, Float64, Int64, canonical_queries
from storage.index.search import ShardSet
from storage.index.sidecar import Columns, hit_table, join_rows
from storage.location import Location

if TYPE_CHECKING:
    from pipeline.search.query import Query
    from storage.archive.reader import Archive

logger = logging.getLogger(__name__)

Where = Filter | Mapping[str, Any] | None
"""Which rows may be returned: a filter, a mapping of its fields, or every row."""
_RECOVERY_POLL_S = 0.1
_PROBE_S = 1.0
_CACHED_PLANS = 64
FIRST_DEPTH = 64
"""Hits of a query in the first round of a search by score."""
_DEEPER, _HITS_AT_ONCE = 8, 200_000
DEFAULT_LIMIT = 10_000
"""Most hits of a query in a search by score."""


class Searcher(Described):
    """A client of one version of an index; :meth:`connect` or :meth:`local` makes one.

    Safe to share between threads. Pickles by connecting again where it is unpickled.
    """

    def __init__(
        self,
        index: Location,
        manifest: IndexManifest,
        backend: ActorPool | ShardSet,
        recovery_s: float = 0.0,
    ) -> None:
        self.index = index
        self.manifest = manifest
        self._backend = backend
        self._recovery_s = recovery_s
        self._plan = lru_cache(_CACHED_PLANS)(partial(plan_search, manifest))

    @classmethod
    def connect(
        cls,
        index_uri: str | Location,
        *,
        version: str | None = None,
        replicas: int = 1,
        timeout_s: float = 60.0,
        recovery_s: float = 30.0,
    ) -> "Searcher":
        """Connect to the search actors of an index, or start them: one on each node.

        Parameters
        ----------
        index_uri
            The folder of the index.
        version
            The version to search, also after later updates; by default the current version.
        replicas
            Actors that hold each shard; on different nodes when there are enough.
        timeout_s
            Time for an actor to answer before another replica is tried.
        recovery_s
            Time that a complete answer waits for an actor to restart when no replica is left.

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
        index = Location.of(index_uri).absolute
        manifest = read_manifest(index, version)
        pool = ActorPool(
            index,
            manifest.version,
            [shard.name for shard in manifest.shards],
            replicas=replicas,
            timeout_s=timeout_s,
        )
        return cls(index, manifest, pool, recovery_s)

    @classmethod
    def local(cls, index_uri: str | Location, *, version: str | None = None) -> "Searcher":
        """Load all shards into this process: no Ray, no failover.

        Raises
        ------
        NotFoundError
            There is no such index or version.
        CorruptIndexError
            A file is missing or differs from the manifest.
        """
        index = Location.of(index_uri).absolute
        manifest = read_manifest(index, version)
        return cls(index, manifest, ShardSet.load(index, manifest))

    def check(self) -> None:
        """Check, within about a second, that every shard can be searched.

        Raises
        ------
        SearchUnavailableError
            No search actor of a shard answers; actors that died are started again.
        """
        if isinstance(self._backend, ActorPool) and (silent := self._backend.silent(_PROBE_S)):
            raise SearchUnavailableError(
                f"no search actor answers for {len(silent)} of {len(self.manifest.shards)} shards; "
                "it is restarted where it died"
            )

    def facts(self) -> dict[str, Any]:
        """Return rows, dates, box, encoder, kind, and where the shards are searched."""
        manifest = self.manifest
        days = [text[:10] for shard in manifest.shards for text in (shard.since, shard.until)]
        here = isinstance(self._backend, ShardSet)
        return {
            "location": str(self.index),
            "rows": manifest.rows,
            "dates": f"{min(days)} to {max(days)}" if days else None,
            "box": box_in_words(manifest.bbox) if manifest.shards else None,
            "labels": manifest.classes,
            "encoder": manifest.encoder_fingerprint[:16],
            "vectors": f"{manifest.parameters.dimension} values, {manifest.parameters.kind}",
            "shards": len(manifest.shards),
            "searched by": "this process" if here else "search actors of the cluster",
            "archive": f"{manifest.archive_uri} at snapshot {manifest.snapshot}",
            "version": manifest.version,
        }

    def __reduce__(self) -> tuple[Any, ...]:
        replicas = self._backend.placement.replicas if isinstance(self._backend, ActorPool) else 0
        return _reopen, (self.index, self.manifest.version, replicas)

    def search(
        self,
        vectors: npt.ArrayLike,
        k: int = 10,
        where: Where = None,
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
            Rows to return of each query.
        where
            Which rows may be returned; a :class:`storage.index.filter.Filter` or a mapping of its
            fields.
        nprobe
            Lists to probe instead of the tuned number; the number of lists for exact answers.
        require_complete
            Raise when no replica of a shard answers, instead of reporting the shard in the hits.

        Raises
        ------
        ConfigError
            The queries, k, nprobe or the filter are invalid.
        SearchUnavailableError
            A shard did not answer, and a complete answer is required.
        """
        queries = canonical_queries(vectors, self.manifest.parameters.dimension)
        plan = self._plan(k, Filter.of(where), nprobe)
        return self._execute(plan, queries, require_complete)

    def search_above(
        self,
        vectors: npt.ArrayLike,
        score: float,
        where: Where = None,
        *,
        limit: int = DEFAULT_LIMIT,
        nprobe: int | None = None,
        require_complete: bool = True,
    ) -> Hits:
        """Return every row whose score is at least ``score``, up to ``limit`` rows a query.

        Queries with more such rows get the best of them and are named in ``Hits.truncated``.
        Searches eight times deeper each round, until the last row of a query is below the score.

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
            The queries, the score, the limit, nprobe or the filter are invalid.
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
        deepest = min(limit + 1, self.manifest.rows)
        pending, depth = np.arange(len(queries)), min(FIRST_DEPTH, deepest)
        where = Filter.of(where)
        parts: list[tuple[Int64, Hits]] = []
        truncated: list[int] = []
        while len(pending):
            plan = self._plan(depth, where, nprobe)
            step, deeper = max(_HITS_AT_ONCE // depth, 1), []
            for start in range(0, len(pending), step):
                block = pending[start : start + step]
                hits = self._execute(plan, queries[block], require_complete)
                above = (hits.rows >= 0) & (hits.scores >= np.float32(score))
                # A query is complete when its last hit is below the score, or there are no more.
                done = ~above[:, -1] | (depth == deepest)
                truncated += block[above.sum(axis=1) > limit].tolist()
                parts.append((block, hits.where(above & done[:, None], limit)))
                deeper.append(block[~done])
            pending, depth = np.concatenate(deeper), min(depth * _DEEPER, deepest)
        return replace(together(parts, len(queries)), truncated=tuple(sorted(truncated)))

    def answer(
        self,
        queries: "Query | Sequence[Query]",
        k: int = 10,
        where: Where = None,
        *,
        min_score: float | None = None,
        limit: int = DEFAULT_LIMIT,
        keep_own: bool = False,
        distinct: str | None = None,
        nprobe: int | None = None,
        require_complete: bool = True,
    ) -> Hits:
        """Return the hits of queries without the archive rows that the queries are made of.

        Parameters
        ----------
        queries
            From a :class:`pipeline.search.query.QueryResolver`, each answered by itself; positive
            and negative examples become one query by :func:`pipeline.search.query.learn`. One of
            which no blend was chosen has the encoder's (:func:`pipeline.search.query.blended`).
        k
            Rows to return of each query.
        where, nprobe, require_complete
            As in :meth:`search`.
        min_score, limit
            Return every row that reaches the score, up to ``limit`` of a query, in place of k rows.
        keep_own
            Keep the rows that a query is made of.
        distinct
            ``place``: one hit for each place, with every date of the place inside
            (:class:`pipeline.search.distinct.PlaceHits`).

        Raises
        ------
        ConfigError
            The queries, k, ``distinct``, the score, the limit, nprobe or the filter are invalid.
        SearchUnavailableError
            A shard did not answer, and a complete answer is required.

        Examples
        --------
        >>> searcher = Searcher.local("work/index")                               # doctest: +SKIP
        >>> query = QueryResolver(searcher).point(-99.15, 47.02)                  # doctest: +SKIP
        >>> searcher.answer(query, k=5).to_arrow()                                # doctest: +SKIP
        """
        from pipeline.search.query import blended  # brings rasterio, and imports this module

        given = queries if isinstance(queries, Sequence) else [queries]
        several = [blended(self, query) for query in given]
        own = {} if keep_own else {n: rows for n, q in enumerate(several) if (rows := q.rows)}
        most = k if min_score is None else limit
        if not several or most < 1:
            raise ConfigError(
                f"search: {len(several)} queries with at most {most} hits each; give at least one "
                "query and one hit"
            )
        deep = min(most + max(map(len, own.values()), default=0), self.manifest.rows)
        vectors = np.stack([query.vector for query in several])
        settings: dict[str, Any] = {"nprobe": nprobe, "require_complete": require_complete}
        if distinct is not None:
            if distinct not in DISTINCT:
                raise ConfigError(f"search: distinct is {distinct!r}; give {DISTINCT[0]!r} or none")
            settings |= {} if min_score is None else {"min_score": min_score}
            found = answer_places(
                self, several, most, Filter.of(where), keep_own=keep_own, **settings
            )
            return replace(found, queries=tuple(several))
        scales = np.array([query.scale for query in several], dtype=np.float32)[:, None]
        if min_score is None:
            hits = self.search(vectors, deep, where, **settings)
        else:
            least = float(min(min_score / scales.ravel()))
            hits = self.search_above(vectors, least, where, limit=deep, **settings)
        hits = replace(hits, scores=hits.scores * scales)
        keep = np.ones(hits.rows.shape, dtype=np.bool_)
        for number, rows in own.items():
            keep[number] = ~np.isin(hits.rows[number], rows)
        return replace(hits.where(keep, most), queries=tuple(several))

    def explain(
        self,
        k: int = 10,
        where: Where = None,
        *,
        nprobe: int | None = None,
    ) -> SearchPlan:
        """Return how :meth:`search` would answer, without searching.

        The first round of :meth:`search_above` is a search with a k of 64.

        Raises
        ------
        ConfigError
            k, nprobe or the filter are invalid.
        SearchUnavailableError
            A shard did not answer.
        """
        plan = self._plan(k, Filter.of(where), nprobe)
        return replace(plan, passes=tuple(self._gather("explain", plan).answers))

    def find(self, where: Where, limit: int = 1000) -> pa.Table:
        """Return the first rows that match a filter, by (tile key, scene id), without a query.

        Raises
        ------
        ConfigError
            The filter names a class that the archive does not have.
        SearchUnavailableError
            A shard did not answer.
        """
        return self.find_vectors(where, limit, vectors=False)[0]

    def find_vectors(
        self, where: Where, limit: int = 1000, *, vectors: bool = True
    ) -> tuple[pa.Table, Float32]:
        """Return the rows that :meth:`find` returns, and their vectors (n, D) in the index.

        They are the archive's vectors, except in a lossy index without exact vectors.
        """
        plan = self._plan(max(min(limit, self.manifest.rows), 1), Filter.of(where))
        gathered = self._gather("find", plan, vectors)
        columns = join_rows(gathered.answers, len(self.manifest.classes))
        table = hit_table(columns, self.manifest.classes)
        keys = [("tile_key", "ascending"), ("scene", "ascending")]
        first = pc.sort_indices(table, sort_keys=keys)[:limit]
        empty = np.empty((0, self.manifest.parameters.dimension), np.float32)
        stored = columns.get("vector", empty)[first.to_numpy()] if vectors else empty
        return table.take(first), stored

    def page(
        self, where: Filter, limit: int, start: tuple[int, int] = (0, 0)
    ) -> tuple[Columns, tuple[int, int] | None]:
        """Return some of the rows that match a filter, in the order of the index.

        Parameters
        ----------
        where, limit
            The filter, and the most rows to return.
        start
            Number of the shard, and position in it, of the first row in question.

        Returns
        -------
        Columns, tuple or None
            The rows, and the start of the next page. A start stays valid in later versions of the
            index until it is compacted or built again.

        Raises
        ------
        ConfigError
            The filter names a class that the archive does not have.
        SearchUnavailableError
            A shard did not answer.

        Notes
        -----
        Each page asks one shard, or a few where rows are rare.
        """
        plan = self._plan(min(limit + 1, self.manifest.rows), where)
        parts: list[Columns] = []
        shard, position = start
        for number in sorted(map(shard_number, plan.shards)):
            if number < shard:
                continue
            one = replace(plan, shards=(shard_name(number),), k=limit + 1)
            (part,) = self._gather("page", one, position if number == shard else 0).answers
            room = limit - sum(len(part["row"]) for part in parts)
            places = part.pop("position")
            parts.append({name: values[:room] for name, values in part.items()})
            if len(places) > room:
                return join_rows(parts, len(self.manifest.classes)), (number, int(places[room]))
        return join_rows(parts, len(self.manifest.classes)), None

    def project(self, directions: npt.ArrayLike) -> dict[str, npt.NDArray[np.float16]]:
        """Return the dot products (n, m) of every row with directions (m, D), by shard.

        Rows are in the order of the shard's columns; deleted rows are among them.

        Raises
        ------
        SearchUnavailableError
            A shard did not answer.
        """
        plan = SearchPlan(k=1, where=Filter(), shards=tuple(s.name for s in self.manifest.shards))
        parts = self._gather("project", plan, np.asarray(directions, dtype=np.float32)).answers
        return {name: rows for part in parts for name, rows in part.items()}

    def unlabelled(self, without: Collection[int] = ()) -> Float32:
        """Return the vectors (n, D) of a uniform sample of the archive, without some of its rows.

        The sample follows from the snapshot alone, and is read once.

        Raises
        ------
        NotFoundError
            The archive is not there.
        """
        rows, vectors = self._sample
        return vectors[~np.isin(rows, list(without))]

    @cached_property
    def _sample(self) -> tuple[Int64, Float32]:
        from storage.archive.samples import uniform_rows  # brings zarr, as the archive does

        rows = uniform_rows(self.archive, UNLABELLED_ROWS)
        return rows, self.archive.read(rows, ["embedding"])["embedding"].astype(np.float32)

    @cached_property
    def archive(self) -> "Archive":
        """The archive at the snapshot that the index pins, opened at the first use."""
        from storage.archive.reader import Archive  # brings zarr, which a search does without

        return Archive.open(self.index.at(self.manifest.archive_uri), self.manifest.snapshot)

    @cached_property
    def grids(self) -> Mapping[str, Mapping[str, Any]]:
        """The plain description of each tile grid by its id; an old index asks its archive."""
        if self.manifest.grids:
            return self.manifest.grids
        try:
            return self.archive.ledger.grids
        except NotFoundError as error:
            logger.warning(
                "index %s does not describe its tile grids and its archive is not there (%s): "
                "footprints are the boxes of tiles; run `skysift index update`",
                self.index,
                error,
            )
            return {}

    def stop(self) -> None:
        """End the search actors of this version, for all clients; a local searcher has none."""
        if isinstance(self._backend, ActorPool):
            self._backend.stop()

    def _execute(self, plan: SearchPlan, queries: Float64, complete: bool) -> Hits:
        """Answer canonical queries (Q, D)."""
        sent = queries.astype(np.float32)  # exact: multiples of 2**-24 up to 1
        gathered = self._gather("search", plan, sent, complete=complete)
        if len(gathered.answers) == 1:
            (merged,) = gathered.answers
        else:
            merged = merge(gathered.answers, len(queries), plan.k, self._columns)
        return Hits(
            scores=merged.scores,
            rows=merged.rows,
            places=merged.places,
            coverage=1 - len(gathered.missing) / len(plan.shards) if plan.shards else 1.0,
            missing=tuple(sorted(gathered.missing)),
            snapshot=self.manifest.snapshot,
            version=self.manifest.version,
            classes=self.manifest.classes,
            pairs=self.manifest.pairs,
            grids=self.grids,
            read_columns=self._columns,
        )

    def _columns(self, places: Int64) -> Columns:
        """Return the columns of the rows at places (m,), in their order."""
        if isinstance(self._backend, ShardSet):
            return self._backend.columns(places)
        distinct, back = np.unique(places, return_inverse=True)
        names = {shard_name(number) for number in np.unique(distinct >> 32).tolist()}
        plan = SearchPlan(k=1, where=Filter(), shards=tuple(sorted(names)))
        parts = self._gather("columns", plan, distinct).answers
        columns = join_rows(parts, len(self.manifest.classes))
        order = np.argsort(columns.pop("place"))[back] if parts else back
        return {name: values[order] for name, values in columns.items()}

    def _gather(
        self, method: str, plan: SearchPlan, *arguments: Any, complete: bool = True
    ) -> PartialResult:
        if not plan.shards:
            return PartialResult(answers=[], missing={})
        if isinstance(self._backend, ShardSet):
            answer = getattr(self._backend, method)(plan, *arguments)
            return PartialResult(answers=[answer], missing={})
        gathered = self._backend.gather(method, plan, *arguments)
        deadline = time.monotonic() + self._recovery_s
        while complete and gathered.may_recover and time.monotonic() < deadline:
            time.sleep(_RECOVERY_POLL_S)
            rest = replace(plan, shards=tuple(gathered.missing))
            more = self._backend.gather(method, rest, *arguments)
            gathered = replace(more, answers=gathered.answers + more.answers)
        if gathered.missing and complete:
            name, reason = min(gathered.missing.items())
            others = len(gathered.missing) - 1
            raise SearchUnavailableError(
                f"index {self.index}: {name}{f' and {others} more' if others else ''} of "
                f"{len(plan.shards)} shards did not answer ({reason}); try again, raise replicas, "
                "or allow incomplete answers"
            )
        return gathered


def _reopen(index: Location, version: str, replicas: int) -> Searcher:
    if not replicas:
        return Searcher.local(index, version=version)
    return Searcher.connect(index, version=version, replicas=replicas)
