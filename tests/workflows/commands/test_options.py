"""Options that override recipe keys: type, default and help follow from the key."""

import subprocess
import sys
from pathlib import Path

import click
import pytest

from storage.errors import NotFoundError
from workflows.commands.common import Area, recipe_option
from workflows.recipe.schema import key_at


def _option(flag: str, key: str, *texts: str) -> click.Option:
    @click.command()
    @recipe_option(flag, key, *texts)
    def command() -> None: ...

    (option,) = command.params
    assert isinstance(option, click.Option)
    return option


def test_an_option_of_a_key_that_no_recipe_has_cannot_be_made():
    with pytest.raises(KeyError, match="sorce"):
        _option("--scenes", "catalog.sorce")


@pytest.mark.parametrize(
    ("key", "expected", "metavar"),
    [
        ("search.k", click.INT, "N"),
        ("index.recall", click.FLOAT, "FRACTION"),
        ("catalog.query.max_cloud_cover_percent", click.FLOAT, "PERCENT"),
        ("training.freeze_backbone", click.BOOL, None),
        ("index.memory_bytes", click.STRING, "SIZE"),
        ("catalog.query.since", click.STRING, "DATE"),
        ("archive.uri", click.STRING, "URI"),
        ("grid.resolution", click.FLOAT, "NUMBER"),
    ],
)
def test_an_option_has_the_type_of_its_key(key, expected, metavar):
    option = _option("--option", key)
    assert (option.type.name, option.metavar) == (expected.name, metavar)
    assert option.default is None  # what the recipe says holds unless the option is given


def test_choices_boxes_and_lists_follow_from_the_key():
    kinds = _option("--kind", "index.kind").type
    assert isinstance(kinds, click.Choice)
    assert list(kinds.choices)[:2] == ["auto", "flat"]
    assert _option("--bbox", "search.filter.bbox").nargs == 4
    assert _option("--label", "search.filter.labels").multiple


def test_help_is_the_meaning_of_the_key_with_its_default():
    assert _option("-k", "search.k").help == "Number of hits of a query. [default: 10]"
    assert _option("--index", "index.uri").help == "Folder of the index's versions."
    assert _option("--label", "search.filter.labels", "Only these.").help == "Only these."
    assert key_at("search.k").default == 10


def test_the_help_of_every_verb_and_a_recipe_bring_no_heavy_library():
    code = (
        "import sys\n"
        "from importlib import import_module\n"
        "from workflows.cli import VERBS\n"
        "from workflows.recipe.load import load_recipe\n"
        "load_recipe('naip-series', environ={})\n"
        "for module, _, _ in VERBS.values():\n"
        "    import_module(f'workflows.commands.{module}')\n"
        "heavy = {'torch', 'ray', 'faiss', 'dask', 'rasterio', 'pandas', 'pyarrow', 'zarr'}\n"
        "print(*(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_an_area_is_text_or_a_file(tmp_path: Path):
    wkt = "POLYGON ((0 0, 1 0, 1 1, 0 0))"
    path = tmp_path / "area.wkt"
    path.write_text(f"{wkt}\n")
    assert Area().convert(wkt, None, None) == wkt
    assert Area().convert(str(path), None, None).strip() == wkt
    with pytest.raises(NotFoundError, match="does not exist"):
        Area().convert(str(tmp_path / "gone.geojson"), None, None)
