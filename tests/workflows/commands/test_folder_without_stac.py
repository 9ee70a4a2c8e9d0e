"""A folder of per-band files, made from real scenes, becomes an archive that an area searches."""

import json
from collections.abc import Sequence
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from click.testing import CliRunner, Result

from tests.support.safe import PRODUCT, safe_product, write_jp2
from workflows.cli import cli

SCENES = {"199U_1099R": "T48QUE_20200223T032739", "0U_199R": "T33NZA_20220706T085611"}
BANDS = {"10m": ("B02", "B03", "B04", "B08"), "20m": ("B05", "B06", "B07", "B8A", "B11", "B12")}
PRESET = ("--scenes-preset", "sentinel-2")


@pytest.fixture
def cogs(real_data: Path, tmp_path: Path) -> Path:
    """The corner of two real scenes in two zones, a file a band, as products name them."""
    folder = tmp_path / "cogs"
    folder.mkdir()
    for place, product in SCENES.items():
        for resolution, bands in BANDS.items():
            with rasterio.open(
                real_data / "scenes" / f"s2l2a_majortom_{place}_{resolution}.tif"
            ) as source:
                side = 2560 // int(resolution[:2])
                profile = {**source.profile, "width": side, "height": side, "count": 1}
                profile |= {"driver": "GTiff", "tiled": False, "blockysize": side}
                profile.pop("blockxsize", None)
                pixels = source.read(window=((0, side), (0, side)))
            for band, values in zip(bands, pixels, strict=True):
                path = folder / f"{product}_{band}_{resolution}.tif"
                with rasterio.open(path, "w", **profile) as target:
                    target.write(values, 1)
    return folder


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def made(*arguments: str | Path) -> dict[str, object]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    answer: dict[str, object] = json.loads(result.stdout)
    return answer


def encoder(target: Path, cogs: Path, bands: Sequence[str], *more: str) -> list[str | Path]:
    bundle = f"encoder.bands=[{', '.join(bands)}]"
    return [
        *("encoder", "make", "--scenes", cogs, *more, "--encoder", target, "--set", bundle),
        *("--backbone", "tiny-cnn", "--set", "encoder.tile_px=64"),
    ]


def test_a_folder_is_embedded_indexed_and_searched_in_an_area(cogs: Path, tmp_path: Path):
    enc, arc, idx = (tmp_path / name for name in ("enc", "arc", "idx"))
    assert made(*encoder(enc, cogs, ["red", "nir", "swir16"], *PRESET))["left_out"] == {}
    made("ingest", "--scenes", cogs, *PRESET, "--encoder", enc, "--archive", arc)
    made("index", "build", "--archive", arc, "--index", idx)
    area = geopandas.GeoDataFrame(
        geometry=[shapely.box(362700, 1985700, 363200, 1986400)], crs="EPSG:32648"
    )
    area.to_file(tmp_path / "area.gpkg")
    west, south, east, north = area.to_crs(4326).total_bounds
    place = f"{(west + east) / 2},{(south + north) / 2}"
    found = run(
        *("search", "--index", idx, "--json"),
        *("--lonlat", place, "--polygon", tmp_path / "area.gpkg", "-k", "50"),
    )
    assert found.exit_code == 0, found.output
    hits = json.loads(found.stdout)["hits"]
    assert 0 < len(hits) < 16
    assert {hit["scene"] for hit in hits} == {SCENES["199U_1099R"]}
    for hit in hits:
        assert shapely.box(*hit["bbox"]).intersects(shapely.box(west, south, east, north))


def exported(archive: Path) -> dict[str, np.ndarray]:
    """Return the vectors of an archive of one scene by tile."""
    table = archive.with_suffix(".parquet")
    made("archive", "export", "--archive", archive, "--out", table)
    rows = geopandas.read_parquet(table)
    return dict(zip(rows["tile_key"], rows["embedding"], strict=True))


def test_a_safe_folder_gives_the_vectors_of_its_geotiffs(cogs: Path, tmp_path: Path):
    """JPEG 2000 without loss of real pixels, behind the switch, and a query picture of it."""
    product = f"{SCENES['0U_199R']}_"
    geotiffs = tmp_path / "tif" / PRODUCT
    geotiffs.mkdir(parents=True)
    pixels = {}
    for path in cogs.glob(f"{product}*.tif"):
        path.rename(geotiffs / path.name)
        band, resolution = path.stem.removeprefix(product).split("_")
        with rasterio.open(geotiffs / path.name) as source:
            pixels[band, int(resolution[:2])] = source.read(1)
            corner = (source.transform.c, source.transform.f)
    pixels["SCL", 20] = np.full((128, 128), 4)
    safe_product(tmp_path / "safe", pixels, side_px=256, corner=corner)
    enc, open_ = tmp_path / "enc", ("--set", "catalog.drivers=[jp2]")
    bands = ["red", "nir", "swir16"]
    made(*encoder(enc, tmp_path / "tif", bands, *PRESET))
    common = (*PRESET, "--encoder", enc)
    closed = run("ingest", "--scenes", tmp_path / "safe", *common, "--archive", tmp_path / "no")
    assert closed.exit_code != 0
    assert "set catalog.drivers=[jp2]" in closed.output
    for name, more in (("tif", ()), ("safe", open_)):
        archive = ("--archive", tmp_path / f"{name}.arc")
        made("ingest", "--scenes", tmp_path / name, *common, *more, *archive)
    vectors = [exported(tmp_path / f"{name}.arc") for name in ("tif", "safe")]
    assert len(vectors[0]) > 4
    assert vectors[0].keys() == vectors[1].keys()
    for key, vector in vectors[0].items():
        np.testing.assert_array_equal(vectors[1][key], vector)
    picture = tmp_path / "picture.jp2"
    write_jp2(picture, np.stack([pixels["B04", 10]] * 3), 10)
    made("index", "build", "--archive", tmp_path / "safe.arc", "--index", tmp_path / "idx")
    search = ("search", "--index", tmp_path / "idx", "--image", picture, "--encoder", enc)
    assert "set catalog.drivers=[jp2]" in str(run(*search).exception)
    assert made(*search, *open_)["hits"]


def test_make_and_ingest_give_the_same_reasons(cogs: Path, tmp_path: Path):
    (cogs / f"{SCENES['0U_199R']}_B04_10m.tif").unlink()
    enc = tmp_path / "enc"
    result = run(*encoder(enc, cogs, ["red"], *PRESET), "--json")
    assert result.exit_code == 3, result.output
    left_out = json.loads(result.stdout)["left_out"]
    planned = run(
        *("ingest", "--scenes", cogs, *PRESET, "--encoder", enc, "--archive", tmp_path / "arc"),
        *("--dry-run", "--json"),
    )
    text = left_out[SCENES["0U_199R"]]
    assert list(left_out) == [SCENES["0U_199R"]]
    assert "no file ending in 'B04' for band 'red'" in text
    assert text in json.dumps(json.loads(planned.stdout), ensure_ascii=False)
