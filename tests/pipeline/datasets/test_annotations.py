"""Files in the very forms that annotation programs write: their labels find the tiles again."""

import json

import pytest

from pipeline.datasets.annotations import geojson_tiles, label_studio_config, read_annotations
from storage.errors import ConfigError

CLASSES = ("a", "b", "c")
CHOICE = {"type": "choices", "from_name": "labels", "to_name": "image"}


def image(number: int) -> str:
    return f"/data/local-files/?d=images/tile-{number:06d}.png"


def task(number: int, *given: list[str], cancelled: bool = False, **data: str) -> dict:
    """A task as Label Studio 1.x exports it (JSON), with an annotation for each person."""
    annotations = [
        {
            "id": 10 * number + person,
            "completed_by": person,
            "result": [{**CHOICE, "id": "x", "value": {"choices": names}}] if names else [],
            "was_cancelled": cancelled,
            "ground_truth": False,
            "prediction": {},
            "result_count": len(names),
        }
        for person, names in enumerate(given)
    ]
    data = {"image": image(number), "scene": "s"} | data
    return {"id": number, "annotations": annotations, "drafts": [], "predictions": [], "data": data}


LABEL_STUDIO = [
    task(1, []),
    task(2, ["a"]),
    task(3, ["a", "b"], ["b"], ["c", "b"]),
    task(4),
    task(5, [], cancelled=True),
    task(6, ["c"], image="/data/upload/1/0a1b2c3d-tile-000006.png"),
]
MIN = [
    {"image": image(1), "id": 1, "annotator": 1, "annotation_id": 1, "lead_time": None},
    {"image": image(2), "id": 2, "labels": "a", "annotator": 1, "annotation_id": 2},
    {"image": image(3), "id": 3, "labels": {"choices": ["b", "c"]}, "annotation_id": 3},
    {"image": image(4), "id": 4, "annotator": None, "annotation_id": None, "lead_time": None},
]
DATUMARO = {
    "licenses": [{"name": "", "id": 0, "url": ""}],
    "info": {"contributor": "", "date_created": "", "description": "", "url": "", "year": ""},
    "categories": [{"id": i, "name": n, "supercategory": ""} for i, n in enumerate(CLASSES, 1)],
    "images": [
        {"id": 9, "width": 256, "height": 256, "file_name": "images/tile-000002.png", "license": 0},
        {"id": 8, "width": 256, "height": 256, "file_name": "images/tile-000004.png", "license": 0},
    ],
    "annotations": [{"id": 1, "image_id": 9, "category_id": 1}],
}
BOXES = DATUMARO | {
    "annotations": [
        {"id": 1, "image_id": 8, "category_id": 3, "bbox": [1, 2, 5, 5], "area": 25, "iscrowd": 0},
        {"id": 2, "image_id": 8, "category_id": 3, "bbox": [3, 2, 5, 5], "area": 25, "iscrowd": 0},
    ]
}


def features(*cells: tuple) -> dict:
    """A layer as GDAL writes it: with a CRS, and without the boxes of features."""
    return {
        "type": "FeatureCollection",
        "name": "tiles",
        "crs": {"type": "name", "properties": {"name": "urn:ogc:def:crs:OGC:1.3:CRS84"}},
        "features": [
            {
                "type": "Feature",
                "properties": {"number": i, "image": f"images/tile-{i:06d}.png"}
                | dict(zip(CLASSES, row, strict=True)),
                "geometry": {"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 0]]]},
            }
            for i, row in enumerate(cells, 1)
        ],
    }


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (LABEL_STUDIO, {1: [0, 0, 0], 2: [1, 0, 0], 3: [0, 1, 0], 6: [0, 0, 1]}),
        (MIN, {1: [0, 0, 0], 2: [1, 0, 0], 3: [0, 1, 1]}),
        (DATUMARO, {2: [1, 0, 0]}),
        (BOXES, {4: [0, 0, 1]}),
        (
            features((None, None, None), (1, None, 0), ("1", "", "0"), (True, False, None)),
            {2: [1, 0, 0], 3: [1, 0, 0], 4: [1, 0, 0]},
        ),
    ],
    ids=["label-studio", "min", "datumaro", "boxes", "geojson"],
)
def test_labels_are_read(document, expected):
    found = read_annotations(json.dumps(document).encode(), "export.json", CLASSES)
    assert {number: labels.tolist() for number, labels in found.items()} == expected


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([task(1, ["sea"])], "class 'sea' is not one of a, b, c"),
        ([task(1, ["a"], image="photo.png")], "image 'photo.png' is not one of those"),
        ([task(4)], "no picture has a label"),
        (features(("perhaps", 0, 0)), "property a of tile 1 holds 'perhaps', expected 0 or 1"),
        ({"type": "Topology"}, "is not a file of labels"),
        ([1], "is not a file of labels"),
    ],
)
def test_a_file_without_labels_of_the_tiles_is_refused(document, message):
    with pytest.raises(ConfigError, match=message):
        read_annotations(json.dumps(document).encode(), "export.json", CLASSES)


def test_names_are_kept_as_they_are():
    assert "<Choice value='\"R&amp;D\"'/>" in label_studio_config(['"R&D"'])
    with pytest.raises(ConfigError, match="a class is called 'scene'"):
        geojson_tiles([], ("scene",))
