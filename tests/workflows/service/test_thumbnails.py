"""Thumbnails of scenes that can no longer be read."""

import pytest

from storage.errors import NotFoundError, SceneError
from storage.scene import CatalogSpec
from workflows.service import thumbnails
from workflows.service.thumbnails import Thumbnails


class _Archive:
    snapshot = "S"
    spec = type("Spec", (), {"bands": ("red",)})


class _Renderer:
    def __init__(self, fault: Exception) -> None:
        self.fault = fault

    def draw(self, scene_id: str, tile: str) -> None:
        raise self.fault


@pytest.mark.parametrize(
    "fault", [SceneError("damaged /secret"), RuntimeError("CPLE /secret"), MemoryError()]
)
def test_a_scene_at_fault_is_not_there_and_the_log_says_why(monkeypatch, caplog, fault):
    monkeypatch.setattr(thumbnails, "read_scenes", lambda *_: type("Read", (), {"scenes": ()}))
    monkeypatch.setattr(thumbnails, "TileRenderer", lambda *_: _Renderer(fault))
    drawn = Thumbnails(CatalogSpec(source="scenes"), 1000)
    with pytest.raises(NotFoundError, match="can no longer be read") as caught:
        drawn.draw(_Archive(), "g/1/2", "a", 64, '"etag"')
    assert "secret" not in str(caught.value)
    assert str(fault) in caplog.text


def test_a_catalog_at_fault_draws_nothing(monkeypatch, caplog):
    drawn = Thumbnails(CatalogSpec(source="/nowhere/*.tif"), 1000)
    with pytest.raises(NotFoundError, match="can no longer be read"):
        drawn.draw(_Archive(), "g/1/2", "a", 64, '"etag"')
    assert "/nowhere" in caplog.text
