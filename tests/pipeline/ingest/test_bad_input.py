"""Bad input by name: a bad scene ends in the ledger with its reason, and the good ones go on."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.ingest.driver import ingest, plan_ingest
from pipeline.ingest.spec import IngestSpec
from storage.archive.audit import audit, verify
from storage.archive.maintenance import delete_scenes
from storage.archive.reader import Archive
from storage.catalog.read import read_scenes
from storage.location import Location
from storage.raster.pixel_grid import Block, Window
from storage.raster.reader import SceneReader
from storage.raster.writer import write_geotiff
from storage.scene import BandMapping, CatalogSpec
from tests.support.fault_proxy import Fault, fault_proxy
from tests.support.ingest_world import TILE_PX, make_bundle, write_scene
from tests.support.object_store import MotoS3

PLACE = (10, 0, 320_000, 0, -10, 4_800_000)
Settled = dict[str, tuple[str, int, str]]


def write_band(path: Path, dtype: str = "uint8", crs: str | None = "EPSG:32632") -> Path:
    """One band of 2 x 2 tiles."""
    random = np.random.default_rng(len(path.name))
    pixels = random.integers(1, 200, (1, 2 * TILE_PX, 2 * TILE_PX)).astype(dtype)
    write_geotiff(str(path), pixels, crs, PLACE, nodata=0, cog=False, block_px=32)  # type: ignore[arg-type]
    return path


def settled(spec: IngestSpec) -> Settled:
    """Ingest; return state, rows and reason of every scene. A repeat has nothing to do."""
    report = ingest(plan_ingest(spec), local=True)
    archive = Archive.open(spec.archive_uri)
    assert verify(archive) == []
    said = {one.scene_id: (one.state, one.rows, one.reason) for one in archive.scenes()}
    assert report.quarantined == {n: why for n, (s, _, why) in said.items() if s == "quarantined"}
    again = ingest(plan_ingest(spec), local=True)
    assert (again.rows, again.quarantined, again.snapshot) == (0, {}, report.snapshot)
    listing = read_scenes(spec.catalog, ("b1", "b2", "b3"))
    assert audit(archive, [(one.id, one.fingerprint) for one in listing.scenes]).complete
    assert not any("\n" in why for _, _, why in said.values())
    return said


def spec_of(tmp_path: Path, source: str | Location, **catalog: Any) -> IngestSpec:
    return IngestSpec(
        catalog=CatalogSpec(source=source, **catalog),
        encoder_uri=make_bundle(tmp_path / "bundle"),
        archive_uri=str(tmp_path / "archive"),
    )


def test_bad_files_are_set_aside_with_their_reasons(tmp_path: Path):
    folder = tmp_path / "scenes"
    folder.mkdir()
    good = write_scene(folder, "good_20240501", seed=1)
    write_band(folder / "few-bands_20240502.tif")
    shape = (3, TILE_PX, TILE_PX)
    write_geotiff(str(folder / "no-crs_20240503.tif"), np.ones(shape, "u1"), None, PLACE, cog=False)  # type: ignore[arg-type]
    write_scene(folder, "dark_20240504", seed=2, nodata_columns=4 * TILE_PX)
    (folder / "zero-size_20240505.tif").touch()
    whole = good.read_bytes()
    (folder / "truncated_20240506.tif").write_bytes(whole[: len(whole) * 2 // 3])
    flipped = bytearray(whole)
    for at in range(len(whole) // 2, len(whole) // 2 + 64):
        flipped[at] ^= 0x10
    (folder / "flipped_20240507.tif").write_bytes(flipped)
    vrt = f'<VRTDataset rasterXSize="9" rasterYSize="9"><SRS>{good}</SRS></VRTDataset>'
    (folder / "virtual_20240508.tif").write_text(vrt)
    Image.fromarray(np.ones((64, 64, 3), np.uint8)).save(folder / "picture_20240509.tif", "PNG")
    write_scene(folder, "undated", seed=3)
    bands = {f"b{number}": BandMapping(index=number) for number in (1, 2, 3)}
    said = settled(spec_of(tmp_path, str(folder), bands=bands))
    assert said["good_20240501"] == ("embedded", 16, "")
    assert said["dark_20240504"][0] == "empty"
    reasons = {
        "few-bands_20240502": "has 1 band(s)",
        "no-crs_20240503": "has a transform but no CRS",
        "zero-size_20240505": "cannot be opened as GeoTIFF",
        "truncated_20240506": "is truncated",
        "flipped_20240507": "cannot be read",
        "virtual_20240508": "cannot be opened as GeoTIFF",
        "picture_20240509": "cannot be opened as GeoTIFF",
        "undated": "no date in its name",
    }
    assert said.keys() == reasons.keys() | {"good_20240501", "dark_20240504"}
    for name, why in reasons.items():
        assert said[name][:2] == ("quarantined", 0), name
        assert why in said[name][2], name


def items_of(folder: Path, items: list[dict[str, Any]]) -> str:
    path = folder / "items.json"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    return str(path)


def item(name: str, *hrefs: str, **properties: Any) -> dict[str, Any]:
    kind = "image/tiff; application=geotiff"
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "geometry": None,
        "properties": {"datetime": "2024-05-01T00:00:00Z"} | properties,
        "links": [],
        "assets": {f"b{n}": {"href": href, "type": kind} for n, href in enumerate(hrefs, 1)},
    }


def test_bad_items_are_set_aside_with_their_reasons(tmp_path: Path):
    band = str(write_band(tmp_path / "band.tif"))
    real = str(write_band(tmp_path / "real.tif", dtype="float32"))
    endless = np.full((1, 2 * TILE_PX, 2 * TILE_PX), 3e38, np.float32)
    write_geotiff(str(tmp_path / "endless.tif"), endless, "EPSG:32632", PLACE, cog=False)
    (tmp_path / "band.vrt").write_text("<VRTDataset/>")
    items = [
        item("good", band, band, band),
        item("mixed", band, real, band),
        item("../escape", band, band, band),
        item("twin", band, band, band),
        item("twin", band, band, band),
        item("undated", band, band, band, datetime=None),
        item("missing", band, str(tmp_path / "none.tif"), band),
        item("virtual", band, str(tmp_path / "band.vrt"), band),
        item("endless", *[str(tmp_path / "endless.tif")] * 3),
        item("elsewhere", band, "ftp://host/band.tif", band),
    ]
    said = settled(spec_of(tmp_path, items_of(tmp_path, items)))
    assert said["good"] == said["twin"] == ("embedded", 4, "")
    reasons = {
        "mixed": "b2 float32",
        "../escape": "looks like a path",
        "twin (duplicate)": "occurs before",
        "undated": "datetime",
        "missing": "does not exist",
        "virtual": "set catalog.drivers=[vrt]",
        "endless": "4 of 4 embeddings are not finite and of unit norm",
        "elsewhere": "cannot be read",
    }
    assert said.keys() == reasons.keys() | {"good", "twin"}
    for name, why in reasons.items():
        assert said[name][:2] == ("quarantined", 0), name
        assert why in said[name][2], name


def test_bands_of_different_number_types_are_fine_once_their_scale_is_stated(tmp_path: Path):
    band = str(write_band(tmp_path / "band.tif"))
    real = str(write_band(tmp_path / "real.tif", dtype="float32"))
    bands = {f"b{n}": BandMapping(asset=f"b{n}", scale=1.0) for n in (1, 2, 3)}
    source = items_of(tmp_path, [item("mixed", band, real, band)])
    assert settled(spec_of(tmp_path, source, bands=bands))["mixed"] == ("embedded", 4, "")


def test_assets_that_are_gone_or_forbidden_are_set_aside(tmp_path: Path, moto_s3: MotoS3):
    for name in ("band", "secret"):
        path = write_band(tmp_path / f"{name}.tif")
        moto_s3.location("scenes", path.name).upload(path)
    band, secret = (moto_s3.uri("scenes", f"{name}.tif") for name in ("band", "secret"))
    items = [
        item("good", band, band, band),
        item("gone", band, moto_s3.uri("scenes", "none.tif"), band),
        item("secret", band, secret, band),
    ]
    with fault_proxy(str(moto_s3.options.endpoint_url)) as proxy:
        proxy.plan(Fault(kind="refuse", status=403, code="AccessDenied", path="secret.tif"))
        options = replace(moto_s3.options, endpoint_url=proxy.address)
        source = Location(items_of(tmp_path, items), options)
        said = settled(spec_of(tmp_path, source))
    assert said["good"] == ("embedded", 4, "")
    for name, key, why in (
        ("gone", "none.tif", "key does not exist"),
        ("secret", "secret.tif", "AccessDenied"),
    ):
        assert said[name][0] == "quarantined"
        assert f"{key} cannot be opened" in said[name][2]
        assert why in said[name][2]


def vectors_of(spec: IngestSpec, name: str) -> bytes:
    """The vectors of a scene's live rows."""
    archive = Archive.open(spec.archive_uri)
    parts = [archive.read_segment(one.ordinal, ["scene", "embedding"]) for one in archive.segments]
    return b"".join(part["embedding"][part["scene"] == name].tobytes() for part in parts)


def test_pixels_replaced_behind_an_unchanged_item_are_embedded_again(tmp_path: Path):
    first, other = write_band(tmp_path / "band.tif"), write_band(tmp_path / "another.tif")
    items = [item("site", *[str(first)] * 3), item("kept", *[str(other)] * 3)]
    spec = spec_of(tmp_path, items_of(tmp_path, items))
    assert settled(spec)["site"] == ("embedded", 4, "")
    before, kept = vectors_of(spec, "site"), vectors_of(spec, "kept")

    first.write_bytes(other.read_bytes())
    plan = plan_ingest(spec)
    assert ([scene.id for scene in plan.todo], plan.reprocessed) == (["site"], ("site",))
    assert settled(spec)["site"] == ("embedded", 4, "")
    assert vectors_of(spec, "site") != before
    assert vectors_of(spec, "site") == vectors_of(spec, "kept") == kept

    delete_scenes(spec.archive_uri, ["site"])
    first.write_bytes(first.read_bytes()[:-100])
    other.unlink()  # the archive keeps the rows of scenes whose files are gone
    assert plan_ingest(spec).todo == ()


def test_a_scene_whose_file_is_mended_behind_its_item_leaves_quarantine(tmp_path: Path):
    path = write_band(tmp_path / "band.tif")
    whole = path.read_bytes()
    path.write_bytes(whole[:-2000])
    spec = spec_of(tmp_path, items_of(tmp_path, [item("site", *[str(path)] * 3)]))
    assert settled(spec)["site"][0] == "quarantined"
    path.write_bytes(whole)
    assert settled(spec)["site"] == ("embedded", 4, "")


def test_a_file_that_is_replaced_while_it_is_read_is_read_again_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path, other = write_band(tmp_path / "band.tif"), write_band(tmp_path / "another.tif")
    spec = spec_of(tmp_path, items_of(tmp_path, [item("site", *[str(path)] * 3)]))
    read = SceneReader.read

    def replacing(self: SceneReader, window: Window) -> Block:
        block = read(self, window)
        if other.exists():
            other.replace(path)
        return block

    with monkeypatch.context() as patch:
        patch.setattr(SceneReader, "read", replacing)
        report = ingest(plan_ingest(spec), local=True)
    assert "were replaced while they were read" in report.quarantined["site"]
    assert settled(spec)["site"] == ("embedded", 4, "")
