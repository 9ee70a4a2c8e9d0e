"""The archive's STAC item is valid by the published schema, and says what the archive holds."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pystac
import pytest
from referencing import Registry
from referencing.jsonschema import DRAFT7

from storage.archive.reader import Archive
from storage.archive.stac import archive_item, write_archive_item
from storage.errors import NotFoundError
from tests.support.segment_world import SPEC, archive_of_two

BUNDLED = Path(pystac.__file__).parent / "validation" / "jsonschemas"
PROCESSING = "https://stac-extensions.github.io/processing/v1.2.0/schema.json"


def registry() -> Registry:
    """The schemas that the published one refers to, offline.

    STAC's core comes from pystac, which bundles 1.1.0: it stands for 1.0.0 with the
    version changed. Of the processing extension only `processing:expression` is asked.
    """
    known: list[tuple[str, Any]] = []
    for path in BUNDLED.rglob("*.json"):
        text = path.read_text()
        # One bundled "$id" lacks the dot of its suffix.
        place = json.loads(text)["$id"].rpartition("/")[0] + f"/{path.name}"
        older = text.replace('"const": "1.1.0"', '"const": "1.0.0"')
        for at, document in ((place, text), (place.replace("v1.1.0", "v1.0.0"), older)):
            known.append((at, {**json.loads(document), "$id": at}))
    expression = {
        "type": "object",
        "required": ["format", "expression"],
        "properties": {"format": {"type": "string"}, "expression": {}},
    }
    fields = {"fields": {"properties": {"processing:expression": expression}}}
    known.append((PROCESSING, {"definitions": fields}))
    return Registry().with_resources([(i, DRAFT7.create_resource(one)) for i, one in known])


def test_the_item_is_valid_by_the_published_schema(tmp_path: Path, real_data: Path):
    path = real_data.parent / "schemas" / "stac" / "emb.schema.json"
    if not path.exists():
        pytest.skip(f"the schema is not at {path}")
    validator = jsonschema.Draft7Validator(json.loads(path.read_text()), registry=registry())
    target = tmp_path / "item.json"
    write_archive_item(archive_of_two(tmp_path), str(target))
    item = json.loads(target.read_text())
    validator.validate(item)
    for wrong in (
        {**item, "stac_extensions": []},
        {**item, "assets": {}},
        {**item, "properties": {**item["properties"], "emb:made_up": 1}},
        {**item, "stac_version": "0.9"},
    ):
        assert not validator.is_valid(wrong)


def test_the_item_describes_the_snapshot(tmp_path: Path):
    archive = archive_of_two(tmp_path)
    stored = archive.read_segment(0)
    item = archive_item(archive)
    assert item["bbox"] == [
        stored["bbox"][:, 0].min(),
        stored["bbox"][:, 1].min(),
        stored["bbox"][:, 2].max(),
        stored["bbox"][:, 3].max(),
    ]
    assert item["properties"]["start_datetime"] == "2024-05-01T00:00:00Z"
    assert item["properties"]["emb:runtime_parameters"]["bands"] == list(SPEC.bands)
    assert item["assets"]["embeddings"]["href"] == archive.uri
    read = pystac.Item.from_dict(item)
    assert read.properties["skysift:rows"] == len(archive) == 5


def test_an_empty_archive_has_no_item(tmp_path: Path):
    uri = str(tmp_path / "empty")
    Archive.create(uri, SPEC)
    with pytest.raises(NotFoundError, match="holds no tiles to describe"):
        archive_item(Archive.open(uri))
