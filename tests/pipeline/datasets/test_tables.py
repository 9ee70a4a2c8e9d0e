"""Label tables: names stay text, and no class, image or group is two."""

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.datasets.folder import import_folder
from pipeline.datasets.tables import first_twice, read_table
from storage.dataset import DatasetInfo, LabelledDataset
from storage.errors import ConfigError, NotFoundError, SceneError
from storage.values import alike

PLAIN = (
    "image,split,water,forest\n0.png,train,1,0\n1.png,train,0,1\n2.png,val,1,1\n3.png,test,0,0\n"
)
LABELS = [[1, 0], [0, 1], [1, 1], [0, 0]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for n in range(4):
        picture(tmp_path / "source" / "images" / f"{n}.png", n)
    return tmp_path / "source"


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8), np.uint8)
    Image.fromarray(pixels).save(path)


def imported(folder: Path, table: bytes | str) -> DatasetInfo:
    data = table if isinstance(table, bytes) else table.encode()
    (folder / "labels.csv").write_bytes(data)
    return import_folder(str(folder), str(folder.parent / "set"), bands=["grey"])


def rows_of(folder: Path) -> pd.DataFrame:
    return LabelledDataset.open(str(folder.parent / "set")).rows


SAME = {
    "plain": PLAIN.encode(),
    "byte order mark": b"\xef\xbb\xbf" + PLAIN.encode(),
    "lines of Windows": PLAIN.replace("\n", "\r\n").encode(),
    "semicolons": PLAIN.replace(",", ";").encode(),
    "tabs": PLAIN.replace(",", "\t").encode(),
    "UTF-16": PLAIN.encode("utf-16"),
    "true and false": PLAIN.replace(",1", ",TRUE").replace(",0", ",False").encode(),
    "reals": PLAIN.replace(",1", ",1.0").replace(",0", ",0.0").encode(),
    "blanks": PLAIN.replace(",", " , ").encode(),
    "commas at the ends": PLAIN.replace("\n", ",\n").encode(),
    "commas at the ends of rows": PLAIN.replace("1\n", "1,\n").replace("0\n", "0,\n").encode(),
    "empty lines": PLAIN.replace("\n", "\n\n").encode(),
    "quotes": PLAIN.replace("image", '"image"').replace("0.png", '"0.png"').encode(),
    "paths of Windows": PLAIN.replace("0.png", ".\\0.png").encode(),
}


@pytest.mark.parametrize("name", SAME)
def test_a_table_as_a_spreadsheet_writes_it_is_read(folder: Path, name: str):
    assert imported(folder, SAME[name]).classes == ("water", "forest")
    data = LabelledDataset.open(str(folder.parent / "set"))
    assert data.labels.tolist() == LABELS
    assert data.split.tolist() == ["train", "train", "val", "test"]
    assert data.rows["source"].tolist() == ["0.png", "1.png", "2.png", "3.png"]


REFUSED = {
    "another encoding": (PLAIN.replace("water", "Gewässer").encode("latin-1"), "save it as UTF-8"),
    "yes": (PLAIN.replace("1,0\n", "yes,0\n"), "line 2: column water holds 'yes', which is not 0"),
    "an empty cell": (PLAIN.replace("test,0,0", "test,,0"), "line 5: column water holds ''"),
    "an uncertain label": (PLAIN.replace("1,1", "2,1"), "line 4: column water holds '2'"),
    "another split": (PLAIN.replace("val", "validation"), "line 4: split 'validation' is not one"),
    "joined labels": ("image,labels\n0.png,water;forest\n", "column labels holds 'water;forest'"),
    "an index": (",image,water\n0,0.png,1\n", "column 1 has no name"),
    "an index of pandas": ("Unnamed: 0,image,water\n0,0.png,1\n", "column 1 has no name"),
    "a short row": (PLAIN.replace("1.png,train,0,1", "1.png,train,0"), "line 3 has 3 cells"),
    "a long row": (PLAIN.replace("1.png,train,0,1", "1.png,train,0,1,1"), "line 3 has 5 cells"),
    "an open quote": (PLAIN.replace("1.png", '"1.png'), "is not a CSV table"),
    "zero bytes": (PLAIN.replace("1.png", "1\0png"), "zero bytes"),
    "no image": ("image,water\n,1\n", "line 2 has no image"),
    "a class twice": ("image,water,forest,water\n0.png,1,0,1\n", "column 'water' twice"),
    "a class and a blank": ("image,water,water \n0.png,1,0\n", "column 'water' twice"),
    "a class in capitals": ("image,water,Water\n0.png,1,0\n", "'water' twice .also as 'Water'"),
    "letters of two forms": ("image,Gewässer,Gewa\u0308sser\n0.png,1,0\n", "twice"),
    "a class of pandas": ("image,water,water.1\n0.png,1,0\n", "'water' and 'water.1' seem to be"),
    "an image twice": (PLAIN + "0.png,train,1,0\n", "image 0.png twice, on lines 2 and 6"),
    "an image in two splits": (PLAIN + "0.png,test,1,0\n", "image 0.png twice, on lines 2 and 6"),
    "an image by two names": (PLAIN + "./0.png,test,1,0\n", "image 0.png twice"),
    "a group in two splits": (
        "image,group,split,water\n0.png,a,train,1\n1.png,b,train,1\n2.png,a,val,0\n",
        r"group 'a' is in train \(line 2\) and in val \(line 4\)",
    ),
    "a group by two names": (
        "image,group,split,water\n0.png,A 1,train,1\n1.png,a  1,val,1\n",
        "group 'a  1' is in train",
    ),
    "a group without a name": ("image,group,water\n0.png,a,1\n1.png,,1\n", "line 3 has no group"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_doubtful_table_is_refused_with_its_place(folder: Path, name: str):
    table, message = REFUSED[name]
    with pytest.raises(ConfigError, match=rf"^labels\.csv.*{message}"):
        imported(folder, table)
    assert not (folder.parent / "set").exists()


def test_names_are_text(folder: Path):
    imported(
        folder,
        "image,scene,split,water\n0.png,007,train,1\n1.png,7,val,0\n2.png,1e3,test,1\n"
        "3.png,NA,train,0\n",
    )
    assert rows_of(folder)["group"].tolist() == ["007", "7", "1e3", "NA"]


def test_numbered_classes_are_classes(folder: Path):
    info = imported(folder, "image,1,1.1,road.2\n0.png,1,0,1\n1.png,0,1,0\n")
    assert info.classes == ("1", "1.1", "road.2")


def test_a_group_shares_a_split_that_is_drawn(folder: Path):
    """Forty images in four groups: a split drawn by image would divide the groups."""
    for n in range(40):
        picture(folder / "images" / f"{n}.png", n)
    lines = "".join(f"{n}.png,g{n % 4},1\n" for n in range(40))
    imported(folder, f"image,group,water\n{lines}")
    assert (rows_of(folder).groupby("group")["split"].nunique() == 1).all()


def test_another_division_is_another_dataset(folder: Path):
    from pipeline.datasets.spec import SplitRule

    uri = str(folder.parent / "set")
    (folder / "labels.csv").write_text("image,water\n0.png,1\n1.png,0\n2.png,1\n3.png,0\n")
    import_folder(str(folder), uri, bands=["grey"], split=SplitRule(val=0, test=0))
    assert set(LabelledDataset.open(uri).split) == {"train"}
    import_folder(str(folder), uri, bands=["grey"], split=SplitRule(val=0, test=0.99))
    assert "test" in set(LabelledDataset.open(uri).split)


def test_equal_pixels_in_two_splits_are_said(folder: Path, caplog: pytest.LogCaptureFixture):
    picture(folder / "images" / "3.png", 1)  # the pixels of 1.png, which trains
    with caplog.at_level(logging.WARNING):
        imported(folder, PLAIN)
    (said,) = [record.getMessage() for record in caplog.records]
    assert "1 images have the pixels of an image of another split" in said
    assert "3.png (test) and 1.png (train)" in said


def test_a_scene_in_two_splits_is_said(folder: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        imported(folder, "image,scene,split,water\n0.png,a,train,1\n1.png,a,test,1\n")
    (said,) = [record.getMessage() for record in caplog.records]
    assert "scene 'a' is in train (line 2) and in test (line 3)" in said


def test_a_clean_table_is_imported_without_a_word(folder: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        imported(folder, PLAIN)
    assert caplog.records == []


# --- images of several kinds ---------------------------------------------------------------------


def test_images_of_other_numbers_are_refused_by_name(folder: Path):
    numbers = np.random.default_rng(0).integers(300, 9000, (8, 8)).astype(np.uint16)
    Image.fromarray(numbers).save(folder / "images" / "2.png")
    with pytest.raises(ConfigError, match=r"2\.png holds whole numbers \(uint16\), image 0\.png"):
        imported(folder, PLAIN)


def test_missing_pixels_make_a_dataset_real(folder: Path):
    """The first 64 images are stored as bytes before one with transparent pixels comes."""
    for n in range(70):
        picture(folder / "images" / f"{n}.png", n)
    with Image.open(folder / "images" / "66.png") as image:
        holes = Image.merge("LA", [image, image.point(lambda v: 0 if v < 90 else 255)])
    holes.save(folder / "images" / "66.png")
    lines = "".join(f"{n}.png,train,{n % 2}\n" for n in range(70))
    imported(folder, f"image,split,water\n{lines}")
    data = LabelledDataset.open(str(folder.parent / "set"))
    assert data.images.dtype == np.float32
    for n in range(70):
        with Image.open(folder / "images" / f"{n}.png") as image:
            bands = np.asarray(image.convert("LA"))
        expected = np.where(bands[..., 1] == 0, np.nan, bands[..., 0].astype(np.float32))
        np.testing.assert_array_equal(data.images[n, 0], expected)


def test_an_image_without_a_valid_pixel_is_refused(folder: Path):
    Image.new("LA", (8, 8)).save(folder / "images" / "2.png")
    with pytest.raises(SceneError, match=r"image 2\.png has no valid pixel"):
        imported(folder, PLAIN)


@pytest.mark.parametrize(("mode", "bands"), [("L", 3), ("RGB", 1), ("P", 1), ("1", 3), ("CMYK", 3)])
def test_an_import_converts_between_grey_and_colour(tmp_path: Path, mode: str, bands: int):
    """The numbers are those of Pillow's own conversion."""
    pixels = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    name = "a.jpg" if mode == "CMYK" else "a.png"
    image.save(tmp_path / name)
    (tmp_path / "labels.csv").write_text(f"image,split,water\n{name},train,1\n")
    import_folder(str(tmp_path), str(tmp_path / "set"), bands=list("abc")[:bands])
    with Image.open(tmp_path / name) as stored:
        shown = np.asarray(stored.convert("RGB").convert("RGB" if bands == 3 else "L"))
    expected = np.atleast_3d(shown).transpose(2, 0, 1)
    images = LabelledDataset.open(str(tmp_path / "set")).images
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images[0], expected)


def test_a_band_that_a_picture_lacks_is_not_made_up(folder: Path):
    Image.new("RGB", (8, 8)).save(folder / "images" / "0.png")
    (folder / "labels.csv").write_text(PLAIN)
    with pytest.raises(ConfigError, match=r"image 0\.png has 3 bands, not 4"):
        import_folder(str(folder), str(folder.parent / "set"), bands=list("rgbn"))


# --- the functions -------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(
    names=st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n"), min_size=1, max_size=6),
        min_size=1,
        max_size=5,
    ),
    rows=st.integers(0, 4),
    separator=st.sampled_from(",;\t"),
)
def test_a_table_comes_back_or_is_refused(names: list[str], rows: int, separator: str):
    import csv
    import io

    stream = io.StringIO(newline="")
    writer = csv.writer(stream, delimiter=separator)
    writer.writerow(["image", *names])
    for row in range(rows):
        writer.writerow([f"00{row}", *(str(row % 2) for _ in names)])
    stripped = [name.strip() for name in names]
    try:
        table = read_table(stream.getvalue().encode(), "t.csv", "image")
    except ConfigError:
        keys = [alike(name) for name in ["image", *stripped]]
        doubtful = any("." in name or name.startswith("Unnamed") for name in names)
        assert len(set(keys)) < len(keys) or "" in stripped or doubtful
        return
    assert list(table.columns) == ["image", *stripped]
    assert table.columns["image"] == [f"00{row}" for row in range(rows)]
    assert table.flags(stripped).tolist() == [[row % 2] * len(names) for row in range(rows)]


def test_the_first_name_that_comes_twice():
    assert first_twice(["a", "b", "c"]) is None
    assert first_twice(["a", "b", "b", "a"]) == (1, 2)


def test_an_image_of_another_case_is_another_file(folder: Path):
    with pytest.raises(NotFoundError, match=r"image 0\.PNG of labels\.csv"):
        imported(folder, PLAIN + "0.PNG,test,1,0\n")
