"""An archive as a STAC item of the embeddings extension, so that catalogs can list it.

The extension's schema (0.0.1, a proposal) builds on STAC 1.0.0, and so does the item.
"""

import json
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.archive.reader import Archive
from storage.errors import NotFoundError
from storage.geometry import BBox, enclosing, geojson_footprints
from storage.location import Location

EXTENSION = "https://stac-extensions.github.io/embeddings/v0.0.1/schema.json"


def archive_item(archive: Archive) -> dict[str, Any]:
    """Return the item of an archive's snapshot: place, time, encoder and bands.

    Raises
    ------
    NotFoundError
        The archive holds no rows, so it has no place and no time.
    """
    box, times = _extent(archive)
    spec = archive.spec
    stride = spec.grid.get("stride_px") or spec.tile_px
    centred = spec.published is not None and bool(spec.published.centre)
    first, last = (f"{np.datetime_as_string(t, unit='s')}Z" for t in (times.min(), times.max()))
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": [EXTENSION],
        "id": f"skysift-{archive.snapshot}",
        "bbox": list(box),
        "geometry": geojson_footprints([box])[0],
        "properties": {
            "datetime": None,
            "start_datetime": first,
            "end_datetime": last,
            "emb:runtime_parameters": {
                "bands": list(spec.bands),
                "chip_size": spec.tile_px,
                "stride": stride,
            },
            "emb:postprocessing": {
                "format": "text",
                "expression": "subtract the mean, l2_normalize" if centred else "l2_normalize",
            },
            "emb:quantization": {
                "method": "cast",
                "original_dtype": "float32",
                "quantized_dtype": "float16",
            },
            "skysift:rows": len(archive),
            "skysift:dimension": spec.dimension,
            "skysift:encoder_fingerprint": spec.encoder_fingerprint,
            "skysift:snapshot": archive.snapshot,
        },
        "links": [_model_link(archive)],
        "assets": {
            "embeddings": {
                "href": archive.location.absolute.uri,
                "type": "application/vnd.zarr; version=3",
                "title": "Icechunk repository of Zarr v3 groups",
                "roles": ["data"],
            }
        },
    }


def _model_link(archive: Archive) -> dict[str, str]:
    """Return the link to the encoder; published models are named, and have no address here."""
    spec = archive.spec
    if spec.published:
        name, href = spec.published.title, f"urn:sha256:{spec.encoder_fingerprint}"
    else:
        name, href = f"encoder {spec.encoder_fingerprint[:16]}", archive.encoder.absolute.uri
    return {"rel": "emb:model", "href": href, "title": name}


def write_archive_item(archive: Archive, uri: str | Location) -> dict[str, Any]:
    """Write :func:`archive_item` as JSON and return it."""
    item = archive_item(archive)
    Location.of(uri).write((json.dumps(item, indent=1) + "\n").encode())
    return item


def _extent(archive: Archive) -> tuple[BBox, npt.NDArray[np.datetime64]]:
    """Return the box around all tiles, and the first and last times of each segment."""
    boxes, times = [], []
    for segment in archive.segments:
        found = archive.read_segment(segment.ordinal, ["bbox", "datetime"])
        if len(found["row"]):
            boxes.append(enclosing(found["bbox"]))
            times += [found["datetime"].min(), found["datetime"].max()]
    if not boxes:
        raise NotFoundError(f"archive {archive.uri} holds no tiles to describe; ingest some first")
    return enclosing(boxes), np.array(times)
