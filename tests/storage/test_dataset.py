"""Labelled datasets at rest: what was written is read, remotely too, and damage is named."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.dataset import LabelledDataset, read_info
from storage.dataset_writer import DatasetWriter
from storage.errors import ConfigError, CorruptIndexError, NotFoundError
from storage.location import Location

BANDS, CLASSES = ("red", "nir"), ("water", "forest", "road")


def _batch(count: int, seed: int = 0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    images = rng.uniform(0, 1000, (count, 2, 8, 8)).astype(dtype)
    labels = (rng.random((count, 3)) < 0.5).astype(np.uint8)
    splits = rng.choice(["train", "val", "test"], count, p=[0.6, 0.2, 0.2]).tolist()
    return images, labels, {"source": [f"{seed}-{i}" for i in range(count)], "split": splits}


def _write(uri: str | Location, *batches, **more):
    with DatasetWriter(uri, bands=BANDS, classes=CLASSES, **more) as writer:
        for batch in batches:
            writer.append(*batch)
        return writer.finish()


@given(counts=st.lists(st.integers(1, 12), min_size=1, max_size=4), kind=st.sampled_from("BHf"))
@settings(max_examples=15, deadline=None)
def test_batches_come_back_in_order(tmp_path_factory, counts, kind):
    folder = str(tmp_path_factory.mktemp("data") / "set")
    batches = [_batch(count, seed, np.dtype(kind)) for seed, count in enumerate(counts)]
    info = _write(folder, *batches, resolution_m=10.0)
    data = LabelledDataset.open(folder)
    assert len(data) == sum(counts) == info.count
    assert data.images.dtype == np.dtype(kind)
    assert np.array_equal(data.images, np.concatenate([b[0] for b in batches]))
    assert np.array_equal(data.labels, np.concatenate([b[1] for b in batches]))
    assert data.rows["source"].tolist() == [s for b in batches for s in b[2]["source"]]
    together = np.concatenate([data.indices(s) for s in ("train", "val", "test")])
    assert np.array_equal(np.sort(together), np.arange(len(data)))
    assert (data.bands, data.classes, data.tile_px, data.resolution_m) == (BANDS, CLASSES, 8, 10.0)


def test_probabilities_come_back_and_bytes_stay_bytes(tmp_path: Path):
    first, second = _batch(5), _batch(4, seed=1)
    soft = np.random.default_rng(2).random((4, 3)).astype(np.float32)
    _write(str(tmp_path / "soft"), first, (second[0], soft, second[2]))
    data = LabelledDataset.open(str(tmp_path / "soft"))
    assert np.array_equal(data.soft_labels, np.concatenate([first[1], soft]))
    assert np.array_equal(data.labels, np.concatenate([first[1], soft >= 0.5]))
    assert data.labels.dtype == np.uint8
    assert data.is_soft.tolist() == [False] * 5 + [True] * 4
    stated = json.loads((tmp_path / "soft" / "dataset.json").read_text())["format"]
    assert stated == "skysift-dataset/2"
    _write(str(tmp_path / "hard"), first)
    hard = LabelledDataset.open(str(tmp_path / "hard"))
    assert hard.soft_labels is hard.labels
    assert json.loads((tmp_path / "hard" / "dataset.json").read_text())["format"] == (
        "skysift-dataset/1"
    )


def test_band_statistics_are_those_of_the_valid_train_pixels(tmp_path: Path):
    images, labels, rows = _batch(20)
    images[:, 0, :3] = np.nan
    info = _write(str(tmp_path / "set"), (images, labels, rows))
    train = images[np.array(rows["split"]) == "train"]
    np.testing.assert_allclose(info.band_mean, np.nanmean(train, (0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(info.band_std, np.nanstd(train, (0, 2, 3)), rtol=1e-5)


def test_a_known_normalisation_is_kept_as_given(tmp_path: Path):
    info = _write(str(tmp_path / "set"), _batch(5), normalisation=((1.0, 2.0), (3.0, 4.0)))
    assert (info.band_mean, info.band_std) == ((1.0, 2.0), (3.0, 4.0))


def test_a_constant_band_gets_a_harmless_deviation(tmp_path: Path):
    images, labels, rows = _batch(5)
    images[:, 1] = 7.0
    assert _write(str(tmp_path / "set"), (images, labels, rows)).band_std[1] == 1.0
    images[:, 1] = np.nan
    with pytest.raises(ConfigError, match="band 2 has no valid pixel"):
        _write(str(tmp_path / "other"), (images, labels, rows))


def test_the_digest_follows_the_content_and_not_the_place(tmp_path: Path):
    first = _write(str(tmp_path / "a"), _batch(6), origin={"from": "here"})
    assert _write(str(tmp_path / "b"), _batch(6), origin={"from": "there"}).digest == first.digest
    assert _write(str(tmp_path / "c"), _batch(6, seed=1)).digest != first.digest
    assert read_info(str(tmp_path / "a")) == first


def test_images_are_mapped_not_read(tmp_path: Path):
    _write(str(tmp_path / "set"), _batch(4))
    images = LabelledDataset.open(str(tmp_path / "set")).images
    assert isinstance(images, np.memmap)
    assert not images.flags.writeable


def test_an_unfinished_dataset_is_not_there_and_a_new_one_replaces_the_old(tmp_path: Path):
    uri = str(tmp_path / "set")

    def interrupted() -> None:
        with DatasetWriter(uri, bands=BANDS, classes=CLASSES) as writer:
            writer.append(*_batch(3))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        interrupted()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(NotFoundError):
        LabelledDataset.open(uri)
    _write(uri, _batch(3))
    _write(uri, _batch(5))
    assert len(LabelledDataset.open(uri)) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not a dataset"):
        _write(str(tmp_path), _batch(3))
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_a_remote_dataset_is_copied_once(moto_s3, tmp_path: Path):
    uri, cache = moto_s3.location("sets", "a"), tmp_path / "cache"
    _write(uri, _batch(4))
    first = LabelledDataset.open(uri, cache=cache)
    assert np.array_equal(first.images, _batch(4)[0])
    stamp = {path: path.stat().st_mtime_ns for path in cache.rglob("*.npy")}
    assert LabelledDataset.open(uri, cache=cache).info == first.info
    assert stamp == {path: path.stat().st_mtime_ns for path in cache.rglob("*.npy")}


def test_a_damaged_copy_is_refused(moto_s3, tmp_path: Path):
    uri = moto_s3.location("sets", "b")
    _write(uri, _batch(4))
    data = bytearray((uri / "images.npy").read())
    data[-1] ^= 1
    (uri / "images.npy").write(bytes(data))
    with pytest.raises(CorruptIndexError, match=r"images\.npy hashes to"):
        LabelledDataset.open(uri, cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*/images.npy"))


@pytest.mark.parametrize("damage", ["missing", "truncated", "swapped"])
def test_a_damaged_local_file_is_named(tmp_path: Path, damage):
    _write(str(tmp_path / "set"), _batch(4))
    images = tmp_path / "set" / "images.npy"
    if damage == "missing":
        images.unlink()
    elif damage == "truncated":
        images.write_bytes(images.read_bytes()[:300])
    else:
        np.save(images, np.zeros((3, 2, 8, 8), np.float32))
    with pytest.raises(CorruptIndexError, match="import it again"):
        LabelledDataset.open(str(tmp_path / "set"))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "skysift-dataset/1"}'])
def test_a_malformed_description_is_named(tmp_path: Path, text):
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(ConfigError, match=r"dataset\.json is malformed"):
        read_info(str(tmp_path))


def test_a_description_of_another_format_is_named(tmp_path: Path):
    _write(str(tmp_path / "set"), _batch(4))
    path = tmp_path / "set" / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": "other/9"}))
    with pytest.raises(ConfigError, match="other/9"):
        read_info(str(tmp_path / "set"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y, r: (x[:, :1], y, r), "images are float32"),
        (lambda x, y, r: (x.astype(np.uint8), y, r), "images are uint8"),
        (lambda x, y, r: (x[..., :4], y, r), "images are float32"),
        (lambda x, y, r: (x, y * 2, r), "must be 0 or 1"),
        (lambda x, y, r: (x, y * np.float32(np.nan), r), "or probabilities between"),
        (lambda x, y, r: (x, y[:, :2], r), "must be 0 or 1"),
        (lambda x, y, r: (x, y, {"source": r["source"]}), "`split`"),
        (lambda x, y, r: (x, y, {**r, "split": ["dev"] * 4}), "train, val, test"),
    ],
)
def test_a_batch_that_does_not_fit_is_named(tmp_path: Path, change, message):
    images, labels, rows = _batch(4)
    labels[0, 0] = 1
    with pytest.raises(ConfigError, match=message):
        _write(str(tmp_path / "set"), (images, labels, rows), change(images, labels, rows))


def test_an_empty_dataset_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="no usable row"):
        _write(str(tmp_path / "set"))
    with pytest.raises(ConfigError, match="unique"):
        DatasetWriter(str(tmp_path / "set"), bands=BANDS, classes=("a", "a"))


@pytest.mark.parametrize("name", ["images.npy", "labels.npy", "rows.parquet", "dataset.json"])
def test_a_flipped_bit_of_any_file_is_found_when_a_dataset_is_opened(tmp_path: Path, name: str):
    _write(str(tmp_path / "set"), _batch(4), origin={"from": "here"})
    file = tmp_path / "set" / name
    data = bytearray(file.read_bytes())
    data[-10 if name != "dataset.json" else data.index(b"here")] ^= 1
    file.write_bytes(data)
    with pytest.raises((CorruptIndexError, ConfigError), match="import"):
        LabelledDataset.open(str(tmp_path / "set"))


def test_a_description_without_a_hash_is_one_of_an_older_dataset(tmp_path: Path):
    info = _write(str(tmp_path / "set"), _batch(4))
    file = tmp_path / "set" / "dataset.json"
    content = json.loads(file.read_text())
    del content["seal"]
    file.write_text(json.dumps(content))
    assert LabelledDataset.open(str(tmp_path / "set")).info == info


@pytest.mark.parametrize(
    ("name", "value"), [("band_mean", ["a", "b"]), ("count", "4"), ("sha256", []), ("origin", 3)]
)
def test_a_value_of_the_wrong_type_is_named(tmp_path: Path, name: str, value: object):
    _write(str(tmp_path / "set"), _batch(4))
    file = tmp_path / "set" / "dataset.json"
    content = {k: v for k, v in json.loads(file.read_text()).items() if k != "seal"}
    file.write_text(json.dumps(content | {name: value}))
    with pytest.raises(ConfigError, match=r"dataset\.json is malformed"):
        read_info(str(tmp_path / "set"))


def test_a_damaged_copy_of_a_remote_dataset_is_copied_again(moto_s3, tmp_path: Path):
    uri, cache = moto_s3.location("sets", "c"), tmp_path / "cache"
    _write(uri, _batch(4))
    LabelledDataset.open(uri, cache=cache)
    (copied,) = cache.glob("*/labels.npy")
    copied.write_bytes(copied.read_bytes()[:-1] + b"\7")
    assert np.array_equal(LabelledDataset.open(uri, cache=cache).labels, _batch(4)[1])


def test_two_writers_of_one_dataset_do_not_meet(tmp_path: Path):
    uri = str(tmp_path / "set")
    with (
        DatasetWriter(uri, bands=BANDS, classes=CLASSES) as one,
        DatasetWriter(uri, bands=BANDS, classes=CLASSES) as other,
    ):
        one.append(*_batch(4))
        other.append(*_batch(6, seed=1))
        one.finish()
        other.finish()
    assert len(LabelledDataset.open(uri)) == 6
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_the_folder_of_a_killed_writer_is_removed(tmp_path: Path):
    with DatasetWriter(str(tmp_path / "set"), bands=BANDS, classes=CLASSES):
        (alive,) = tmp_path.iterdir()
        stem, _, _ = alive.name.rpartition(f".{os.getpid()}.")
        dead = tmp_path / f"{stem}.{2**22 + 1}.00000000"  # no process has such a number
        dead.mkdir()
        _write(str(tmp_path / "set"), _batch(3))
        assert not dead.exists()
        assert alive.exists()


@pytest.mark.parametrize("name", ["Water", " water", "wa\u0308ter"])
def test_names_that_look_alike_are_one_class_or_band(tmp_path: Path, name: str):
    twin = {"Water": "water", " water": "water", "wa\u0308ter": "w\xe4ter"}[name]
    for names in (
        {"bands": ("a",), "classes": (name, twin)},
        {"bands": (name, twin), "classes": "x"},
    ):
        with pytest.raises(ConfigError, match=r"must be unique|must differ"):
            DatasetWriter(str(tmp_path / "set"), **names)


@pytest.mark.parametrize("kind", ["uint8", "int16"])
def test_integers_become_real_with_the_first_real_batch(tmp_path: Path, kind: str):
    first, second = _batch(5, 0, np.dtype(kind)), _batch(4, 1)
    _write(str(tmp_path / "set"), first, first, second)
    data = LabelledDataset.open(str(tmp_path / "set"))
    assert data.images.dtype == np.float32
    np.testing.assert_array_equal(data.images, np.concatenate([first[0], first[0], second[0]]))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_rows_after_a_mark_are_dropped(tmp_path: Path, dtype: type):
    """Also where the dropped rows made the whole dataset float32."""
    images = np.arange(5 * 2 * 4 * 4, dtype=np.uint8).reshape(5, 2, 4, 4)
    labels = np.ones((5, len(CLASSES)), np.uint8)
    rows = {"source": list("abcde"), "split": ["train"] * 5}

    def append(writer: DatasetWriter, part: slice, kind: type) -> None:
        some = {name: values[part] for name, values in rows.items()}
        writer.append(images[part].astype(kind), labels[part], some)

    with DatasetWriter(str(tmp_path / "set"), bands=("a", "b"), classes=CLASSES) as writer:
        for part in (slice(0, 1), slice(1, 2), slice(2, 4)):
            append(writer, part, np.uint8 if part.start == 0 else dtype)
            writer.truncate(min(writer.count, 1))
        append(writer, slice(4, 5), np.uint8 if dtype == np.uint8 else np.float32)
        writer.finish()
    data = LabelledDataset.open(str(tmp_path / "set"))
    assert data.rows["source"].tolist() == ["a", "e"]
    assert data.images.dtype == dtype
    assert np.array_equal(data.images, images[[0, 4]])
