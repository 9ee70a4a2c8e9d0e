"""The backend of the routes: an index, the archive that it pins, the encoder and the scenes.

A new version of the index is loaded beside the current one and takes over between two requests:
each request is answered by one version from beginning to end.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from encoders.spec import EncoderSpec, no_text, read_spec
from pipeline.search.change import ChangeSpec, find_changes
from pipeline.search.detections import suggest
from pipeline.search.hits import Hits
from pipeline.search.query import Query, QueryResolver, combine, learn
from pipeline.search.saved import SavedSearch, search_document
from pipeline.search.searcher import Searcher
from storage.archive.reader import Archive
from storage.dates import parse_moment
from storage.errors import ConfigError, NotFoundError, SearchUnavailableError, SkysiftError
from storage.formats import hit_records
from storage.geometry import EDGES, geojson
from storage.index.filter import Filter
from storage.index.manifest import current_version, read_manifest
from storage.location import Location
from storage.outlines import tile_outlines
from workflows.report.colours import preset_of, presets_of
from workflows.service.collections import Collections
from workflows.service.decoding import Decoder
from workflows.service.footprints import ScenePlaces
from workflows.service.layers import Layers, TileNumber, from_text, to_text
from workflows.service.marks import (
    DetectBody,
    DetectionsAnswer,
    MarksAnswer,
    OpenedSearch,
    SaveBody,
    SuggestBody,
    detections,
    marks_of_query,
    opened,
    saved,
)
from workflows.service.mosaic import NOTHING, Drawn, Look, MapTile, Mosaic, opening_tiles, zoom_of
from workflows.service.schema import (
    AcquisitionBody,
    AskBody,
    ChangeAnswer,
    ChangeBody,
    ChangeQuery,
    ExampleBody,
    FilterBody,
    HitBody,
    IndexAnswer,
    MosaicQuery,
    PairsBody,
    PartsBody,
    PlaceFilterBody,
    PresetBody,
    ReadyAnswer,
    SceneBody,
    ScenesAnswer,
    SceneState,
    SearchAnswer,
    SearchBody,
    ThumbnailQuery,
    TileAnswer,
)
from workflows.service.settings import BackendConfig
from workflows.service.telemetry import Served
from workflows.service.thumbnails import Thumbnail, Thumbnails

if TYPE_CHECKING:
    from encoders.bundle import Encoder

logger = logging.getLogger(__name__)

_POLL_S = 5.0
_MOST_COMPARED = 2_000_000
"""Rows of an archive that a request compares: some seconds, and some 100 MB."""
_OPENING_S = 6.0
_DRAWING = 4
_MOST_ACQUISITIONS = 10_000
_MOST_IN_BOX = 1_000


def no_pictures_because(config: BackendConfig) -> str:
    """Return why a service would show no pictures; empty when it would show some."""
    manifest = read_manifest(config.index)
    archive = Archive.open(config.index.at(manifest.archive_uri), manifest.snapshot)
    return Thumbnails(config.catalog, 0).obstacle(archive)


class IndexBackend:
    """Answers from the current version of an index; safe to use from several threads."""

    def __init__(self, config: BackendConfig) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._polled_s = float("-inf")
        self._version: _Version | None = None
        self._decode = Decoder(config.max_image_px)
        self._thumbnails = Thumbnails(config.catalog, config.thumbnail_cache_bytes)
        self._loading = threading.Event()

    def prepare(self) -> None:
        """Load the index, and then what a first page requests, in a thread.

        The service is ready once the index is loaded; the pictures follow.
        """
        self._loading.set()
        threading.Thread(target=self._prepare, name="skysift-prepare", daemon=True).start()

    def _prepare(self) -> None:
        try:
            with suppress(SkysiftError):  # it is answered to the request that meets it
                self._current().prepare()
        finally:
            self._loading.clear()
        with suppress(SkysiftError):
            self._draw_opening()

    def _draw_opening(self) -> None:
        """Draw the scenes where a page opens into the cache, for a few seconds at most."""
        version, until = self._current(), time.monotonic() + _OPENING_S
        if self._thumbnails.obstacle(version.archive):
            return

        def draw(tile: MapTile) -> None:
            with suppress(SkysiftError):
                if time.monotonic() < until:
                    self.mosaic(tile, MosaicQuery(), known="")

        tiles = opening_tiles(version.searcher.manifest.bbox, zoom_of(version.archive))
        with ThreadPoolExecutor(_DRAWING) as pool:
            list(pool.map(draw, tiles))

    def search(self, body: SearchBody, image: bytes | None) -> SearchAnswer:
        """Answer a query; the tiles of the query are not among its hits."""
        version = self._current()
        query, about = self._query(version, body, image)
        hits = version.searcher.answer(query, body.k, _filter(body.filter), distinct=body.distinct)
        return _found(hits, about)

    def suggest(self, body: SuggestBody, image: bytes | None) -> SearchAnswer:
        """Return the tiles whose marks would teach most."""
        version = self._current()
        query, about = self._query(version, body, image)
        return _found(suggest(version.searcher, query, body.k, _filter(body.filter)), about)

    def detect(self, body: DetectBody, image: bytes | None) -> DetectionsAnswer:
        """Return the places that marks ask for, with their probabilities."""
        version = self._current()
        query, about = self._query(version, body, image)
        return detections(version.searcher, query, body, _filter(body.filter), about)

    def marks(self, body: AskBody, image: bytes | None) -> MarksAnswer:
        """Return the marks that are tiles of the archive."""
        version = self._current()
        return marks_of_query(version.searcher, self._query(version, body, image)[0])

    def save(self, body: SaveBody, image: bytes | None) -> bytes:
        """Return a query as the content of a saved search's file."""
        version = self._current()
        query, _ = self._query(version, body, image)
        return search_document(saved(version.searcher, query, body, _filter(body.filter)))

    def open_saved(self, document: bytes) -> OpenedSearch:
        """Return a saved search as a query of the index."""
        return opened(document, self._current().resolver)

    def change(self, query: ChangeQuery) -> ChangeAnswer:
        """Rank the places of the archive at the index's snapshot by their change.

        Raises
        ------
        ConfigError
            The archive is too large to be compared in a request, or the query is invalid.
        """
        version = self._current()
        archive, manifest = version.archive, version.searcher.manifest
        spec = ChangeSpec(
            before=query.before,
            after=query.after,
            where=_filter(query.filter),
            k=query.k,
            min_score=query.min_score,
            blend=query.blend,
        )
        if len(archive) > _MOST_COMPARED:
            raise ConfigError(
                f"change: the archive has {len(archive):,} rows, and a request compares at most "
                f"{_MOST_COMPARED:,}, whatever its filter; on the command line `skysift change "
                f"--before {spec.before} --after {spec.after}` has no such limit"
            )
        toward = None
        if query.toward is not None:
            vector = from_text(query.toward, manifest.parameters.dimension)[0]
            toward = SavedSearch(
                title="the query",
                encoder_fingerprint=manifest.encoder_fingerprint,
                vector=tuple(vector.tolist()),
            )
        found = find_changes(archive, spec, toward)
        return ChangeAnswer(
            query=found.title,
            snapshot=found.snapshot,
            version=manifest.version,
            compared=found.compared,
            beyond=found.beyond,
            unjudged=found.unjudged,
            changes=[ChangeBody(**record) for record in hit_records(found.table)],
        )

    def tile(self, key: str) -> TileAnswer:
        """Return every acquisition of a tile, oldest first."""
        return _tile(self._current(), key)

    def thumbnail(self, key: str, how: ThumbnailQuery, known: str) -> Thumbnail:
        """Return a tile as PNG, of one scene or the newest; ``known`` are tags the client has."""
        version = self._current()
        scene = how.scene or _tile(version, key).acquisitions[-1].scene

        def draw() -> Drawn:
            if not len(version.searcher.find(Filter(tiles=(key,), scenes=(scene,)), 1)):
                raise NotFoundError(f"the index has no tile {key} of scene {scene}")
            return self._thumbnails.draw(version.archive, key, scene, how)

        return self._picture(self._thumbnails.etag(version.archive, key, scene, how), known, draw)

    def mosaic(self, tile: MapTile, how: MosaicQuery, known: str) -> Thumbnail:
        """Return the scenes of a tile of the map as WebP; ``known`` are tags the client has."""
        version = self._current()
        look = Look(
            period=Filter(since=how.since, until=how.until),
            preset=preset_of(self._thumbnails.bands(version.archive), how.preset),
            gamma=how.gamma,
        )
        mosaic = self._thumbnails.mosaic(version.archive) or version.mosaic

        def draw() -> Drawn:
            scenes = mosaic.scenes(tile, look.period)
            if not scenes:
                return NOTHING
            renderer = self._thumbnails.renderer(version.archive, scenes[0].id)
            try:
                return mosaic.draw(tile, look, renderer)
            except NotFoundError:
                self._thumbnails.forget()
                raise

        return self._picture(mosaic.etag(tile, look), known, draw)

    def _picture(self, etag: str, known: str, draw: Callable[[], Drawn]) -> Thumbnail:
        if etag in known:
            return Thumbnail(content=None, etag=etag, source="unchanged")
        cached = self._thumbnails.cached(etag)
        made = cached or draw()
        if made.lasts:
            self._thumbnails.keep(etag, made)
        source = "cache" if cached else "drawn"
        return Thumbnail(content=made.content, etag=etag, source=source, note=made.note)

    def scores(self, like: str, at: TileNumber) -> bytes:
        """Return a map tile of the similarity of every place to a vector."""
        return self._current().layers.scores(like, at)

    def colours(self, at: TileNumber) -> bytes:
        """Return a map tile of the principal components of every place."""
        return self._current().layers.colours(at)

    def scenes(self, offset: int, limit: int, state: SceneState | None) -> ScenesAnswer:
        """Return a page of the ledger at the index's snapshot."""
        version = self._current()
        entries = [entry for entry in version.ledger if state in (None, entry.state)]
        page = entries[offset : offset + limit]
        return ScenesAnswer(
            snapshot=version.archive.snapshot,
            total=len(entries),
            offset=offset,
            scenes=[
                SceneBody(
                    scene=entry.scene_id,
                    state=entry.state,
                    reason=entry.reason,
                    rows=entry.rows,
                    datetime=entry.datetime,
                    bbox=None if place is None else list(place.box),
                    geometry=None if place is None else place.geometry,
                )
                for entry, place in zip(page, version.places.of(page), strict=True)
            ],
        )

    def collections(self) -> Collections:
        """Return the collections of features of the current version."""
        return self._current().collections

    def ready(self) -> ReadyAnswer:
        """Return the version that is served.

        Raises
        ------
        SearchUnavailableError
            The index is not loaded yet, or shards of it have no search actor that answers.
        """
        if self._loading.is_set():
            raise SearchUnavailableError("the index is being loaded")
        searcher = self._current().searcher
        searcher.check()
        manifest = searcher.manifest
        return ReadyAnswer(version=manifest.version, snapshot=manifest.snapshot, rows=manifest.rows)

    def served(self) -> Served | None:
        """Return the served version, for the metrics; None while none is loaded."""
        version = self._version
        if version is None:
            return None
        return Served(
            version=version.name,
            rows=version.searcher.manifest.rows,
            committed_at=version.committed_at,
            scenes=Counter(entry.state for entry in version.ledger),
        )

    def about(self) -> IndexAnswer:
        """Describe the index; the application adds its limits."""
        version = self._current()
        manifest, obstacle = version.searcher.manifest, self._thumbnails.obstacle(version.archive)
        return IndexAnswer(
            version=manifest.version,
            snapshot=manifest.snapshot,
            rows=manifest.rows,
            dimension=manifest.parameters.dimension,
            parts=manifest.parts and PartsBody(**asdict(manifest.parts)),
            bbox=list(manifest.bbox),
            since=parse_moment(min(shard.since for shard in manifest.shards), "index"),
            until=parse_moment(max(shard.until for shard in manifest.shards), "index"),
            classes=list(manifest.classes),
            bands=list(version.archive.spec.bands),
            words=not version.no_words,
            no_words_because=version.no_words,
            pairs=manifest.pairs
            and PairsBody(shares=list(manifest.pairs.shares), scores=list(manifest.pairs.scores)),
            pictures=not obstacle,
            no_pictures_because=obstacle,
            presets=[
                PresetBody(name=preset.name, title=preset.title)
                for preset in presets_of(self._thumbnails.bands(version.archive))
            ],
            mosaic_zoom=zoom_of(version.archive),
            max_k=manifest.rows,
            base_map=None,
            base_map_attribution="",
        )

    def _current(self) -> "_Version":
        """Return the current version; look for a newer version every few seconds.

        The first version is loaded by the first call, a newer version by a thread of its own.
        """
        with self._lock:
            if self._version is None:
                self._version = _Version(self._config, self._newest())
                self._polled_s = time.monotonic()
            elif time.monotonic() - self._polled_s >= _POLL_S:
                self._polled_s = float("inf")  # until the thread is done
                threading.Thread(target=self._follow, name="skysift-follow", daemon=True).start()
            return self._version

    def _follow(self) -> None:
        """Load the newest version and make it the current one."""
        old = self._version
        try:
            name = self._newest()
            if old is not None and name != old.name:
                newer = _Version(self._config, name)
                newer.prepare()
                with self._lock:
                    self._version = newer
                logger.info("index version %s takes over from %s", name, old.name)
                self._draw_opening()
        except SkysiftError as error:
            logger.warning("the newest version of the index is not taken over: %s", error)
        finally:
            self._polled_s = time.monotonic()

    def _newest(self) -> str:
        return current_version(self._config.index)

    def _query(
        self, version: "_Version", body: AskBody, image: bytes | None
    ) -> tuple[Query, dict[str, Any]]:
        """Return a query made of its marks, and what every answer says about it."""
        example = self._example(version, body, image)
        query = learn(
            version.searcher,
            example + _examples(version, body.positive),
            _examples(version, body.negative),
            blend=body.blend,
        )
        asked = example[0] if len(example) == 1 else query
        return query, {
            "query": query.label,
            "tile": asked.tile,
            "scene": asked.scene,
            "note": query.note,
            "blend": query.blend,
            "learned": query.learned,
            "like": to_text(query.weights),
        }

    def _example(self, version: "_Version", body: AskBody, image: bytes | None) -> list[Query]:
        if body.vector is not None:
            return [Query(vector=np.asarray(body.vector, np.float32), label="vector")]
        if body.lonlat is not None:
            return [version.resolver.point(*body.lonlat, date=body.date)]
        if body.tile is not None:
            return [version.resolver.tile(body.tile, body.scene)]
        if body.text is not None:
            return [version.embedding_resolver.text(body.text)]
        if body.box is not None:
            return [combine(version.resolver.tiles(Filter(bbox=body.box), _MOST_IN_BOX))]
        if image is None:
            return []
        pixels, resolver = self._decode(image), version.embedding_resolver
        return [resolver.pixels(pixels, label="the image", bands=body.bands)]


class _Version:
    """One version of the index, with the archive, resolvers and encoder of its queries."""

    def __init__(self, config: BackendConfig, name: str) -> None:
        self._config, self.name = config, name
        self.searcher = Searcher.connect(config.index, version=name, replicas=config.replicas)
        self.resolver = QueryResolver(self.searcher)
        self.archive = self.searcher.archive
        self.places = ScenePlaces(self.archive)
        self.layers = Layers(self.searcher)
        self.ledger = self.archive.scenes()
        self.committed_at = self.archive.committed_at

    def prepare(self) -> None:
        """Read the boxes of the scenes, which the map needs first."""
        _ = self.mosaic

    @cached_property
    def collections(self) -> Collections:
        searches = self._config.searches
        folder = None if searches is None else Location.of(searches)
        return Collections(self.searcher, self.places, folder)

    @cached_property
    def mosaic(self) -> Mosaic:
        return Mosaic.of_archive(self.archive, self.places)

    @cached_property
    def encoder(self) -> "Encoder":
        from encoders.bundle import load_encoder  # brings torch, which most queries do without

        return load_encoder(self._bundle)

    @property
    def _bundle(self) -> str | Location:
        return self._config.encoder_uri or self.archive.encoder

    @cached_property
    def _encoder_spec(self) -> EncoderSpec:
        return read_spec(self._bundle)

    @cached_property
    def embedding_resolver(self) -> QueryResolver:
        return QueryResolver(self.searcher, self.encoder)

    @property
    def no_words(self) -> str:
        """Why the encoder embeds no words; empty when it does."""
        try:
            spec = self._encoder_spec
        except SkysiftError as error:
            return str(error)
        fingerprint = self.searcher.manifest.encoder_fingerprint
        return "" if spec.text else no_text(spec.backbone, fingerprint)


def _found(hits: Hits, about: dict[str, Any]) -> SearchAnswer:
    """Return the answer of a query; ``about`` is what every answer says about it."""
    return SearchAnswer(
        **about,
        snapshot=hits.snapshot,
        version=hits.version,
        coverage=hits.coverage,
        ordinary=bool(hits.ordinary),
        hits=[HitBody(**record) for record in hit_records(hits.to_arrow())],
    )


def _examples(version: _Version, examples: list[ExampleBody]) -> list[Query]:
    return version.resolver.marked([(example.tile, example.scene) for example in examples])


def _tile(version: _Version, key: str) -> TileAnswer:
    table = version.searcher.find(Filter(tiles=(key,)), _MOST_ACQUISITIONS)
    records = sorted(table.to_pylist(), key=lambda row: (row["datetime"], row["scene"]))
    if not records:
        raise NotFoundError(f"the index has no tile {key}; search by lonlat to find some")
    newest = records[-1]
    box = np.array([[newest[edge] for edge in EDGES]])
    grid, column, row = key.rsplit("/", 2)
    shape = tile_outlines(version.searcher.grids, [grid], [[int(column), int(row)]], box)
    return TileAnswer(
        snapshot=version.searcher.manifest.snapshot,
        version=version.name,
        tile=key,
        bbox=box[0].tolist(),
        geometry=geojson(shape)[0],
        acquisitions=[
            AcquisitionBody(**{name: row[name] for name in AcquisitionBody.model_fields})
            for row in records
        ],
    )


def _filter(body: FilterBody | PlaceFilterBody) -> Filter:
    conditions = body.model_dump(exclude={"scenes", "labels"})
    return Filter(**conditions, scenes=tuple(body.scenes), labels=tuple(body.labels))
