"""Content negotiation: answers as JSON, GeoJSON or GeoParquet, by the header ``Accept``."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from fastapi import Response
from pydantic import BaseModel

from storage.archive.export import hits_to_geoparquet
from workflows.service.schema import ScenesAnswer, SearchAnswer

GEOJSON = "application/geo+json"
PARQUET = "application/vnd.apache.parquet"
CONTENT: dict[str, Any] = {
    GEOJSON: {"schema": {"type": "object"}},
    PARQUET: {"schema": {"type": "string", "format": "binary"}},
}
"""The entries of GeoJSON and GeoParquet in the OpenAPI document."""


def negotiated(answer: SearchAnswer | ScenesAnswer, accept: str | None) -> Response:
    """Return an answer in the format that a client accepts; JSON unless it names another."""
    accepted = accept or ""
    if PARQUET in accepted:
        return Response(_geoparquet(_items(answer)), media_type=PARQUET)
    if GEOJSON in accepted:
        return Response(json.dumps(feature_collection(answer)), media_type=GEOJSON)
    return Response(answer.model_dump_json(), media_type="application/json")


def feature_collection(answer: SearchAnswer | ScenesAnswer) -> dict[str, Any]:
    """Return hits or scenes as GeoJSON; the footprint of each is its WGS84 box."""
    items = _items(answer)
    features = []
    for item in items:
        properties = item.model_dump(mode="json")
        box = properties.pop("bbox")
        features.append({"type": "Feature", "geometry": _polygon(box), "properties": properties})
    about = answer.model_dump(mode="json", exclude={"hits", "scenes"})
    return {"type": "FeatureCollection", **about, "features": features}


def _items(answer: SearchAnswer | ScenesAnswer) -> Sequence[BaseModel]:
    return answer.hits if isinstance(answer, SearchAnswer) else answer.scenes


def _polygon(box: Sequence[float] | None) -> dict[str, Any] | None:
    if box is None:
        return None
    west, south, east, north = box
    east += 360.0 if east < west else 0.0  # RFC 7946 cuts at 180°; viewers unwrap
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    return {"type": "Polygon", "coordinates": [ring]}


def _geoparquet(items: Sequence[BaseModel]) -> bytes:
    """Return the items that have a box."""
    rows = [item.model_dump() for item in items]
    placed = [row for row in rows if row["bbox"] is not None]
    boxes = np.array([row.pop("bbox") for row in placed], dtype=np.float64).reshape(-1, 4)
    return hits_to_geoparquet(pd.DataFrame(placed), boxes)
