"""An exported encoder: the same vectors, a card that the hub reads, a backbone to train further."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
import yaml

from encoders.backbones.transformers import KEY_MAPPING
from encoders.bundle import load_encoder, new_encoder, save_bundle
from encoders.hub import Card, export_bundle, read_evaluation
from encoders.spec import EncoderSpec
from storage.errors import ConfigError
from tests.support.small_vit import SMALL_VIT

SPEC = EncoderSpec(
    backbone="vit",
    backbone_options={"config": SMALL_VIT},
    bands=("red", "green", "blue", "nir"),
    band_mean=(500.0, 800.0, 900.0, 2000.0),
    band_std=(100.0, 150.0, 120.0, 700.0),
    tile_px=16,
    resolution_m=10.0,
    dimension=8,
    classes=("water", "forest"),
    loss={"name": "macl", "beta": 1.0},
    training={"dataset": "d" * 64, "freeze_backbone": False, "metrics": {"nDCG@50": 0.75}},
)
CARD = Card(name="small", licence="cc-by-4.0", trained_on="owner/some-set")


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 3000, (3, 4, 16, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = str(tmp_path_factory.mktemp("encoder") / "bundle")
    save_bundle(new_encoder(SPEC), uri)
    return uri


@pytest.fixture(scope="module")
def folder(bundle: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("hub") / "small"
    assert export_bundle(bundle, str(target), CARD) == load_encoder(bundle).fingerprint
    return target


def header_of(folder: Path) -> dict:
    _, header, _ = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(header)


def test_an_exported_encoder_is_the_same_encoder(bundle: str, folder: Path, pixels: np.ndarray):
    own, exported = load_encoder(bundle), load_encoder(str(folder))
    assert exported.fingerprint == own.fingerprint
    assert np.array_equal(exported(pixels), own(pixels))


def test_its_backbone_is_read_by_transformers_and_as_pretrained_weights(
    bundle: str, folder: Path, pixels: np.ndarray
):
    own = load_encoder(bundle)
    plain = transformers.ViTModel.from_pretrained(
        folder, key_mapping=KEY_MAPPING, add_pooling_layer=False
    )
    prepared = json.loads((folder / "preprocessor_config.json").read_text())
    mean, std = (
        torch.tensor(prepared[name]).reshape(-1, 1, 1) for name in ("image_mean", "image_std")
    )
    x = (torch.from_numpy(pixels) * prepared["rescale_factor"] - mean) / std
    with torch.inference_mode():
        features = plain.eval()(pixel_values=x).last_hidden_state[:, 0]
    np.testing.assert_allclose(features, own.features(pixels), atol=1e-5)
    again = new_encoder(
        replace(SPEC, backbone_options={}, head={"kind": "identity"}), pretrained=str(folder)
    )
    assert np.array_equal(again.features(pixels), own.features(pixels))


def test_the_card_states_licence_data_and_scores_where_the_hub_looks(folder: Path):
    header = header_of(folder)
    assert header["license"] == "cc-by-4.0"
    assert header["datasets"] == ["owner/some-set"]
    assert {"vit", "macl"} < set(header["tags"])
    [entry] = header["model-index"]
    [result] = entry["results"]
    assert entry["name"] == "small"
    assert result["dataset"] == {
        "type": "owner-some-set",
        "name": "owner/some-set",
        "split": "validation",
    }
    assert result["metrics"] == [{"type": "nDCG@50", "name": "nDCG@50", "value": 0.75}]
    text = (folder / "README.md").read_text()
    assert "| nir | 2000 | 700 |" in text
    assert "every weight" in text


def test_an_untrained_encoder_states_no_scores_and_no_licence(tmp_path: Path):
    spec = replace(
        SPEC, backbone="tiny-cnn", backbone_options={"width": 8}, loss={}, training={}, classes=()
    )
    bundle = str(tmp_path / "bundle")
    save_bundle(new_encoder(spec), bundle)
    export_bundle(bundle, str(tmp_path / "hub"), Card(name="plain"))
    header = header_of(tmp_path / "hub")
    assert not {"license", "datasets", "metrics", "model-index"} & set(header)
    text = (tmp_path / "hub" / "README.md").read_text()
    assert "Not stated" in text
    assert "transformers" not in text


def test_an_edited_card_is_kept(bundle: str, folder: Path):
    with pytest.raises(ConfigError, match=r"holds a README.md already"):
        export_bundle(bundle, str(folder), CARD)


def test_scores_of_another_encoder_are_refused(bundle: str, tmp_path: Path):
    file = tmp_path / "scores.json"
    scores = {"split": "test", "metrics": {"nDCG@50": 0.8, "rare mAP": None}}
    file.write_text(json.dumps({**scores, "fingerprint": load_encoder(bundle).fingerprint}))
    assert read_evaluation(file, bundle) == ("test", {"nDCG@50": 0.8})
    file.write_text(json.dumps({**scores, "fingerprint": "0" * 64}))
    with pytest.raises(ConfigError, match="scores of encoder 0000"):
        read_evaluation(file, bundle)
    file.write_text("[]")
    with pytest.raises(ConfigError, match="no evaluation"):
        read_evaluation(file, bundle)
