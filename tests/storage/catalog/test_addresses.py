"""What identifies a scene, where its assets are found, and which offset its numbers have."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from storage.catalog.read import read_scenes
from storage.errors import SceneError
from storage.location import Location
from storage.raster.geotiff import inspect
from storage.raster.pixel_grid import PixelGrid
from storage.raster.reader import SceneReader
from storage.scene import BandMapping, CatalogSpec, Scene
from tests.support.object_store import MotoS3
from tests.support.signed_addresses import SIGNED

TIFF = "image/tiff; application=geotiff"


def item(folder: Path, asset: dict[str, Any], key: str = "red", **properties: Any) -> str:
    document = {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": "one",
        "geometry": None,
        "bbox": [0, 0, 1, 1],
        "properties": {"datetime": "2024-01-05T10:00:00Z", **properties},
        "links": [],
        "assets": {key: {"type": TIFF, **asset}},
    }
    (folder / "item.json").write_text(json.dumps(document))
    return str(folder / "item.json")


def only(source: str | Location, band: str = "red", **spec: Any) -> Scene:
    found = read_scenes(CatalogSpec(source=source, **spec), [band])
    assert found.rejected == ()
    (scene,) = found.scenes
    return scene


def reason(source: str, band: str = "red", **spec: Any) -> str:
    found = read_scenes(CatalogSpec(source=source, **spec), [band])
    assert found.scenes == ()
    return found.rejected[0].reason


def raster(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = pixels.shape
    with rasterio.open(
        path, "w", driver="GTiff", count=count, height=height, width=width, dtype=pixels.dtype,
        crs="EPSG:32633", transform=from_origin(500_000, 5_000_000, 10, 10),
    ) as out:  # fmt: skip
        out.write(pixels)


# ---------------------------------------------------------------- identity


def test_a_fresh_signature_is_the_same_scene(tmp_path: Path) -> None:
    prints = set()
    for address in [*SIGNED, *(text.replace("HUSH", "FRESH") for text in SIGNED)]:
        scene = only(item(tmp_path, {"href": address}), allow=("https://h",))
        assert scene.bands[0].href.uri == address
        assert "HUSH" not in f"{scene}{scene.document}"
        prints.add(scene.fingerprint)
    plain = only(item(tmp_path, {"href": "https://h/a.tif"}), allow=("https://h",))
    assert prints == {plain.fingerprint}
    other = only(item(tmp_path, {"href": "https://h/a.tif?id=2&sig=x"}), allow=("https://h",))
    assert other.fingerprint != plain.fingerprint


def test_reasons_have_no_signature(tmp_path: Path) -> None:
    for address in SIGNED:
        assert "HUSH" not in reason(item(tmp_path, {"href": address}))


def test_a_path_is_the_same_scene_however_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    prints = set()
    for href in ("a.tif", "./a.tif", "../d/a.tif", str(folder / "a.tif"), f"file://{folder}/a.tif"):
        source = item(folder, {"href": href})
        prints.add(only(source).fingerprint)
        for cwd in (tmp_path, folder, Path("/")):
            monkeypatch.chdir(cwd)
            scene = only(os.path.relpath(source))
            assert scene.bands[0].href.path.is_absolute()
            prints.add(scene.fingerprint)
    assert len(prints) == 1


def test_a_ledger_of_before_may_name_files_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d").mkdir()
    scene = only(item(tmp_path / "d", {"href": "a.tif"}))
    before = "5dce10b78518d018"  # written by the release that named it d/a.tif
    assert scene.known_as(before) == before
    assert scene.known_as("other") == scene.known_as("") == scene.fingerprint != before


# ---------------------------------------------------------------- places


@pytest.mark.parametrize(
    "name", ["my scene.tif", "b#1.tif", "Zürich (2024).tif", "50%.tif", "a+b.tif", "what?.tif"]
)
@pytest.mark.parametrize("encoded", [True, False])
@pytest.mark.parametrize("on_s3", [True, False])
def test_references_are_found_encoded_or_not(
    tmp_path: Path, moto_s3: MotoS3, name: str, encoded: bool, on_s3: bool
) -> None:
    from urllib.parse import quote

    root = moto_s3.location("encoded", name[:2]) if on_s3 else Location(str(tmp_path))
    (root / name).write(b"tiff")
    href = "./" + (quote(name) if encoded else name)
    text = Path(item(tmp_path, {"href": href})).read_text()
    (root / "an item.json").write(text.encode())
    links = [{"rel": "item", "href": "an%20item.json"}]
    catalog = {"type": "Catalog", "stac_version": "1.0.0", "id": "c", "description": "c"}
    (root / "catalog.json").write(json.dumps(catalog | {"links": links}).encode())
    scene = only(root / "catalog.json")
    assert scene.bands[0].href == root / name


def test_of_two_files_the_one_that_the_reference_means(tmp_path: Path) -> None:
    for name in ("a b.tif", "a%20b.tif"):
        (tmp_path / name).touch()
    assert only(item(tmp_path, {"href": "a%20b.tif"})).bands[0].href.path.name == "a b.tif"
    assert only(item(tmp_path, {"href": "a%2520b.tif"})).bands[0].href.path.name == "a%20b.tif"


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("https://b.s3.us-west-2.amazonaws.com/k/my%20a.tif", "s3://b/k/my a.tif"),
        ("https://b.s3.amazonaws.com/c%231.tif", "s3://b/c#1.tif"),
        ("https://b.s3.amazonaws.com/50%25.tif", "s3://b/50%.tif"),
        ("https://b.s3.us-west-2.amazonaws.com/a.tif?versionId=3", "s3://b/a.tif"),
        ("http://my.dotted.s3-eu-west-1.amazonaws.com/a.tif", "s3://my.dotted/a.tif"),
        ("https://b.s3.dualstack.us-west-2.amazonaws.com/a.tif", "s3://b/a.tif"),
        ("https://s3.us-west-2.amazonaws.com/b/k/a.tif", "s3://b/k/a.tif"),
        ("https://b.s3.cn-north-1.amazonaws.com.cn/a.tif", "s3://b/a.tif"),
        ("https://b.s3.amazonaws.com/a.tif?X-Amz-Signature=1", "s3://b/a.tif"),
    ],
)
def test_an_address_of_s3_is_the_object(tmp_path: Path, address: str, place: str) -> None:
    assert only(item(tmp_path, {"href": address})).bands[0].href.uri == place


def test_a_signed_address_of_s3_is_used_where_it_is_allowed(tmp_path: Path) -> None:
    address = "https://b.s3.amazonaws.com/a.tif?X-Amz-Signature=1"
    source, allow = item(tmp_path, {"href": address}), ("https://b.s3.amazonaws.com", "s3://b")
    assert only(source, allow=allow).bands[0].href.uri == address
    assert only(source, allow=("s3://b",)).bands[0].href.uri == "s3://b/a.tif"
    assert "allow" in reason(item(tmp_path, {"href": address}), allow=("s3://other",))
    tricky = "https://b.s3.amazonaws.com/pub/%2e%2e/secret.tif"
    assert "allow" in reason(item(tmp_path, {"href": tricky}), allow=("s3://b/pub",))


def test_a_refused_object_reminds_of_buckets_whose_requester_pays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise rasterio.RasterioIOError("<Error><Code>AccessDenied</Code></Error>")

    monkeypatch.setattr(rasterio, "open", refuse)
    with pytest.raises(SceneError, match="set AWS_REQUEST_PAYER=requester"):
        inspect("s3://bucket/a.tif")


@pytest.mark.parametrize(
    "kind",
    [
        "image/tiff", "IMAGE/TIFF; application=geotiff", "image/vnd.stac.geotiff; profile=x",
        "image/x.geotiff", "image/geotiff", "application/x-geotiff", "image/geo+tiff", "GeoTIFF",
        "application/octet-stream", "binary/octet-stream; charset=binary", None, "",
    ],
)  # fmt: skip
@pytest.mark.parametrize("href", ["./a.tif", "./A.TIFF", "s3://b/a.tif", "https://h/a.tif?sig=x.y"])
def test_a_geotiff_is_one_under_the_types_in_use(
    tmp_path: Path, kind: str | None, href: str
) -> None:
    allow = ("https://h", "s3://b", str(tmp_path))
    assert only(item(tmp_path, {"href": href, "type": kind}), allow=allow)


@pytest.mark.parametrize("kind", ["image/jp2", "image/png", "application/json", "text/html"])
def test_other_types_are_no_geotiff(tmp_path: Path, kind: str) -> None:
    assert "no GeoTIFF assets" in reason(item(tmp_path, {"href": "a.tif", "type": kind}))


# ---------------------------------------------------------------- Sentinel-2's offset

S2 = {"constellation": "sentinel-2"}
NEW = "S2B_MSIL2A_20240105T100309_N0510_R122_T33TWL_20240105T130000"
OLD = "S2B_MSIL2A_20200105T100309_N0214_R122_T33TWL_20200105T130000"
BAND = {"href": "./a.tif", "eo:bands": [{"name": "B04", "common_name": "red"}]}


@pytest.mark.parametrize(
    ("properties", "offset"),
    [
        *(({"s2:processing_baseline": text}, -1000) for text in
          ("05.10", "5.10", 5.1, 4, "04.00", "N0510", "n05.10", "0510", "510", 510, "05.10.1",
           " 05.09 ", "V5.1", "10.00")),
        *(({"s2:processing_baseline": text}, None) for text in
          ("03.01", "02.14", 3.01, "N0301", "0214", 301, "2", "00.01", "03.01.7")),
        ({"sentinel:processing_baseline": "04.00"}, -1000),
        ({"s2:processing_baseline": None, "sentinel:processing_baseline": "04.00"}, -1000),
        ({"s2:processing_baseline": "", "s2:product_uri": f"{NEW}.SAFE"}, -1000),
        ({"s2:product_uri": f"{NEW}.SAFE"}, -1000),
        ({"s2:product_uri": f"{OLD}.SAFE"}, None),
        ({"sentinel:product_id": NEW}, -1000),
        ({"s2:datatake_id": "GS2B_20240105T100309_035686_N05.10"}, -1000),
        (S2 | {"processing:version": "05.11"}, -1000),
        ({"platform": "Sentinel-2A", "processing:version": "05.11"}, -1000),
        (S2 | {"processing:version": "02.11.00", "s2:product_uri": NEW}, -1000),
        ({"platform": "landsat-8", "processing:version": "5.1"}, None),
        ({"s2:processing_baseline": "05.10", "earthsearch:boa_offset_applied": True}, 0),
        ({"s2:processing_baseline": "05.10", "earthsearch:boa_offset_applied": "true"}, 0),
        ({"s2:processing_baseline": "five", "sentinel:boa_offset_applied": True}, 0),
        ({}, None),
    ],
)  # fmt: skip
def test_baselines_as_catalogs_spell_them(
    tmp_path: Path, properties: dict[str, Any], offset: float | None
) -> None:
    assert only(item(tmp_path, BAND, **properties)).bands[0].offset == offset


@pytest.mark.parametrize("text", ["five", "05,10", "latest", "-5", "5.x", True, [5]])
def test_a_baseline_that_is_not_understood_is_refused(tmp_path: Path, text: Any) -> None:
    says = reason(item(tmp_path, BAND, **{"s2:processing_baseline": text}))
    assert f"processing baseline {text!r}, which is not understood" in says
    stated = BAND | {"raster:bands": [{"offset": -0.1, "scale": 1e-4}]}
    scene = only(item(tmp_path, stated, **{"s2:processing_baseline": text}))
    assert scene.bands[0].offset == -0.1, "an offset that the item states needs no baseline"


@pytest.mark.parametrize(
    ("dtype", "offset"),
    [("uint16", -1000), ("int16", -1000), ("uint32", -1000), ("int32", -1000), ("uint8", 0),
     ("int8", 0), ("float32", 0), ("float64", 0)],
)  # fmt: skip
@pytest.mark.parametrize("bands", [1, 3])
def test_only_counts_lose_the_offset_whatever_the_item_says(
    tmp_path: Path, dtype: str, offset: int, bands: int
) -> None:
    pixels = (np.arange(bands * 1024).reshape(bands, 32, 32) % 100 + 1).astype(dtype)
    raster(tmp_path / "a.tif", pixels)
    names = [{"name": name, "common_name": c} for name, c in (("B04", "red"), ("B03", "green"))]
    source = item(tmp_path, {"href": "./a.tif", "eo:bands": names}, "picture", **{
        "s2:processing_baseline": "05.10"
    })  # fmt: skip
    mapped = {"green": BandMapping(asset="picture", index=bands)}
    for spec in ({}, {"bands": mapped}) if bands > 1 else ({},):
        scene = only(source, "green" if spec else "red", **spec)
        with SceneReader(scene, PixelGrid(crs="EPSG:32633", resolution=10.0)) as reader:
            values = reader.read(reader.extent).values[0]
        with rasterio.open(tmp_path / "a.tif") as truth:
            expected = truth.read(bands if spec else 1).astype("float32") + offset
        np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize(
    "change",
    [
        {"roles": ["visual"]},
        {"raster:bands": [{"data_type": "uint8"}]},
        {"raster:bands": [{"data_type": "float32"}]},
        {"data_type": "float64"},
        {"bands": [{"name": "B04", "data_type": "uint8"}]},
    ],
)
def test_what_the_item_says_is_no_count_has_no_offset(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    source = item(tmp_path, BAND | change, **{"s2:processing_baseline": "05.10"})
    band = only(source, bands={"red": BandMapping(asset="red")}).bands[0]
    assert (band.offset, band.offset_of_counts) == (None, False)
