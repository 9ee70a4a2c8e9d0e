"""Catalogs of every kind become scenes; what is wrong in them is rejected by name."""

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage.catalog.read import read_scenes
from storage.errors import CatalogError, ConfigError, NotFoundError
from storage.location import Location
from storage.raster.geotiff import inspect
from storage.raster.pixel_grid import PixelGrid
from storage.raster.reader import SceneReader
from storage.raster.writer import write_geotiff
from storage.scene import (
    BandMapping,
    BandSource,
    CatalogSpec,
    MaskMapping,
    MaskSource,
    Scene,
    SceneList,
    SceneQuery,
)
from storage.values import printable

TRANSFORM = (10, 0, 362610, 0, -10, 1987090)


def write(
    path: Path | str | Location, count: int = 2, names: tuple[str, ...] = (), **more: Any
) -> str:
    array = np.full((count, 32, 32), 3, np.uint16)
    write_geotiff(
        Location.of(path), array, "EPSG:32648", TRANSFORM, descriptions=names, cog=False, **more
    )
    return str(path)


def item(
    name: str = "one", assets: dict[str, Any] | None = None, **properties: Any
) -> dict[str, Any]:
    assets = assets or {
        "red": asset("red.tif", "B04", "red"),
        "nir": asset("nir.tif", "B08", "nir"),
    }
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "geometry": None,
        "bbox": [10, 50, 11, 51],
        "properties": {"datetime": "2023-05-01T10:00:00Z", "eo:cloud_cover": 20} | properties,
        "assets": assets,
        "links": [],
        "collection": "s2",
    }


def asset(href: str, name: str = "", common: str = "", **more: Any) -> dict[str, Any]:
    bands = {"eo:bands": [{"name": name, "common_name": common}]} if name else {}
    return (
        {"href": href, "type": "image/tiff; application=geotiff", "roles": ["data"]} | bands | more
    )


def save(path: Path, document: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return str(path)


def collection(*items: Any) -> dict[str, Any]:
    return {"type": "FeatureCollection", "features": list(items)}


def load(source: str, names: tuple[str, ...] = ("red",), /, **spec: Any) -> SceneList:
    return read_scenes(CatalogSpec(source=source, **spec), names)


def only(scenes: SceneList) -> Scene:
    assert scenes.rejected == ()
    assert len(scenes.scenes) == 1
    return scenes.scenes[0]


def reasons(scenes: SceneList) -> dict[str, str]:
    return {one.scene_id: one.reason for one in scenes.rejected}


# --- STAC: where bands are --------------------------------------------------------------------


def test_item_becomes_a_scene(tmp_path: Path) -> None:
    scene = only(load(save(tmp_path / "items" / "i.json", item()), ("nir", "B04")))
    assert scene.id == "one"
    assert scene.datetime == datetime(2023, 5, 1, 10, tzinfo=UTC)
    assert (scene.collection, scene.cloud_cover_percent) == ("s2", 20)
    assert scene.bbox == (10, 50, 11, 51)
    assert scene.band_names == ("nir", "B04")
    assert [band.href.uri for band in scene.bands] == [
        str(tmp_path / "items" / name) for name in ("nir.tif", "red.tif")
    ]


@pytest.mark.parametrize(
    ("band", "expected"),
    [
        ("image", ("a.tif", 1)),  # an asset's key
        ("Green", ("a.tif", 2)),  # a band's name
        ("nir", ("a.tif", 3)),  # a common name
        ("B12", ("S2_B12.tif", 1)),  # a file's name
    ],
)
def test_bands_are_found(tmp_path: Path, band: str, expected: tuple[str, int]) -> None:
    bands = [{"name": "Red"}, {"name": "Green"}, {"name": "N", "eo:common_name": "nir"}]
    assets = {
        "image": {"href": "a.tif", "bands": bands},
        "swir": asset("S2_B12.tif"),
        "visual": asset("v.tif", "Red", "nir", roles=["visual"]),
        "thumbnail": {"href": "Green.png", "type": "image/png"},
        "jp2": {"href": "B12.jp2", "type": "image/jp2", "bands": bands},
    }
    found = only(load(save(tmp_path / "i.json", item(assets=assets)), (band,))).bands[0]
    assert (Path(found.href.uri).name, found.index) == expected


def test_mapping_decides(tmp_path: Path) -> None:
    mapping = {"x": BandMapping(asset="nir", index=3, scale=2.0, offset=1.0, nodata=9.0)}
    band = only(load(save(tmp_path / "i.json", item()), ("x",), bands=mapping)).bands[0]
    assert band == BandSource(
        name="x", href=str(tmp_path / "nir.tif"), index=3, scale=2.0, offset=1.0, nodata=9.0
    )


def test_missing_band_says_which_there_are(tmp_path: Path) -> None:
    source = save(tmp_path / "i.json", item())
    assert (
        "has no band 'B12'; it has red (B04), nir (B08)" in reasons(load(source, ("B12",)))["one"]
    )
    mapping = {"B12": BandMapping(asset="swir22")}
    reason = reasons(load(source, ("B12",), bands=mapping))["one"]
    assert "has no asset 'swir22' for band 'B12'; it has red (B04), nir (B08)" in reason


def test_band_in_several_assets_must_be_mapped(tmp_path: Path) -> None:
    assets = {key: asset(f"{key}.tif", key, "rededge") for key in ("B05", "B06")}
    reason = reasons(load(save(tmp_path / "i.json", item(assets=assets)), ("rededge",)))["one"]
    assert "several assets (B05, B06)" in reason


def test_mask_is_found_or_the_scene_is_rejected(tmp_path: Path) -> None:
    assets = {"red": asset("red.tif"), "scl": asset("SCL.tif")}
    source = save(tmp_path / "i.json", item(assets=assets))
    mask = MaskMapping(asset="scl", cloud_values=(3, 8), cloud_bits=(1,))
    assert only(load(source, mask=mask)).mask == MaskSource(
        href=str(tmp_path / "SCL.tif"), cloud_values=(3, 8), cloud_bits=(1,)
    )
    assert (
        "no asset 'qa' for the cloud mask"
        in reasons(load(source, mask=MaskMapping(asset="qa")))["one"]
    )


# --- STAC: from numbers to values -------------------------------------------------------------

CDSE = {"constellation": "sentinel-2", "processing:version": "05.11"}
NAMED = {"s2:product_uri": "S2A_MSIL2A_20240311T135701_N0510_R067.SAFE"}
RASTER = {"nodata": 0, "scale": 0.0001}


@pytest.mark.parametrize(
    ("properties", "raster", "mapping", "expected"),
    [
        ({}, {}, {}, (None, None, None)),
        ({}, RASTER | {"offset": -0.1}, {}, (1e-4, -0.1, 0)),
        # Sentinel-2 from baseline 04.00 on, the item being silent about its offset
        ({"s2:processing_baseline": "04.00"}, {}, {}, (None, -1000, None)),
        ({"s2:processing_baseline": "05.10"}, RASTER, {}, (1e-4, -0.1, 0)),
        ({"s2:processing_baseline": "03.01"}, RASTER, {}, (1e-4, None, 0)),
        (CDSE, {}, {}, (None, -1000, None)),
        (NAMED, {}, {}, (None, -1000, None)),
        # stated by the item: not once more
        ({"s2:processing_baseline": "05.10"}, RASTER | {"offset": -0.1}, {}, (1e-4, -0.1, 0)),
        ({"s2:processing_baseline": "05.10"}, RASTER | {"offset": 0}, {}, (1e-4, 0, 0)),
        # already in the pixels, whatever raster:bands repeats (Earth Search)
        (
            {"s2:processing_baseline": "05.10", "earthsearch:boa_offset_applied": True},
            RASTER | {"offset": -0.1}, {}, (1e-4, 0, 0),
        ),
        # another scale takes the offset with it; an offset of the recipe's own stays
        ({}, RASTER | {"offset": -0.1}, {"scale": 1.0}, (1, -1000, 0)),
        ({"s2:processing_baseline": "04.00"}, {}, {"scale": 1e-4}, (1e-4, -0.1, None)),
        ({"s2:processing_baseline": "04.00"}, RASTER, {"offset": 5.0}, (1e-4, 5, 0)),
        ({}, {"nodata": "nan"}, {}, (None, None, "nan")),
    ],
)  # fmt: skip
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_scale_and_offset_count_once(
    tmp_path: Path,
    version: str,
    properties: dict[str, Any],
    raster: dict[str, Any],
    mapping: dict[str, Any],
    expected: tuple[Any, Any, Any],
) -> None:
    if version == "1.0":
        red = asset("red.tif", "B04", "red") | ({"raster:bands": [raster]} if raster else {})
    else:
        renamed = {k if k == "nodata" else f"raster:{k}": v for k, v in raster.items()}
        red = asset("red.tif", bands=[{"name": "B04"} | renamed])
    source = save(tmp_path / "i.json", item(assets={"red": red}, **properties))
    band = only(load(source, bands={"red": BandMapping(asset="red", **mapping)})).bands[0]
    assert (band.scale, band.offset) == pytest.approx(expected[:2])
    assert str(band.nodata) == str(expected[2]) or band.nodata == expected[2]


def test_sentinel2_offset_leaves_classes_alone(tmp_path: Path) -> None:
    assets = {"scl": asset("SCL.tif"), "B04": asset("B04.tif")}
    source = save(tmp_path / "i.json", item(assets=assets, **{"s2:processing_baseline": "05.00"}))
    scene = only(load(source, ("scl", "B04")))
    assert [band.offset for band in scene.bands] == [None, -1000]


# --- STAC: places -----------------------------------------------------------------------------


def test_places_that_can_be_read_are_preferred(tmp_path: Path) -> None:
    aws = "https://sentinel-cogs.s3.us-west-2.amazonaws.com/a/B04.tif"
    elsewhere = "https://landsat.example.com/B05.tif"
    assets = {
        "aws": asset(aws),
        "both": asset(elsewhere, alternate={"s3": {"href": "s3://usgs/B05.tif"}}),
        "web": asset(elsewhere),
    }
    source = save(tmp_path / "i.json", item(assets=assets))
    scene = only(load(source, ("aws", "both")))
    assert [band.href.uri for band in scene.bands] == [
        "s3://sentinel-cogs/a/B04.tif",
        "s3://usgs/B05.tif",
    ]
    assert (
        f"asset 'web' is at {elsewhere}, which cannot be read"
        in reasons(load(source, ("web",)))["one"]
    )


def test_catalog_on_s3_is_read_but_names_no_local_file(moto_s3: Any, tmp_path: Path) -> None:
    local = write(tmp_path / "secret.tif")
    items = [item("fine", {"red": asset("../tifs/red.tif")}), item("sly", {"red": asset(local)})]
    source = moto_s3.location("stac", "items.json")
    source.write(json.dumps(collection(*items)).encode())
    write(moto_s3.location("tifs", "red.tif"))
    found = read_scenes(CatalogSpec(source=source), ["red"])
    assert [scene.id for scene in found.scenes] == ["fine"]
    assert found.scenes[0].bands[0].href.uri == moto_s3.uri("tifs", "red.tif")
    assert "which cannot be read" in reasons(found)["sly"]
    grid = PixelGrid(crs="EPSG:32648", resolution=10.0)
    with SceneReader(found.scenes[0], grid) as reader:
        assert reader.read(reader.extent).values.max() == 3

    pattern = CatalogSpec(source=moto_s3.location("tifs", "*.tif"), bands={"red": BandMapping()},
                          datetime_pattern="(?P<date>2020)|red")  # fmt: skip
    assert "no date" in read_scenes(pattern, ["red"]).rejected[0].reason
    write(moto_s3.location("tifs", "b_20200101.tif"))
    spec = CatalogSpec(
        source=moto_s3.location("tifs", "b*.tif"), bands={"red": BandMapping(index=2)}
    )
    scene = only(read_scenes(spec, ["red"]))
    assert scene.bands[0].href.uri == moto_s3.uri("tifs", "b_20200101.tif")
    write(moto_s3.location("tifs", "b_20200101.tif"), count=3)
    assert only(read_scenes(spec, ["red"])).fingerprint != scene.fingerprint


# --- STAC: catalogs and what is wrong in them -------------------------------------------------


def link(rel: str, href: str) -> dict[str, str]:
    return {"rel": rel, "href": href}


def test_static_catalog_is_walked_once_whatever_is_broken(tmp_path: Path) -> None:
    root = {"type": "Catalog", "stac_version": "1.0.0", "id": "r", "description": ""}
    links = [link("child", "sub/collection.json"), link("item", "a.json"), link("self", "x.json")]
    broken = [
        link("item", "gone.json"),
        link("item", "bad.json"),
        link("item", "https://e.org/i.json"),
    ]
    save(tmp_path / "catalog.json", root | {"links": links + broken})
    back = [link("item", "b.json"), link("child", "../catalog.json"), link("item", "../a.json")]
    save(tmp_path / "sub" / "collection.json", root | {"type": "Collection", "links": back})
    save(tmp_path / "a.json", item("a"))
    save(tmp_path / "sub" / "b.json", item("b"))
    (tmp_path / "bad.json").write_text("{")
    for source in (tmp_path / "catalog.json", tmp_path):
        found = load(str(source))
        assert [scene.id for scene in found.scenes] == ["b", "a"]
        assert found.scenes[0].bands[0].href.uri == str(tmp_path / "sub" / "red.tif")
        assert set(reasons(found)) == {"gone", "bad", "i"}
        assert "does not exist" in reasons(found)["gone"]
        assert "not JSON" in reasons(found)["bad"]


def test_wrong_items_are_rejected_by_name(tmp_path: Path) -> None:
    wrong = {
        "../up": "looks like a path",
        "a\\b": "looks like a path",
        "a\nb": "not printable",
        " a": "not printable",
    }
    items = [item(name) for name in wrong]
    no_time = item("no-time", datetime=None)
    nonsense = item("nonsense", datetime="yesterday")
    no_assets = item("no-assets") | {"assets": {"red": {}}}
    cloudy = item("cloudy", **{"eo:cloud_cover": "many"})
    odd = item("odd", {"red": asset("red.tif", **{"raster:bands": [{"scale": "big"}]})})
    interval = item("interval", datetime=None, start_datetime="2023-05-01T00:00:00Z",
                    end_datetime="2023-06-01T00:00:00Z")  # fmt: skip
    items += [no_time, nonsense, no_assets, cloudy, odd, interval, item("twin"), item("twin"), 5]
    found = load(save(tmp_path / "items.json", collection(*items)))
    assert [scene.id for scene in found.scenes] == ["interval", "twin"]
    told = reasons(found)
    for name, reason in wrong.items():
        assert reason in told[printable(name)]
    assert "datetime" in told["no-time"]
    assert "occurs before" in told["twin"]
    assert set(told) == {
        *map(printable, wrong),
        "no-time",
        "nonsense",
        "no-assets",
        "cloudy",
        "odd",
        "twin",
        "items",
    }
    assert not any("\n" in reason for reason in told.values())


def test_unusable_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="holds no scenes"):
        load(save(tmp_path / "empty.json", collection()))
    (tmp_path / "folder").mkdir()
    with pytest.raises(CatalogError, match="holds no scenes"):
        load(str(tmp_path / "folder"))
    with pytest.raises(CatalogError, match="type is 'Point'"):
        load(save(tmp_path / "geo.json", {"type": "Point"}))
    (tmp_path / "bad.json").write_text("<html>")
    with pytest.raises(CatalogError, match="not JSON"):
        load(str(tmp_path / "bad.json"))
    with pytest.raises(NotFoundError, match=r"none\.json"):
        load(str(tmp_path / "none.json"))
    with pytest.raises(ConfigError, match="ftp"):
        load("ftp://somewhere/items.json")
    with pytest.raises(ConfigError, match="no bands"):
        load(save(tmp_path / "i.json", item()), ())


# --- queries ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, "abc"),
        ({"bbox": (10.5, 50.5, 12, 52)}, "a"),
        ({"bbox": (11, 51, 12, 52)}, "a"),
        ({"bbox": (-180, -90, 180, 90)}, "abc"),
        ({"bbox": (179.5, -20, -179.5, -10)}, "c"),
        ({"bbox": (-179.2, -20, -179.1, -10)}, "c"),
        ({"since": datetime(2023, 5, 1, 10)}, "ab"),
        ({"until": datetime(2023, 5, 1, 9, 59, tzinfo=UTC)}, "c"),
        ({"max_cloud_cover_percent": 20.0}, "ac"),
        ({"collections": ("s2",)}, "ab"),
    ],
)
def test_query_selects(tmp_path: Path, query: dict[str, Any], expected: str) -> None:
    items = [
        item("a"),
        item("b", datetime="2023-07-01T00:00:00Z", **{"eo:cloud_cover": 21})
        | {"bbox": [-60, -9, 0, -58, -8, 900]},
        item("c", datetime="2022-01-01T00:00:00Z", **{"eo:cloud_cover": None})
        | {"bbox": [179, -18, -179, -17], "collection": "other"},
    ]
    source = save(tmp_path / "items.json", collection(*items))
    assert "".join(s.id for s in load(source, query=SceneQuery(**query)).scenes) == expected


def test_a_polygon_selects_by_the_geometry_and_by_the_box_without_one(tmp_path: Path) -> None:
    """A slanted scene: its box meets the polygon, its geometry does not."""
    slanted = {"type": "Polygon", "coordinates": [[[0, 0], [10, 10], [9, 10], [0, 1], [0, 0]]]}
    corner = "POLYGON ((8 0, 10 0, 10 2, 8 0))"
    items = [
        item("slanted") | {"bbox": [0, 0, 10, 10], "geometry": slanted},
        item("boxed") | {"bbox": [0, 0, 10, 10], "geometry": None},
        item("far") | {"bbox": [20, 20, 21, 21], "geometry": None},
        item("broken") | {"bbox": [0, 0, 10, 10], "geometry": {"type": "Polygon"}},
    ]
    source = save(tmp_path / "items.json", collection(*items))

    def found(**query: Any) -> tuple[list[str], list[str]]:
        listing = load(source, query=SceneQuery(**query))
        return [one.id for one in listing.scenes], [one.scene_id for one in listing.rejected]

    assert found(polygon=corner) == (["boxed"], ["broken"])
    around = {"type": "Polygon", "coordinates": [[[1, 1], [5, 1], [5, 5], [1, 5], [1, 1]]]}
    assert found(polygon=around) == (["slanted", "boxed"], ["broken"])
    with pytest.raises(CatalogError, match="none of the 4 entries"):
        found(polygon=json.dumps(around), bbox=(20, 20, 30, 30))
    with pytest.raises(ConfigError, match="neither WKT nor GeoJSON"):
        SceneQuery(polygon="here")


def test_query_that_selects_nothing_says_so(tmp_path: Path) -> None:
    source = save(tmp_path / "items.json", collection(item()))
    with pytest.raises(CatalogError, match="none of the 1 entries"):
        load(source, query=SceneQuery(collections=("landsat",)))
    placeless = save(tmp_path / "placeless.json", collection(item() | {"bbox": None}))
    assert "no bbox" in reasons(load(placeless, query=SceneQuery(bbox=(0, 0, 1, 1))))["one"]


# --- plain files ------------------------------------------------------------------------------


def test_files_are_grouped_by_how_they_end(tmp_path: Path) -> None:
    for day in ("20200101", "20200202"):
        write(tmp_path / f"s_{day}_10m.tif", 4)
        write(tmp_path / f"s_{day}_20m.tif", 2)
        write(tmp_path / f"s_{day}_mask.TIF".replace("TIF", "tif"), 1)
    (tmp_path / "s_20200202_20m.tif").unlink()
    spec: dict[str, Any] = {
        "bands": {
            "B08": BandMapping(asset="_10m.tif", index=4, scale=1e-4),
            "B11": BandMapping(asset="_20m.tif", index=2),
        },
        "mask": MaskMapping(asset="_mask.tif", cloud_values=(1,)),
    }
    for source in (str(tmp_path), str(tmp_path / "*.tif")):
        found = load(source, ("B11", "B08"), **spec)
        (scene,) = found.scenes
        assert scene.id == "s_20200101"
        assert scene.datetime == datetime(2020, 1, 1, tzinfo=UTC)
        assert [(Path(b.href.uri).name, b.index, b.scale) for b in scene.bands] == [
            ("s_20200101_20m.tif", 2, None),
            ("s_20200101_10m.tif", 4, 1e-4),
        ]
        assert scene.mask is not None
        assert scene.mask.href.uri.endswith("s_20200101_mask.tif")
        assert (
            "no file ending in '_20m.tif' for band 'B11'; it has s_20200202_10m.tif"
            in (reasons(found)["s_20200202"])
        )


def test_folder_per_scene(tmp_path: Path) -> None:
    for day in ("20200101", "20200202"):
        write(tmp_path / f"S2_{day}" / "B02.tif", 1)
    bands = {"B02": BandMapping(asset="/B02.tif")}
    found = load(str(tmp_path), ("B02",), bands=bands)
    assert [scene.id for scene in found.scenes] == ["S2_20200101", "S2_20200202"]


def test_bands_are_found_by_description(tmp_path: Path) -> None:
    write(tmp_path / "a_20200101.tif", names=("B02", "B03"))
    write(tmp_path / "b_20200102.tif")
    found = load(str(tmp_path / "*.tif"), ("B03",))
    assert [(s.id, s.bands[0].index) for s in found.scenes] == [("a_20200101", 2)]
    assert (
        "no band described as 'B03': b_20200102.tif has 2 (unnamed, unnamed)"
        in (reasons(found)["b_20200102"])
    )


@pytest.mark.parametrize(
    ("name", "pattern", "expected"),
    [
        ("m_4709963_se_14_1_20090818", None, datetime(2009, 8, 18)),
        ("S2A_MSIL2A_20240311T135701_N0510", None, datetime(2024, 3, 11, 13, 57, 1)),
        ("x_2009-08-18_y", None, datetime(2009, 8, 18)),
        ("99999999_20090818", None, datetime(2009, 8, 18)),
        ("ucayali_1985", r"_(?P<date>\d{4})", datetime(1985, 1, 1)),
        ("landsat8_107035_2015218_clip", r"_(?P<date>\d{7})_", datetime(2015, 8, 6)),
    ],
)
def test_dates_in_names(tmp_path: Path, name: str, pattern: str | None, expected: datetime) -> None:
    write(tmp_path / f"{name}.tif")
    found = load(str(tmp_path), bands={"red": BandMapping()}, datetime_pattern=pattern)
    assert only(found).datetime == expected.replace(tzinfo=UTC)


def test_bad_files_and_patterns_are_named(tmp_path: Path) -> None:
    write(tmp_path / "undated.tif")
    (tmp_path / "text_20200101.tif").write_text("no")
    query = SceneQuery(bbox=(103, 17, 104, 18))
    found = load(str(tmp_path), bands={"red": BandMapping()}, query=query)
    assert "no date in its name" in reasons(found)["undated"]
    assert "cannot be opened as GeoTIFF" in reasons(found)["text_20200101"]
    for pattern, says in (("(", "not a pattern"), (r"\d+", "no group 'date'")):
        with pytest.raises(ConfigError, match=says):
            load(str(tmp_path), bands={"red": BandMapping()}, datetime_pattern=pattern)


def test_same_name_in_two_folders_is_not_one_scene(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write(tmp_path / folder / "s_20200101.tif")
    found = load(str(tmp_path), bands={"red": BandMapping()})
    assert len(found.scenes) == len(found.rejected) == 1
    assert "occurs before" in found.rejected[0].reason


# --- fingerprints -----------------------------------------------------------------------------


def test_fingerprint_follows_what_decides_the_pixels(tmp_path: Path) -> None:
    source = save(tmp_path / "i.json", item())
    base = only(load(source))
    assert base.fingerprint == only(load(source)).fingerprint
    assert len(base.fingerprint) == 16
    changed = [
        only(load(source, ("nir",))),
        only(load(source, bands={"red": BandMapping(asset="red", index=2)})),
        only(load(source, bands={"red": BandMapping(asset="red", nodata=1.0)})),
        only(load(source, mask=MaskMapping(asset="nir"))),
        only(load(save(tmp_path / "j.json", item(updated="2024-01-01T00:00:00Z")))),
        only(load(save(tmp_path / "k.json", item(datetime="2023-05-02T10:00:00Z")))),
    ]
    prints = {base.fingerprint, *(scene.fingerprint for scene in changed)}
    assert len(prints) == 7
    renamed = only(load(save(tmp_path / "l.json", item("other", **{"eo:cloud_cover": 1}))))
    assert renamed.fingerprint == base.fingerprint


# --- real documents and scenes ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "bands", "expected"),
    [
        (
            "S2A_29RKH_20200219_0_L2A.json",
            ("red", "B08"),
            [("B04.tif", 1, 1e-4, 0.0, 0.0), ("B08.tif", 1, 1e-4, 0.0, 0.0)],
        ),
        (
            "S2A_31NBJ_20190524_0_L2A.json",
            ("B04", "nir"),
            [("B04.tif", 1, None, None, None), ("B08.tif", 1, None, None, None)],
        ),
        (
            "sentinel-2-l2a-S2A_T20HNJ_20240311T140636_L2A.json",
            ("B04", "swir16"),
            [("B04.tif", 1, 1e-4, -0.1, 0.0), ("B11.tif", 1, 1e-4, -0.1, 0.0)],
        ),
        (
            "landsat-c2l2-sr-LC09_L2SR_086107_20240311_20240312_02_T2_SR.json",
            ("red", "nir08"),
            [("LC09_L2SR_086107_20240311_20240312_02_T2_SR_B4.TIF", 1, None, None, None),
             ("LC09_L2SR_086107_20240311_20240312_02_T2_SR_B5.TIF", 1, None, None, None)],
        ),
        (
            "naip_m_4207009_ne_19_060_20211024.json",
            ("b4",),
            [("m_4207009_ne_19_060_20211024.tif", 4, None, None, None)],
        ),
    ],
)  # fmt: skip
def test_real_items_are_understood(
    real_data: Path, document: str, bands: tuple[str, ...], expected: list[Any]
) -> None:
    scene = only(load(str(real_data / "stac" / document), bands))
    found = [
        (b.href.uri.rpartition("/")[2], b.index, b.scale, b.offset, b.nodata) for b in scene.bands
    ]
    assert found == expected
    assert all(band.href.uri.startswith("s3://") for band in scene.bands)
    assert scene.bbox is not None


def test_real_item_of_this_project_reads_its_scene(real_data: Path, tmp_path: Path) -> None:
    """The Earth Search item, its assets pointed at the decimated bands that lie here."""
    document = json.loads((real_data / "stac" / "S2A_29RKH_20200219_0_L2A.json").read_text())
    tif = str(real_data / "scenes" / "s2l2a_29RKH_20200219_100m.tif")
    for key in ("blue", "green", "red", "nir"):
        document["assets"][key]["href"] = tif
    document["assets"]["scl"]["href"] = str(
        real_data / "scenes" / "s2l2a_29RKH_20200219_SCL_200m.tif"
    )
    mapping = {"red": BandMapping(asset="red", index=3), "nir": BandMapping(asset="nir", index=4)}
    mask = MaskMapping(asset="scl", cloud_values=(3, 8, 9, 10))
    scene = only(
        load(save(tmp_path / "i.json", document), ("red", "nir"), bands=mapping, mask=mask)
    )
    with SceneReader(scene, PixelGrid(crs="EPSG:32629", resolution=100.0)) as reader:
        block = reader.read(reader.extent)
    assert block.valid.mean() > 0.5
    assert 0.1 < np.nanmedian(block.values[0]) < 0.6, "desert sand reflects"
    assert block.cloud.mean() == pytest.approx(scene.cloud_cover_percent / 100, abs=0.02)  # type: ignore[operator]
    west, south, east, north = inspect(tif).bbox
    assert scene.bbox == pytest.approx((west, south, east, north), abs=0.01)


def test_real_collection_of_items_is_rejected_item_by_item(real_data: Path) -> None:
    found = load(str(real_data / "stac" / "sample-item-collection.json"), ("B04",))
    assert not found.scenes
    assert len(found.rejected) == 10
    assert all("https://lpdaac" in one.reason for one in found.rejected)


def test_real_files_make_series(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "scenes"
    naip = load(
        str(folder / "naip_m_4709963_*.tif"),
        ("R", "NIR"),
        bands={"R": BandMapping(index=1), "NIR": BandMapping(index=4)},
    )
    assert [s.datetime.year for s in naip.scenes] == [2009, 2010, 2012, 2014, 2015]
    for name in ("10m", "20m", "cloudmask"):
        shutil.copy(
            folder / f"s2l2a_majortom_199U_1099R_{name}.tif", tmp_path / f"x_20200223_{name}.tif"
        )
    mapping = {
        name: BandMapping(asset="_10m.tif", index=i + 1) for i, name in enumerate(("B02", "B03"))
    }
    mapping["B11"] = BandMapping(asset="_20m.tif", index=5)
    scene = only(
        load(
            str(tmp_path),
            ("B11", "B02"),
            bands=mapping,
            mask=MaskMapping(asset="_cloudmask.tif", cloud_values=(1, 2, 3)),
            query=SceneQuery(bbox=(103.7, 17.8, 103.8, 17.9)),
        )
    )
    assert scene.id == "x_20200223"
    assert [band.index for band in scene.bands] == [5, 1]
