"""A backbone of one's own: trained on Ray's workers, and saved as a graph that needs no code."""

import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from encoders.bundle import load_encoder, save_bundle
from encoders.plugins import find_plugin
from pipeline.training.driver import train
from pipeline.training.worker import initial_encoder
from storage.dataset import LabelledDataset
from storage.errors import ConfigError
from tests.support.training_world import SPEC, write_dataset

NAME = "travelling_backbones"
SOURCE = """
import torch
from torch import nn

class Net(nn.Sequential):
    def __init__(self, bands, *, width=8):
        super().__init__(nn.Conv2d(bands, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten())

class Chance(Net):
    def forward(self, x):
        return super().forward(x + torch.rand(1))

class Branching(Net):
    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)

def text(bands):
    return "no network"
"""
OWN = replace(SPEC, backbone=f"{NAME}:Net", backbone_options={"width": 12}, workers=2, epochs=1)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a dataset, and one with networks that only this process can import from."""
    write_dataset(str(tmp_path / "set"))
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / f"{NAME}.py").write_text(SOURCE)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "code"), *sys.path])
    yield tmp_path
    sys.modules.pop(NAME, None)


def test_the_module_travels_and_the_encoder_needs_no_code(folder: Path, ray_session: None):
    digest = find_plugin("backbones", OWN.backbone).digest
    result = train(str(folder / "set"), OWN, str(folder / "run"))
    shutil.rmtree(folder / "code")
    spec = load_encoder(result.bundle_uri).spec
    assert spec.backbone == "exported"
    assert spec.training["backbone"] == {
        "name": OWN.backbone,
        "options": {"width": 12},
        "source_sha256": digest,
    }


def test_the_saved_encoder_gives_the_vectors_of_the_network(folder: Path):
    dataset = LabelledDataset.open(str(folder / "set"))
    encoder = initial_encoder(dataset, OWN)
    with torch.no_grad():
        for value in encoder.backbone.state_dict().values():
            value += 0.1 if value.is_floating_point() else 1  # no longer as it was made
    save_bundle(encoder, str(folder / "bundle"))
    x = np.asarray(dataset.images[np.arange(5)])
    np.testing.assert_allclose(load_encoder(str(folder / "bundle"))(x), encoder(x), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Chance", "aten.rand.default, which is not allowed"),
        ("Branching", "torch.export cannot export it"),
        ("Net", "it raised TypeError.*depth"),
        ("text", "made a str, expected a torch.nn.Module"),
        ("nothing", "has no class or function nothing"),
    ],
)
def test_what_no_bundle_can_hold_is_refused_before_training(folder: Path, name: str, message: str):
    dataset = LabelledDataset.open(str(folder / "set"))
    options = {"depth": 3} if name == "Net" else {}
    spec = replace(OWN, backbone=f"{NAME}:{name}", backbone_options=options)
    with pytest.raises(ConfigError, match=message):
        initial_encoder(dataset, spec)
