"""Scenes from STAC documents: items, item collections, static catalogs. The home of pystac.

Documents are read as they are, old versions too. Numbers become values once: the item's scale and
offset count; where it is silent, Sentinel-2 products of processing baseline 04.00 and later lose
their offset of 1000, unless the item states that its numbers lack the offset already.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import Any

import pystac

from storage.catalog.url_policy import is_within
from storage.dates import as_utc
from storage.errors import CatalogError, ConfigError, SkysiftError
from storage.geometry import BBox
from storage.location import Location
from storage.scene import (
    BandMapping,
    BandSource,
    Candidate,
    CatalogSpec,
    Rejected,
    Sources,
)

_READERS = 16
_NOT_PIXELS = {"thumbnail", "overview", "visual", "metadata"}
_AWS = re.compile(r"https://(?P<bucket>[^/]+)\.s3[.-](?:[a-z0-9-]+\.)?amazonaws\.com/(?P<key>.+)")
_S2_BAND = re.compile(r"B\d{1,2}A?")
_S2_PRODUCT = re.compile(r"S2[A-Z]_MSI\w+?_N(\d{2})(\d{2})_")
_S2_OFFSET = -1000.0
# The exceptions of pystac for documents of a wrong shape.
_STAC_ERRORS = (pystac.STACError, pystac.STACTypeError)
MALFORMED = (*_STAC_ERRORS, ValueError, KeyError, TypeError, AttributeError)


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
        for item in document.get("features") or []:
            yield item_candidate(place, item, spec)
    elif kind in ("Catalog", "Collection") or "stac_version" in document:
        links = [
            place.resolve(str(link["href"]))
            for link in document.get("links") or []
            if isinstance(link, dict) and link.get("rel") in ("item", "child") and "href" in link
        ]
        yield from _follow(place, links, spec, seen)
    else:
        raise CatalogError(
            f"{place} is not STAC: its type is {kind!r}; give an item, an item collection, "
            "a catalog or a collection"
        )


def _follow(
    base: Location, links: Sequence[Location], spec: CatalogSpec, seen: set[str]
) -> Iterator[Candidate | Rejected]:
    """Walk documents that ``base`` names; an unreadable document is rejected by its name."""
    fresh = [link for link in dict.fromkeys(links) if link.uri not in seen]
    seen.update(link.uri for link in fresh)

    def read(link: Location) -> Mapping[str, Any] | SkysiftError:
        try:
            if link.is_local and not base.is_local:
                raise CatalogError(f"a remote catalog links to {link}, a file of this machine")
            return _read_json(link)
        except SkysiftError as error:
            return error

    with ThreadPoolExecutor(_READERS) as pool:
        outcomes = pool.map(read, fresh) if len(fresh) > 1 else map(read, fresh)
        for link, outcome in zip(fresh, outcomes, strict=True):
            try:
                if isinstance(outcome, SkysiftError):
                    raise outcome
                yield from _walk(link, outcome, spec, seen)
            except SkysiftError as error:
                yield Rejected(scene_id=PurePosixPath(link.uri).stem, reason=str(error))


def _read_json(place: Location) -> dict[str, Any]:
    try:
        document = json.loads(place.read())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CatalogError(f"{place} is not JSON: {error}; give a STAC document") from error
    if not isinstance(document, dict):
        raise CatalogError(f"{place} is not STAC: it holds a {type(document).__name__}")
    return document


def item_candidate(place: Location, document: Any, spec: CatalogSpec) -> Candidate | Rejected:
    """Return an item as a candidate, or the reason against it.

    Parameters
    ----------
    place
        Location of the item, to which its relative links refer.
    document
        The item as JSON.
    spec
        How to find bands and mask in it.
    """
    name = str(document.get("id", "")) if isinstance(document, dict) else ""
    try:
        item = pystac.Item.from_dict(document, migrate=False, preserve_dict=True)
        moment = item.datetime or item.common_metadata.start_datetime
        cover = item.properties.get("eo:cloud_cover")
        bbox = _flat_bbox(item.bbox)
        cloud = None if cover is None else float(cover)
    except MALFORMED as error:
        return Rejected(
            scene_id=name or PurePosixPath(place.uri).stem,
            reason=f"an item of {place} cannot be used: {type(error).__name__}: {error}",
        )
    if moment is None:
        return Rejected(scene_id=name, reason=f"item {name} has no datetime; it cannot be dated")
    return Candidate(
        id=str(item.id),
        datetime=as_utc(moment),
        bbox=bbox,
        geometry=item.geometry,
        collection=item.collection_id,
        cloud_cover_percent=cloud,
        resolve=_Item(place, item, spec).resolve,
    )


def _flat_bbox(bbox: Sequence[float] | None) -> BBox | None:
    if not bbox:
        return None
    if len(bbox) not in (4, 6):
        raise ValueError(f"bbox has {len(bbox)} numbers, not 4 or 6")
    half = len(bbox) // 2
    return float(bbox[0]), float(bbox[1]), float(bbox[half]), float(bbox[half + 1])


class _Item:
    """One item; :meth:`resolve` finds bands among its assets."""

    def __init__(self, place: Location, item: pystac.Item, spec: CatalogSpec) -> None:
        self._place, self._item, self._spec = place, item, spec
        self._pixels = {key: asset for key, asset in item.assets.items() if _holds_pixels(asset)}

    def resolve(self, bands: Sequence[str]) -> Sources:
        try:
            return self._resolve(bands)
        except MALFORMED as error:
            raise CatalogError(
                f"item {self._item.id} of {self._place} describes its assets wrongly: "
                f"{type(error).__name__}: {error}"
            ) from error

    def _resolve(self, bands: Sequence[str]) -> Sources:
        found = tuple(self._band(name) for name in bands)
        mask, item = self._spec.mask, self._item
        return Sources(
            bands=found,
            mask=mask.source(self._href(self._asset(mask.asset, "the cloud mask")))
            if mask
            else None,
            revision=self._revision(),
            end=item.common_metadata.end_datetime if item.datetime is None else None,
            sources=tuple(item.properties.get("skysift:sources", ())),
            document=item.get_self_href() or self._place.uri,
        )

    def _band(self, name: str) -> BandSource:
        mapping = self._spec.bands.get(name)
        if mapping is None:
            key, index = self._find(name)
            mapping = BandMapping(asset=key, index=index)
        else:
            key = self._asset(mapping.asset, f"band {name!r}")
        stated = _band_fields(self._item.assets[key], mapping.index)
        scale = stated.get("scale") if mapping.scale is None else mapping.scale
        return BandSource(
            name=name,
            href=self._href(key),
            index=mapping.index,
            scale=scale,
            offset=self._offset(key, stated, scale) if mapping.offset is None else mapping.offset,
            nodata=stated.get("nodata") if mapping.nodata is None else mapping.nodata,
        )

    def _asset(self, key: str | None, subject: str) -> str:
        if key is None and len(self._pixels) == 1:
            return next(iter(self._pixels))
        if key is not None and key in self._item.assets:
            return key
        missing = f"asset {key!r}" if key else "single GeoTIFF asset"
        raise CatalogError(
            f"item {self._item.id} has no {missing} for {subject}; it has {self._described()}"
        )

    def _find(self, name: str) -> tuple[str, int]:
        """Return asset key and number of a band: by band name, key, common name or file name."""
        rules: tuple[Callable[[str, pystac.Asset], list[int]], ...] = (
            lambda key, asset: [i for i, b in _named(asset) if b.get("name") == name],
            lambda key, asset: [1] if key == name else [],
            lambda key, asset: [i for i, b in _named(asset) if _common_name(b) == name],
            lambda key, asset: [1] if _file_says(asset.href, name) else [],
        )
        for rule in rules:
            hits = [(key, i) for key, asset in self._pixels.items() for i in rule(key, asset)]
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
            "map the band to an asset in the recipe's bands"
        )

    def _described(self) -> str:
        def described(key: str, asset: pystac.Asset) -> str:
            names = [str(band.get("name", index)) for index, band in _named(asset)]
            return key if not names or names == [key] else f"{key} ({', '.join(names)})"

        return ", ".join(described(*pair) for pair in self._pixels.items()) or "no GeoTIFF assets"

    def _offset(self, key: str, stated: Mapping[str, float], scale: float | None) -> float | None:
        """Return the offset that goes with a scale; Sentinel-2's offset applies exactly once."""
        if _is_reflectance(key, self._item.assets[key]):
            if _offset_is_applied(self._item):
                return 0.0
            if "offset" not in stated and _baseline(self._item) >= 4:
                return _S2_OFFSET * (1.0 if scale is None else scale)
        if "offset" not in stated or scale is None:
            return stated.get("offset")
        return stated["offset"] / stated.get("scale", 1.0) * scale

    def _href(self, key: str) -> Location:
        """Return the first readable location of an asset."""
        asset = self._item.assets[key]
        alternates = asset.extra_fields.get("alternate", {})
        for href in (asset.href, *(other.get("href", "") for other in alternates.values())):
            on_s3 = _AWS.fullmatch(href)
            place = self._place.resolve(f"s3://{on_s3['bucket']}/{on_s3['key']}" if on_s3 else href)
            if self._may_be_read(place):
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


def _holds_pixels(asset: pystac.Asset) -> bool:
    """Tell whether an asset is a GeoTIFF of measurements: not a picture, not JPEG 2000."""
    if _NOT_PIXELS & set(asset.roles or ()):
        return False
    if asset.media_type:
        return asset.media_type.startswith(("image/tiff", "image/vnd.stac.geotiff"))
    return asset.href.lower().endswith((".tif", ".tiff"))


def _named(asset: pystac.Asset) -> list[tuple[int, Mapping[str, Any]]]:
    """Return numbers and descriptions of an asset's bands (STAC 1.1 ``bands`` or ``eo:bands``)."""
    bands = asset.extra_fields.get("bands") or asset.extra_fields.get("eo:bands") or []
    return list(enumerate(bands, start=1))


def _common_name(band: Mapping[str, Any]) -> Any:
    return band.get("common_name", band.get("eo:common_name"))


def _file_says(href: str, name: str) -> bool:
    """Tell whether a file is named after a band: ``B04.tif`` or ``LC09_..._B04.TIF``."""
    stem = PurePosixPath(href).stem
    return stem == name or stem.endswith(f"_{name}")


def _band_fields(asset: pystac.Asset, index: int) -> dict[str, float]:
    """Return ``scale``, ``offset`` and ``nodata`` of a band as an item states them."""
    extra = asset.extra_fields
    merged: dict[str, Any] = dict(extra)
    for key in ("raster:bands", "bands"):
        described = extra.get(key) or []
        if len(described) == 1:
            merged |= described[0]  # one description stands for every band of the file
        elif index <= len(described):
            merged |= described[index - 1]
    found = {
        name: merged.get(f"raster:{name}", merged.get(name))
        for name in ("scale", "offset", "nodata")
    }
    return {name: float(value) for name, value in found.items() if value is not None}


def _is_reflectance(key: str, asset: pystac.Asset) -> bool:
    bands = _named(asset)
    names = [key, *(str(band.get("name", "")) for _, band in bands)]
    return any(_S2_BAND.fullmatch(name) for name in names) or any(
        _common_name(band) for _, band in bands
    )


def _offset_is_applied(item: pystac.Item) -> bool:
    return any(
        item.properties.get(f"{prefix}:boa_offset_applied") is True
        for prefix in ("earthsearch", "sentinel")
    )


def _baseline(item: pystac.Item) -> float:
    """Return the processing baseline of a Sentinel-2 product, 0 for everything else."""
    properties = item.properties
    product = _S2_PRODUCT.search(f"{properties.get('s2:product_uri', '')} {item.id}")
    names = ("s2:processing_baseline", "sentinel:processing_baseline")
    stated = next((properties[name] for name in names if name in properties), None)
    if stated is None and str(properties.get("constellation", "")).lower() == "sentinel-2":
        stated = properties.get("processing:version")
    if stated is None and product:
        stated = f"{product[1]}.{product[2]}"
    try:
        return float(stated) if stated is not None else 0.0
    except ValueError:
        return 0.0
