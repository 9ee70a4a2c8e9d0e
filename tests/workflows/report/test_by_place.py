"""Tiles of published embeddings are drawn from scenes of their place."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio
from fastapi.testclient import TestClient
from PIL import Image

from pipeline.importing import ImportSpec, import_embeddings, plan_import
from pipeline.indexing import build_index
from storage.archive.reader import Archive
from storage.catalog.read import read_scenes
from storage.errors import NotFoundError, SceneError
from storage.raster.writer import write_geotiff
from storage.scene import CatalogSpec
from tests.support.command_line import run
from tests.support.embeddings import PICTURE_PX as SIDE_PX
from tests.support.embeddings import clay_v0, make_chips, write_alphaearth, write_picture
from workflows.notebook.index import Index
from workflows.report import by_place
from workflows.report.by_place import PlaceRenderer, bands_of_pictures, tile_renderer
from workflows.report.colours import LIGHT_GREY
from workflows.service.app import create_app
from workflows.service.backend import IndexBackend
from workflows.service.mosaic import MapTile
from workflows.service.settings import BackendConfig, Limits

CHIPS = 3


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("imported")
    chips = make_chips(CHIPS, 768)
    spec = ImportSpec(source=str(clay_v0(folder, chips)), archive_uri=str(folder / "archive"))
    import_embeddings(plan_import(spec))
    return spec.archive_uri


def renderer_of(archive: Archive, folder: Path) -> PlaceRenderer:
    catalog = CatalogSpec(source=str(folder))
    scenes = read_scenes(catalog, bands_of_pictures(archive.spec, catalog)).scenes
    made = tile_renderer(archive, scenes)
    assert isinstance(made, PlaceRenderer)
    return made


def tiles_of(archive: Archive) -> list[tuple[str, str]]:
    """Scene and key of each tile, from west to east."""
    rows = archive.read_all(["scene", "tile_key", "bbox"])
    order = np.argsort(rows["bbox"][:, 0])
    return [(str(rows["scene"][i]), str(rows["tile_key"][i])) for i in order]


def chip(pixels: np.ndarray, number: int) -> np.ndarray:
    return np.moveaxis(pixels[..., number * SIDE_PX : (number + 1) * SIDE_PX], 0, -1)


def test_a_tile_shows_the_scene_of_its_place_nearest_in_time(imported: str, tmp_path: Path):
    far = write_picture(tmp_path, "a_20220101", seed=1, chips=CHIPS)
    near = write_picture(tmp_path, "b_20220609", seed=2, chips=2, empty=SIDE_PX // 2)
    archive = Archive.open(imported)
    renderer = renderer_of(archive, tmp_path)
    pictures = [renderer.draw(*tile) for tile in tiles_of(archive)]
    # The nearer scene has half of the first chip, the second whole, and nothing of the third.
    for number, pixels in enumerate((far, near, far)):
        assert (pictures[number] == chip(pixels, number)).all()
    (tmp_path / "a_20220101.tif").unlink()
    renderer = renderer_of(archive, tmp_path)
    tiles = tiles_of(archive)
    half = renderer.draw(*tiles[0])
    assert (half[:, : SIDE_PX // 2] == LIGHT_GREY).all()
    assert (half[:, SIDE_PX // 2 :] == chip(near, 0)[:, SIDE_PX // 2 :]).all()
    with pytest.raises(NotFoundError, match=r"no scene of the catalog holds 10\.\d+, 46\.\d+; add"):
        renderer.draw(*tiles[2])
    assert (renderer.draw_or_blank(*tiles[2]) == LIGHT_GREY).all()
    (tmp_path / "b_20220609.tif").write_bytes(b"II*\0")
    with pytest.raises(SceneError, match="b_20220609"):
        renderer.draw(*tiles[1])


def test_a_large_file_without_overviews_is_not_read_whole(
    imported: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_picture(tmp_path, "a_20220609", seed=2, chips=CHIPS)
    monkeypatch.setattr(by_place, "MOST_FILE_PIXELS", SIDE_PX)
    archive = Archive.open(imported)
    with pytest.raises(SceneError, match="no overviews: add overviews to their files"):
        renderer_of(archive, tmp_path).draw(*tiles_of(archive)[0])


def test_a_tile_of_few_pixels_is_drawn_as_large_as_others(tmp_path: Path):
    stored = np.random.default_rng(0).integers(-127, 128, (64, 32, 32)).astype(np.int8)
    source, scenes = tmp_path / "pixels", tmp_path / "scenes"
    write_alphaearth(source, stored)
    spec = ImportSpec(source=str(source), archive_uri=str(tmp_path / "archive"), tile_px=16)
    import_embeddings(plan_import(spec))
    scenes.mkdir()
    # 160 m a tile in 256 pixels: 10 m pixels of the scene become 16 pixels of the picture.
    pixels = np.full((3, 32, 32), 40, np.uint8)
    pixels[0, :16], pixels[1, :, :16] = 200, 150
    place = (10, 0, 600_000, 0, -10, 5_100_000)
    path, names = str(scenes / "a_20240101.tif"), ("red", "green", "blue")
    write_geotiff(path, pixels, "EPSG:32632", place, descriptions=names)
    archive = Archive.open(spec.archive_uri)
    renderer = renderer_of(archive, scenes)
    rows = archive.read_all(["scene", "tile_key", "tile"])
    seen = {}
    for scene, key, tile in zip(rows["scene"], rows["tile_key"], rows["tile"], strict=True):
        picture = renderer.draw(str(scene), str(key))
        assert picture.shape == (256, 256, 3)
        seen[tuple((tile - rows["tile"].min(0)).tolist())] = picture[128, 128].tolist()
    assert seen == {
        (0, 0): [200, 150, 40],
        (1, 0): [200, 40, 40],
        (0, 1): [40, 150, 40],
        (1, 1): [40, 40, 40],
    }


def test_a_notebook_shows_hits_from_the_scenes_that_it_is_given(imported: str, tmp_path: Path):
    write_picture(tmp_path / "scenes", "a_20220609", seed=2, chips=CHIPS)
    index = str(tmp_path / "index")
    build_index(imported, index)
    (_, key), *_ = tiles_of(Archive.open(imported))
    shown = []
    for scenes in (None, str(tmp_path / "scenes")):
        hits = Index.open(index, scenes=scenes).like(tile=key).top(CHIPS)
        shown.append(hits._repr_html_().count("data:image/"))
    assert shown == [0, CHIPS]


@pytest.fixture
def client(imported: str, tmp_path: Path, ray_session: None) -> Iterator[TestClient]:
    write_picture(tmp_path, "a_20220601", seed=1, chips=CHIPS)
    index = str(tmp_path / "index")
    build_index(imported, index)
    config = BackendConfig(index_uri=index, catalog=CatalogSpec(source=f"{tmp_path}/*.tif"))
    app = create_app(IndexBackend(config), limits=Limits(rate_per_s=0))
    with TestClient(app, base_url="http://127.0.0.1") as made:
        yield made


def test_the_service_and_the_command_line_draw_them(
    client: TestClient, imported: str, tmp_path: Path
):
    about = client.get("/v1/index").json()
    assert (about["pictures"], about["no_pictures_because"]) == (True, "")
    assert [preset["name"] for preset in about["presets"]] == ["true"]
    scene, key = tiles_of(Archive.open(imported))[1]
    address = f"/v1/tiles/{key}/thumbnail.png"
    first = client.get(address, params={"scene": scene, "size": SIDE_PX})
    assert first.status_code == 200, first.text
    with rasterio.open(tmp_path / "a_20220601.tif") as file:
        pixels = file.read()
    path = tmp_path / "first.png"
    path.write_bytes(first.content)
    assert (np.asarray(Image.open(path).convert("RGB")) == chip(pixels, 1)).all()
    west, south, east, north = about["bbox"]
    tile = MapTile.at((west + east) / 2, (south + north) / 2, 12)
    shown = client.get(f"/v1/mosaic/{tile.z}/{tile.x}/{tile.y}")
    assert (shown.status_code, shown.headers["content-type"]) == (200, "image/webp")
    path.write_bytes(shown.content)
    assert np.asarray(Image.open(path).convert("RGBA"))[..., 3].mean() > 30
    out = tmp_path / "sheet.png"
    command = ("archive", "sheet", "--archive", imported, "--scenes", tmp_path, "--json")
    drawn = run(*command, "--out", out)
    assert (drawn.code, drawn.data["tiles"]) == (0, CHIPS)
    colours = np.asarray(Image.open(out).convert("RGB")).reshape(-1, 3)
    assert len(np.unique(colours, axis=0)) > 10_000  # of pictures, not of text alone
