"""Exports open in other tools and say the same as the archive."""

import json
from pathlib import Path

import geopandas as gpd
import numpy as np
import shapely

from storage.archive import Archive
from storage.audit import audit, verify
from storage.commits import ArchiveWriter
from storage.export import hits_to_geojson, to_geoparquet
from storage.footprints import footprints
from storage.ledger import LedgerEntry
from tests.storage.test_archive import SPEC, commit, rows


def archive_of_two(tmp_path: Path) -> Archive:
    uri = str(tmp_path / "archive")
    Archive.create(uri, SPEC)
    writer = ArchiveWriter(uri)
    commit(writer, rows("s1", {"a": 3, "b": 2}))
    writer.commit(
        [],
        [LedgerEntry(scene_id="c", state="quarantined", fingerprint="v1", reason="truncated")],
        {},
        "bad scene",
    )
    return Archive.open(uri)


def test_geoparquet_opens_in_geopandas_with_the_same_rows(tmp_path: Path):
    archive = archive_of_two(tmp_path)
    target = tmp_path / "rows.parquet"
    assert to_geoparquet(archive, str(target)) == 5
    frame = gpd.read_parquet(target)
    stored = archive.read_segment(0)
    assert frame.crs == "EPSG:4326"
    assert frame["scene"].tolist() == stored["scene"].tolist()
    np.testing.assert_allclose(frame.geometry.bounds.to_numpy(), stored["bbox"])
    np.testing.assert_array_equal(
        np.stack(frame["embedding"]), stored["embedding"].astype(np.float32)
    )
    assert frame["labels"][0].tolist() == [
        name for name, on in zip(SPEC.classes, stored["labels"][0], strict=True) if on
    ]
    assert str(frame["datetime"].dtype) == "datetime64[ms, UTC]"


def test_a_footprint_across_the_antimeridian_is_two_polygons():
    shape = footprints(np.array([[179.5, -10.0, -179.5, -9.0]]))[0]
    assert shape.geom_type == "MultiPolygon"
    assert shape.area == 1.0


def test_hits_become_geojson_features(tmp_path: Path):
    columns = archive_of_two(tmp_path).read([4, 0], ["bbox", "scene", "datetime"])
    collection = json.loads(hits_to_geojson(columns | {"score": np.array([0.5, 0.25])}))
    first = collection["features"][0]
    assert first["properties"] == {
        "scene": "b",
        "datetime": "2024-05-01T00:00:00Z",
        "row": 4,
        "score": 0.5,
    }
    assert shapely.from_geojson(json.dumps(first["geometry"])).bounds == tuple(columns["bbox"][0])


def test_audit_names_gaps_changes_and_quarantined_scenes(tmp_path: Path):
    report = audit(archive_of_two(tmp_path), [("a", "v1"), ("b", "v2"), ("c", "v1"), ("d", "v1")])
    assert (report.embedded, report.quarantined) == (2, {"c": "truncated"})
    assert (report.missing, report.changed, report.unlisted) == (("d",), ("b",), ())
    assert not report.complete
    assert audit(archive_of_two(tmp_path / "x"), [("a", "v1"), ("b", ""), ("c", "v1")]).complete


def test_verify_finds_rows_that_cannot_be(tmp_path: Path):
    uri = str(tmp_path / "archive")
    Archive.create(uri, SPEC)
    bad = rows("s1", {"a": 4})
    bad.columns["bbox"][1] = [10, 50, 11, 40]
    bad.columns["cloud_fraction"][2] = 1.5
    bad.columns["tile"][3] = bad.columns["tile"][0]
    commit(ArchiveWriter(uri), bad)
    assert verify(Archive.open(uri)) == [
        "segment s1: 1 boxes outside WGS84 or upside down",
        "segment s1: 1 cloud fractions outside [0, 1]",
        "segment s1: 1 rows repeat a tile of the same scene",
    ]
    assert verify(archive_of_two(tmp_path / "sound")) == []
