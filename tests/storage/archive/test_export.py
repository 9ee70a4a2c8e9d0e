"""Exports open in other tools and say the same as the archive."""

import json
import re
from pathlib import Path
from typing import Any

import duckdb
import geopandas as gpd
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely

from storage.archive.audit import audit, verify
from storage.archive.export import to_geoparquet
from storage.archive.maintenance import delete_scenes, mend
from storage.archive.reader import Archive
from storage.archive.writer import ArchiveWriter
from tests.support.segment_world import SPEC, archive_of_two, commit, rows


@pytest.fixture
def exported(tmp_path: Path) -> tuple[Path, Archive]:
    """Two segments as a file; the rows of a deleted scene are not in it."""
    archive = archive_of_two(tmp_path)
    commit(ArchiveWriter(archive.uri), rows("s2", {"d": 4, "gone": 3}))
    delete_scenes(archive.uri, ["gone"])
    target = tmp_path / "rows.parquet"
    archive = Archive.open(archive.uri)
    assert to_geoparquet(archive, str(target)) == len(archive) == 9
    return target, archive


def all_rows(archive: Archive) -> dict[str, np.ndarray]:
    parts = [archive.read_segment(segment.ordinal) for segment in archive.segments]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def test_geoparquet_opens_in_geopandas_with_the_same_rows(exported: tuple[Path, Archive]):
    target, archive = exported
    frame, stored = gpd.read_parquet(target).sort_values("row"), all_rows(archive)
    assert frame.crs.to_authority() == ("OGC", "CRS84")
    assert frame["scene"].tolist() == stored["scene"].tolist()
    assert frame["tile_key"].tolist() == stored["tile_key"].tolist()
    assert frame["row"].tolist() == stored["row"].tolist()
    np.testing.assert_allclose(frame.geometry.bounds.to_numpy(), stored["bbox"])
    np.testing.assert_array_equal(
        np.stack(frame["embedding"]), stored["embedding"].astype(np.float32)
    )
    assert [labels.tolist() for labels in frame["labels"]] == [
        [name for name, on in zip(SPEC.classes, flags, strict=True) if on]
        for flags in stored["labels"]
    ]
    assert str(frame["datetime"].dtype) == "datetime64[ms, UTC]"
    np.testing.assert_array_equal(
        frame["datetime"].dt.tz_localize(None).to_numpy("datetime64[ms]"), stored["datetime"]
    )


def test_geoparquet_opens_in_duckdb_without_an_extension(exported: tuple[Path, Archive]):
    target, archive = exported
    offline = {"autoinstall_known_extensions": False, "autoload_known_extensions": False}
    with duckdb.connect(config=offline) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        found = connection.sql(
            "SELECT row, scene, epoch_ms(datetime), list_sum(embedding), ST_AsWKB(geometry) "
            f"FROM '{target}' ORDER BY row"
        ).fetchall()
        counts = connection.sql(f"SELECT scene, count(*) FROM '{target}' GROUP BY ALL").fetchall()
    stored = all_rows(archive)
    ids, scenes, times, sums, shapes = zip(*found, strict=True)
    assert list(ids) == stored["row"].tolist()
    assert list(scenes) == stored["scene"].tolist()
    assert list(times) == stored["datetime"].astype(np.int64).tolist()
    np.testing.assert_allclose(sums, stored["embedding"].sum(1, dtype=np.float64), atol=1e-5)
    np.testing.assert_allclose(shapely.bounds(shapely.from_wkb(list(shapes))), stored["bbox"])
    assert dict(counts) == {"a": 3, "b": 2, "d": 4}


def test_rows_of_a_group_are_neighbours_and_readers_skip_the_other_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Against the file in the order of the archive: a small box touches few groups."""
    monkeypatch.setattr("storage.archive.export._GROUP_ROWS", 50)
    archive = Archive.create(str(tmp_path / "archive"), SPEC)
    segment = rows("s1", {"a": 1500, "b": 1500})
    segment.columns["bbox"][:, [1, 3]] += np.random.default_rng(0).uniform(-80, 80, (3000, 1))
    commit(ArchiveWriter(archive.uri), segment)
    target = tmp_path / "rows.parquet"
    to_geoparquet(Archive.open(archive.uri), target)
    file = pq.ParquetFile(target)
    geo = json.loads(file.schema_arrow.metadata[b"geo"])
    assert geo["version"] == "1.1.0"
    assert geo["columns"]["geometry"]["covering"]["bbox"]["xmin"] == ["bbox", "xmin"]
    metadata = file.metadata
    names = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
    edges = [names.index(f"bbox.{edge}") for edge in ("xmin", "ymin", "xmax", "ymax")]

    def span(group: int) -> list[float]:
        found = [metadata.row_group(group).column(edge).statistics for edge in edges]
        return [found[0].min, found[1].min, found[2].max, found[3].max]

    spans = np.array([span(group) for group in range(metadata.num_row_groups)])
    assert len(spans) == 60
    frame = gpd.read_parquet(target)
    west, south, east, north = frame.total_bounds
    areas = (spans[:, 2] - spans[:, 0]) * (spans[:, 3] - spans[:, 1])
    assert np.median(areas) < 0.1 * (east - west) * (north - south)
    x, y = frame.geometry.iloc[7].centroid.coords[0]
    inside = gpd.read_parquet(target, bbox=(x, y, x, y))
    assert set(inside["row"]) == set(frame[frame.contains(shapely.Point(x, y))]["row"])


def test_the_file_names_the_model_and_vectors_have_a_fixed_size(exported: tuple[Path, Archive]):
    target, archive = exported
    schema = pq.read_schema(target)
    assert schema.field("embedding").type == pa.list_(pa.float32(), archive.spec.dimension)
    about = json.loads(schema.metadata[b"emb"])
    assert about["model"]["id"] == archive.spec.encoder_fingerprint
    assert about["embedding"]["dim"] == archive.spec.dimension


def test_an_empty_archive_exports_its_columns(tmp_path: Path):
    uri = str(tmp_path / "empty")
    Archive.create(uri, SPEC)
    assert to_geoparquet(Archive.open(uri), str(tmp_path / "rows.parquet")) == 0
    frame = gpd.read_parquet(tmp_path / "rows.parquet")
    assert list(frame.columns)[:3] == ["row", "scene", "tile_key"]
    assert len(frame) == 0


PAGE = Path(__file__).parents[3] / "docs" / "interfaces.md"


def test_the_documented_lines_run(exported: tuple[Path, Archive], monkeypatch: pytest.MonkeyPatch):
    """Every Python block of docs/interfaces.md, one after the other, in one folder."""
    target, archive = exported
    monkeypatch.chdir(target.parent)
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    for block in blocks:
        exec(compile(block, PAGE.name, "exec"), names)
    stored = all_rows(archive)
    np.testing.assert_allclose(names["mean"], stored["embedding"].mean(0, np.float64), atol=1e-3)
    assert names["clear"].sizes["row"] == (stored["cloud_fraction"] < 0.1).sum()
    assert len(names["frame"]) == 9
    assert sum(count for _, count in names["counts"]) == 9
    query = stored["embedding"].astype(np.float64)
    scores = query @ query[stored["row"].tolist().index(names["nearest"][0][0])]
    best = sorted(scores.tolist(), reverse=True)[:5]
    assert [score for *_, score in names["nearest"]] == pytest.approx(best, abs=2e-3)


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
    assert mend(uri).scenes == ()  # the digests fit: the rows were embedded so
    assert verify(archive_of_two(tmp_path / "sound")) == []
