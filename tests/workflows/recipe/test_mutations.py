"""Mutated recipes are read, or refused in one line that names the file and line; none hangs."""

import json
import random
import re
import tempfile
from functools import partial
from importlib import resources
from pathlib import Path

import pytest
import yaml

from storage.errors import ConfigError
from tests.support.fuzz import faults_of, mutate_bytes, mutate_document
from workflows.recipe.load import Override, load_recipe, packaged_recipes

WHOLE = {
    "name": "all sections",
    "storage": {"region": "eu-central-1", "anonymous": True},
    "cluster": {"address": None, "cpus": 2},
    "catalog": {
        "source": "scenes/*.tif",
        "bands": {"red": {"index": 1, "nodata": 0, "scale": 0.1, "offset": -1}},
        "query": {"since": "2015-01-01", "until": "2016-01-01", "bbox": [-99.2, 47, -99.1, 47.1]},
    },
    "grid": {"resolution": 10, "tile_px": 64, "crs": "EPSG:32648", "anchor": [0, 0]},
    "tiles": {"edge": "pad", "min_valid_fraction": 0.5},
    "dataset": {"landcover": {"href": "lc.tif", "classes": {"10": "forest", "20": "water"}}},
    "training": {"epochs": 2, "learning_rate": 0.001, "loss": "macl", "seed": 0},
    "encoder": {
        "bands": ["red"],
        "band_mean": [1.0],
        "band_std": [2.0],
        "head": {"kind": "linear"},
    },
    "ingest": {"batch_tiles": 16, "commit_interval_s": 60},
    "index": {"memory_bytes": "16GB", "kind": "flat"},
    "search": {"k": 3, "filter": {"polygon": "POLYGON ((0 0, 1 0, 1 1, 0 0))", "labels": ["a"]}},
    "service": {"port": 8000, "cors_origins": ["https://maps.example"]},
}
ODD_TEXTS = ["&a ", "*a", "<<: ", "!!int ", "!x ", "? ", "- ", "[", "{", "${HOME}", "${", "|", "\t"]


def load_mutated(folder: str, seed: int) -> None:
    """Write the recipe of a seed and load it."""
    rng = random.Random(seed)
    path = Path(folder) / "r.yaml"
    path.write_bytes(_mutated(rng))
    message = ""
    try:
        load_recipe(str(path), environ={})
    except ConfigError as error:
        message = str(error)
    place = rf"{re.escape(str(path))}(, line \d+|: expected sections).+"
    assert not message or re.fullmatch(place, message)


def _mutated(rng: random.Random) -> bytes:
    name = rng.choice([*packaged_recipes(), "whole", "whole"])
    if name != "whole":
        text = (resources.files("workflows") / "recipes" / f"{name}.yaml").read_text()
        data = _with_odd_texts(mutate_bytes(text.encode(), rng), rng)
        return data if rng.random() < 0.2 else data.decode(errors="replace").encode()
    document = mutate_document(WHOLE, rng)
    try:
        plain = rng.random() < 0.5
        text = yaml.safe_dump(document) if plain else json.dumps(document)
    except (yaml.YAMLError, ValueError):
        text = json.dumps(WHOLE)
    return _with_odd_texts(text.encode("utf-8", "surrogatepass"), rng)


def _with_odd_texts(data: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.choice((0, 0, 1, 3))):
        at = rng.randrange(len(data) + 1)
        data = data[:at] + rng.choice(ODD_TEXTS).encode() * rng.choice((1, 2, 200)) + data[at:]
    return data


def set_mutated(seed: int) -> None:
    """Load the option ``--set`` of a seed."""
    rng = random.Random(seed)
    section = rng.choice(list(WHOLE))
    value = mutate_bytes(json.dumps(WHOLE[section]).encode(), rng).decode("utf-8", "replace")
    load_recipe(None, [Override.parse(f"{section}={value}")])


@pytest.mark.parametrize("count", [60, pytest.param(1500, marks=pytest.mark.slow)])
def test_mutated_recipes_are_read_or_refused(tmp_path, count):
    assert load_recipe(_written(tmp_path, WHOLE)).recipe.search.k == 3
    with tempfile.TemporaryDirectory() as folder:
        assert faults_of(partial(load_mutated, folder), range(count)) == []
    assert faults_of(set_mutated, range(count // 3)) == []


def _written(folder: Path, document: object) -> str:
    path = folder / "whole.yaml"
    path.write_text(yaml.safe_dump(document))
    return str(path)
