"""Catalogs read into scenes: acquisitions, and the locations of their bands.

:mod:`storage.catalog.stac` reads STAC documents, :mod:`storage.catalog.stac_api` searches STAC
APIs, :mod:`storage.catalog.stac_geoparquet` reads tables of items, :mod:`storage.catalog.files`
plain files; here their entries are filtered, checked and made into :class:`~storage.scene.Scene`.
An entry that is wrong is rejected with its reason and never stops the rest.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from storage.catalog.files import GEOTIFF_SUFFIXES, SIDECAR_SUFFIXES, file_candidates
from storage.catalog.stac import item_candidates
from storage.catalog.stac_api import api_candidates, is_api
from storage.catalog.stac_geoparquet import SUFFIXES as TABLE_SUFFIXES
from storage.catalog.stac_geoparquet import table_candidates
from storage.errors import CatalogError, ConfigError, EmptyCatalogError, SkysiftError
from storage.geometry import intersects_polygon, touches, touches_polygon
from storage.location import Location
from storage.scene import (
    Candidate,
    CatalogSpec,
    Rejected,
    Scene,
    SceneList,
    SceneQuery,
)

_JSON_SUFFIXES = (".json", ".geojson")
_READERS = 16

T = TypeVar("T")
R = TypeVar("R")


def read_scenes(spec: CatalogSpec, bands: Sequence[str]) -> SceneList:
    """Read a catalog and return the scenes that satisfy its query.

    Parameters
    ----------
    spec
        The source and how to understand it.
    bands
        Names of the bands that every scene must have, in the encoder's order.

    Returns
    -------
    SceneList
        Scenes in the order of the catalog, and rejected entries with their reasons.

    Raises
    ------
    CatalogError
        The source is not a catalog.
    EmptyCatalogError
        It is empty, or nothing in it satisfies the query.
    NotFoundError
        The source does not exist.
    ConfigError
        The spec is wrong: no bands, a bad pattern, an unreadable scheme.
    """
    if not bands:
        raise ConfigError("no bands are named; name at least one")
    source = Location.of(spec.source)
    found = list(_entries(source, spec))
    if not found and is_api(source):
        raise EmptyCatalogError(f"the STAC API at {source} finds nothing for the query; widen it")
    if not found:
        raise EmptyCatalogError(
            f"{source} holds no scenes; give a STAC document or API, a GeoTIFF, "
            "a folder of them, or a pattern such as folder/*.tif"
        )
    selected, rejected = _select(found, spec.query)
    if not selected and not rejected:
        raise EmptyCatalogError(
            f"none of the {len(found)} entries of {source} satisfies the query; widen it"
        )
    scenes: list[Scene] = []
    waits = not (is_api(source) or source.is_local)  # an API's items are here whole
    for outcome in _map(lambda entry: _scene(entry, bands), selected, local=not waits):
        if isinstance(outcome, Scene):
            scenes.append(outcome)
        else:
            rejected.append(outcome)
    return SceneList(scenes=tuple(scenes), rejected=tuple(rejected))


def _entries(source: Location, spec: CatalogSpec) -> Iterator[Candidate | Rejected]:
    """Yield the entries of a source, by the form of its URI."""
    if is_api(source):
        yield from api_candidates(source, spec)
        return
    is_pattern, name = _is_pattern(source.uri), source.uri.lower()
    if not is_pattern and name.endswith(TABLE_SUFFIXES):
        yield from table_candidates(source, spec)
        return
    if not is_pattern and name.endswith(_JSON_SUFFIXES):
        yield from item_candidates(source, [source], spec)
        return
    for document in (source / "catalog.json", source / "collection.json"):
        if not is_pattern and document.exists():
            yield from item_candidates(source, [document], spec)
            return
    files = source.list()
    documents = [file for file in files if file.uri.lower().endswith(_JSON_SUFFIXES)]
    rasters = [file for file in files if file.uri.lower().endswith(GEOTIFF_SUFFIXES)]
    if rasters:
        beside = any(file.uri.lower().endswith(SIDECAR_SUFFIXES) for file in files)
        yield from file_candidates(
            [file.with_sidecars() for file in rasters] if beside else rasters, spec
        )
    elif documents:
        yield from item_candidates(source, documents, spec)


def _is_pattern(source: str) -> bool:
    return any(mark in source for mark in "*?[")


def _map(work: Callable[[T], R], values: Sequence[T], *, local: bool) -> Iterable[R]:
    """Map in order; in threads when every value may wait for a remote store."""
    if local:
        return map(work, values)
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(work, values))


def _select(
    found: Sequence[Candidate | Rejected], query: SceneQuery
) -> tuple[list[Candidate], list[Rejected]]:
    selected: list[Candidate] = []
    rejected: list[Rejected] = []
    seen: set[str] = set()
    for entry in found:
        if isinstance(entry, Rejected):
            rejected.append(entry)
            continue
        try:
            _check_id(entry.id, seen)
            matches = _satisfies(entry, query)
        except CatalogError as error:
            rejected.append(Rejected(scene_id=entry.id, reason=str(error)))
            continue
        seen.add(entry.id)
        if matches:
            selected.append(entry)
    return selected, rejected


def _check_id(scene_id: str, seen: set[str]) -> None:
    if not scene_id or not scene_id.isprintable() or scene_id != scene_id.strip():
        raise CatalogError(f"the id {scene_id!r} is empty or not printable; rename the scene")
    if "/" in scene_id or "\\" in scene_id or ".." in scene_id:
        raise CatalogError(f"the id {scene_id!r} looks like a path; rename the scene")
    if scene_id in seen:
        raise CatalogError(
            f"the id {scene_id!r} occurs before in this catalog; the first one is used, "
            "give the other another id"
        )


def _satisfies(entry: Candidate, query: SceneQuery) -> bool:
    if query.collections and entry.collection not in query.collections:
        return False
    since, until = query.interval
    if since is not None and entry.datetime < since:
        return False
    if until is not None and entry.datetime > until:
        return False
    cover, limit = entry.cloud_cover_percent, query.max_cloud_cover_percent
    if cover is not None and limit is not None and cover > limit:
        return False
    return _lies_in(entry, query)


def _lies_in(entry: Candidate, query: SceneQuery) -> bool:
    if query.area is None:
        return True
    if entry.bbox is None:
        raise CatalogError(f"scene {entry.id} has no bbox, but the query has an area")
    if query.bbox is not None and not touches(np.array([entry.bbox]), query.bbox)[0]:
        return False
    if query.polygon is None:
        return True
    wkt = str(query.polygon)
    if entry.geometry is None or entry.bbox[0] > entry.bbox[2]:
        return bool(intersects_polygon(np.array([entry.bbox]), wkt)[0])
    try:
        return touches_polygon(entry.geometry, wkt)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CatalogError(f"scene {entry.id} has a geometry that is none: {error}") from error


def _scene(entry: Candidate, bands: Sequence[str]) -> Scene | Rejected:
    try:
        sources = entry.resolve(bands)
    except SkysiftError as error:
        return Rejected(scene_id=entry.id, reason=str(error))
    return Scene(
        id=entry.id,
        datetime=entry.datetime,
        bands=sources.bands,
        mask=sources.mask,
        collection=entry.collection,
        cloud_cover_percent=entry.cloud_cover_percent,
        bbox=entry.bbox,
        revision=sources.revision,
        end=sources.end,
        sources=sources.sources,
        document=sources.document,
    )
