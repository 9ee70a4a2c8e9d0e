"""Words as a query, from the pretrained model of two towers to hits, on the command line."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import skysift
from encoders.bundle import load_encoder
from pipeline.search.query import WORDS, combine
from storage.errors import ConfigError
from storage.raster.writer import write_geotiff
from tests.support.command_line import run
from tests.support.two_towers import IMAGE_PX, MEAN, STD, write_clip

TILES = 6


class World(NamedTuple):
    """A model, its bundle, and an archive and index made with it."""

    model: Path
    bundle: Path
    scenes: Path
    archive: Path
    index: Path


def made(*arguments: object) -> dict:
    outcome = run(*arguments, "--json")
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)


@pytest.fixture(scope="module")
def world(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("words")
    world = World(*(folder / name for name in World._fields))
    write_clip(world.model)
    world.scenes.mkdir()
    side = TILES * IMAGE_PX
    colours = np.random.default_rng(0).integers(0, 255, (3, TILES, TILES), np.uint8)
    write_geotiff(
        str(world.scenes / "site_20240601.tif"),
        colours.repeat(IMAGE_PX, 1).repeat(IMAGE_PX, 2),
        "EPSG:32632",
        (10, 0, 320_000, 0, -10, 320 * 15_000),
        block_px=side // 2 // 16 * 16,
        descriptions=("red", "green", "blue"),
    )
    made(
        *("encoder", "make", "--backbone", "clip", "--pretrained", world.model),
        *("--encoder", world.bundle, "--set", f"encoder.tile_px={IMAGE_PX}"),
    )
    ingest(world.scenes, world.bundle, world.archive)
    made("index", "build", "--archive", world.archive, "--index", world.index)
    return world


def ingest(scenes: Path, bundle: Path, archive: Path) -> None:
    made("ingest", "--scenes", scenes, "--encoder", bundle, "--archive", archive)


def test_a_model_of_bytes_brings_its_own_statistics(world: World):
    spec = load_encoder(world.bundle).spec
    np.testing.assert_allclose(spec.band_mean, 255 * np.array(MEAN))
    np.testing.assert_allclose(spec.band_std, 255 * np.array(STD))


def test_words_find_the_tiles_that_the_towers_find_alike(world: World):
    answer = made("search", "--index", world.index, "--text", "solar farm", "-k", 5)
    archive = skysift.Archive.open(str(world.archive))
    rows = archive.read(np.arange(TILES**2), ["embedding"])["embedding"].astype(np.float32)
    scores = rows @ load_encoder(world.bundle).embed_text(["solar farm"])[0]
    order = np.argsort(-scores)
    assert [hit["row"] for hit in answer["hits"]] == order[:5].tolist()
    np.testing.assert_allclose(
        [hit["score"] for hit in answer["hits"]], scores[order[:5]], atol=2e-3
    )
    assert answer["query"] == '"solar farm"'


def test_scores_of_words_are_not_measured_by_pairs_of_tiles(world: World, tmp_path: Path):
    answer = made("search", "--index", world.index, "--text", "farm", "-k", 3)
    assert [hit["closer_than"] for hit in answer["hits"]] == [None] * 3
    assert (answer["ordinary"], answer["note"]) == (False, WORDS)
    shown = run("search", "--index", world.index, "--text", "farm", "-k", 3).out
    assert "closer" not in shown
    assert " ".join(shown.split()).endswith(WORDS)
    saved = tmp_path / "farm.json"
    made("search", "--index", world.index, "--text", "farm", "-k", 3, "--save", saved)
    again = made("search", "--index", world.index, "--saved", saved)
    assert again["hits"] == answer["hits"]
    assert again["note"] == WORDS


def test_words_and_tiles_make_one_query(world: World):
    index = skysift.open(str(world.index))
    tile = index.like(text="farm").top(1).to_arrow()["tile_key"][0].as_py()
    answer = made(
        *("search", "--index", world.index, "--text", "solar farm", "--tile", tile),
        *("--not-text", "a lake", "-k", 4),
    )
    resolver = index.resolver
    query = combine([resolver.text("solar farm"), resolver.tile(tile)], [resolver.text("a lake")])
    hits = index.searcher.answer(query, 4)
    assert [hit["row"] for hit in answer["hits"]] == hits.rows[0].tolist()
    assert answer["hits"][0]["closer_than"] is None
    asked = index.like(text="solar farm", tile=tile, negative=[{"text": "a lake"}]).top(4)
    assert asked.to_arrow().equals(hits.to_arrow())
    assert WORDS in repr(asked)


@pytest.mark.parametrize("arguments", [("--text", " "), ("--text", "many words " * 9)])
def test_words_that_are_none_or_too_many_are_one_line(world: World, arguments: tuple[str, ...]):
    outcome = run("search", "--index", world.index, *arguments)
    assert outcome.code == 2
    assert len(outcome.err.strip().splitlines()) == 1, outcome.err
    assert "text: " in outcome.err


def test_an_encoder_without_text_tower_is_named_with_what_to_do(world: World, tmp_path: Path):
    bundle, archive, index = (tmp_path / name for name in ("bundle", "archive", "index"))
    made(
        *("encoder", "make", "--backbone", "tiny-cnn", "--scenes", world.scenes),
        *("--encoder", bundle, "--set", f"encoder.tile_px={IMAGE_PX}"),
    )
    ingest(world.scenes, bundle, archive)
    made("index", "build", "--archive", archive, "--index", index)
    outcome = run("search", "--index", index, "--text", "solar farm")
    fingerprint = load_encoder(bundle).fingerprint[:16]
    assert outcome.code == 2
    assert f"encoder {fingerprint} (tiny-cnn) has no text tower: ask by a picture" in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1
    with pytest.raises(ConfigError, match=fingerprint):
        skysift.open(str(index)).like(text="solar farm")
