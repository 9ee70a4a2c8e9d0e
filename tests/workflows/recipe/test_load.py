"""Recipes: what is accepted, and how each mistake is named."""

import dataclasses
import datetime as dt
from importlib import import_module

import pytest

from storage.errors import ConfigError
from storage.scene import SceneQuery
from workflows.recipe import schema as sections
from workflows.recipe.load import (
    SECRET_MASK,
    LoadedRecipe,
    Override,
    load_recipe,
    packaged_recipes,
    parse_recipe,
)
from workflows.recipe.types import parse_bytes

RECIPE = """\
name: test
catalog:
  source: ${SCENES:-scenes}/*.tif
  query:
    since: 2015-01-01
    bbox: [-99.2, 47.0, -99.1, 47.1]
grid:
  tile_px: ${TILE_PX:-64}   # a number, though it comes from a variable
storage:
  secret_access_key: ${SECRET}
"""


@pytest.fixture
def recipe_file(tmp_path):
    path = tmp_path / "r.yaml"

    def write(text):
        path.write_text(text)
        return str(path)

    return write


def _load(path: str, *sets: str, **environ: str) -> LoadedRecipe:
    return load_recipe(path, [Override.parse(text) for text in sets], environ)


def test_variables_are_expanded_and_keep_the_type_they_look_like(recipe_file):
    loaded = _load(recipe_file(RECIPE), SECRET="s3cret", TILE_PX="96")
    assert loaded.recipe.catalog.source == "scenes/*.tif"
    assert loaded.recipe.grid.tile_px == 96
    assert loaded.recipe.catalog.query.since == dt.datetime(2015, 1, 1, tzinfo=dt.UTC)
    quoted = recipe_file("name: '${N}'")
    assert _load(quoted, N="12").recipe.name == "12"


def test_secrets_are_masked_wherever_a_recipe_is_shown(recipe_file):
    loaded = _load(recipe_file(RECIPE), SECRET="s3cret")
    assert loaded.recipe.storage.secret_access_key.get_secret_value() == "s3cret"
    assert loaded.shown()["storage"]["secret_access_key"] == SECRET_MASK
    assert "s3cret" not in f"{loaded!r} {loaded.shown()}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("grid:\n  tile_pix: 64\n", ["line 2", "grid.tile_pix", "did you mean tile_px?"]),
        ("catlog:\n  source: x\n", ["line 1", "catlog", "did you mean catalog?"]),
        ("grid:\n  edge: pad\n", ["line 2", "grid.edge", "did you mean tiles.edge?"]),
        ("tiles:\n  zzz: 1\n", ["line 2", "known here: edge, min_valid_fraction"]),
        ("grid:\n  tile_px: wide\n", ["line 2: grid.tile_px: expected", "integer", "'wide'"]),
        ("grid:\n  tile_px: 0\n", ["line 2: grid.tile_px: expected greater than 0, got 0"]),
        ("grid:\n\n  resolution: fine\n", ["line 3: grid.resolution", "number or 'native'"]),
        (
            "tiles:\n  edge: cut\n",
            ["line 2: tiles.edge: expected 'pad', 'shift' or 'drop', got 'cut'"],
        ),
        (
            "catalog:\n  query:\n    bbox:\n      - 1\n      - 2\n      - x\n      - 4\n",
            ["line 6: catalog.query.bbox.2: expected a valid number, got 'x'"],
        ),
        ("catalog:\n  query:\n    bbox: [0, 5, 1, 4]\n", ["line 3", "south < north"]),
        ("catalog:\n  query:\n    since: soon\n", ["line 3", "a date", "'soon'"]),
        (
            "catalog:\n  bands:\n    red:\n      indx: 1\n",
            ["line 4: catalog.bands.red.indx", "did you mean index?"],
        ),
        ("grid: 5\n", ["line 1: grid: expected", "got 5"]),
        ("name: a\nname: b\n", ["line 2: name is given twice, first in line 1"]),
        ("name: [a\n", ["line 2: no valid YAML"]),
        ("- a\n", ["expected sections"]),
        ("catalog:\n  source: ${NOWHERE}/x\n", ["line 2: catalog.source uses ${NOWHERE}, which"]),
    ],
)
def test_a_mistake_is_named_with_its_line_and_the_nearest_key(recipe_file, text, expected):
    path = recipe_file(text)
    with pytest.raises(ConfigError) as caught:
        _load(path)
    message = str(caught.value)
    assert "\n" not in message
    for part in [path, *expected]:
        assert part in message


def test_the_first_of_several_mistakes_is_told_and_the_others_are_counted(recipe_file):
    with pytest.raises(ConfigError, match=r"line 2: .*\(and 1 more\)"):
        _load(recipe_file("grid:\n  tile_px: x\n  stride_px: y\n"))


def test_set_overrides_the_file_with_yaml_values(recipe_file):
    loaded = _load(
        recipe_file(RECIPE), "grid.tile_px=32", "catalog.query.bbox=[1, 2, 3, 4]", SECRET="x"
    )
    assert loaded.recipe.grid.tile_px == 32
    assert loaded.recipe.catalog.query.bbox == (1, 2, 3, 4)
    assert loaded.recipe.catalog.source == "scenes/*.tif"
    assert loaded.where("grid.tile_px") == "--set grid.tile_px"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("grid.tile_px=wide", "--set grid.tile_px: grid.tile_px: expected a valid integer"),
        ("gird.tile_px=4", "--set gird.tile_px: gird is not a key of a recipe; did you mean grid?"),
        ("grid", "section.key=value"),
        ("grid.crs=[", "no YAML"),
    ],
)
def test_a_wrong_set_is_named(text, expected):
    with pytest.raises(ConfigError) as caught:
        load_recipe(None, [Override.parse(text)])
    assert expected in str(caught.value)


def test_a_missing_value_says_how_to_give_it():
    loaded = load_recipe()
    with pytest.raises(ConfigError, match=r"archive\.uri is not given: use --archive, --set"):
        loaded.need("archive.uri", "--archive")


def test_a_missing_path_is_named_with_its_line_and_the_nearest_one(recipe_file, tmp_path):
    (tmp_path / "scenes").mkdir()
    path = recipe_file(f"name: x\nencoder:\n  bundle: {tmp_path}/scnes/bundle\n")
    with pytest.raises(ConfigError) as caught:
        _load(path).need_path("encoder.bundle")
    assert "line 3: encoder.bundle" in str(caught.value)
    assert f"did you mean '{tmp_path / 'scenes'}'" in str(caught.value)


def test_an_unknown_recipe_names_the_nearest_packaged_one():
    with pytest.raises(ConfigError, match=r"did you mean naip-series\?"):
        load_recipe("naip-serie")


@pytest.mark.parametrize("name", packaged_recipes())
def test_every_packaged_recipe_is_valid_and_says_what_it_is_for(name):
    loaded = load_recipe(name, environ={})
    assert loaded.recipe.description
    assert loaded.recipe.name == name


def test_the_packaged_recipes_are_there():
    assert {"naip-series", "landsat-series", "aid", "demo"} <= set(packaged_recipes())


def test_lines_survive_blank_lines_comments_and_flow_mappings():
    _, origins = parse_recipe("# a\n\ngrid: {tile_px: 1,\n  stride_px: 2}\n", "f")
    assert origins[("grid", "stride_px")] == "f, line 4"


@pytest.mark.parametrize("text", ["16 parsecs", "GB", "1XB"])
def test_a_size_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="16GB"):
        parse_bytes(text)


# What a section has besides the dataclass it mirrors, and what it leaves out of it.
BESIDES = {
    "TrainingSection": {"output"},
    "EncoderSection": {"bundle", "pretrained", "seed"},
    "IndexSection": {"uri"},
}
LEFT_OUT = {
    "CompositeSection": {"catalog", "grid"},
    "EncoderSection": {"classes", "loss", "training"},
    "IngestSection": {"catalog", "encoder_uri", "archive_uri", "grid", "rules"},
}
MIRRORING = [section for section in sections.Section.__subclasses__() if section.mirrors]
OWN_DEFAULTS = {("EncoderSection", "head"), ("EncoderSection", "pretrained")}


@pytest.mark.parametrize("section", MIRRORING, ids=lambda section: section.__name__)
def test_a_section_has_the_keys_and_defaults_of_what_it_configures(section):
    module, _, name = section.mirrors.rpartition(".")
    extra = BESIDES.get(section.__name__, set())
    left_out = LEFT_OUT.get(section.__name__, set())
    mirrored = {
        part.name: part for part in dataclasses.fields(getattr(import_module(module), name))
    }
    fields = section.model_fields
    assert set(fields) - extra == set(mirrored) - left_out
    for key in set(fields) - extra:
        part = mirrored[key]
        if part.default_factory is not dataclasses.MISSING:
            expected = part.default_factory()
        elif part.default is not dataclasses.MISSING:
            expected = part.default
        else:
            continue  # required there; the section may leave it open until a verb needs it
        if (section.__name__, key) not in OWN_DEFAULTS and not isinstance(expected, SceneQuery):
            assert fields[key].default == expected, f"{section.__name__}.{key}"
