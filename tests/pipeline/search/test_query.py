"""Queries: what a person points at becomes the vector that the archive has for it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.indexing.driver import build_index, update_index
from pipeline.search.query import FEATURELESS, Query, QueryResolver, combine
from pipeline.search.searcher import Searcher
from storage.errors import (
    ConfigError,
    EncoderMismatchError,
    NotFoundError,
    PictureBandsError,
    SceneError,
)
from storage.raster.picture import fit_picture
from tests.support.archive_world import FINGERPRINT, add_scenes, create_archive, live_rows
from tests.support.shard_world import Rows

DIMENSION = 16
pytestmark = pytest.mark.usefixtures("ray_session")


class MeanColour:
    """Embeds a tile as its mean colour, projected by fixed random numbers."""

    bands = ("red", "green", "blue")
    tile_px = 8
    spec = SimpleNamespace(band_mean=(100.0,) * 3, band_std=(50.0,) * 3)

    def __init__(self, fingerprint: str = FINGERPRINT) -> None:
        self.fingerprint = fingerprint

    def __call__(self, x_BCHW: np.ndarray[Any, Any], /) -> np.ndarray[Any, Any]:
        assert x_BCHW.shape[1:] == (3, 8, 8)
        means = np.nanmean(x_BCHW, axis=(2, 3))
        z = means @ np.random.default_rng(0).normal(size=(3, DIMENSION))
        return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def world(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Searcher, Rows]:
    """Two scenes over the same 150 tiles: same seed, same place, other vectors and dates."""
    folder = tmp_path_factory.mktemp("world")
    archive, index = str(folder / "archive"), str(folder / "index")
    create_archive(archive, DIMENSION)
    rng = np.random.default_rng(8)
    for days, scene in enumerate(("first", "second")):
        vectors = rng.normal(size=(150, DIMENSION))
        add_scenes(archive, {scene: 150}, seed=3, embedding=vectors, days=days)
    build_index(archive, index)
    return Searcher.local(index), live_rows(archive)


def position_of(query: Query, rows: Rows) -> int:
    (n,) = np.flatnonzero(rows["row"] == query.row)
    np.testing.assert_array_equal(query.vector, rows["embedding"][n].astype(np.float32))
    return int(n)


def test_a_tile_key_gives_the_vector_of_its_scene(world: tuple[Searcher, Rows]):
    searcher, rows = world
    resolver = QueryResolver(searcher)
    for scene in ("first", "second"):
        query = resolver.tile(rows["tile_key"][9], scene)
        n = position_of(query, rows)
        assert (rows["tile_key"][n], rows["scene"][n]) == (rows["tile_key"][9], scene)
    hits = searcher.search(query.vector, 1)
    assert hits.rows[0, 0] == query.row
    with pytest.raises(NotFoundError, match="no tile epsg32648-10-64/999/0"):
        resolver.tile("epsg32648-10-64/999/0")
    with pytest.raises(ConfigError, match="is not a tile key"):
        resolver.tile("somewhere")


def test_a_point_gives_a_tile_that_contains_it_from_the_nearest_date(
    world: tuple[Searcher, Rows],
):
    searcher, rows = world
    resolver = QueryResolver(searcher)
    for n in range(0, 150, 31):
        west, south, east, north = rows["bbox"][n]
        if west > east:
            continue
        lon, lat = (west + east) / 2, (south + north) / 2
        inside = [
            m
            for m, box in enumerate(rows["bbox"])
            if box[0] <= lon <= box[2] and box[1] <= lat <= box[3]
        ]
        newest = position_of(resolver.point(lon, lat), rows)
        assert newest in inside
        assert rows["datetime"][newest] == max(rows["datetime"][inside])
        for m in inside:
            when = rows["datetime"][m].astype("datetime64[s]").item()
            nearest = position_of(resolver.point(lon, lat, when), rows)
            assert rows["datetime"][nearest] == rows["datetime"][m]
    _, south, _, north = rows["bbox"].T  # some cross the antimeridian
    covered = f"lon -180.0000 and 180.0000, lat {south.min():.4f} and {north.max():.4f}"
    with pytest.raises(NotFoundError, match=f"no tile at lon 0.*{covered}$"):
        resolver.point(0.0, 89.9)
    with pytest.raises(ConfigError, match="'soon'"):
        resolver.point(0.0, 0.0, "soon")


def test_a_picture_is_embedded_as_the_tile_it_shows(world: tuple[Searcher, Rows], tmp_path: Path):
    picture = np.random.default_rng(2).integers(0, 255, (8, 8, 3)).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "chip.png")
    encoder = MeanColour()
    query = QueryResolver(world[0], encoder).image(str(tmp_path / "chip.png"))
    np.testing.assert_array_equal(query.vector, encoder(picture.transpose(2, 0, 1)[None])[0])
    assert query.row is None


def test_unusable_pictures_are_named(world: tuple[Searcher, Rows], tmp_path: Path):
    grey, text = str(tmp_path / "grey.png"), str(tmp_path / "text.png")
    Image.new("L", (8, 8)).save(grey)
    Path(text).write_text("no picture")
    resolver = QueryResolver(world[0], MeanColour())
    needs = r"has 1 bands, the encoder needs 3 \(red, green, blue\)"
    with pytest.raises(PictureBandsError, match=needs) as refused:
        resolver.image(grey)
    assert refused.value.bands == 1
    with pytest.raises(PictureBandsError, match="bands 1, 2, 0 were chosen") as refused:
        resolver.image(grey, [1, 2, 0])
    assert refused.value.bands == 1
    with pytest.raises(SceneError, match=r"text\.png"):
        resolver.image(text)
    with pytest.raises(ConfigError, match="no valid pixel"):
        resolver.pixels(np.full((3, 9, 9), np.nan, np.float32))
    with pytest.raises(ConfigError, match="needs an encoder"):
        QueryResolver(world[0]).image(grey)


@pytest.mark.parametrize(
    ("contrast", "bands", "told"),
    [(0.0, None, True), (0.5, None, True), (2.0, None, False), (0.0, [1, 0, 0], True)],
)
def test_a_picture_of_one_colour_is_told_apart(
    world: tuple[Searcher, Rows], contrast: float, bands: list[int] | None, told: bool
):
    """``contrast`` is the deviation of its values; 50 is that of the encoder's bands."""
    noise = np.random.default_rng(0).normal(size=(3, 8, 8)) * contrast
    values = (np.array([90.0, 120, 60])[:, None, None] + noise).astype(np.float32)
    values[:, 0, 0] = np.nan
    resolver = QueryResolver(world[0], MeanColour())
    query = resolver.pixels(values, bands=bands)
    assert query.note == (FEATURELESS if told else "")
    place = Query(vector=query.vector, label="place")
    assert combine([query, place, query]).note == query.note
    assert combine([place], [query]).note == ""


def test_another_encoder_is_refused(world: tuple[Searcher, Rows]):
    with pytest.raises(EncoderMismatchError, match=r"cdcdcdcd.* abababab"):
        QueryResolver(world[0], MeanColour("cd" * 32))


def test_rows_come_from_the_snapshot_of_the_index(tmp_path: Path):
    archive, index = str(tmp_path / "archive"), str(tmp_path / "index")
    create_archive(archive, DIMENSION)
    add_scenes(archive, {"A": 30})
    build_index(archive, index)
    before, old = Searcher.local(index), live_rows(archive)
    add_scenes(archive, {"A": 30}, seed=1, version="v2")
    update_index(index)
    after = Searcher.local(index)
    gone = int(old["row"][0])
    assert position_of(QueryResolver(before).row(gone), old) == 0
    with pytest.raises(NotFoundError, match="no live row"):
        QueryResolver(after).row(gone)


def test_examples_move_the_query_towards_what_they_share():
    def query(*values: float) -> Query:
        return Query(vector=np.array(values, dtype=np.float32), label="q")

    both = combine([query(2, 0, 0), query(0, 1, 0)])
    np.testing.assert_allclose(both.vector, [0.5, 0.5, 0])
    without = combine([query(1, 0, 0)], [query(0, 0, 3)])
    np.testing.assert_allclose(without.vector, [1, 0, -0.5])
    with pytest.raises(ConfigError, match="at least one positive"):
        combine([])


@pytest.mark.parametrize(("height", "width", "tile"), [(12, 30, 4), (5, 5, 15), (8, 8, 8)])
def test_a_picture_keeps_its_centre_and_its_mean(height: int, width: int, tile: int):
    values = np.random.default_rng(0).random((2, height, width)).astype(np.float32)
    side, left = min(height, width), (width - min(height, width)) // 2
    square = values[:, :side, left : left + side]
    fitted = fit_picture(values, tile)
    assert fitted.shape == (2, tile, tile)
    np.testing.assert_allclose(fitted.mean((1, 2)), square.mean((1, 2)), atol=0.06)
    if side % tile == 0:
        step = side // tile
        blocks = square.reshape(2, tile, step, tile, step).mean((2, 4))
        np.testing.assert_allclose(fitted, blocks, rtol=1e-5)


def test_invalid_pixels_do_not_count():
    values = np.ones((1, 8, 8), dtype=np.float32)
    values[0, :4, :4] = np.nan
    values[0, 4, 4] = np.nan
    fitted = fit_picture(values, 4)
    assert np.isnan(fitted[0, :2, :2]).all()
    np.testing.assert_allclose(np.delete(fitted.ravel(), [0, 1, 4, 5]), 1)
