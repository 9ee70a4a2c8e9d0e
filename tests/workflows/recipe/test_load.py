"""Recipes: what is accepted, and how each mistake is named."""

import datetime as dt

import pytest

from pipeline.indexing.spec import IndexSpec
from pipeline.ingest.spec import IngestSpec
from storage.errors import ConfigError
from storage.location import Location
from storage.scene import SceneQuery
from workflows.commands.common import Run
from workflows.recipe.errors import SECRET_MASK
from workflows.recipe.load import (
    LoadedRecipe,
    Override,
    load_recipe,
    packaged_recipes,
    parse_bytes,
    parse_recipe,
)
from workflows.recipe.schema import Recipe
from workflows.recipe.sections import keys_of, section_in, spec_from

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
    assert str(loaded.recipe.catalog.source) == "scenes/*.tif"
    assert loaded.recipe.grid.tile_px == 96
    assert loaded.recipe.catalog.query.since == dt.datetime(2015, 1, 1, tzinfo=dt.UTC)
    quoted = recipe_file("name: '${N}'")
    assert _load(quoted, N="12").recipe.name == "12"


def test_secrets_are_masked_wherever_a_recipe_is_shown(recipe_file):
    loaded = _load(recipe_file(RECIPE), SECRET="s3cret")
    assert loaded.recipe.storage.secret_access_key == "s3cret"
    assert loaded.shown()["storage"]["secret_access_key"] == SECRET_MASK
    assert "s3cret" not in f"{loaded!r} {loaded.shown()}"
    with pytest.raises(ConfigError, match=r"service.token: expected a valid string") as caught:
        _load(recipe_file("service:\n  token: 12345\n"))
    assert "12345" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("grid:\n  tile_pix: 64\n", ["line 2", "grid.tile_pix", "did you mean tile_px?"]),
        ("catlog:\n  source: x\n", ["line 1", "catlog", "did you mean catalog?"]),
        ("grid:\n  edge: pad\n", ["line 2", "grid.edge", "did you mean tiles.edge?"]),
        ("tiles:\n  zzz: 1\n", ["line 2", "known here: edge, min_valid_fraction"]),
        ("grid:\n  tile_px: wide\n", ["line 2: grid.tile_px: expected", "integer", "'wide'"]),
        (
            "grid:\n  tile_px: 0\n",
            ["line 2: grid.tile_px: expected greater than or equal to 1, got 0"],
        ),
        ("grid:\n\n  resolution: fine\n", ["line 3: grid.resolution", "number or 'native'"]),
        (
            "tiles:\n  edge: cut\n",
            ["line 2: tiles.edge: expected 'pad', 'shift' or 'drop', got 'cut'"],
        ),
        (
            "catalog:\n  query:\n    bbox:\n      - 1\n      - 2\n      - x\n      - 4\n",
            ["line 6: catalog.query.bbox.2: expected a valid number, got 'x'"],
        ),
        (
            "catalog:\n  query:\n    bbox: [0, 5, 1, 4]\n",
            ["line 3: catalog.query.bbox", "south <= north"],
        ),
        (
            "catalog:\n  query:\n    since: soon\n",
            ["line 3: catalog.query.since", "date", "'soon'"],
        ),
        (
            "catalog:\n  bands:\n    red:\n      indx: 1\n",
            ["line 4: catalog.bands.red.indx", "did you mean index?"],
        ),
        ("grid: 5\n", ["line 1: grid: expected a mapping, got 5"]),
        ("name: a\nname: b\n", ["line 2: name is given twice, first in line 1"]),
        ("name: [a\n", ["line 2: not valid YAML"]),
        ("- a\n", ["expected sections"]),
        (
            "ingest:\n  batch_tiles: '16'\n",
            ["line 2: ingest.batch_tiles: expected a valid integer"],
        ),
        ("ingest:\n  retry_quarantined: 1\n", ["line 2", "expected a valid boolean, got 1"]),
        (
            "training:\n  workers: 4\n  epochs: 0\n",
            ["line 3: training.epochs: expected greater than or equal to 1, got 0"],
        ),
        (
            "training:\n  workers: 3\n",
            ["line 2: training.workers: training: batch_size 128", "give a multiple of 3"],
        ),
        (
            "training:\n  seed: 1\n  embedding: features\n  freeze_backbone: true\n",
            ["line 3: training.embedding: training: a frozen backbone"],
        ),
        (
            "encoder:\n  band_mean: [1, 2]\n  band_std: [1, 2, 3]\n",
            ["line 1: encoder: encoder: 3 bands, 2 means and 3 standard deviations"],
        ),
        (
            "catalog:\n  query:\n    since: 2024-13-01\n",
            ["line 3: catalog.query.since", "2024-13-01"],
        ),
        ("catalog:\n  bands: {red: 5}\n", ["line 2: catalog.bands.red: expected a mapping, got 5"]),
        (
            "index:\n  memory_bytes: 16 parsecs\n",
            ["line 2: index.memory_bytes", "a size such as 16GB or 512MiB, got '16 parsecs'"],
        ),
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
    assert str(loaded.recipe.catalog.source) == "scenes/*.tif"
    assert loaded.where("grid.tile_px") == "--set grid.tile_px"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("grid.tile_px=wide", "--set grid.tile_px: grid.tile_px: expected a valid integer"),
        ("gird.tile_px=4", "--set gird.tile_px: gird is not a key of a recipe; did you mean grid?"),
        ("grid", "section.key=value"),
        ("grid.crs=[", "not valid YAML"),
    ],
)
def test_a_wrong_set_is_named(text, expected):
    with pytest.raises(ConfigError) as caught:
        load_recipe(None, [Override.parse(text)])
    assert expected in str(caught.value)


def _run(recipe: str | None = None) -> Run:
    overrides = {"archive.uri": ("--archive", None)}
    return Run(recipe_name=recipe, sets=(), overrides=overrides, as_json=False)


def test_a_missing_value_says_how_to_give_it():
    with pytest.raises(ConfigError, match=r"archive\.uri is not given: use --archive, --set"):
        _run().need("archive.uri")


def test_a_missing_path_is_named_with_its_line_and_the_nearest_one(recipe_file, tmp_path):
    (tmp_path / "scenes").mkdir()
    path = recipe_file(f"name: x\nencoder:\n  bundle: {tmp_path}/scnes/bundle\n")
    with pytest.raises(ConfigError) as caught:
        _run(path).need_path("encoder.bundle")
    assert "line 3: encoder.bundle" in str(caught.value)
    assert f"did you mean '{tmp_path / 'scenes'}'" in str(caught.value)


def test_uris_are_locations_that_the_options_of_the_recipe_reach(recipe_file):
    text = "archive:\n  uri: s3://bucket/archive\ningest:\n  labels_uri: s3://bucket/labels.csv\n"
    text += "storage:\n  region: eu-central-1\n  secret_access_key: s3cret\n"
    loaded = _load(recipe_file(text))
    options = loaded.recipe.storage
    assert options.region == "eu-central-1"
    assert loaded.recipe.archive.uri == Location("s3://bucket/archive", options)
    assert loaded.recipe.ingest.labels_uri == Location("s3://bucket/labels.csv", options)
    assert loaded.shown()["archive"]["uri"] == "s3://bucket/archive"
    assert "s3cret" not in f"{loaded.shown()}"
    run = _run(recipe_file(text))
    assert run.need_path("archive.uri").options == options
    assert run.location("s3://bucket/hits.csv").options == options


@pytest.mark.parametrize("value", ["5", "{uri: s3://bucket/archive}"])
def test_a_place_is_written_as_its_uri(recipe_file, value):
    with pytest.raises(ConfigError, match=r"line 1: archive\.uri: expected .*") as caught:
        _load(recipe_file(f"archive: {{uri: {value}}}\n"))
    assert "object" not in str(caught.value)


def test_an_unknown_recipe_names_the_nearest_packaged_one():
    with pytest.raises(ConfigError, match=r"did you mean naip-series\?"):
        load_recipe("naip-serie")


@pytest.mark.parametrize("name", packaged_recipes())
def test_every_packaged_recipe_is_valid_and_says_what_it_is_for(name):
    loaded = load_recipe(name, environ={})
    assert loaded.recipe.description
    assert loaded.recipe.name == name


def test_the_packaged_recipes_are_there():
    assert {"naip-series", "landsat-series", "aid", "aid-labels", "demo"} <= set(packaged_recipes())


def test_lines_survive_blank_lines_comments_and_flow_mappings():
    _, origins = parse_recipe("# a\n\ngrid: {tile_px: 1,\n  stride_px: 2}\n", "f")
    assert origins[("grid", "stride_px")] == "f, line 4"


@pytest.mark.parametrize("text", ["16 parsecs", "GB", "1XB", "1.2.3GB", "5i"])
def test_text_that_is_not_a_size_stays_text(text):
    assert parse_bytes(text) == text


def test_sizes_dates_and_keys_of_yaml_become_those_of_the_specs(recipe_file):
    text = "index:\n  memory_bytes: 16GB\ncatalog:\n  query:\n    until: 2024-05-31\n"
    text += "dataset:\n  landcover:\n    classes: {10: forest}\n"
    recipe = _load(recipe_file(text)).recipe
    assert recipe.index.memory_bytes == 16_000_000_000
    assert recipe.catalog.query == SceneQuery(until=dt.date(2024, 5, 31))
    assert recipe.catalog.query.until.hour == 23
    assert recipe.dataset.landcover.classes == {10: "forest"}


def test_a_section_gives_the_spec_with_the_defaults_of_the_spec():
    recipe = load_recipe().recipe
    assert spec_from(IndexSpec, recipe.index) == IndexSpec()
    filled = {"catalog": "scenes", "encoder_uri": "e", "archive_uri": "a"}
    assert spec_from(IngestSpec, recipe.ingest, **filled) == IngestSpec(**filled)


def _sections(section: type, name: str) -> list[tuple[str, type]]:
    found = [(name, section)]
    for key, described in keys_of(section).items():
        inner = section_in(described.annotation)
        found += _sections(inner, f"{name}.{key}".lstrip(".")) if inner else []
    return found


@pytest.mark.parametrize(("name", "section"), _sections(Recipe, "")[1:])
def test_every_key_has_a_meaning_of_its_own(name, section):
    meanings = {key: described.meaning for key, described in keys_of(section).items()}
    assert [key for key, meaning in meanings.items() if not meaning] == []
    assert len(set(meanings.values())) == len(meanings), name
