"""Catalogs read into scenes: acquisitions, and the locations of their bands.

:mod:`storage.catalog.stac` reads STAC documents, :mod:`storage.catalog.stac_api` searches STAC
APIs, :mod:`storage.catalog.stac_geoparquet` reads tables of items, :mod:`storage.catalog.files`
plain files; here their entries are filtered, checked and made into :class:`~storage.scene.Scene`.
An entry that is wrong, in whatever way, is rejected with its reason and never stops the rest.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from storage.catalog.files import SIDECAR_SUFFIXES, file_candidates
from storage.catalog.stac import item_candidates
from storage.catalog.stac_api import api_candidates
from storage.catalog.stac_geoparquet import SUFFIXES as TABLE_SUFFIXES
from storage.catalog.stac_geoparquet import table_candidates
from storage.errors import CatalogError, ConfigError, EmptyCatalogError, SkysiftError
from storage.geometry import footprint_wkt, intersects_polygon, touches, touches_polygon
from storage.location import Location
from storage.quarantine import Quarantine, reason_of
from storage.raster.geotiff import RASTER_SUFFIXES, is_open
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
    source = Location.of(spec.source).absolute.with_drivers(spec.drivers)
    if source.is_local:
        # Without "..", too, the scenes are the same from any working directory.
        source = source.at(os.path.normpath(source.uri))
    try:
        found = list(_entries(source, spec))
    except SkysiftError:
        raise
    except Exception as error:  # documents and libraries of outside raise whatever they like
        raise CatalogError(f"{source} cannot be read as a catalog: {reason_of(error)}") from error
    if not found and source.is_web:
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
    # An object store takes long to answer, which threads hide; an API's items are here whole.
    waits = not (source.is_web or source.is_local)
    with ThreadPoolExecutor(_READERS) as pool:
        for outcome in (pool.map if waits else map)(partial(_scene, bands=bands), selected):
            if isinstance(outcome, Scene):
                scenes.append(outcome)
            else:
                rejected.append(outcome)
    return SceneList(scenes=tuple(scenes), rejected=tuple(rejected))


def _entries(source: Location, spec: CatalogSpec) -> Iterator[Candidate | Rejected]:
    """Yield the entries of a source, by the form of its URI."""
    if source.is_web:
        yield from api_candidates(source, spec)
        return
    is_pattern, name = source.is_pattern, source.uri.lower()
    if not is_pattern and name.endswith(TABLE_SUFFIXES):
        yield from table_candidates(source, spec)
        return
    if not is_pattern and name.endswith(_JSON_SUFFIXES):
        yield from item_candidates(source, [source], spec)
        return
    # Who may read an object may not always list its bucket.
    is_object = not is_pattern and not source.is_local and name.endswith(RASTER_SUFFIXES)
    for document in (source / "catalog.json", source / "collection.json"):
        if not is_pattern and not is_object and document.exists():
            yield from item_candidates(source, [document], spec)
            return
    files = [source] if is_object else source.list()
    documents = [file for file in files if file.uri.lower().endswith(_JSON_SUFFIXES)]
    rasters = [file for file in files if file.uri.lower().endswith(RASTER_SUFFIXES)]
    if rasters and (not documents or any(is_open(file) for file in rasters)):
        beside = any(file.uri.lower().endswith(SIDECAR_SUFFIXES) for file in files)
        yield from file_candidates(
            [file.with_sidecars() for file in rasters] if beside else rasters, spec
        )
    elif documents:
        yield from item_candidates(source, documents, spec)


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
        with Quarantine(f"scene {entry.id}") as fault:
            if _satisfies(entry, query):
                _check_id(entry.id, seen)
                seen.add(entry.id)
                selected.append(entry)
        if fault:
            rejected.append(Rejected(scene_id=entry.id, reason=fault.reason))
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
    box, geometry = entry.bbox, entry.geometry
    if query.area is None:
        return True
    if box is None and geometry is None:
        raise CatalogError(
            f"scene {entry.id} has no geometry and no bbox in degrees, but the query has an area"
        )
    if query.bbox is not None and not (
        touches_polygon(geometry, footprint_wkt(query.bbox))
        if box is None and geometry is not None
        else touches(np.array([box]), query.bbox)[0]
    ):
        return False
    if query.polygon is None:
        return True
    wkt = str(query.polygon)
    if box is not None and (geometry is None or box[0] > box[2]):
        return bool(intersects_polygon(np.array([box]), wkt)[0])
    assert geometry is not None
    return touches_polygon(geometry, wkt)


def _scene(entry: Candidate, bands: Sequence[str]) -> Scene | Rejected:
    with Quarantine(f"scene {entry.id}") as fault:
        sources = entry.resolve(bands)
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
    return Rejected(scene_id=entry.id, reason=fault.reason)
