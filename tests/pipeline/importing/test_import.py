"""Imports of published embeddings: every usable row once, with its tile, whatever happens."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyproj
import pytest

from pipeline.importing import ImportSpec, import_embeddings, plan_import
from pipeline.importing import driver as importing
from storage.archive.audit import audit, verify
from storage.archive.export import to_geoparquet
from storage.archive.reader import Archive
from storage.embeddings.layouts import Choice, Columns
from storage.errors import ConfigError, EmptyCatalogError, EncoderMismatchError, NotFoundError
from tests.support import embeddings
from tests.support.archive_world import create_archive
from tests.support.embeddings import Chips, clay_v0, make_chips, signed_power
from tests.support.object_store import MotoS3

DIMENSION = 768


@pytest.fixture
def spec(tmp_path: Path) -> ImportSpec:
    """Imports of the folder `clay`, a commit a file."""
    return ImportSpec(
        source=str(tmp_path / "clay"), archive_uri=str(tmp_path / "archive"), commit_interval_s=0
    )


def three_files(folder: Path) -> list[Chips]:
    """Write three days of the same chips."""
    days = ("2022-06-10", "2022-07-10", "2022-08-10")
    made = [make_chips(6, DIMENSION, day=day, seed=seed) for seed, day in enumerate(days)]
    for chips, day in zip(made, days, strict=True):
        stem = day.replace("-", "")
        clay_v0(folder / "clay", chips, f"clay_32TPT_{stem}_{stem}_v001.gpq")
    return made


def unit(vectors: np.ndarray, centre: np.ndarray) -> np.ndarray:
    centred = vectors.astype(np.float64) - centre
    return centred / np.linalg.norm(centred, axis=1, keepdims=True)


def rows_of(spec: ImportSpec) -> dict[tuple[str, str], bytes]:
    """Return the vectors of an archive by scene and tile, none twice."""
    archive = Archive.open(spec.archive_uri)
    found = archive.read_all(["scene", "tile_key", "embedding"])
    keys = list(zip(found["scene"], found["tile_key"], strict=True))
    assert len(set(keys)) == len(keys) == len(archive)
    assert verify(archive) == []
    return {key: vector.tobytes() for key, vector in zip(keys, found["embedding"], strict=True)}


def test_vectors_are_centred_and_scaled_and_dates_of_a_place_share_its_key(
    spec: ImportSpec, tmp_path: Path
):
    made = three_files(tmp_path)
    plan = plan_import(spec)
    assert (plan.layout, plan.model.title, plan.rows) == ("clay-v0", "Clay v0", 18)
    report = import_embeddings(plan)
    assert (report.imported, report.rows, report.left_out) == (3, 18, {})
    archive = Archive.open(spec.archive_uri)
    found = archive.read_all(["embedding", "tile_key", "datetime", "tile", "bbox", "scene"])
    every = np.concatenate([chips.vectors for chips in made])
    expected = unit(every, every.mean(axis=0, dtype=np.float64))
    np.testing.assert_allclose(found["embedding"], expected, atol=2e-3)
    np.testing.assert_allclose(archive.spec.published.unit_vectors(every), expected, atol=1e-5)
    assert len(set(found["tile_key"])) == 6
    assert (found["tile_key"][:6] == found["tile_key"][6:12]).all()
    days = found["datetime"].astype("datetime64[D]")
    assert (days == np.concatenate([chips.days for chips in made])).all()
    (grid,) = archive.ledger.grids.values()
    assert (grid["crs"], grid["resolution"] * grid["tile_px"]) == ("EPSG:32632", 5120.0)
    left = grid["anchor"][0] + found["tile"][:6, 0] * grid["resolution"]
    np.testing.assert_allclose(left, embeddings.ORIGIN[0] + 5120 * np.arange(6), atol=1e-6)


def test_the_export_of_an_archive_is_imported_with_its_model(spec: ImportSpec, tmp_path: Path):
    three_files(tmp_path)
    import_embeddings(plan_import(spec))
    whole, table = Archive.open(spec.archive_uri), tmp_path / "rows.parquet"
    to_geoparquet(whole, str(table))
    again = ImportSpec(source=str(table), archive_uri=str(tmp_path / "again"), centre=False)
    plan = plan_import(again)
    assert (plan.layout, plan.model.title, plan.rows) == ("skysift", "Clay v0", 18)
    import_embeddings(plan)
    copy = Archive.open(again.archive_uri)
    first, second = (one.read_all(["datetime", "bbox", "embedding"]) for one in (whole, copy))
    orders = [np.lexsort((one["bbox"][:, 0].round(6), one["datetime"])) for one in (first, second)]
    for name, tolerance in (("datetime", 0), ("bbox", 1e-6), ("embedding", 1e-3)):
        pair = [one[name][order] for one, order in zip((first, second), orders, strict=True)]
        np.testing.assert_allclose(*(np.asarray(v, np.float64) for v in pair), atol=tolerance)


@pytest.mark.parametrize("name", ["earth_index", "earth_embeddings"])
def test_centres_become_chips_of_the_products_side(name: str, spec: ImportSpec, tmp_path: Path):
    side = {"earth_index": 320.0, "earth_embeddings": 3840.0}[name]
    chips = make_chips(5, {"earth_index": 384, "earth_embeddings": 16}[name], side)
    getattr(embeddings, name)(tmp_path / "clay", chips)
    import_embeddings(plan_import(spec))
    box = Archive.open(spec.archive_uri).read_all(["bbox"])["bbox"]
    middle = np.stack([box[:, [0, 2]].mean(axis=1), box[:, [1, 3]].mean(axis=1)], axis=1)
    np.testing.assert_allclose(middle, chips.centres, atol=2e-5 * side / 320)
    x, _ = pyproj.Transformer.from_crs(4326, 32632, always_xy=True).transform(
        box[:, [0, 2]], box[:, [1, 3]]
    )
    assert np.abs(np.diff(x, axis=1) / side - 1).max() < 0.1


def test_a_stopped_import_is_finished_by_the_same_call(
    spec: ImportSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    three_files(tmp_path)
    whole = replace(spec, archive_uri=str(tmp_path / "whole"))
    import_embeddings(plan_import(whole))
    read, calls = importing.ReadPart.__call__, []

    def stopped(self, part):
        calls.append(part)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return read(self, part)

    monkeypatch.setattr(importing.ReadPart, "__call__", stopped)
    with pytest.raises(KeyboardInterrupt):
        import_embeddings(plan_import(spec))
    monkeypatch.undo()
    kept = rows_of(spec)
    assert 0 < len(kept) < 18
    plan = plan_import(spec)
    assert (plan.done, len(plan.todo)) == (2, 1)
    import_embeddings(plan)
    assert rows_of(spec) == rows_of(whole)
    assert plan_import(spec).todo == ()


def test_a_large_file_is_imported_in_parts(
    spec: ImportSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("pipeline.importing.plan.PART_ROWS", 8)
    monkeypatch.setattr("storage.embeddings.table.PART_ROWS", 8)
    clay_v0(tmp_path / "clay", make_chips(20, DIMENSION))
    plan = plan_import(spec)
    assert [part.rows for part in plan.todo] == [8, 8, 4]
    assert import_embeddings(plan).rows == 20
    assert len(rows_of(spec)) == 20


def test_new_and_replaced_files_are_taken_and_nothing_else(spec: ImportSpec, tmp_path: Path):
    made = three_files(tmp_path)
    import_embeddings(plan_import(spec))
    before = rows_of(spec)
    centre = Archive.open(spec.archive_uri).spec.published.centre
    more = make_chips(4, DIMENSION, day="2022-09-10", seed=9)
    clay_v0(tmp_path / "clay", more, "clay_32TPT_20220910_20220910_v001.gpq")
    clay_v0(tmp_path / "clay", made[0].part(slice(3)), "clay_32TPT_20220610_20220610_v001.gpq")
    plan = plan_import(spec)
    assert [part.scene_id[11:19] for part in plan.todo] == ["20220610", "20220910"]
    import_embeddings(plan)
    after = rows_of(spec)
    assert len(after) == 3 + 6 + 6 + 4
    assert {k: v for k, v in after.items() if "20220910" not in k[0]}.items() <= before.items()
    assert Archive.open(spec.archive_uri).spec.published.centre == centre


def test_two_dates_of_a_tile_in_one_file_are_two_scenes_and_repeats_are_left_out(
    spec: ImportSpec, tmp_path: Path
):
    chips = make_chips(4, DIMENSION)
    rows = chips.part([0, 1, 2, 3, 0, 1, 2])
    rows.days[4:6] += 30
    clay_v0(tmp_path / "clay", rows)
    report = import_embeddings(plan_import(spec))
    assert (report.imported, report.rows) == (2, 6)
    assert report.left_out == {"the same tile and date twice": 1}
    archive = Archive.open(spec.archive_uri)
    stem = embeddings.CLAY_FILE.partition(".")[0]
    assert {entry.scene_id: entry.rows for entry in archive.scenes()} == {stem: 4, f"{stem}~2": 2}
    assert archive.scenes()[0].reason == (
        "1 of 7 rows left out: the same tile and date twice (rows 6)"
    )
    clay_v0(tmp_path / "clay", chips)  # the second date is gone
    import_embeddings(plan_import(spec))
    assert len(rows_of(spec)) == 4


def test_files_of_one_name_in_different_folders_are_different_scenes(
    spec: ImportSpec, tmp_path: Path
):
    chips, folders = make_chips(9, DIMENSION), ("year=2020/month=01", "year=2021/month=01")
    for number, folder in enumerate(folders):
        if number:  # the first is imported alone, and keeps its name
            import_embeddings(plan_import(spec))
        part = chips.part(slice(3 * number, 3 * number + 3))
        clay_v0(tmp_path / "clay" / folder, part, "part-0.parquet")
    report = import_embeddings(plan_import(spec))
    assert (report.imported, report.rows, len(rows_of(spec))) == (1, 3, 6)
    damaged = tmp_path / "clay" / "year=2022" / "month=01" / "part-0.parquet"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"PAR1 and nothing else")
    plan = plan_import(spec)
    assert (plan.todo, import_embeddings(plan).imported) == ((), 0)
    archive = Archive.open(spec.archive_uri)
    states = {entry.scene_id: entry.state for entry in archive.scenes()}
    assert states.pop("part-0") == "embedded"
    assert sorted(states.values()) == ["embedded", "quarantined"]
    assert audit(archive, plan.parts.items()).complete
    assert plan_import(spec).rejected == ()  # told once
    clay_v0(damaged.parent, chips.part(slice(6, 9)), "part-0.parquet")
    assert import_embeddings(plan_import(spec)).imported == 1
    assert len(rows_of(spec)) == 9
    assert {entry.state for entry in Archive.open(spec.archive_uri).scenes()} == {"embedded"}


def test_a_file_named_as_the_part_of_another_is_refused(
    spec: ImportSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("pipeline.importing.plan.PART_ROWS", 8)
    monkeypatch.setattr("storage.embeddings.table.PART_ROWS", 8)
    chips = make_chips(20, DIMENSION)
    clay_v0(tmp_path / "clay", chips.part(slice(0, 16)), "rows_20220610.parquet")
    clay_v0(tmp_path / "clay", chips.part(slice(16, 20)), "rows_20220610.1.parquet")
    with pytest.raises(ConfigError, match=r"rows_20220610\.1'.*rename these files"):
        plan_import(spec)


def test_rows_and_files_that_cannot_be_used_have_their_reasons(spec: ImportSpec, tmp_path: Path):
    folder = tmp_path / "clay"
    chips = make_chips(4, DIMENSION)
    chips.vectors[1] = np.nan
    clay_v0(folder, chips)
    clay_v0(folder, make_chips(3, 64), "clay_32TPT_20220101_20220101_v001.gpq")
    (folder / "broken.parquet").write_bytes(b"PAR1 no")
    report = import_embeddings(plan_import(spec))
    assert report.left_out == {"vector not finite": 1}
    assert "no readable Parquet" in report.quarantined["broken"]
    assert (
        "vectors of 64 numbers, not 768" in report.quarantined["clay_32TPT_20220101_20220101_v001"]
    )
    archive = Archive.open(spec.archive_uri)
    assert len(archive) == 3
    assert plan_import(spec).todo == ()  # what is set aside stays so until it changes


def test_models_are_never_mixed(spec: ImportSpec, tmp_path: Path):
    three_files(tmp_path)
    import_embeddings(plan_import(spec))
    naip = embeddings.clay_naip(tmp_path / "naip", make_chips(3, 1024, 153.6))
    with pytest.raises(EncoderMismatchError, match=r"Clay v0 \(768 .* Clay v1.5 \(1024"):
        plan_import(replace(spec, source=str(naip)))
    create_archive(str(tmp_path / "other"), 8)
    with pytest.raises(EncoderMismatchError, match="holds vectors of encoder"):
        plan_import(replace(spec, archive_uri=str(tmp_path / "other")))
    with pytest.raises(ConfigError, match="subtracts a mean"):
        plan_import(replace(spec, centre=False))


def test_a_source_that_is_none_is_one_line(spec: ImportSpec, tmp_path: Path):
    with pytest.raises(NotFoundError, match="does not exist"):
        plan_import(spec)
    (tmp_path / "clay").mkdir()
    with pytest.raises(EmptyCatalogError, match="holds no embeddings"):
        plan_import(spec)
    clay_v0(tmp_path / "clay", make_chips(2, 8))
    columns = Columns(vector="embeddings", geometry="geometry", date="date")
    with pytest.raises(ConfigError, match="--model NAME"):
        plan_import(replace(spec, choice=Choice(columns=columns)))


def test_what_was_stated_is_remembered_for_later_files(spec: ImportSpec, tmp_path: Path):
    columns = Columns(vector="embeddings", geometry="geometry", date="date")
    stated = replace(spec, choice=Choice(columns=columns), model="own", version="2")
    clay_v0(tmp_path / "clay", make_chips(3, 8))
    import_embeddings(plan_import(stated))
    clay_v0(tmp_path / "clay", make_chips(3, 8, seed=1), "clay_32TPT_20230610_x.gpq")
    plan = plan_import(spec)
    assert (plan.model.title, plan.done, len(plan.todo)) == ("own 2", 1, 1)


def test_embeddings_on_s3_become_an_archive_on_s3(moto_s3: MotoS3, tmp_path: Path):
    chips = make_chips(5, DIMENSION)
    path = clay_v0(tmp_path, chips)
    moto_s3.location("clay", path.name).upload(path)
    spec = ImportSpec(source=moto_s3.location("clay"), archive_uri=moto_s3.location("imported"))
    import_embeddings(plan_import(spec))
    assert len(rows_of(spec)) == 5
    assert plan_import(spec).todo == ()


def test_a_zarr_on_s3_has_the_rows_of_the_one_on_disk(moto_s3: MotoS3, tmp_path: Path):
    place = tmp_path / "t.zarr"
    stored = np.random.default_rng(2).integers(-90, 90, (1, 64, 16, 16)).astype(np.int8)
    embeddings.write_zarr(str(place), stored, attributes={}, years=[2024])
    for path in filter(Path.is_file, place.rglob("*")):
        moto_s3.location("t.zarr", path.relative_to(place).as_posix()).upload(path)
    found = []
    for name, source in {"disk": str(place), "s3": moto_s3.location("t.zarr")}.items():
        spec = ImportSpec(source=source, archive_uri=str(tmp_path / name), tile_px=4)
        import_embeddings(plan_import(spec))
        found.append(Archive.open(spec.archive_uri).read_all(["embedding"])["embedding"])
    assert len(found[0]) == 16
    np.testing.assert_array_equal(*found)


def smooth_pixels(bands: int, height: int, width: int) -> np.ndarray:
    """Return unit vectors (bands, height, width)."""
    vectors = np.random.default_rng(4).normal(size=(bands, height, width))
    return vectors / np.linalg.norm(vectors, axis=0)


def test_pixels_are_pooled_to_tiles_after_they_became_vectors(tmp_path: Path):
    stored = signed_power(smooth_pixels(64, 100, 70))
    stored[:, :10, :10] = -128
    stored[:, 32:64, 32:60] = -128
    embeddings.write_alphaearth(tmp_path / "aef", stored)
    spec = ImportSpec(
        source=str(tmp_path / "aef"),
        archive_uri=str(tmp_path / "archive"),
        tile_px=10,
        min_valid_fraction=0.3,
    )
    import_embeddings(plan_import(spec))
    archive = Archive.open(spec.archive_uri)
    found = archive.read_all(["embedding", "tile", "valid_fraction", "bbox", "datetime"])
    vectors = np.square(stored / 127.5) * np.sign(stored)
    vectors[:, (stored == -128).all(axis=0)] = np.nan
    valid = np.isfinite(vectors[0]).reshape(10, 10, 7, 10).mean(axis=(1, 3))
    kept = valid >= 0.3
    assert len(archive) == kept.sum() < 69
    tiles = vectors.reshape(64, 10, 10, 7, 10).transpose(1, 3, 0, 2, 4)[kept]
    means = np.nanmean(tiles, axis=(2, 3))
    expected = unit(means, np.array(archive.spec.published.centre))
    np.testing.assert_allclose(found["embedding"], expected, atol=2e-3)
    np.testing.assert_allclose(found["valid_fraction"], valid[kept], atol=1e-6)
    x, y = pyproj.Transformer.from_crs(4326, 32632, always_xy=True).transform(
        found["bbox"][:, 0], found["bbox"][:, 3]
    )
    rows, columns = np.nonzero(kept)
    np.testing.assert_allclose(x, 600_000 + 100 * columns, atol=20)
    np.testing.assert_allclose(y, 5_100_000 - 100 * rows, atol=20)
    assert audit(archive, plan_import(spec).parts.items()).complete


def test_a_year_of_zarr_is_a_scene_a_block_and_a_box_chooses_blocks(tmp_path: Path):
    stored = np.random.default_rng(2).integers(-127, 128, (2, 8, 16, 520)).astype(np.int8)
    scales = np.random.default_rng(3).uniform(0.01, 0.02, (2, 16, 520)).astype(np.float32)
    scales[0, :4, :4] = np.inf
    place = str(tmp_path / "t.zarr")
    embeddings.write_zarr(place, stored, scales=scales, attributes={}, years=[2023, 2024])
    spec = ImportSpec(source=place, archive_uri=str(tmp_path / "archive"), tile_px=4, centre=False)
    import_embeddings(plan_import(spec))
    archive = Archive.open(spec.archive_uri)
    found = archive.read_all(["embedding", "tile_key", "scene"])
    assert len(archive) == 2 * 4 * 130 - 1
    first = stored[1, :, :4, :4] * scales[1, :4, :4]
    mean = first.mean(axis=(1, 2))
    newer = [i for i, name in enumerate(found["scene"]) if "2024" in name]
    np.testing.assert_allclose(found["embedding"][newer[0]], mean / np.linalg.norm(mean), atol=2e-3)
    assert len({*found["tile_key"]}) == 4 * 130
    scenes = [entry.scene_id for entry in archive.scenes()]
    assert len(scenes) > 2
    west = replace(spec, bbox=(10.2, 46.0, 10.3, 46.1), archive_uri=str(tmp_path / "west"))
    assert 0 < len(plan_import(west).todo) < len(scenes)
