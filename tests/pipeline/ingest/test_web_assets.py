"""Scenes whose pixels are at web addresses: read when the recipe names them, else refused."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.ingest_remote import slow_store
from benchmarks.slow_store import BUCKET
from pipeline.ingest.cost import estimate_cost
from pipeline.ingest.driver import ingest, plan_ingest
from pipeline.ingest.spec import IngestSpec
from storage.archive.reader import Archive
from storage.scene import BandMapping, CatalogSpec
from tests.support.ingest_world import make_bundle, write_scene


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder with a scene, and the address where it is served."""
    folder = tmp_path_factory.mktemp("site")
    write_scene(folder, "site_20240501", seed=1)
    with slow_store(folder, latency_s=0.0) as address:
        yield folder, f"{address}/{BUCKET}"


def item(folder: Path, href: str) -> str:
    """Write a STAC item with one asset; return its path."""
    document = {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": "site",
        "properties": {"datetime": "2024-05-01T10:00:00Z"},
        "geometry": None,
        "links": [],
        "assets": {"pixels": {"href": href, "type": "image/tiff; application=geotiff"}},
    }
    path = folder / "item.json"
    path.write_text(json.dumps(document))
    return str(path)


def spec_of(tmp_path: Path, source: str, *allow: str) -> IngestSpec:
    bands = {f"b{n}": BandMapping(asset="pixels", index=n) for n in (1, 2, 3)}
    bands = bands if source.endswith(".json") else {}
    return IngestSpec(
        catalog=CatalogSpec(source=source, allow=allow, bands=bands),
        encoder_uri=make_bundle(tmp_path / "bundle"),
        archive_uri=str(tmp_path / "archive"),
    )


@pytest.mark.parametrize("query", ["", "?sig=a%2Fb&se=2030"])
def test_pixels_on_the_web_are_those_on_disk(tmp_path: Path, site: tuple[Path, str], query: str):
    folder, address = site
    source = item(tmp_path, f"{address}/site_20240501.tif{query}")
    spec = spec_of(tmp_path, source, address)
    plan = plan_ingest(spec)
    cost = estimate_cost(plan)
    assert cost.read_bytes == (folder / "site_20240501.tif").stat().st_size
    assert ingest(plan, local=True).quarantined == {}
    local = spec_of(tmp_path / "local", str(folder / "*.tif"))
    ingest(plan_ingest(local), local=True)
    away, near = (Archive.open(one.archive_uri).read_segment(0) for one in (spec, local))
    assert len(away["embedding"]) == 16
    for name in ("embedding", "tile", "valid_fraction"):
        np.testing.assert_array_equal(away[name], near[name])


@pytest.mark.parametrize("allow", [(), ("s3://bucket",), ("http://127.0.0.1:1/bench",)])
def test_web_addresses_that_the_recipe_does_not_name_are_refused(
    tmp_path: Path, site: tuple[Path, str], allow: tuple[str, ...]
):
    source = item(tmp_path, f"{site[1]}/site_20240501.tif")
    plan = plan_ingest(spec_of(tmp_path, source, *allow))
    assert not plan.todo
    assert "web addresses only when catalog.allow names" in plan.rejected[0].reason


def test_an_asset_that_is_not_there_is_quarantined_by_its_address(
    tmp_path: Path, site: tuple[Path, str]
):
    href = f"{site[1]}/gone.tif"
    report = ingest(plan_ingest(spec_of(tmp_path, item(tmp_path, href), site[1])), local=True)
    assert list(report.quarantined) == ["site"]
    assert href in report.quarantined["site"]
    assert "404" in report.quarantined["site"]
