"""YAML as recipes take it: what is refused, with its line, and what each number is."""

import math
import os

import pytest

from storage.errors import ConfigError
from workflows.recipe.document import MOST_BYTES, read_document, read_text
from workflows.recipe.load import Override, load_recipe

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {k: 1}\n" + "".join(
    f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 9)}]}}\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        (LAUGHS, 1, "what aliases repeat"),
        (MERGES, 1, "what aliases repeat"),
        ("name: x\ncatalog: &a {source: *a}", 2, "what aliases repeat"),
        ("name: x\ncatalog: &a {<<: *a}", 2, "what aliases repeat"),
        ("a: " + "[" * 10_000, 1, "nested deeper than 32 levels"),
        ("\n" + "? " * 5_000, 2, "nested deeper than 32 levels"),
        ("".join(f"{' ' * n}a:\n" for n in range(100)), 33, "nested deeper than 32 levels"),
        ("name: a\ngrid: {tile_px: 6\x004}", 2, "#x0000"),
        ('name: a\ndescription: "\\0"', 2, r"description holds the character '\x00'"),
        ('name: "\\e[31m"', 1, r"name holds the character '\x1b'"),
        ('name: "\\ud800"', 1, r"name holds the character '\ud800'"),
        ('name: "\\Uffffffff"', 1, "not valid YAML"),
        ("grid:\n\ttile_px: 4", 2, "cannot start any token"),
        ("grid: {tile_px: 4}\ngrid: {tile_px: 4}", 2, "grid is given twice, first in line 1"),
        ("c: {1: a,\n '1': b}", 2, "c.1 is given twice"),
        ("c: {1: a,\n 0x1: b}", 2, "c.1 is given twice"),
        ("name: x\n? [a, b]\n: c", 2, "neither text nor a whole number"),
        ("grid: {~: c}", 1, "grid has a key that is neither"),
        ("grid: {yes: c}", 1, "grid has a key that is neither"),
        ("grid: {1.5: c}", 1, "grid has a key that is neither"),
        ("\ngrid: {tile_px: " + "9" * 5000 + "}", 2, "grid.tile_px is no int"),
        ("\ngrid: {tile_px: " + "9" * 30 + "}", 2, "grid.tile_px is a number beyond 64 bits"),
        ("grid: {tile_px: !!int wide}", 1, "grid.tile_px is no int"),
        ("name: !!bool perhaps", 1, "name is no bool"),
        ("name: !!timestamp 2020-99-99", 1, "name has the tag"),
        ("name: !!binary abc=", 1, "name has the tag"),
        ("grid: !!set {a, b}", 1, "grid has the tag"),
        ("grid: !!python/object/apply:os.system [ls]", 1, "grid has the tag"),
        ("grid: {<<: 5}", 1, "grid merges (`<<`) what is no mapping"),
        ("name: a\n---\nname: b", 2, "another document"),
        ("name: a\ngrid: *nowhere", 2, "undefined alias"),
    ],
)
def test_what_a_recipe_does_not_need_is_refused_with_its_line(tmp_path, text, line, word):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_recipe(str(path))
    assert str(caught.value).startswith(f"{path}, line {line}: ")
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[(text, text) for text in ("010", "1:30", "12:30:45", "2024-05-31", "0o17", "1e", "=")],
        *[("12", 12), ("-3", -3), ("+3", 3), ("0", 0), ("1_000", 1000), ("0x1F", 31)],
        *[("1.5", 1.5), ("1e-4", 1e-4), (".5", 0.5), ("-1.", -1.0), (".inf", math.inf)],
        *[("yes", True), ("off", False), ("~", None), ("null", None), ("", None)],
        *[("'12'", "12"), ("!!str 12", "12"), ("!!int '12'", 12), ("!!float 3", 3.0)],
    ],
)  # fmt: skip
def test_a_value_is_what_every_version_of_yaml_reads_or_text(text, value):
    read, _ = read_document(f"a: {text}", "f", {})
    assert read == {"a": value}
    assert type(read["a"]) is type(value)


def test_aliases_and_merges_stand_for_what_they_name():
    text = "a: &a {x: 1, y: {z: 2}}\nb: {<<: *a,\n  x: 3}\nc: {<<: [{x: 4}, *a]}\nd: *a\n"
    values, lines = read_document(text, "f", {})
    assert values["b"] == {"x": 3, "y": {"z": 2}}
    assert values["c"] == {"x": 4, "y": {"z": 2}}
    assert values["d"] == values["a"]
    assert values["d"]["y"] is not values["a"]["y"]  # an option that changes one keeps the other
    assert lines["b", "x"] == "f, line 3"
    assert lines["b", "y", "z"] == "f, line 1"


def test_a_recipe_is_a_small_file_of_utf8(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_bytes(b"\xef\xbb\xbfname: x\n")
    assert load_recipe(str(path)).recipe.name == "x"
    path.write_bytes("name: x\n".encode("utf-16"))
    with pytest.raises(ConfigError, match=r"line 1: not UTF-8 \(byte 0xff\)"):
        load_recipe(str(path))
    path.write_bytes(b"name: x\ndescription: caf\xe9\n")
    with pytest.raises(ConfigError, match=r"line 2: not UTF-8 \(byte 0xe9\)"):
        load_recipe(str(path))
    with path.open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(ConfigError, match=f"larger than {MOST_BYTES:,} bytes"):
        load_recipe(str(path))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for place in (str(pipe), "/dev/zero", str(tmp_path)):
        with pytest.raises(ConfigError, match="neither a file nor a recipe"):
            load_recipe(place)
        with pytest.raises(ConfigError, match="is not a file"):
            read_text(tmp_path / place)


def test_a_recipe_of_the_largest_size_has_too_many_values():
    text = "a: [" + "1," * ((MOST_BYTES - 10) // 2) + "]"
    with pytest.raises(ConfigError, match="more than 50,000 values"):
        read_document(text, "f", {})


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", "1e999"])
def test_only_nodata_may_be_a_number_that_is_not_finite(value):
    loaded = load_recipe(None, [Override.parse(f"catalog.bands={{red: {{nodata: {value}}}}}")])
    assert not math.isfinite(loaded.recipe.catalog.bands["red"].nodata)
    for key in ("grid.resolution", "training.weight_decay", "service.rate_per_s"):
        with pytest.raises(ConfigError, match=f"--set {key}: {key} is .*give a finite number"):
            load_recipe(None, [Override.parse(f"{key}={value}")])


@pytest.mark.parametrize(
    "text",
    [
        "storage.secret_access_key=[abc123",
        "storage.secret_access_key=[abc123]",
        "storage.secret_access_key={abc123: abc123}",
        "storage.secret_access_key=!!int abc123",
        "storage=abc123",
        "storage=[abc123]",
        "service.token={a: abc123}",
        ".=abc123",
    ],
)
def test_a_secret_of_the_wrong_kind_is_not_shown(text):
    with pytest.raises(ConfigError) as caught:
        load_recipe(None, [Override.parse(text)])
    assert "abc123" not in str(caught.value)


@pytest.mark.parametrize("text", ["a" + ".a" * 10_000 + "=1", "a..b=1", "=1", ".=1", "grid"])
def test_a_path_of_a_set_is_sections_and_a_key(text):
    with pytest.raises(ConfigError, match=r"not of the form section\.key=value"):
        Override.parse(text)


def test_a_size_beyond_all_memory_is_refused():
    with pytest.raises(ConfigError, match=r"index\.memory_bytes: expected"):
        load_recipe(None, [Override.parse(f"index.memory_bytes={'9' * 400}TB")])
