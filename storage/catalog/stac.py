"""Scenes from STAC documents: items, item collections, static catalogs. The home of pystac.

Documents are read as they are, old versions too. Numbers become values once: the item's scale and
offset count; where it is silent, Sentinel-2 products of processing baseline 04.00 and later lose
their offset of 1000, unless the item states that its numbers lack the offset already.
"""

import json
import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote

import pystac

from storage.catalog.url_policy import is_within
from storage.dates import as_utc
from storage.errors import CatalogError, ConfigError, SkysiftError
from storage.geometry import usable_bbox
from storage.location import Location
from storage.quarantine import Quarantine
from storage.raster.geotiff import RASTER_SUFFIXES, checked_format, format_of
from storage.scene import (
    BandMapping,
    BandSource,
    Candidate,
    CatalogSpec,
    Rejected,
    Sources,
)
from storage.signatures import without_signatures
from storage.values import check_names

logger = logging.getLogger(__name__)

_READERS = 16
_SOURCES = "skysift:sources"
_NOT_PIXELS = {"thumbnail", "overview", "visual", "metadata"}
_MEDIA_TYPES = {"tif": "tif", "image/jp2": "jp2", "vrt": "vrt"}
_ANY_TYPE = ("", "application/octet-stream", "binary/octet-stream")  # the name has to tell
# Objects at addresses of S3, the bucket in the host's name or first in the path.
_AWS = re.compile(
    r"https?://(?:(?P<host_bucket>[^/?#@]+)\.)?s3(?!-accesspoint)[a-z0-9.-]*\.amazonaws\.com(?:\.cn)?"
    r"/(?(host_bucket)|(?P<path_bucket>[^/?#]+)/)(?P<key>[^?#]+)(?:[?#].*)?"
)
_S2_BAND = re.compile(r"B\d{1,2}A?(_\d+m)?")
_S2_PRODUCT = re.compile(r"S2[A-Z]_\w+?_N(?P<baseline>\d{2}\.?\d{2})(?!\d)")
_BASELINE = re.compile(r"[NV]?(?:(\d{1,2})(?:\.\d+)*|(\d{2})\d{2}|(\d)\d{2})", re.IGNORECASE)
_S2_OFFSET = -1000.0
_NO_COUNTS = re.compile(r"u?int8|byte|c?float\d*|double", re.IGNORECASE)


def item_candidates(
    source: Location, documents: Sequence[Location], spec: CatalogSpec
) -> Iterator[Candidate | Rejected]:
    """Yield a candidate for every item that STAC documents hold or link to.

    Parameters
    ----------
    source
        Location that listed the documents.
    documents
        Items, item collections, catalogs or collections.
    spec
        How to find bands and mask in the items.

    Raises
    ------
    CatalogError
        The only document given is not STAC.
    NotFoundError
        The only document given does not exist.
    """
    if len(documents) == 1:
        yield from _walk(documents[0], _read_json(documents[0]), spec, {documents[0].uri})
        return
    yield from _follow(source, documents, spec, set())


def _walk(
    place: Location, document: Mapping[str, Any], spec: CatalogSpec, seen: set[str]
) -> Iterator[Candidate | Rejected]:
    kind = document.get("type")
    if kind == "Feature":
        yield item_candidate(place, document, spec)
    elif kind == "FeatureCollection":
        for item in _listed(place, document, "features"):
            yield item_candidate(place, item, spec)
        _warn_of_further_pages(place, document)
    elif kind in ("Catalog", "Collection") or "stac_version" in document:
        hrefs = [
            link["href"]
            for link in _listed(place, document, "links")
            if isinstance(link, dict) and link.get("rel") in ("item", "child") and "href" in link
        ]
        yield from _follow(place, hrefs, spec, seen)
    else:
        raise CatalogError(
            f"{place} is not STAC: its type is {kind!r}; give an item, an item collection, "
            "a catalog or a collection"
        )


def _listed(place: Location, document: Mapping[str, Any], name: str) -> list[Any]:
    found = document.get(name) or []
    if not isinstance(found, list):
        raise CatalogError(f"{place} is not STAC: its {name} are a {type(found).__name__}")
    return found


def _warn_of_further_pages(place: Location, document: Mapping[str, Any]) -> None:
    """Say that a document is one page of an answer, the other pages of which are not read."""
    links = _listed(place, document, "links")
    if any(isinstance(link, dict) and link.get("rel") == "next" for link in links):
        matched = document.get("numberMatched")
        logger.warning(
            "%s is one page of an answer%s: the next page is not read; give the address of the "
            "API, or save all items in one document without a link to a next page",
            place,
            f" of {matched} items" if isinstance(matched, int) else "",
        )


def _follow(
    base: Location, hrefs: Sequence[Any], spec: CatalogSpec, seen: set[str]
) -> Iterator[Candidate | Rejected]:
    """Walk documents that ``base`` names; an unreadable document is rejected by its name."""
    links: dict[str, Location] = {}
    for href in hrefs:
        with Quarantine(f"a link of {base}") as fault:
            link = href if isinstance(href, Location) else refer(base, href)
            if link.uri not in seen:
                links[link.uri] = link
        if fault:
            yield Rejected(scene_id=PurePosixPath(str(href)).stem, reason=fault.reason)
    seen.update(links)

    def read(link: Location) -> Mapping[str, Any] | str:
        with Quarantine(str(link)) as fault:
            if link.is_local and not base.is_local:
                raise CatalogError(f"a remote catalog links to {link}, a file of this machine")
            return _read_json(link)
        return fault.reason

    with ThreadPoolExecutor(_READERS) as pool:
        outcomes = (pool.map if len(links) > 1 else map)(read, links.values())
        for link, outcome in zip(links.values(), outcomes, strict=True):
            with Quarantine(str(link)) as fault:
                if isinstance(outcome, str):
                    raise CatalogError(outcome)
                yield from _walk(link, outcome, spec, seen)
            if fault:
                yield Rejected(scene_id=PurePosixPath(link.uri).stem, reason=fault.reason)


def refer(base: Location, href: Any) -> Location:
    """Return the place that a document names, by a URI reference or by a plain path.

    ``a%20b.tif`` is the file ``a b.tif``, as URIs have it, and where there is no such file the file
    of that very name. Web addresses stay as they are.
    """
    if not isinstance(href, str) or not href:
        raise CatalogError(f"{base} has a link to {href!r}, which is no address")
    place, decoded = base.resolve(href), base.resolve(unquote(href))
    if place.is_web or decoded == place:
        return place
    try:
        return decoded if decoded.exists() else place
    except SkysiftError:  # a store may refuse to say what it does not have
        return place


def read_document(place: Location) -> bytes:
    """Read a document, which is never a device or a pipe: a catalog could name one without end."""
    if place.is_local and place.path.exists() and not place.path.is_file():
        raise CatalogError(f"{place} is not a file; give a STAC document")
    return place.read()


def _read_json(place: Location) -> dict[str, Any]:
    try:
        document = json.loads(read_document(place))
    except (ValueError, RecursionError) as error:  # numbers too long, nested too deeply
        raise CatalogError(f"{place} is not JSON: {error}; give a STAC document") from error
    if not isinstance(document, dict):
        raise CatalogError(f"{place} is not STAC: it holds a {type(document).__name__}")
    return document


def item_candidate(
    place: Location, document: Any, spec: CatalogSpec, where: str = ""
) -> Candidate | Rejected:
    """Return an item as a candidate, or the reason against it.

    Parameters
    ----------
    place
        Location of the item, to which its relative links refer.
    document
        The item as JSON.
    spec
        How to find bands and mask in it.
    where
        Place of the item for messages; ``place`` when empty.
    """
    subject = f"an item of {where or place}"
    with Quarantine(subject) as fault:
        return _candidate(place, document, spec)
    name = document.get("id") if isinstance(document, dict) else None
    return Rejected(
        scene_id=name if name and isinstance(name, str) else PurePosixPath(place.uri).stem,
        reason=f"{subject} cannot be used: {fault.reason}",
    )


def _candidate(place: Location, document: Any, spec: CatalogSpec) -> Candidate:
    item = pystac.Item.from_dict(document, migrate=False, preserve_dict=True)
    for name, value in {"id": item.id, "collection": item.collection_id}.items():
        if not (isinstance(value, str) or (value is None and name == "collection")):
            raise CatalogError(f"its {name} is {value!r}, which is no text; give it one")
    moment = item.datetime or item.common_metadata.start_datetime
    if moment is None:
        raise CatalogError(f"item {item.id} has no datetime; it cannot be dated")
    stated = item.properties.get("eo:cloud_cover")
    cover = math.nan if stated is None else float(stated)
    return Candidate(
        id=item.id,
        datetime=as_utc(moment),
        bbox=None if not item.bbox else usable_bbox(item.bbox),
        geometry=item.geometry,
        collection=item.collection_id,
        cloud_cover_percent=None if math.isnan(cover) else cover,  # of tables: not stated
        resolve=_Item(place, item, spec).resolve,
    )


class _Item:
    """One item; :meth:`resolve` finds bands among its assets."""

    def __init__(self, place: Location, item: pystac.Item, spec: CatalogSpec) -> None:
        self._place, self._item, self._spec = place, item, spec
        kinds = {key: _kind(asset) for key, asset in item.assets.items()}
        wanted = ("tif", *spec.drivers)
        self._kinds = {key: kind for key, kind in kinds.items() if kind in wanted}
        self._pixels = {key: item.assets[key] for key in self._kinds}
        self._closed = sorted({k for k in kinds.values() if k and k not in wanted})

    def resolve(self, bands: Sequence[str]) -> Sources:
        found = tuple(self._band(name) for name in bands)
        mask, item = self._spec.mask, self._item
        end = item.common_metadata.end_datetime if item.datetime is None else None
        return Sources(
            bands=found,
            mask=mask.source(self._href(self._asset(mask.asset, "the cloud mask")))
            if mask
            else None,
            revision=self._revision(),
            end=end and as_utc(end),
            sources=tuple(map(str, check_names(item.properties.get(_SOURCES, ()), _SOURCES))),
            document=without_signatures(item.get_self_href() or self._place.uri),
        )

    def _band(self, name: str) -> BandSource:
        mapping = self._spec.bands.get(name)
        if mapping is None:
            key, index = self._find(name)
            mapping = BandMapping(asset=key, index=index)
        else:
            key = self._asset(mapping.asset, f"band {name!r}")
        stated = _band_fields(self._item.assets[key], mapping.index)
        scale = _number(stated, "scale") if mapping.scale is None else mapping.scale
        offset, of_counts = mapping.offset, False
        if offset is None:
            offset, of_counts = self._offset(key, stated, scale)
        return BandSource(
            name=name,
            href=self._href(key),
            index=mapping.index,
            scale=scale,
            offset=offset,
            nodata=_number(stated, "nodata") if mapping.nodata is None else mapping.nodata,
            offset_of_counts=of_counts,
        )

    def _asset(self, key: str | None, subject: str) -> str:
        if key is None and len(self._pixels) == 1:
            return next(iter(self._pixels))
        if key is not None and key in self._item.assets:
            return key
        missing = f"asset {key!r}" if key else "single GeoTIFF asset"
        raise CatalogError(
            f"item {self._item.id} has no {missing} for {subject}; it has {self._described()}"
            f"{self._or_drivers()}"
        )

    def _find(self, name: str) -> tuple[str, int]:
        """Return asset key and number of a band: by band name, key, common name or file name."""
        rules: tuple[Callable[[str, pystac.Asset], list[int]], ...] = (
            lambda key, asset: [i for i, b in _named(asset) if b.get("name") == name],
            lambda key, asset: [1] if key == name else [],
            lambda key, asset: [i for i, b in _named(asset) if _common_name(b) == name],
            lambda key, asset: [1] if _file_says(asset.href, name) else [],
        )
        geotiffs = {key: a for key, a in self._pixels.items() if self._kinds[key] == "tif"}
        # Earth Search lists every band twice: as GeoTIFF and as JPEG 2000.
        for rule, assets in product(rules, (geotiffs, self._pixels)):
            hits = [(key, i) for key, asset in assets.items() for i in rule(key, asset)]
            if len(hits) == 1:
                return hits[0]
            if hits:
                keys = ", ".join(key for key, _ in hits)
                raise CatalogError(
                    f"item {self._item.id} has band {name!r} in several assets ({keys}); "
                    "map it to one in the recipe's bands"
                )
        raise CatalogError(
            f"item {self._item.id} has no band {name!r}; it has {self._described()}; "
            f"map the band to an asset in the recipe's bands{self._or_drivers()}"
        )

    def _or_drivers(self) -> str:
        """Return the advice to open further formats, for an item with assets of them."""
        drivers = ", ".join(sorted({*self._closed, *self._spec.drivers}))
        return f", or open its other assets by catalog.drivers=[{drivers}]" if self._closed else ""

    def _described(self) -> str:
        def described(key: str, asset: pystac.Asset) -> str:
            names = [str(band.get("name", index)) for index, band in _named(asset)]
            return key if not names or names == [key] else f"{key} ({', '.join(names)})"

        return ", ".join(described(*pair) for pair in self._pixels.items()) or "no GeoTIFF assets"

    def _offset(
        self, key: str, stated: Mapping[str, Any], scale: float | None
    ) -> tuple[float | None, bool]:
        """Return the offset that goes with a scale, and whether only counts have that offset.

        Sentinel-2's offset applies exactly once.
        """
        offset = _number(stated, "offset")
        if _is_reflectance(key, self._item.assets[key], stated):
            if _offset_is_applied(self._item):
                return 0.0, False
            if offset is None and _baseline(self._item) >= 4:
                return _S2_OFFSET * (1.0 if scale is None else scale), True
        if offset is None or scale is None:
            return offset, False
        return offset / (_number(stated, "scale") or 1.0) * scale, False

    def _href(self, key: str) -> Location:
        """Return the first readable location of an asset."""
        asset = self._item.assets[key]
        others = asset.extra_fields.get("alternate")
        others = others.values() if isinstance(others, dict) else ()
        hrefs = [asset.href, *(other.get("href") for other in others if isinstance(other, dict))]
        for place in (place for href in hrefs if href for place in _places(self._place, href)):
            if self._may_be_read(place):
                checked_format(place)
                return place
        raise CatalogError(
            f"item {self._item.id}: asset {key!r} is at {asset.href}, which cannot be read; "
            "Skysift reads s3:// and local files, only below catalog.allow when that is given, and "
            "web addresses only when catalog.allow names a beginning of theirs"
        )

    def _may_be_read(self, place: Location) -> bool:
        allowed = self._spec.allow
        try:
            if allowed and not any(is_within(place.uri, root) for root in allowed):
                return False
            if place.is_web:
                return bool(allowed)
            # A document from elsewhere does not name files of this machine.
            return not place.is_local or self._place.is_local
        except ConfigError:
            return False

    def _revision(self) -> str:
        checksums = (
            str(asset.extra_fields.get(name))
            for asset in self._item.assets.values()
            for name in ("file:checksum", "checksum:multihash")
            if asset.extra_fields.get(name)
        )
        return " ".join([str(self._item.properties.get("updated", "")), *checksums]).strip()


def _places(base: Location, href: str) -> Iterator[Location]:
    """Yield the place of an asset and, of an object of S3, its place in the bucket.

    The bucket comes first, except where the address is signed: then that is the permission.
    """
    on_s3 = _AWS.fullmatch(href)
    if on_s3 is None:
        yield refer(base, href)
        return
    bucket = on_s3["host_bucket"] or on_s3["path_bucket"]
    places = base.at(f"s3://{bucket}/{unquote(on_s3['key'])}"), base.at(href)
    yield from places if str(places[1]) == href else reversed(places)


def _kind(asset: pystac.Asset) -> str:
    """Return the format of an asset of measurements, as a driver; empty for all others."""
    if _NOT_PIXELS & set(_roles(asset)):
        return ""
    kind = str(asset.media_type or "").lower().partition(";")[0].strip()
    if kind not in _ANY_TYPE:
        return next((form for part, form in _MEDIA_TYPES.items() if part in kind), "")
    path = _path(asset.href)
    return format_of(Location(path)) if path.lower().endswith(RASTER_SUFFIXES) else ""


def _roles(asset: pystac.Asset) -> list[str]:
    roles = asset.roles if isinstance(asset.roles, list) else []
    return [role for role in roles if isinstance(role, str)]


def _named(asset: pystac.Asset) -> list[tuple[int, Mapping[str, Any]]]:
    """Return numbers and descriptions of an asset's bands (STAC 1.1 ``bands`` or ``eo:bands``)."""
    bands = asset.extra_fields.get("bands") or asset.extra_fields.get("eo:bands") or []
    bands = bands if isinstance(bands, list) else []
    return [(i, band) for i, band in enumerate(bands, start=1) if isinstance(band, dict)]


def _common_name(band: Mapping[str, Any]) -> Any:
    return band.get("common_name", band.get("eo:common_name"))


def _path(href: str) -> str:
    """Return an address without query and fragment, decoded; of ``what?.tif`` the whole name."""
    path = re.sub(r"(?i)(?<=\.tif|tiff)[?#].*", "", href, flags=re.DOTALL)
    return unquote(path)


def _file_says(href: str, name: str) -> bool:
    """Tell whether a file is named after a band: ``B04.tif`` or ``LC09_..._B04.TIF``."""
    stem = PurePosixPath(_path(href)).stem
    return stem == name or stem.endswith(f"_{name}")


def _band_fields(asset: pystac.Asset, index: int) -> dict[str, Any]:
    """Return what an item states about a band: the fields of the asset under those of the band."""
    extra = asset.extra_fields
    merged: dict[str, Any] = dict(extra)
    for key in ("raster:bands", "bands"):
        described = extra.get(key) or []
        if len(described) == 1:
            merged |= described[0]  # one description stands for every band of the file
        elif index <= len(described):
            merged |= described[index - 1]
    return merged


def _number(stated: Mapping[str, Any], name: str) -> float | None:
    """Return ``scale``, ``offset`` or ``nodata`` as an item states it."""
    value = stated.get(f"raster:{name}", stated.get(name))
    if value is None:
        return None
    number = float(value)
    if name != "nodata" and (not math.isfinite(number) or (name, number) == ("scale", 0)):
        raise CatalogError(f"the {name} of a band is {value!r}; state it in the recipe's bands")
    return number


def _is_reflectance(key: str, asset: pystac.Asset, stated: Mapping[str, Any]) -> bool:
    """Tell whether a band holds reflectance as counts: not a picture, not bytes, not reals."""
    if _NOT_PIXELS & {key.lower(), *_roles(asset)}:
        return False
    if _NO_COUNTS.fullmatch(str(stated.get("data_type"))):
        return False
    bands = _named(asset)
    names = [key, *(str(band.get("name", "")) for _, band in bands)]
    return any(_S2_BAND.fullmatch(name) for name in names) or any(
        _common_name(band) for _, band in bands
    )


def _offset_is_applied(item: pystac.Item) -> bool:
    return any(
        str(item.properties.get(f"{prefix}:boa_offset_applied")).lower() == "true"
        for prefix in ("earthsearch", "sentinel")
    )


def _baseline(item: pystac.Item) -> int:
    """Return the processing baseline (its whole number) of a Sentinel-2 product, 0 for others.

    Raises
    ------
    CatalogError
        The baseline is stated in a way that cannot be understood.
    """
    properties = item.properties
    stated = [properties.get(f"{name}:processing_baseline") for name in ("s2", "sentinel")]
    names = [v for k, v in properties.items() if k.startswith(("s2:", "sentinel:"))]
    products = (_S2_PRODUCT.search(str(name)) for name in (item.id, *names))
    stated += [product["baseline"] for product in products if product]
    missions = (str(properties.get(name, "")).lower() for name in ("constellation", "platform"))
    if any(mission.startswith("sentinel-2") for mission in missions):
        stated.append(properties.get("processing:version"))
    value = next((value for value in stated if value not in (None, "")), 0)
    spelled = _BASELINE.fullmatch(str(value).strip())
    if spelled is None:
        raise CatalogError(
            f"item {item.id} has processing baseline {value!r}, which is not understood, so its "
            "offset is unknown; state scale and offset in the recipe's bands"
        )
    return int(next(group for group in spelled.groups() if group))
