"""Content negotiation: answers as JSON, GeoJSON or GeoParquet, by the header ``Accept``."""

import json
from typing import Any

from fastapi import Response

from storage.formats import feature_collection, geoparquet
from workflows.service.marks import DetectionsAnswer, MarksAnswer
from workflows.service.schema import ChangeAnswer, ScenesAnswer, SearchAnswer

GEOJSON = "application/geo+json"
PARQUET = "application/vnd.apache.parquet"
CONTENT: dict[str, Any] = {
    GEOJSON: {"schema": {"type": "object"}},
    PARQUET: {"schema": {"type": "string", "format": "binary"}},
}
"""The entries of GeoJSON and GeoParquet in the OpenAPI document."""


_ITEMS = {
    SearchAnswer: "hits",
    DetectionsAnswer: "hits",
    MarksAnswer: "marks",
    ScenesAnswer: "scenes",
    ChangeAnswer: "changes",
}


def negotiated(
    answer: SearchAnswer | DetectionsAnswer | MarksAnswer | ScenesAnswer | ChangeAnswer,
    accept: str | None,
) -> Response:
    """Return an answer in the format that a client accepts; JSON unless it names another."""
    accepted = accept or ""
    name = _ITEMS[type(answer)]
    items = getattr(answer, name)
    if PARQUET in accepted:
        records = [item.model_dump(exclude_unset=True) for item in items]
        return Response(geoparquet(records), media_type=PARQUET)
    if GEOJSON in accepted:
        about = answer.model_dump(mode="json", exclude={name})
        records = [item.model_dump(mode="json", exclude_unset=True) for item in items]
        features = feature_collection(records, **about)
        return Response(json.dumps(features), media_type=GEOJSON)
    return Response(answer.model_dump_json(), media_type="application/json")
