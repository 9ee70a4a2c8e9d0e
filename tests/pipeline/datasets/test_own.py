"""An importer of one's own: its images are checked, and its faults are one line."""

import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from encoders.plugins import find_plugin
from pipeline.datasets.importers import own_importer
from pipeline.datasets.own import import_own
from pipeline.datasets.spec import SplitRule
from storage.dataset import LabelledDataset
from storage.errors import ConfigError, NotFoundError, SceneError, SkysiftError
from storage.location import Location
from tests.support.command_line import run

CODE = '''
import json

import numpy as np

from skysift import LabelledImages


def arrays(files, *, change="", pixels=None):
    """A .npz file holds pixels, labels and what else `LabelledImages` takes."""
    with files.local("all.npz") as place:
        found = dict(np.load(place.path))
    table = json.loads(files.read("table.json"))
    if change:
        exec(change, {"np": np, "found": found, "table": table})

    def read(row):
        return found["pixels"][row], found["labels"][row]

    return LabelledImages(read=read, **table)


def nothing(files):
    return [1, 2]
'''
ROWS = 6


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of the form that the code reads, in a folder with the code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "arrays_of_ours.py").write_text(CODE)
    place = tmp_path / "source"
    place.mkdir()
    pixels = np.arange(ROWS * 2 * 8 * 8, dtype=np.uint16).reshape(ROWS, 2, 8, 8)
    labels = np.eye(3, dtype=bool)[np.arange(ROWS) % 3]
    np.savez(place / "all.npz", pixels=pixels, labels=labels)
    names = ", ".join(f'"n{row}"' for row in range(ROWS))
    (place / "table.json").write_text(
        f'{{"names": [{names}], "bands": ["vv", "vh"], "classes": ["a", "b", "c"]}}'
    )
    yield place
    sys.modules.pop("arrays_of_ours", None)


def import_arrays(source: Path, change: str = "", name: str = "arrays") -> LabelledDataset:
    target = str(source.parent / "set")
    plugin = own_importer(f"arrays_of_ours:{name}")
    import_own(plugin, str(source), target, options={"change": change} if change else {})
    return LabelledDataset.open(target)


def test_pixels_labels_and_rows_are_those_of_the_code(source: Path):
    data = import_arrays(source, "table.update(groups=list('xxyyzz'), resolution_m=10)")
    assert data.images.dtype == np.uint16
    assert np.array_equal(data.images.ravel(), np.arange(ROWS * 128))
    assert data.labels.tolist() == np.eye(3, dtype=int)[np.arange(ROWS) % 3].tolist()
    assert data.bands == ("vv", "vh")
    assert data.resolution_m == 10
    assert data.rows["source"].tolist() == [f"n{row}" for row in range(ROWS)]
    assert data.rows["split"].tolist() == [SplitRule().of(group) for group in "xxyyzz"]


def test_splits_of_the_code_are_kept_and_wide_numbers_become_reals(source: Path):
    splits = ["train"] * 4 + ["val", "test"]
    data = import_arrays(
        source, f"table.update(splits={splits}); found.update(pixels=found['pixels'].astype(int))"
    )
    assert data.rows["split"].tolist() == splits
    assert data.images.dtype == np.float32


def test_a_tar_is_read_as_its_folder(source: Path):
    with tarfile.open(source.parent / "source.tar", "w") as archive:
        for path in source.iterdir():
            archive.add(path, path.name)
    first = import_arrays(source).info
    second = import_arrays(source.parent / "source.tar").info
    assert first.digest == second.digest


@pytest.mark.parametrize("part", ["code", "files", "options"])
def test_an_import_is_kept_until_a_part_of_it_changes(source: Path, part: str):
    images = Path("set/images.npy")
    import_arrays(source)
    first = images.stat().st_mtime_ns
    import_arrays(source)
    assert images.stat().st_mtime_ns == first
    if part == "code":
        Path("arrays_of_ours.py").write_text(f"{CODE}# changed\n")
    elif part == "files":
        (source / "more.txt").write_text("a file more")
    import_arrays(source, "pass" if part == "options" else "")
    assert images.stat().st_mtime_ns > first


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ("table.pop('classes')", ConfigError, r"TypeError: .*classes.*arrays_of_ours.py:\d+"),
        ("1 / 0", ConfigError, "ZeroDivisionError"),
        ("table['names'][1] = 'n0'", ConfigError, "lists an image twice"),
        ("table.update(names=[])", ConfigError, "found no image"),
        ("table.update(groups=['a'])", ConfigError, "6 names, but 1 groups"),
        ("table.update(splits=['dev'] * 6)", ConfigError, "'dev' is not one of train, val, test"),
        ("table.update(bands=['vv'])", SceneError, r"n0 is uint16 \(2, 8, 8\), expected .*\(1, 8"),
        ("found.update(pixels=[['a']])", SceneError, "expected numbers"),
        ("found.update(labels=found['labels'][:, :2])", SceneError, "each of the 3 classes"),
        ("found.update(labels=found['labels'] * 2.5)", SceneError, "expected 0 or 1"),
        ("found.pop('labels')", ConfigError, r"reading image n0 it raised KeyError.*py:\d+"),
        ("table['names'].append('n6')", ConfigError, "reading image n6 it raised IndexError"),
    ],
)
def test_a_fault_of_the_code_is_one_line_that_names_it(source: Path, change, error, words):
    with pytest.raises(error, match=words) as caught:
        import_arrays(source, change)
    assert "importer 'arrays_of_ours:arrays'" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not Path("set").exists()


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("foldr", ConfigError, "importer 'foldr' does not exist; did you mean 'folder'"),
        ("eurosat", ConfigError, r"known: folder, .*; write one of your own as module:Name"),
        ("gone:code", NotFoundError, "there is no module gone"),
        ("arrays_of_ours:", ConfigError, "package.module:Name"),
        ("arrays_of_ours:gone", ConfigError, "has no class or function gone"),
        ("arrays_of_ours:nothing", ConfigError, "it returned a list, expected skysift.Labelled"),
    ],
)
def test_what_is_no_importer_is_refused(source: Path, name: str, error, words: str):
    with pytest.raises(error, match=words):
        import_own(own_importer(name), str(source), str(source.parent / "set"))


def test_errors_of_the_files_stay_as_they_are(source: Path):
    (source / "table.json").unlink()
    with pytest.raises(NotFoundError, match=r"table\.json"):
        import_arrays(source)
    empty = source.parent / "empty"
    empty.mkdir()
    with pytest.raises(SkysiftError, match="holds no files"):
        import_own(own_importer("arrays_of_ours:arrays"), Location(str(empty)), "set")


def test_the_command_refuses_options_for_the_importers_of_skysift(source: Path):
    words = ("dataset", "import", "--source", source, "--dataset", "set")
    options = ("--set", "dataset.importer_options.a=1")
    done = run(*words, *options)
    assert done.code == 2
    assert "has the keys dataset.table, dataset.tile_px" in done.err
    done = run(*words, "--importer", "arrays_of_ours:arrays", "--json")
    assert done.code == 0, done.err
    digest = find_plugin("importers", "arrays_of_ours:arrays").digest
    assert done.data["info"]["origin"]["importer_sha256"] == digest
