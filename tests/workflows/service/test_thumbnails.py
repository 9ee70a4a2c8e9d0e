"""Thumbnails of scenes that can no longer be read."""

import pytest

from storage.errors import NotFoundError, SceneError
from storage.scene import CatalogSpec
from workflows.service import thumbnails
from workflows.service.schema import ThumbnailQuery
from workflows.service.thumbnails import Thumbnails


class _Archive:
    snapshot = "S"
    spec = type("Spec", (), {"bands": ("red",), "published": None})


class _Renderer:
    def __init__(self, fault: Exception) -> None:
        self.fault = fault

    def draw(self, scene_id: str, tile: str, preset: str | None, gamma: float | None) -> None:
        raise self.fault


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (SceneError("a.tif is damaged"), "a.tif is damaged"),
        (RuntimeError("CPLE /secret"), "the service's log has it"),
        (MemoryError("/secret"), "the service's log has it"),
    ],
)
def test_a_scene_at_fault_is_not_there_and_says_why(monkeypatch, caplog, fault, told):
    """An unexpected error may say anything, so it goes to the log alone."""
    monkeypatch.setattr(thumbnails, "read_scenes", lambda *_: type("Read", (), {"scenes": ()}))
    monkeypatch.setattr(thumbnails, "tile_renderer", lambda *_: _Renderer(fault))
    drawn = Thumbnails(CatalogSpec(source="scenes"), 1000)
    with pytest.raises(NotFoundError, match=told) as caught:
        drawn.draw(_Archive(), "g/1/2", "a", ThumbnailQuery(size=64))
    assert "secret" not in str(caught.value)
    assert str(fault) in caplog.text


def test_a_catalog_at_fault_draws_nothing_and_says_why(caplog):
    drawn = Thumbnails(CatalogSpec(source="/nowhere/*.tif"), 1000)
    with pytest.raises(NotFoundError, match=r"g/1/2 cannot be drawn: .*nowhere"):
        drawn.draw(_Archive(), "g/1/2", "a", ThumbnailQuery(size=64))
    assert "/nowhere" in caplog.text
