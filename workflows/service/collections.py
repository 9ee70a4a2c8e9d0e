"""The collections of features: tiles, scenes and saved searches, a page at a time.

A feature is GeoJSON and a STAC item at once. Addresses are left to
:mod:`workflows.service.features`: an asset here is relative to the routes of the index. A page of
tiles asks the search actors for the rows after a position, so its cost does not grow with the
number of pages before it.
"""

import datetime as dt
import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlencode

import numpy as np

from pipeline.search.saved import SavedSearch, load_search
from pipeline.search.searcher import Searcher
from storage.archive.ledger import LedgerEntry
from storage.dates import parse_moment
from storage.errors import ConfigError, NotFoundError
from storage.formats import hit_records
from storage.geometry import BBox, geojson, intersects_polygon, touches
from storage.index.filter import Filter
from storage.index.sidecar import Columns, hit_table, row_keys
from storage.location import Location
from storage.outlines import tile_outlines
from workflows.service.footprints import ScenePlaces

Feature = dict[str, Any]
_DESCRIPTIONS = {
    "tiles": "Every tile of every acquisition in the index.",
    "scenes": "Every embedded scene, as the hull of its tiles.",
}
_OF_TILES = {"scene": "Scene id", "tile_key": "Tile key"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """Which features of a collection to return.

    ``where`` has a place, a period and the collection's queryables only; ``ids`` are those of
    features; ``token`` is from the answer with the page before.
    """

    where: Filter
    limit: int
    token: str | None = None
    ids: tuple[str, ...] | None = None


class Page(NamedTuple):
    """Features, the token of the next page, and the number of all matches where it is known."""

    features: list[Feature]
    token: str | None
    matched: int | None


class Collection(Protocol):
    """A named set of features."""

    id: str
    title: str
    description: str
    queryables: Mapping[str, str]  # the titles of the properties that choose by equality

    def page(self, wanted: Wanted) -> Page:
        """Return the features in question, in an order that stays."""


class Collections:
    """The collections of one version of an index; safe to use from several threads.

    Parameters
    ----------
    searcher, places
        The index, and the places of its scenes.
    searches
        The folder of saved searches; None without.
    """

    def __init__(self, searcher: Searcher, places: ScenePlaces, searches: Location | None) -> None:
        self._searcher, self._searches = searcher, searches
        self._fixed: dict[str, Collection] = {
            "tiles": Tiles(searcher),
            "scenes": Scenes(searcher, places),
        }

    @property
    def extent(self) -> tuple[BBox, list[str]]:
        """The WGS84 box and the first and last time of all tiles."""
        shards = self._searcher.manifest.shards
        times = min(shard.since for shard in shards), max(shard.until for shard in shards)
        return self._searcher.manifest.bbox, [_text(parse_moment(t, "index")) for t in times]

    def all(self) -> list[Collection]:
        """Return every collection."""
        saved = [self._saved(name) for name in self._names()]
        return [*self._fixed.values(), *saved]

    def get(self, name: str) -> Collection:
        """Return a collection.

        Raises
        ------
        NotFoundError
            There is none of this name.
        ConfigError
            The file of a saved search is damaged.
        """
        if name in self._fixed:
            return self._fixed[name]
        folder, _, search = name.partition("/")
        names = self._names()
        if folder == "searches" and search in names:
            return self._saved(search)
        known = [*self._fixed, *(f"searches/{search}" for search in names)]
        near = difflib.get_close_matches(name, known, n=1) or known
        raise NotFoundError(f"no collection is named {name!r}; there is {', '.join(near)}")

    def _names(self) -> list[str]:
        """Return the saved searches by the names of their files."""
        if self._searches is None:
            return []
        files = (PurePosixPath(file.uri) for file in (self._searches / "*.json").list())
        return sorted(file.stem for file in files)

    def _saved(self, name: str) -> Collection:
        assert self._searches is not None
        search = load_search(self._searches / f"{name}.json")
        return SearchHits(f"searches/{name}", search, self._searcher)


class Tiles:
    """The rows of the index. A feature's id is the id of its row in the archive."""

    id, title, description = "tiles", "Tiles", _DESCRIPTIONS["tiles"]
    queryables: Mapping[str, str] = _OF_TILES

    def __init__(self, searcher: Searcher) -> None:
        self._searcher = searcher

    def page(self, wanted: Wanted) -> Page:
        """Return the tiles in question, in the order of the index."""
        if wanted.ids is not None:
            rows = self._rows(wanted)
            return Page(rows, None, len(rows) if len(rows) < wanted.limit else None)
        shard, position = _numbers(wanted.token or "0.0")
        columns, after = self._searcher.page(wanted.where, wanted.limit, (shard, position))
        token = None if after is None else f"{after[0]}.{after[1]}"
        shards = self._searcher.manifest.shards
        everything = sum(shard.live_rows for shard in shards) if wanted.where == Filter() else None
        return Page(list(self._features(columns)), token, everything)

    def _rows(self, wanted: Wanted) -> list[Feature]:
        """Return tiles by the ids of their rows."""
        names = ["grid", "tile", "scene", "bbox", "datetime", "cloud_fraction"]
        names += ["labels"] if self._searcher.manifest.classes else []
        found: list[Feature] = []
        for text in wanted.ids or ():
            if not (text.isdecimal() and len(text) < 19):
                continue
            try:
                columns = self._searcher.archive.read([int(text)], names)
            except NotFoundError:
                continue
            columns.setdefault("labels", np.empty((1, 0), np.uint8))
            if _meets(wanted.where, columns["bbox"], columns["datetime"])[0]:
                found += self._features(columns)
        return found[: wanted.limit]

    def _features(self, columns: Columns) -> Iterator[Feature]:
        grids = self._searcher.grids
        shapes = tile_outlines(grids, columns["grid"], columns["tile"], columns["bbox"])
        labels = hit_table(columns, self._searcher.manifest.classes)["labels"].to_pylist()
        values = zip(
            columns["row"].tolist(),
            row_keys(columns),
            columns["datetime"].astype("datetime64[ms]").tolist(),
            columns["cloud_fraction"].tolist(),
            labels,
            columns["bbox"].tolist(),
            geojson(shapes),
            strict=True,
        )
        for row, (key, scene), moment, cloud, names, box, geometry in values:
            properties = {
                "datetime": _text(moment.replace(tzinfo=dt.UTC)),
                "row": row,
                "tile_key": key,
                "scene": scene,
                "cloud_fraction": round(cloud, 6),
                "labels": names,
            }
            yield _tile_feature(self.id, properties, box, geometry)


class SearchHits:
    """The hits of a saved search; place, period, scene and tile choose among these hits."""

    queryables: Mapping[str, str] = _OF_TILES

    def __init__(self, name: str, search: SavedSearch, searcher: Searcher) -> None:
        self.id, self.title, self._search, self._searcher = name, search.title, search, searcher
        self.description = f"The best {search.k:,} hits of a saved search: {search.title}"

    def page(self, wanted: Wanted) -> Page:
        """Return the hits in question, the best first."""
        records = hit_records(self._search.answer(self._searcher).to_arrow())
        boxes = np.array([record["bbox"] for record in records]).reshape(-1, 4)
        times = [record["datetime"].replace(tzinfo=None) for record in records]
        keep = _meets(wanted.where, boxes, np.array(times, dtype="datetime64[ms]"))
        for name, values in (("scene", wanted.where.scenes), ("tile_key", wanted.where.tiles)):
            if values:
                keep &= np.isin([record[name] for record in records], values)
        if wanted.ids is not None:
            keep &= np.isin([str(record["row"]) for record in records], wanted.ids)
        first = 0 if wanted.token is None else _numbers(wanted.token, 1)[0]
        left = [place for place in np.flatnonzero(keep).tolist() if place >= first]
        features = []
        for record in (records[place] for place in left[: wanted.limit]):
            box, geometry = record.pop("bbox"), record.pop("geometry")
            properties = {**record, "datetime": _text(record["datetime"])}
            for date in properties.get("dates", ()):
                date["datetime"] = _text(date["datetime"])
            features.append(_tile_feature(self.id, properties, box, geometry))
        token = str(left[wanted.limit]) if len(left) > wanted.limit else None
        return Page(features, token, int(keep.sum()))


class Scenes:
    """The embedded scenes by their ids."""

    id, title, description = "scenes", "Scenes", _DESCRIPTIONS["scenes"]
    queryables: Mapping[str, str] = {}

    def __init__(self, searcher: Searcher, places: ScenePlaces) -> None:
        self._searcher, self._places = searcher, places

    @cached_property
    def _entries(self) -> list[LedgerEntry]:
        return [entry for entry in self._searcher.archive.scenes() if entry.rows]

    @cached_property
    def _arrays(self) -> tuple[Any, Any, Any]:
        """Ids (n,), boxes (n, 4) and times (n,) of the scenes."""
        places = self._places.of(self._entries)
        boxes = np.array([place.box for place in places if place]).reshape(-1, 4)
        moments = [entry.datetime for entry in self._entries]
        times = [moment and moment.astimezone(dt.UTC).replace(tzinfo=None) for moment in moments]
        ids = np.array([entry.scene_id for entry in self._entries], dtype=object)
        return ids, boxes, np.array(times, dtype="datetime64[ms]")

    def page(self, wanted: Wanted) -> Page:
        """Return the scenes in question, by id."""
        ids, boxes, times = self._arrays
        keep = _meets(wanted.where, boxes, times)
        if wanted.ids is not None:
            keep &= np.isin(ids, np.array(wanted.ids, dtype=object))
        matched = int(keep.sum())
        if wanted.token is not None:
            keep &= ids >= wanted.token
        found = np.flatnonzero(keep).tolist()
        entries = [self._entries[place] for place in found[: wanted.limit]]
        places = self._places.of(entries)
        features = [
            self._feature(entry, place.box, place.geometry)
            for entry, place in zip(entries, places, strict=True)
            if place
        ]
        token = str(ids[found[wanted.limit]]) if len(found) > wanted.limit else None
        return Page(features, token, matched)

    def _feature(self, entry: LedgerEntry, box: BBox, geometry: Mapping[str, Any]) -> Feature:
        assert entry.segment_ordinal is not None
        first = entry.datetime and _text(entry.datetime)
        properties: dict[str, Any] = {"datetime": first, "tiles": entry.rows}
        if entry.end is not None:
            properties |= {"start_datetime": first, "end_datetime": _text(entry.end)}
        origin = self._searcher.archive.origins(entry.segment_ordinal).get(entry.scene_id)
        files = [] if origin is None or origin.signed else origin.scene.hrefs
        # The paths of the service's own disks stay inside.
        assets = {
            PurePosixPath(file.uri).name: {"href": file.uri, "roles": ["data"]}
            for file in files
            if not file.is_local
        }
        return _feature(self.id, entry.scene_id, properties, box, geometry, assets)


def period(text: str | None) -> tuple[str | None, str | None]:
    """Return the ends of a moment or an interval, as OGC API and STAC write them.

    Raises
    ------
    ConfigError
        There are more than two ends.

    Examples
    --------
    >>> period("2024-05-01/.."), period("2024-05-01")
    (('2024-05-01', None), ('2024-05-01', '2024-05-01'))
    """
    if not text:
        return None, None
    first, *rest = text.split("/")
    if len(rest) > 1:
        raise ConfigError(f"datetime {text!r} has more than two ends; give START/END")
    last = rest[0] if rest else first
    since, until = (None if end in ("", "..") else end for end in (first, last))
    return since, until


def _meets(where: Filter, boxes: Any, times: Any) -> Any:
    """Return the mask (n,) of boxes (n, 4) at times (n,) that meet a filter."""
    start, end = where.interval
    mask = np.ones(len(boxes), dtype=np.bool_)
    if start is not None:
        mask &= times >= start
    if end is not None:
        mask &= times <= end
    if where.bbox is not None:
        mask &= touches(boxes, where.bbox)
    if isinstance(where.polygon, str):
        mask &= intersects_polygon(boxes, where.polygon)
    return mask


def _tile_feature(
    collection: str, properties: dict[str, Any], box: Sequence[float], geometry: Mapping[str, Any]
) -> Feature:
    """Return a tile as a feature; its picture is its only asset."""
    scene = urlencode({"scene": properties["scene"]})
    href = f"tiles/{properties['tile_key']}/thumbnail.png?{scene}"
    picture = {"href": href, "type": "image/png", "roles": ["thumbnail"]}
    row = str(properties["row"])
    return _feature(collection, row, properties, box, geometry, {"thumbnail": picture})


def _feature(
    collection: str,
    name: str,
    properties: dict[str, Any],
    box: Sequence[float],
    geometry: Mapping[str, Any],
    assets: Mapping[str, Any],
) -> Feature:
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "id": name,
        "collection": collection,
        "geometry": geometry,
        "bbox": list(box),
        "properties": properties,
        "links": [],
        "assets": assets,
    }


def _numbers(token: str, count: int = 2) -> tuple[int, ...]:
    parts = token.split(".")
    if len(parts) != count or not all(part.isdecimal() and len(part) < 19 for part in parts):
        raise ConfigError(f"token {token!r:.80} is not one of this collection; start again")
    return tuple(map(int, parts))


def _text(moment: dt.datetime) -> str:
    return moment.astimezone(dt.UTC).isoformat().replace("+00:00", "Z")
