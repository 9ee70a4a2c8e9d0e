"""Networks of one's own: the same numbers as in torch, from plain files only."""

import contextlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from encoders.backbones.build import build_backbone
from encoders.backbones.exported import Exported
from encoders.bundle import load_encoder, new_encoder, save_bundle
from encoders.spec import EncoderSpec
from storage.errors import ConfigError, EncoderMismatchError, NotFoundError
from storage.values import json_digest
from tests.support.own_networks import (
    BANDS,
    SIDE_PX,
    exported,
    hostile,
    network,
    rewritten,
    with_operator,
)

SPEC = EncoderSpec(
    backbone="exported",
    bands=BANDS,
    band_mean=(400.0, 500.0, 600.0, 2000.0),
    band_std=(100.0, 120.0, 140.0, 500.0),
    tile_px=SIDE_PX,
    dimension=1,
    head={"kind": "identity"},
)
FAMILIES = {
    "ResNet": {"depths": [1, 1], "hidden_sizes": [8, 16], "embedding_size": 8},
    "ConvNextV2": {"depths": [1, 1], "hidden_sizes": [8, 16], "num_stages": 2},
    "Swin": {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [2], "num_heads": [2]}
    | {"window_size": 4},
    "DINOv3ViT": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    | {"intermediate_size": 16, "image_size": 32},
}


class Pooled(nn.Module):
    """The mean of a model's last map or tokens."""

    def __init__(self, family: str) -> None:
        super().__init__()
        config = getattr(transformers, f"{family}Config")(**FAMILIES[family])
        self.model = getattr(transformers, f"{family}Model")(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.model(x).last_hidden_state
        return y.mean(1) if y.ndim == 3 else y.mean((2, 3))


def pixels(count: int, side: int = SIDE_PX) -> torch.Tensor:
    return torch.randn(count, len(BANDS), side, side, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("own") / "network.pt2")


@pytest.mark.parametrize("count", [1, 2, 7])
def test_an_exported_network_gives_the_numbers_of_the_network(file: Path, count: int):
    own = build_backbone("exported", BANDS, str(file))
    assert own.dimension == 8
    with torch.no_grad():
        torch.testing.assert_close(own(pixels(count)), network()(pixels(count)))


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("form", ["exported", "decomposed"])
@pytest.mark.filterwarnings("ignore:`isinstance")
def test_architectures_of_others_give_the_numbers_of_torch(tmp_path: Path, family: str, form: str):
    torch.manual_seed(0)
    module = Pooled(family).eval()
    decompose = torch.export.ExportedProgram.run_decompositions
    change = decompose if form == "decomposed" else lambda program: program
    path = exported(tmp_path / "n.pt2", module, bands=3, change=change)
    own = build_backbone("exported", BANDS[:3], str(path))
    x = pixels(5)[:, :3]
    with torch.no_grad():
        torch.testing.assert_close(own(x), module(x))


def test_a_bundle_needs_no_file_and_gives_the_same_vectors(file: Path, tmp_path: Path):
    made = new_encoder(SPEC, pretrained=str(file))
    fingerprint = save_bundle(made, str(tmp_path / "bundle"))
    loaded = load_encoder(str(tmp_path / "bundle"))
    assert loaded.fingerprint == fingerprint == new_encoder(SPEC, pretrained=str(file)).fingerprint
    tiles = np.random.default_rng(0).uniform(0, 3000, (21, 4, SIDE_PX, SIDE_PX)).astype(np.float32)
    normalised = (torch.from_numpy(tiles) - loaded.mean_C11) / loaded.std_C11
    with torch.no_grad():
        truth = nn.functional.normalize(network()(normalised), dim=1).numpy()
    np.testing.assert_allclose(loaded(tiles), truth, atol=1e-5)
    assert {path.name for path in (tmp_path / "bundle").iterdir()} == {
        "encoder.json",
        "model.safetensors",
    }


def test_other_weights_or_another_graph_are_another_encoder(file: Path, tmp_path: Path):
    weights = exported(tmp_path / "weights.pt2", network(seed=1))
    graph = with_operator(file, tmp_path / "graph.pt2", "torch.ops.aten.sigmoid_.default")
    prints = {new_encoder(SPEC, pretrained=str(p)).fingerprint for p in (file, weights, graph)}
    assert len(prints) == 3


def test_tiles_of_another_size_are_resized_and_a_network_of_any_size_takes_them(
    file: Path, tmp_path: Path
):
    fixed = build_backbone("exported", BANDS, str(file))
    assert fixed(pixels(2, 20)).shape == (2, 8)
    with pytest.raises(ConfigError, match=r"input_px is 20, but .* for tiles of 32 px"):
        build_backbone("exported", BANDS, str(file), input_px=20)
    pooled = nn.Sequential(nn.Conv2d(4, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    side = torch.export.Dim("side", min=8)
    dynamic = ({0: torch.export.Dim("n"), 2: side, 3: side},)
    path = exported(tmp_path / "any.pt2", pooled, dynamic=dynamic)
    free = build_backbone("exported", BANDS, str(path))
    with torch.no_grad():
        torch.testing.assert_close(free(pixels(3, 24)), pooled(pixels(3, 24)))


def test_the_gradient_reaches_the_weights(file: Path):
    own = build_backbone("exported", BANDS, str(file)).train()
    truth = network()
    own(pixels(4)).square().sum().backward()
    truth(pixels(4)).square().sum().backward()
    torch.testing.assert_close(own.p_head_weight.grad, truth.head.weight.grad)
    torch.testing.assert_close(own.p_stem_0_weight.grad, truth.stem[0].weight.grad)


class Map(nn.Module):
    def forward(self, x):
        return x.mean(1, keepdim=True)


class Two(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)), x


class Noise(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)) + torch.rand_like(x[:, :, 0, 0])


class OverBatch(nn.Module):
    def forward(self, x):
        y = x.mean((2, 3))
        return y - y.mean(0)


class Whole(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)).long()


class Strided(nn.Module):
    def forward(self, x):
        return torch.as_strided(x, (x.shape[0], 2), (1, 1))


class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls += 1
        return x.mean((2, 3)) + self.calls


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (Map(), r"shape \(n, 1, 32, 32\), expected floats of shape \(n, features\)"),
        (Whole(), r"returns int64 of shape \(n, 4\), expected floats"),
        (Two(), "returns 2 results instead of one tensor"),
        (Noise(), r"uses aten\.rand_like\.default, which is not allowed"),
        (Strided(), r"uses aten\.as_strided\.default, which is not allowed"),
        (OverBatch(), r"depend on the other tiles of its batch"),
        (Counter(), r"its own weights or statistics.*\.eval\(\)"),
        (network().train(), r"in training mode.*\.eval\(\)|own weights.*\.eval\(\)"),
        (nn.Sequential(nn.Dropout(), nn.AvgPool2d(32), nn.Flatten()), r"training mode.*\.eval\(\)"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_is_no_encoder_is_refused_in_one_line(tmp_path: Path, module: nn.Module, words: str):
    path = exported(tmp_path / "n.pt2", module)
    with pytest.raises(ConfigError, match=words) as caught:
        build_backbone("exported", BANDS, str(path))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"network {path}: ")


def test_a_fixed_or_limited_batch_is_refused(tmp_path: Path):
    path = exported(tmp_path / "fixed.pt2", dynamic=None)
    with pytest.raises(ConfigError, match=r"batches of exactly 2 tiles.*dynamic_shapes"):
        build_backbone("exported", BANDS, str(path))
    limited = ({0: torch.export.Dim("batch", max=16)},)
    path = exported(tmp_path / "limited.pt2", dynamic=limited)
    with pytest.raises(ConfigError, match=r"at most 16 tiles.*without limits"):
        build_backbone("exported", BANDS, str(path))


def test_other_bands_are_refused(file: Path):
    with pytest.raises(ConfigError, match=r"takes 4 bands, the encoder has 3 \(red, green, blue\)"):
        build_backbone("exported", BANDS[:3], str(file))


def test_a_file_that_is_missing_or_missing_from_the_recipe_is_named(tmp_path: Path):
    with pytest.raises(NotFoundError, match=r"gone.pt2: there is no such file"):
        build_backbone("exported", BANDS, str(tmp_path / "gone.pt2"))
    with pytest.raises(ConfigError, match=r"give the file that torch.export.save wrote"):
        build_backbone("exported", BANDS)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_a_truncated_file_is_refused(file: Path, tmp_path: Path, share: float):
    short = tmp_path / "short.pt2"
    short.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    with pytest.raises(ConfigError, match=r"is damaged, or no file of torch.export"):
        build_backbone("exported", BANDS, str(short))


def test_a_changed_byte_of_a_weight_is_noticed(file: Path, tmp_path: Path):
    data = bytearray(file.read_bytes())
    weight = network().head.weight.detach().numpy().tobytes()
    data[data.index(weight) + 5] ^= 1
    (tmp_path / "bent.pt2").write_bytes(data)
    with pytest.raises(ConfigError, match="CRC"):
        build_backbone("exported", BANDS, str(tmp_path / "bent.pt2"))


@pytest.mark.parametrize(
    ("member", "data", "words"),
    [
        ("models/model.json", b"[" * 100_000, "is damaged"),
        ("models/model.json", b"{}", "is damaged"),
        ("models/other.json", b"{}", "holds 2 graphs"),
        ("byteorder", b"big", "big-endian"),
        ("data/weights/weight_0", b"", "has no numbers"),
        ("data/weights/weight_0", b"1234", "is damaged"),
    ],
)
def test_a_file_of_another_content_is_refused(
    file: Path, tmp_path: Path, member: str, data: bytes, words: str
):
    path = rewritten(file, tmp_path / "n.pt2", lambda _: {member: data})
    with pytest.raises(ConfigError, match=words) as caught:
        build_backbone("exported", BANDS, str(path))
    assert "\n" not in str(caught.value)


def test_another_version_of_the_format_is_named(file: Path, tmp_path: Path):
    def newer(members):
        model = json.loads(members["models/model.json"])
        model["schema_version"]["major"] = 9
        return {"models/model.json": json.dumps(model).encode()}

    path = rewritten(file, tmp_path / "n.pt2", newer)
    with pytest.raises(
        ConfigError, match="in version 9 of its format; this Skysift reads version 8"
    ):
        build_backbone("exported", BANDS, str(path))


@pytest.mark.parametrize(
    "kind", ["weight", "legacy weights", "constant", "object", "example inputs", "size"]
)
@pytest.mark.filterwarnings("ignore")
def test_code_in_a_file_does_not_run(file: Path, tmp_path: Path, kind: str):
    marker = tmp_path / "code-ran"
    path = hostile(file, tmp_path, kind, marker)
    with contextlib.suppress(Exception):  # whatever it raises after the code has run
        torch.export.load(path)
    assert marker.exists(), "the attack works on torch.export.load"
    marker.unlink()
    if kind == "example inputs":  # every file has some; they are not read
        build_backbone("exported", BANDS, str(path))
    else:
        words = (
            "network takes batches|batches of" if kind == "size" else "pickle, which may run code"
        )
        with pytest.raises(ConfigError, match=words):
            build_backbone("exported", BANDS, str(path))
    assert not marker.exists()


@pytest.mark.parametrize(
    "name",
    [
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.set_.source_Storage",
        "torch.ops.aten.empty_like.default",
        "torch.ops.prims.device_put.default",
        "torch.ops.aten.relu.out",
        "torch.load",
        "torch.hub.load",
        "_operator.attrgetter",
        "_operator.pow",
        "math.factorial",
        "torch.ops.aten.__class__.mro",
        "torch.ops.aten.relu.overloads",
        "os.system",
        "#extension:run",
    ],
)
def test_every_other_operator_is_refused_by_name(file: Path, tmp_path: Path, name: str):
    path = with_operator(file, tmp_path / "n.pt2", name)
    shown = name.removeprefix("torch.ops.").replace("_operator", "operator")
    with pytest.raises(
        ConfigError, match=rf"{shown}.*(not allowed|writes into)|no operator {shown}"
    ):
        build_backbone("exported", BANDS, str(path))


def test_an_edited_bundle_is_refused_with_right_digests_too(file: Path, tmp_path: Path):
    save_bundle(new_encoder(SPEC, pretrained=str(file)), str(tmp_path))
    description = tmp_path / "encoder.json"
    text = description.read_text().replace("aten.relu_.default", "aten.from_file.default")
    description.write_text(text)
    with pytest.raises(EncoderMismatchError, match="was changed after it was saved"):
        load_encoder(str(tmp_path))
    content = json.loads(text)
    content["spec_sha256"] = json_digest(content["spec"])
    description.write_text(json.dumps(content))
    with pytest.raises(
        ConfigError, match=r"bundle .*aten\.from_file\.default, which is not allowed"
    ):
        load_encoder(str(tmp_path))


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other/1"},
        {"input": None},
        {"features": "many"},
        {"output": "nothing"},
        {"weights": {"forward": {"dtype": "float32", "shape": [1]}}},
        {"weights": {"p_a": {"dtype": "load", "shape": [1]}}},
        {"weights": {"p_a": {"dtype": "float32", "shape": [-1]}}},
        {"nodes": [{"op": "aten.relu.default", "args": [{"of": "y"}], "kwargs": {}, "out": "z"}]},
        {"nodes": [{"op": "aten.relu.default", "args": [{"code": "y"}], "kwargs": {}, "out": "z"}]},
        {"nodes": [{"op": "aten.relu_.default", "args": [{"of": "p_stem_0_bias"}], "kwargs": {}}]},
        {"nodes": 3},
    ],
)
def test_a_malformed_graph_is_refused(file: Path, tmp_path: Path, change):
    good = new_encoder(SPEC, pretrained=str(file))
    save_bundle(good, str(tmp_path))
    content = json.loads((tmp_path / "encoder.json").read_text())
    content["spec"]["backbone_options"]["graph"] |= change
    content["spec_sha256"] = json_digest(content["spec"])
    (tmp_path / "encoder.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError) as caught:
        load_encoder(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_network_in_half_precision_is_run_in_it(tmp_path: Path):
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network().to(torch.bfloat16)

        def forward(self, x):
            return self.inner(x.to(torch.bfloat16))

    path = exported(tmp_path / "half.pt2", Half().eval())
    own = build_backbone("exported", BANDS, str(path))
    assert own.p_inner_head_weight.dtype == torch.bfloat16
    with torch.no_grad():
        found = own(pixels(3))
        torch.testing.assert_close(found, Half().eval()(pixels(3)).float(), atol=0.05, rtol=0.05)
    assert found.dtype == torch.float32


def test_options_alone_rebuild_the_network(file: Path):
    own = build_backbone("exported", BANDS, str(file))
    options = json.loads(json.dumps(own.options))
    again = build_backbone("exported", BANDS, **options)
    assert isinstance(again, Exported)
    again.load_state_dict(own.state_dict())
    assert torch.equal(own(pixels(2)), again(pixels(2)))
    spec = replace(SPEC, backbone_options=options, dimension=8)
    assert new_encoder(spec, pretrained=str(file)).fingerprint
