"""Backbones: any bands, one stated stem rule, rebuilt from plain options."""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from encoders.backbones.build import BACKBONES, build_backbone
from encoders.backbones.stem import inflate_stem
from storage.errors import ConfigError, NotFoundError

BANDS = ("blue", "green", "red", "nir")
VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": 32,
}
SMALL = {
    "tiny-cnn": {"width": 8},
    "mobilenet_v2": {"config": {"depth_multiplier": 0.35}},
    "resnet": {"config": {"depths": [1, 1], "hidden_sizes": [8, 16], "embedding_size": 8}},
    "convnextv2": {"config": {"depths": [1, 1], "hidden_sizes": [8, 16], "num_stages": 2}},
    "vit": {"config": VIT},
    "dinov2": {
        "config": {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
        }
    },
    "dinov3": {"config": VIT},
    **{name: {"config": {**VIT, "patch_size": 8}} for name in ("clip", "siglip")},
}
RGB = ["red", "green", "blue"]


def test_every_backbone_has_a_small_form_here():
    """``exported`` is in test_exported.py."""
    assert {*SMALL, "timm", "exported"} == set(BACKBONES)


@pytest.mark.parametrize("name", sorted(SMALL))
def test_options_rebuild_the_same_network_for_any_bands(name):
    torch.manual_seed(0)
    first = build_backbone(name, BANDS, **SMALL[name]).eval()
    options = json.loads(json.dumps(first.options))
    second = build_backbone(name, BANDS, **options).eval()
    second.load_state_dict(first.state_dict())
    x = torch.randn(2, 4, 48, 48)
    with torch.no_grad():
        features = first(x)
        assert torch.equal(features, second(x))
    assert features.shape == (2, first.dimension)
    assert not torch.equal(features[0], features[1])


def test_a_stem_for_red_green_blue_is_the_pretrained_one_in_any_order():
    weight = torch.randn(5, 3, 3, 3)
    assert torch.equal(inflate_stem(weight, ["red", "green", "blue"]), weight)
    assert torch.equal(inflate_stem(weight, ["blue", "green", "red"]), weight.flip(1))


@pytest.mark.parametrize("bands", [["nir"], ["red", "nir"], [*BANDS, "swir16", "swir22"]])
def test_a_grey_scene_excites_an_inflated_stem_of_unknown_bands_as_before(bands):
    weight = torch.randn(5, 3, 1, 1)
    grey = inflate_stem(weight, ["x"] * len(bands)).sum(1)
    torch.testing.assert_close(grey, weight.sum(1))
    assert inflate_stem(weight, bands).shape == (5, len(bands), 1, 1)


def test_pretrained_features_are_those_of_transformers(real_data: Path):
    from transformers import MobileNetV2Model

    folder = real_data / "weights" / "mobilenet_v2_imagenet_folded"
    ours = build_backbone("mobilenet_v2", ["red", "green", "blue"], str(folder)).eval()
    theirs = MobileNetV2Model.from_pretrained(folder).eval()
    x = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x).pooler_output)
    assert str(folder) not in json.dumps(ours.options)
    four = build_backbone("mobilenet_v2", BANDS, str(folder)).eval()
    with torch.no_grad():
        assert torch.isfinite(four(torch.randn(1, 4, 64, 64))).all()


def test_resizing_to_the_networks_size_is_part_of_the_backbone():
    backbone = build_backbone("tiny-cnn", ["a"], width=8)
    resnet = build_backbone("resnet", ["a"], input_px=64, **SMALL["resnet"]).eval()
    flat = torch.ones(1, 1, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(resnet(flat), resnet(torch.ones(1, 1, 64, 64)))
    assert backbone.options == {"width": 8}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("tiny", {}, "choose one of tiny-cnn"),
        ("tiny-cnn", {"depth": 3}, "depth"),
        ("tiny-cnn", {"width": 12}, "multiple of 8"),
        ("tiny-cnn", {"pretrained": "somewhere"}, "no pretrained weights"),
    ],
)
def test_wrong_settings_are_named(name, options, message):
    with pytest.raises(ConfigError, match=message):
        build_backbone(name, ["a"], **options)


def test_missing_weights_are_named(tmp_path: Path):
    with pytest.raises(NotFoundError, match=r"config\.json"):
        build_backbone("resnet", ["red"], str(tmp_path / "nowhere"))


def test_weights_of_another_architecture_are_refused(tmp_path: Path):
    build_backbone("resnet", ["red", "green", "blue"], **SMALL["resnet"]).model.save_pretrained(
        tmp_path
    )
    with pytest.raises(ConfigError, match="is a 'resnet' model"):
        build_backbone("mobilenet_v2", ["red", "green", "blue"], str(tmp_path))
    again = build_backbone("resnet", ["red", "green", "blue"], str(tmp_path)).eval()
    assert np.isfinite(again(torch.zeros(1, 3, 32, 32)).detach().numpy()).all()


@pytest.mark.parametrize("name", sorted(set(SMALL) - {"tiny-cnn"}))
def test_every_pretrained_stem_takes_any_bands_by_the_stated_rule(name, tmp_path: Path):
    build_backbone(name, RGB, **SMALL[name]).model.save_pretrained(tmp_path)
    size = {"input_px": 32} if name != "dinov2" else {"input_px": 28}
    rgb = build_backbone(name, RGB, str(tmp_path), **size).eval()
    swapped = build_backbone(name, RGB[::-1], str(tmp_path), **size).eval()
    grey = build_backbone(name, ["a", "b", "c", "d", "e"], str(tmp_path), **size).eval()
    x = torch.randn(2, 3, 32, 32)
    flat = x[:, :1]
    with torch.no_grad():
        torch.testing.assert_close(rgb(x), swapped(x.flip(1)))
        expected = rgb(flat.expand(-1, 3, -1, -1))
        torch.testing.assert_close(grey(flat.expand(-1, 5, -1, -1)), expected)
    again = build_backbone(name, ["a", "b", "c", "d", "e"], **grey.options)
    again.load_state_dict(grey.state_dict())


@pytest.mark.parametrize(
    ("change", "lacking"),
    [
        ("none fits", "lack 260 of the 312 tensors of mobilenet_v2 (conv_1x1.convolution.weight, "),
        ("one is missing", "lack 1 of the 312 tensors of mobilenet_v2 (layer.3.expand_1x1"),
        ("one has another shape", "lack 1 of the 312 tensors of mobilenet_v2 (layer.3.expand_1x1"),
        ("half of them", "lack 156 of the 312 tensors of mobilenet_v2 ("),
    ],
)
def test_weights_of_which_not_all_fit_are_refused_by_name(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], change: str, lacking: str
):
    build_backbone("mobilenet_v2", RGB, **SMALL["mobilenet_v2"]).model.save_pretrained(tmp_path)
    capfd.readouterr()
    file, name = tmp_path / "model.safetensors", "layer.3.expand_1x1.convolution.weight"
    weights = safetensors.torch.load_file(file)
    changed = {
        "none fits": {f"renamed.{key}": value for key, value in weights.items()},
        "one is missing": {key: value for key, value in weights.items() if key != name},
        "one has another shape": weights | {name: weights[name][:1].contiguous()},
        "half of them": dict(list(weights.items())[: len(weights) // 2]),
    }
    safetensors.torch.save_file(changed[change], file, metadata={"format": "pt"})
    with pytest.raises(ConfigError) as refusal:
        build_backbone("mobilenet_v2", RGB, pretrained=str(tmp_path))
    assert lacking in str(refusal.value)
    assert capfd.readouterr() == ("", "")


def test_weights_of_a_classifier_and_without_counters_of_batch_norm_fit(tmp_path: Path):
    model = build_backbone("mobilenet_v2", RGB, **SMALL["mobilenet_v2"]).model
    model.save_pretrained(tmp_path)
    weights = {
        f"mobilenet_v2.{key}": value
        for key, value in model.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    weights["classifier.weight"] = torch.zeros(2, 2)
    file = tmp_path / "model.safetensors"
    safetensors.torch.save_file(weights, file, metadata={"format": "pt"})
    loaded = build_backbone("mobilenet_v2", RGB, pretrained=str(tmp_path)).model.state_dict()
    for key, value in model.state_dict().items():
        torch.testing.assert_close(loaded[key], value)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("model.safetensors", b"", "cannot be read"),
        ("model.safetensors", b"\0" * 999, "cannot be read"),
        ("config.json", b"{", "not a valid JSON"),
        ("config.json", b"[]", "a wrong option"),
        ("config.json", b'{"model_type": "mobilenet_v2", "depth_multiplier": "x"}', "depth_mult"),
        ("config.json", b'{"model_type": "mobilenet_v2", "depth_multiplier": -1}', "depth_mult"),
    ],
)
def test_damaged_pretrained_files_are_named(
    tmp_path: Path, file: str, content: bytes, message: str
):
    build_backbone("mobilenet_v2", RGB, **SMALL["mobilenet_v2"]).model.save_pretrained(tmp_path)
    (tmp_path / file).write_bytes(content)
    with pytest.raises((ConfigError, NotFoundError), match=message):
        build_backbone("mobilenet_v2", RGB, pretrained=str(tmp_path))


def test_a_hub_id_without_a_network_is_named():
    message = r"someone/some-model of resnet .* from the model hub .* folder with config\.json"
    with pytest.raises(NotFoundError, match=message):
        build_backbone("resnet", RGB, "someone/some-model")


@pytest.mark.skipif(find_spec("timm") is not None, reason="timm is installed")
def test_without_timm_the_packages_are_named():
    with pytest.raises(ConfigError, match=r"needs the packages timm and torchvision .* install"):
        build_backbone("timm", RGB, model="resnet18")


@pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed")
def test_a_network_of_timm_takes_any_bands_and_is_rebuilt(tmp_path: Path):
    first = build_backbone("timm", BANDS, model="resnet18").eval()
    second = build_backbone("timm", BANDS, **first.options).eval()
    second.load_state_dict(first.state_dict())
    x = torch.randn(2, 4, 64, 64)
    with torch.no_grad():
        assert torch.equal(first(x), second(x))
    rgb = build_backbone("timm", RGB, model="resnet18")
    safetensors.torch.save_file(rgb.network.state_dict(), tmp_path / "model.safetensors")
    swapped = build_backbone("timm", RGB[::-1], str(tmp_path), model="resnet18").eval()
    with torch.no_grad():
        torch.testing.assert_close(rgb.eval()(x[:, :3]), swapped(x[:, :3].flip(1)))
    with pytest.raises(ConfigError, match="no model 'nothing'"):
        build_backbone("timm", RGB, model="nothing")
