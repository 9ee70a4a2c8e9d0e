"""A contact sheet shows the tiles that were asked for, drawn from their scenes; drift in words."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.tiles.grid import TileGrid
from storage.archive.ledger import LedgerEntry
from storage.archive.reader import Archive
from storage.archive.spec import ArchiveSpec
from storage.archive.writer import ArchiveWriter, SegmentRows, write_segment
from storage.raster.writer import write_geotiff
from tests.support.command_line import run
from workflows.report.rendering import TileRenderer, encoded, grid_and_place

TILE_PX = 32
ACROSS = 5
TILES = ACROSS**2
GRID = TileGrid(crs="EPSG:32632", resolution=10.0, tile_px=TILE_PX)
DAYS = ("20240501", "20240701")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scenes of 5 x 5 tiles, each tile of its own colour; an archive of both; their hits."""
    folder = tmp_path_factory.mktemp("sheet")
    for seed, day in enumerate(DAYS):
        colours = np.random.default_rng(seed).integers(0, 255, (3, ACROSS, ACROSS))
        pixels = np.kron(colours, np.ones((TILE_PX, TILE_PX))).astype(np.uint8)
        at = (10, 0, 3200 * 100, 0, -10, 3200 * 1500)
        write_geotiff(
            f"{folder}/site_{day}.tif",
            pixels,
            "EPSG:32632",
            at,
            descriptions=("red", "green", "blue"),
        )
    write_archive(folder)
    return folder


def write_archive(folder: Path) -> None:
    uri = str(folder / "archive")
    spec = ArchiveSpec(
        encoder_fingerprint="ab" * 32,
        encoder_uri="bundle",
        dimension=4,
        bands=("red", "green", "blue"),
        tile_px=TILE_PX,
    )
    Archive.create(uri, spec)
    tiles = np.array([(1000 + c, -15000 + r) for r in range(ACROSS) for c in range(ACROSS)])
    tiles = np.tile(tiles, (2, 1)).astype(np.int32)
    vectors = np.random.default_rng(0).normal(size=(2 * TILES, 4)).astype(np.float32)
    vectors[TILES:, 0] += 6  # the second day is far from the first
    scenes = tuple(f"site_{day}" for day in DAYS)
    times = np.array(["2024-05-01", "2024-07-01"], "datetime64[ms]")
    columns = {
        "embedding": vectors / np.linalg.norm(vectors, axis=1, keepdims=True),
        "tile": tiles,
        "window": np.zeros((2 * TILES, 4), np.int32),
        "bbox": GRID.bbox_wgs84(tiles),
        "datetime": np.repeat(times, TILES),
        "valid_fraction": np.ones(2 * TILES, np.float32),
        "cloud_fraction": np.zeros(2 * TILES, np.float32),
        "scene_index": np.repeat([0, 1], TILES).astype(np.int32),
    }
    writer = ArchiveWriter(uri)
    segment = SegmentRows(id="s1", scenes=scenes, grids=(GRID.id,) * 2, columns=columns)
    entries = [
        LedgerEntry(scene_id=s, state="embedded", fingerprint="v1", rows=TILES, grid_id=GRID.id)
        for s in scenes
    ]
    receipt = write_segment(writer.fork, segment, spec)
    writer.commit([receipt], entries, {GRID.id: GRID.to_dict()}, "test")


def arguments(world: Path) -> list[str]:
    return ["--archive", str(world / "archive"), "--scenes", f"{world}/*.tif"]


def renderer(world: Path) -> TileRenderer:
    from storage.catalog.read import read_scenes
    from storage.scene import CatalogSpec

    archive = Archive.open(str(world / "archive"))
    listing = read_scenes(CatalogSpec(source=f"{world}/*.tif"), archive.spec.bands)
    return TileRenderer(archive, listing.scenes)


def middles(path: Path, count: int, columns: int, side: int) -> list[tuple[int, ...]]:
    """The colour in the middle of each cell, by the sheet's own geometry."""
    sheet = np.asarray(Image.open(path))
    cell_w, cell_h, head = side + 12, side + 2 * 15 + 12, 2 * 12 + 15
    places = [divmod(n, columns) for n in range(count)]
    return [
        tuple(sheet[head + r * cell_h + side // 2, 12 + c * cell_w + side // 2].tolist())
        for r, c in places
    ]


def colour(world: Path, scene: str, key: str) -> tuple[int, ...]:
    return tuple(renderer(world).draw(scene, key)[TILE_PX // 2, TILE_PX // 2].tolist())


def test_hits_are_drawn_in_their_order(world: Path, tmp_path: Path):
    keys = [(f"site_{DAYS[n % 2]}", GRID.key(1000 + n, -15000 + n % 3)) for n in range(4)]
    hits = [
        {"scene": s, "tile_key": k, "datetime": "2024-05-01T00:00:00", "score": 0.9 - n / 10}
        for n, (s, k) in enumerate(keys)
    ]
    features = [{"type": "Feature", "properties": hit} for hit in hits]
    table = io.StringIO()
    writer = csv.DictWriter(table, hits[0].keys())
    writer.writeheader()
    writer.writerows(hits)
    files = {
        "hits.json": json.dumps({"query": "x", "hits": hits}),
        "hits.geojson": json.dumps({"type": "FeatureCollection", "features": features}),
        "hits.csv": table.getvalue(),
    }
    drawn = []
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        out = tmp_path / f"{name}.png"
        asked = ["--hits", str(tmp_path / name), "--columns", "3", "--side", "64"]
        done = run("archive", "sheet", *arguments(world), *asked, "--out", str(out), "--json")
        assert (done.code, done.data["tiles"]) == (0, 4)
        drawn.append(out.read_bytes())
        assert middles(out, 4, 3, 64) == [colour(world, *key) for key in keys]
    assert drawn[0] == drawn[1] == drawn[2]


def test_a_place_a_scene_and_a_sample(world: Path, tmp_path: Path):
    out, key = tmp_path / "sheet.png", GRID.key(1002, -14999)
    assert run("archive", "sheet", *arguments(world), "--tile", key, "--out", str(out)).code == 0
    expected = [colour(world, f"site_{day}", key) for day in DAYS]
    assert middles(out, 2, 2, 192) == expected
    write = ["--out", str(out), "--json"]
    done = run("archive", "sheet", *arguments(world), "--of-scene", "site_20240701", *write)
    assert done.data["tiles"] == 24
    done = run("archive", "sheet", *arguments(world), "--count", "5", *write)
    assert done.data["tiles"] == 5


@pytest.mark.parametrize(
    ("more", "code", "text"),
    [
        (["--tile", "epsg1-1-1/0/0"], 1, "no live row of tile key epsg1-1-1/0/0"),
        (["--of-scene", "ghost"], 1, "no live row of scene ghost"),
        (["--tile", "a/0/0", "--of-scene", "b"], 2, "give at most one of --tile"),
        (["--hits", "{world}/site_20240501.tif"], 2, "holds no hits"),
    ],
)
def test_mistakes_end_in_one_line(world: Path, more: list[str], code: int, text: str):
    filled = [word.format(world=world) for word in more]
    done = run("archive", "sheet", *arguments(world), *filled, "--out", str(world / "no.png"))
    assert (done.code, done.err.count("\n")) == (code, done.err.count("\n"))
    assert text in done.err
    assert not (world / "no.png").exists()


def test_drift_is_told_by_period_and_by_date(world: Path):
    at = ["archive", "drift", "--archive", str(world / "archive")]
    for more in (["--by", "month"], ["--split", "2024-06-01"]):
        done = run(*at, *more, "--json")
        [group] = done.data["groups"]
        assert (group["rows"], group["drifted"]) == (TILES, True)
        assert group["mean_shift"] > 0.5
    assert "2024-07" in run(*at, "--by", "month").out
    whole_year = run(*at, "--by", "year")
    assert whole_year.code == 2
    assert "50 rows make 1 groups (2024); choose other periods" in whole_year.err
    assert run(*at, "--by", "year", "--split", "2024-06-01").code == 2


def test_encoded_pictures_have_the_asked_size_and_keys_come_apart():
    data = encoded(np.zeros((32, 64, 3), np.uint8), "PNG", 128)
    assert Image.open(io.BytesIO(data)).size == (128, 64)
    assert grid_and_place(GRID.key(3, -4)) == (GRID.id, (3, -4))
