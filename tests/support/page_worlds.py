"""What the reader of a page has in the folder before the first command of the page."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import geopandas
import numpy as np
import pyarrow as pa
import shapely
from PIL import Image
from pyproj import Transformer

from encoders.backbones.build import build_backbone
from encoders.bundle import new_encoder, save_bundle
from encoders.spec import EncoderSpec
from pipeline.analysis.landcover import TileLabels
from storage.raster.writer import write_geotiff
from tests.support.embeddings import (
    clay_v0,
    lists,
    make_chips,
    wkb,
    write,
    write_picture,
    write_zarr,
)
from tests.support.own_losses import write_losses
from tests.support.paths import REPOSITORY
from tests.support.safe import safe_product
from tests.support.training_world import write_dataset
from workflows.recipe.load import read_recipe_text

LON, LAT = 103.75, 17.92
DAYS = ("20240223", "20240524", "20240822")
SIDE_PX, BANDS = 448, ("red", "green", "blue")
TILE = "epsg32648-10-64/574/-3097"
"""The tile of 64 px at the place that the pages name."""
_RANDOM_SEED = 3


def write_scenes(folder: Path) -> None:
    """Write three scenes around the place with their catalog, a bundle for them, and a picture."""
    random, items = np.random.default_rng(_RANDOM_SEED), []
    for day in DAYS:
        pixels = random.integers(1, 255, (3, SIDE_PX, SIDE_PX), dtype=np.uint8)
        path = folder / f"scene_{day}.tif"
        write_geotiff(str(path), pixels, "EPSG:32648", _corner(), descriptions=BANDS)
        items.append(_item(path.name, day))
    _write_json(folder / "catalog.json", {"type": "FeatureCollection", "features": items})
    save_bundle(new_encoder(_spec(), seed=1), str(folder / "work/bundle"))
    picture = random.integers(0, 255, (64, 64, 3), dtype=np.uint8)
    for name in ("field.png", "chip.png"):
        Image.fromarray(picture).save(folder / name)


def write_band_files(folder: Path, days: tuple[str, ...] = DAYS) -> None:
    """Write the bands of Sentinel-2 products, without STAC, and an area over them."""
    random = np.random.default_rng(_RANDOM_SEED)
    for day in days:
        for band in ("B02", "B03", "B04", "B08"):
            name = f"work/cogs/T48QUE_{day}T032739_{band}_10m.tif"
            counts = random.integers(1, 9000, (1, SIDE_PX, SIDE_PX), dtype=np.uint16)
            write_geotiff(str(folder / name), counts, "EPSG:32648", _corner())


def write_other_formats(folder: Path) -> None:
    """Write a SAFE folder of JPEG 2000, and a virtual raster of a GeoTIFF of four bands."""
    safe_product(folder / "work/safe", side_px=192)
    pixels = np.random.default_rng(_RANDOM_SEED).integers(1, 9000, (4, 192, 192), dtype=np.uint16)
    write_geotiff(str(folder / "work/mosaic/part.tif"), pixels, "EPSG:32648", _corner())
    rect = 'xOff="0" yOff="0" xSize="192" ySize="192"'
    layers = [
        f'<VRTRasterBand dataType="UInt16" band="{band}"><Description>{name}</Description>'
        '<SimpleSource><SourceFilename relativeToVRT="1">mosaic/part.tif</SourceFilename>'
        f"<SourceBand>{band}</SourceBand><SrcRect {rect}/><DstRect {rect}/></SimpleSource>"
        "</VRTRasterBand>"
        for band, name in enumerate((*BANDS, "nir"), 1)
    ]
    place = ", ".join(str(_corner()[at]) for at in (2, 0, 1, 5, 3, 4))
    (folder / "work/mosaic_20200223.vrt").write_text(
        '<VRTDataset rasterXSize="192" rasterYSize="192"><SRS>EPSG:32648</SRS>'
        f"<GeoTransform>{place}</GeoTransform>{''.join(layers)}</VRTDataset>"
    )


def write_searches(folder: Path) -> None:
    """Write a vector to ask with, labels of tiles, and a recipe of the archive and the index."""
    random = np.random.default_rng(_RANDOM_SEED)
    np.save(folder / "query.npy", random.normal(size=16).astype(np.float32))
    grid, column, row = TILE.split("/")
    keys = [
        f"{grid}/{int(column) + right}/{int(row) + down}"
        for right in range(-3, 4)
        for down in range(-3, 4)
    ]
    labels = TileLabels(
        tile_keys=np.array(keys, dtype=object),
        fractions=random.dirichlet([1, 1], len(keys)).astype(np.float32),
        mapped=np.ones(len(keys), np.float32),
        classes=("water", "crops"),
        min_fraction=0.3,
    )
    labels.to_parquet(str(folder / "labels.parquet"))
    (folder / "world.yaml").write_text(
        "catalog: {source: catalog.json}\nencoder: {bundle: work/bundle}\n"
        "archive: {uri: work/archive}\nindex: {uri: work/index}\n"
    )
    items = (folder / "catalog.json").read_text().replace('"href": "', '"href": "../')
    (folder / "work/items.json").write_text(items)
    (folder / "searches").mkdir()


def write_marks(folder: Path) -> None:
    """Write six right and six wrong marks, tiles of a scene."""
    grid, column, row = TILE.split("/")
    features = [
        {
            "type": "Feature",
            "geometry": None,
            "properties": {
                "tile_key": f"{grid}/{int(column) + right}/{int(row) + down}",
                "scene": f"S2A_{day}",
                "mark": mark,
            },
        }
        for mark, down in (("right", 0), ("wrong", 1))
        for right in (0, 1)
        for day in DAYS
    ]
    _write_json(folder / "marks.geojson", {"type": "FeatureCollection", "features": features})


def write_other_bundle(folder: Path) -> None:
    """Write a bundle of another encoder of the same bands."""
    save_bundle(
        new_encoder(replace(_spec(), dimension=24), seed=2), str(folder / "work/new-bundle")
    )


def write_series(folder: Path) -> None:
    """Write what the recipes naip-series and landsat-series read, and a bundle for them."""
    random = np.random.default_rng(_RANDOM_SEED)
    for year in ("20090818", "20120731"):
        pixels = random.integers(1, 255, (3, 192, 192), dtype=np.uint8)
        place = (5, 0, 488_320, 0, -5, 5_207_680)
        path = folder / f"scenes/naip_m_4709963_se_14_1_{year}.tif"
        write_geotiff(str(path), pixels, "EPSG:26914", place)
    for year in (1985, 1995):
        pixels = random.integers(1, 255, (3, 128, 128), dtype=np.uint8)
        place = (0.0008, 0, -74.72249415376068, 0, -0.0008, -8.282107593468341)
        path = folder / f"scenes/landsat_ucayali_{year}.tif"
        write_geotiff(str(path), pixels, "EPSG:4326", place)
    save_bundle(new_encoder(_spec(), seed=1), str(folder / "work/encoders/mobilenet-64"))
    area = shapely.box(-74.75, -8.4, -74.6, -8.25), shapely.box(LON - 1, LAT - 1, LON + 1, LAT + 1)
    geopandas.GeoDataFrame(geometry=list(area), crs=4326).to_file(folder / "area.gpkg")


def write_embeddings(folder: Path) -> None:
    """Write tables of embeddings in the forms of the page; the mosaic is of 2,048 places."""
    chips = make_chips(40, 768)
    clay_v0(folder / "clay", chips)
    (folder / "scenes").mkdir()
    write_picture(folder / "scenes", "S2_20220612", _RANDOM_SEED, chips=3)
    small = make_chips(20, 8, side_m=640)
    vectors, centres = lists(small.vectors), small.centres
    columns = {"emb": vectors, "geom": wkb(small.polygons), "day": pa.array(small.days)}
    write(folder / "rows.parquet", columns)
    points = {"emb": vectors, "x": pa.array(centres[:, 0]), "y": pa.array(centres[:, 1])}
    write(folder / "points.parquet", points)
    stored = np.random.default_rng(_RANDOM_SEED).integers(-90, 90, (1, 64, 96, 96)).astype(np.int8)
    write_zarr(str(folder / "mosaic.zarr"), stored, attributes={}, years=[2024])


def write_trainings(folder: Path) -> None:
    """Write dataset and recipe of aid-labels, with short trainings, and the page's loss."""
    write_dataset(str(folder / "work/aid/dataset"), 80, bands=BANDS, test_rows=20)
    recipe = read_recipe_text("aid-labels")[0]
    (folder / "aid-labels").write_text(recipe.replace("epochs: 40", "epochs: 2\n  batch_size: 16"))
    network = build_backbone("mobilenet_v2", BANDS, config={"depth_multiplier": 0.25})
    network.model.save_pretrained(folder / "weights/mobilenet_v2")
    write_losses(folder)


def write_collection(folder: Path) -> None:
    """Write the recipe of composites, and three days of Sentinel-2 with a cloud mask as STAC."""
    page = (REPOSITORY / "docs/composites.md").read_text()
    (folder / "series.yaml").write_text(page.partition("```yaml\n")[2].partition("```")[0])
    random, place = np.random.default_rng(_RANDOM_SEED), folder / "sentinel-2"
    names, links = {"B04": "red", "B03": "green", "B02": "blue", "B08": "nir"}, []
    for day in ("20240105", "20240120", "20240410"):
        assets: dict[str, object] = {}
        for band, name in names.items():
            pixels = random.integers(1, 9000, (1, 128, 128), dtype=np.uint16)
            path = place / f"{day}_{band}.tif"
            write_geotiff(str(path), pixels, "EPSG:32648", _corner(), nodata=0)
            known = [{"name": band, "common_name": name}]
            assets[band] = {"href": f"./{path.name}", "type": "image/tiff", "eo:bands": known}
        classes = random.choice(np.array([4, 9], np.uint8), (1, 128, 128), p=[0.9, 0.1])
        write_geotiff(str(place / f"{day}_SCL.tif"), classes, "EPSG:32648", _corner(), nodata=0)
        assets["scl"] = {"href": f"./{day}_SCL.tif", "type": "image/tiff"}
        _write_json(place / f"{day}.json", {**_item("", day), "assets": assets})
        links.append({"rel": "item", "href": f"./{day}.json", "type": "application/json"})
    box, times = [103, 17, 104, 18], ["2024-01-05T03:00:00Z", "2024-04-10T03:00:00Z"]
    extent = {"spatial": {"bbox": [box]}, "temporal": {"interval": [times]}}
    collection = {"type": "Collection", "stac_version": "1.0.0", "id": "s2", "license": "other"}
    more = {"description": "Three days", "extent": extent, "links": links}
    _write_json(place / "collection.json", {**collection, **more})


PARTS: dict[str, Callable[[Path], None]] = {
    "scenes": write_scenes,
    "bands": write_band_files,
    "formats": write_other_formats,
    "searches": write_searches,
    "marks": write_marks,
    "other bundle": write_other_bundle,
    "series": write_series,
    "embeddings": write_embeddings,
    "trainings": write_trainings,
    "collection": write_collection,
}


def _corner() -> tuple[float, ...]:
    east, north = Transformer.from_crs(4326, 32648, always_xy=True).transform(LON, LAT)
    return (10, 0, east - 1600, 0, -10, north + 1600)


def _spec() -> EncoderSpec:
    return EncoderSpec(
        backbone="tiny-cnn",
        bands=BANDS,
        band_mean=(128.0,) * 3,
        band_std=(70.0,) * 3,
        tile_px=64,
        dimension=16,
    )


def _item(name: str, day: str) -> dict[str, object]:
    box = [LON - 0.02, LAT - 0.02, LON + 0.02, LAT + 0.02]
    bands = [{"name": band, "common_name": band} for band in BANDS]
    asset = {"href": name, "type": "image/tiff", "roles": ["data"], "eo:bands": bands}
    ring = [[box[0], box[1]], [box[2], box[1]], [box[2], box[3]], [box[0], box[1]]]
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": f"S2A_{day}",
        "bbox": box,
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"datetime": f"{day[:4]}-{day[4:6]}-{day[6:]}T03:00:00Z"},
        "links": [],
        "assets": {"pixels": asset},
    }


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))
