"""STAC documents that Skysift writes: items of rasters, and the collection that lists them.

:mod:`storage.catalog.stac` reads such documents; the two are the home of pystac.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pystac

from storage.errors import CatalogError, NotFoundError
from storage.geometry import enclosing, geojson
from storage.location import Location, sha256_of_file
from storage.outlines import outlines
from storage.quarantine import Quarantine
from storage.raster.geotiff import RasterInfo
from storage.values import json_digest

logger = logging.getLogger(__name__)

PROJECTION = "https://stac-extensions.github.io/projection/v2.0.0/schema.json"
RASTER = "https://stac-extensions.github.io/raster/v2.0.0/schema.json"
FILE = "https://stac-extensions.github.io/file/v2.1.0/schema.json"
COLLECTION = "collection.json"
_SHA256 = "1220"  # multihash: sha2-256, 32 bytes
SOURCES = "skysift:sources"
FINGERPRINT = "skysift:fingerprint"
DIGEST = "skysift:digest"
"""SHA-256 of an item's JSON values, the digest itself left out."""


def placed_item(
    item_id: str,
    period: tuple[datetime, datetime],
    href: str,
    crs: str,
    transform: Sequence[float],
    shape: tuple[int, int],
) -> pystac.Item:
    """Return an item with one asset, ``pixels``, and the placement of its pixels.

    Parameters
    ----------
    period
        First and last moment; equal for one acquisition.
    href
        Link to the asset.
    crs, transform
        As in :class:`~storage.raster.geotiff.RasterInfo`.
    shape
        Height and width.
    """
    start, end = period
    one_moment = start == end
    code = {"proj:code": crs} if crs.startswith("EPSG:") else {"proj:wkt2": crs}
    item = pystac.Item(
        id=item_id,
        geometry=None,
        bbox=None,
        datetime=start if one_moment else None,
        start_datetime=None if one_moment else start,
        end_datetime=None if one_moment else end,
        properties=dict(code),
        stac_extensions=[PROJECTION],
    )
    placed = {"proj:shape": list(shape), "proj:transform": list(transform)}
    item.add_asset("pixels", pystac.Asset(href=href, extra_fields=placed))
    return item


def composite_document(
    item_id: str,
    period: tuple[datetime, datetime],
    raster: RasterInfo,
    sources: Mapping[str, str],
    fingerprint: str,
    checksum: str,
    size_bytes: int,
) -> dict[str, Any]:
    """Return the item of a composite: its period, its pixels and its sources.

    Parameters
    ----------
    raster
        The GeoTIFF ``<item_id>.tif`` beside the item.
    sources
        Ids of the scenes, and where each one's STAC document lies (empty when it has none).
    fingerprint
        Changes when the composite would.
    checksum, size_bytes
        SHA-256 of the file, in hexadecimal digits, and its size.
    """
    shape = (raster.height, raster.width)
    item = placed_item(item_id, period, f"./{item_id}.tif", raster.crs, raster.transform, shape)
    item.geometry, item.bbox = geojson(outlines(raster.crs, _bounds(raster)))[0], list(raster.bbox)
    item.stac_extensions += [RASTER, FILE]
    item.properties |= {SOURCES: list(sources), FINGERPRINT: fingerprint}
    pixels = item.assets["pixels"]
    pixels.media_type, pixels.roles = pystac.MediaType.COG, ["data"]
    pixels.extra_fields |= {
        "data_type": raster.dtype,
        "raster:scale": 1.0,
        "raster:offset": 0.0,
        "bands": [{"name": name} for name in raster.descriptions],
        "file:checksum": f"{_SHA256}{checksum}",
        "file:size": size_bytes,
    }
    for scene_id, document in sources.items():
        if document:
            item.add_link(pystac.Link("derived_from", document, "application/geo+json", scene_id))
    plain = dict(item.to_dict(include_self_link=False, transform_hrefs=False))
    plain["properties"][DIGEST] = _digest(plain)
    return plain


def _bounds(raster: RasterInfo) -> npt.NDArray[np.float64]:
    """Return left, bottom, right, top (1, 4) of a raster whose rows go south."""
    width, _, left, _, height, top = raster.transform
    right, bottom = left + width * raster.width, top + height * raster.height
    return np.array([[left, bottom, right, top]])


def is_sound(document: Mapping[str, Any], folder: str | Location) -> bool:
    """Tell whether the item of a composite and its GeoTIFF are as they were written.

    A file on this machine is compared with its checksum, a remote file with its size.
    """
    try:
        if document["properties"].get(DIGEST) not in (None, _digest(document)):
            return False
        pixels = document["assets"]["pixels"]
        file = Location.of(folder) / pixels["href"].removeprefix("./")
        if file.is_local:
            return bool(pixels["file:checksum"] == f"{_SHA256}{sha256_of_file(file.path)}")
        size_bytes = file.size_bytes()
        return bool(pixels.get("file:size", size_bytes) == size_bytes)
    except (FileNotFoundError, KeyError, TypeError, AttributeError):
        return False


def _digest(document: Mapping[str, Any]) -> str:
    properties = {k: v for k, v in document["properties"].items() if k != DIGEST}
    return json_digest({**document, "properties": properties})


def write_item(document: Mapping[str, Any], folder: str | Location) -> None:
    """Write an item as ``<id>.json`` into a folder."""
    text = json.dumps(document, indent=1).encode()
    (Location.of(folder) / f"{document['id']}.json").write(text)


def written_items(folder: str | Location) -> dict[str, dict[str, Any]]:
    """Return the items that were written into a folder, by their ids, without damaged items."""
    items: dict[str, dict[str, Any]] = {}
    for file in Location.of(folder).list():
        if file.uri.endswith(".json") and not file.uri.endswith(COLLECTION):
            data = file.read()
            with Quarantine(str(file)) as fault:
                item = json.loads(data)
                pystac.Item.from_dict(item)
                if not file.uri.endswith(f"/{item['id']}.json"):
                    raise CatalogError(f"it holds item {item['id']}; make the composites again")
                items[item["id"]] = item
            if fault:
                logger.warning("%s is not counted as written: %s", file, fault.reason)
    return items


def write_collection(folder: str | Location, title: str, description: str) -> None:
    """Write ``collection.json`` over the items of a folder, so that the folder is a catalog.

    The file is left as it is when it holds this collection already.
    """
    place = Location.of(folder)
    items = [pystac.Item.from_dict(item) for item in written_items(place).values()]
    box = list(enclosing([item.bbox for item in items if item.bbox]))
    times = [_period(item) for item in items]
    extent = pystac.Extent(
        pystac.SpatialExtent([box]),
        pystac.TemporalExtent([[min(t[0] for t in times), max(t[1] for t in times)]]),
    )
    collection = pystac.Collection(id=title, description=description, extent=extent)
    for item in items:
        link = pystac.Link("item", f"./{item.id}.json", "application/geo+json", item.id)
        collection.add_link(link)
    text = json.dumps(collection.to_dict(include_self_link=False, transform_hrefs=False), indent=1)
    try:
        if (place / COLLECTION).read() == text.encode():
            return
    except NotFoundError:
        pass
    (place / COLLECTION).write(text.encode())


def _period(item: pystac.Item) -> tuple[datetime, datetime]:
    start = item.common_metadata.start_datetime or item.datetime
    end = item.common_metadata.end_datetime or start
    assert start is not None
    assert end is not None
    return start, end
