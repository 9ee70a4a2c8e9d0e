"""STAC documents that Skysift writes: items of rasters, and the collection that lists them.

:mod:`storage.catalog.stac` reads such documents; the two are the home of pystac.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import pystac

from storage.geometry import enclosing, geojson_footprints
from storage.location import Location
from storage.raster.geotiff import RasterInfo

PROJECTION = "https://stac-extensions.github.io/projection/v2.0.0/schema.json"
RASTER = "https://stac-extensions.github.io/raster/v2.0.0/schema.json"
FILE = "https://stac-extensions.github.io/file/v2.1.0/schema.json"
COLLECTION = "collection.json"
SOURCES = "skysift:sources"
FINGERPRINT = "skysift:fingerprint"


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
    checksum
        SHA-256 of the file, in hexadecimal digits.
    """
    shape = (raster.height, raster.width)
    item = placed_item(item_id, period, f"./{item_id}.tif", raster.crs, raster.transform, shape)
    item.geometry, item.bbox = geojson_footprints([raster.bbox])[0], list(raster.bbox)
    item.stac_extensions += [RASTER, FILE]
    item.properties |= {SOURCES: list(sources), FINGERPRINT: fingerprint}
    pixels = item.assets["pixels"]
    pixels.media_type, pixels.roles = pystac.MediaType.COG, ["data"]
    pixels.extra_fields |= {
        "data_type": raster.dtype,
        "raster:scale": 1.0,
        "raster:offset": 0.0,
        "bands": [{"name": name} for name in raster.descriptions],
        "file:checksum": f"1220{checksum}",  # multihash: sha2-256, 32 bytes
    }
    for scene_id, document in sources.items():
        if document:
            item.add_link(pystac.Link("derived_from", document, "application/geo+json", scene_id))
    return dict(item.to_dict(include_self_link=False, transform_hrefs=False))


def write_item(document: Mapping[str, Any], folder: str | Location) -> None:
    """Write an item as ``<id>.json`` into a folder."""
    text = json.dumps(document, indent=1).encode()
    (Location.of(folder) / f"{document['id']}.json").write(text)


def written_items(folder: str | Location) -> dict[str, dict[str, Any]]:
    """Return the items that were written into a folder, by their ids."""
    documents = [file for file in Location.of(folder).list() if file.uri.endswith(".json")]
    items = [json.loads(file.read()) for file in documents if not file.uri.endswith(COLLECTION)]
    return {item["id"]: item for item in items}


def write_collection(folder: str | Location, title: str, description: str) -> None:
    """Write ``collection.json`` over the items of a folder, so that the folder is a catalog."""
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
    (place / COLLECTION).write(text.encode())


def _period(item: pystac.Item) -> tuple[datetime, datetime]:
    start = item.common_metadata.start_datetime or item.datetime
    end = item.common_metadata.end_datetime or start
    assert start is not None
    assert end is not None
    return start, end
