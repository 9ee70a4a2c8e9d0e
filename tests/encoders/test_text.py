"""Encoders of two towers: words and tiles in one space, as transformers computes it."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from encoders.bundle import Encoder, load_encoder, new_encoder, save_bundle, with_text
from encoders.spec import EncoderSpec, read_spec
from storage.errors import ConfigError, EncoderMismatchError, NotFoundError
from tests.support.two_towers import IMAGE_PX, MEAN, STD, TOKENS, write_clip, write_siglip

TEXTS = ["solar farm", "farm", "a lake of algae"]
MODELS = {
    "clip": (write_clip, transformers.CLIPModel, {"padding": True}),
    "siglip": (
        write_siglip,
        transformers.SiglipModel,
        {"padding": "max_length", "max_length": TOKENS},
    ),
}


def made(backbone: str, source: Path, prompt: str = "{}", **fields: object) -> Encoder:
    settings = {
        "backbone": backbone,
        "bands": ("red", "green", "blue"),
        "band_mean": tuple(255 * value for value in MEAN),
        "band_std": tuple(255 * value for value in STD),
        "tile_px": IMAGE_PX,
        "dimension": 8,
        "head": {"kind": "identity"},
        **fields,
    }
    spec = EncoderSpec(**settings)
    return with_text(new_encoder(spec, pretrained=str(source)), str(source), prompt)


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return write_clip(tmp_path_factory.mktemp("towers") / "clip")


@pytest.mark.parametrize("backbone", MODELS)
def test_words_and_tiles_are_as_alike_as_transformers_says(tmp_path: Path, backbone: str):
    write, model_class, padding = MODELS[backbone]
    source = write(tmp_path / "model")
    save_bundle(made(backbone, source), tmp_path / "bundle")
    encoder = load_encoder(tmp_path / "bundle")
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, IMAGE_PX, IMAGE_PX), np.uint8)
    ours = encoder.embed_text(TEXTS) @ encoder(pixels).T

    model = model_class.from_pretrained(source)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    tokens = tokenizer(TEXTS, return_tensors="pt", **padding)
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (MEAN, STD))
    x_BCHW = (torch.from_numpy(pixels) / 255 - mean) / std
    with torch.inference_mode():
        known = {"input_ids": tokens.input_ids} if backbone == "siglip" else tokens
        out = model(pixel_values=x_BCHW, **known)
    theirs = (out.text_embeds @ out.image_embeds.T).numpy()
    assert np.ptp(theirs) > 1e-3  # the texts and the tiles differ
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_the_prompt_surrounds_the_words_and_is_part_of_the_encoder(clip: Path):
    plain, prompted = made("clip", clip), made("clip", clip, "image of {}")
    np.testing.assert_array_equal(
        prompted.embed_text(["farm"]), plain.embed_text(["image of farm"])
    )
    assert plain.fingerprint != prompted.fingerprint
    assert not np.array_equal(prompted.embed_text(["farm"]), plain.embed_text(["farm"]))


def test_a_bundle_of_words_is_one_file_more_whose_change_is_found(clip: Path, tmp_path: Path):
    encoder = made("clip", clip)
    fingerprint = save_bundle(encoder, tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith("."))
    assert names == ["encoder.json", "model.safetensors", "tokenizer.json"]
    assert load_encoder(tmp_path).fingerprint == fingerprint == encoder.fingerprint
    assert read_spec(tmp_path).text["prompt"] == "{}"
    images = load_encoder(tmp_path, words=False)
    assert (images.text, images.fingerprint) == (None, fingerprint)
    tiles = np.random.default_rng(0).uniform(0, 255, (2, 3, encoder.tile_px, encoder.tile_px))
    np.testing.assert_array_equal(images(tiles), encoder(tiles))
    file = tmp_path / "tokenizer.json"
    file.write_text(file.read_text().replace('"farm</w>"', '"ferm</w>"'))
    with pytest.raises(EncoderMismatchError, match=r"tokenizer\.json was changed"):
        load_encoder(tmp_path)
    file.unlink()
    with pytest.raises(NotFoundError, match=r"tokenizer\.json"):
        load_encoder(tmp_path)


def test_texts_that_cannot_be_read_whole_are_refused(clip: Path):
    encoder = made("clip", clip)
    with pytest.raises(ConfigError, match=f"more than the {TOKENS} tokens"):
        encoder.embed_text(["a long text that goes on"])
    with pytest.raises(ConfigError, match="it is empty"):
        encoder.embed_text(["farm", " "])


@pytest.mark.parametrize("prompt", ["a picture", "{} and {}"])
def test_a_prompt_has_one_place_for_the_words(clip: Path, prompt: str):
    with pytest.raises(ConfigError, match=r"one \{\}, the place of the words"):
        made("clip", clip, prompt)


def test_a_head_that_leaves_the_space_of_words_brings_no_text_tower(clip: Path):
    encoder = made("clip", clip, head={"kind": "linear"})
    with pytest.raises(ConfigError, match=r"\(clip\) has no text tower"):
        encoder.embed_text(["farm"])
    with pytest.raises(ConfigError, match="has no text tower; take"):
        made("clip", clip, "of {}", head={"kind": "linear"})


def test_towers_without_a_tokenizer_are_refused(tmp_path: Path):
    source = write_clip(tmp_path / "clip")
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (source / name).unlink()
    with pytest.raises(NotFoundError, match="no tokenizer"):
        made("clip", source)


def test_an_image_tower_alone_makes_an_encoder_without_words(clip: Path, tmp_path: Path):
    tower = transformers.CLIPVisionModelWithProjection.from_pretrained(clip)
    tower.save_pretrained(tmp_path / "vision")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, IMAGE_PX, IMAGE_PX), np.uint8)
    alone = made("clip", tmp_path / "vision")
    assert alone.text is None
    np.testing.assert_array_equal(alone(pixels), made("clip", clip)(pixels))
