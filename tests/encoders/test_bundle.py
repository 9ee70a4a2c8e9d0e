"""Bundles: round trips, refusal of changed files, unit vectors from pixels."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from encoders.bundle import (
    Encoder,
    load_encoder,
    new_encoder,
    require_distinct_vectors,
    save_bundle,
    with_appearance,
)
from encoders.projection import appearance_head, principal_head
from encoders.spec import EncoderSpec, read_spec
from storage.errors import ConfigError, EncoderMismatchError, NotFoundError, SkysiftError
from storage.locks import exclusive_lock
from storage.parts import Parts

SPEC = EncoderSpec(
    backbone="tiny-cnn",
    backbone_options={"width": 8},
    bands=("blue", "green", "red"),
    band_mean=(500.0, 800.0, 900.0),
    band_std=(100.0, 150.0, 120.0),
    tile_px=32,
    resolution_m=10.0,
    dimension=16,
    head={"kind": "mlp", "hidden": 24},
    classes=("water", "forest"),
    loss={"name": "macl", "beta": 1.0},
)


def _pixels(count: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 3000, (count, 3, 32, 32)).astype(np.float32)


@pytest.fixture
def encoder() -> Encoder:
    return new_encoder(SPEC)


def test_a_saved_encoder_comes_back_with_the_same_vectors_and_fingerprint(encoder, tmp_path: Path):
    fingerprint = save_bundle(encoder, str(tmp_path / "bundle"))
    loaded = load_encoder(str(tmp_path / "bundle"))
    assert loaded.fingerprint == fingerprint == encoder.fingerprint
    assert loaded.spec == encoder.spec
    assert (loaded.bands, loaded.tile_px, loaded.dimension) == (SPEC.bands, 32, 16)
    assert np.array_equal(loaded(_pixels()), encoder(_pixels()))
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert {path.name for path in (tmp_path / "bundle").iterdir()} == {
        "encoder.json",
        "model.safetensors",
    }


def test_the_fingerprint_follows_weights_and_description(encoder):
    other_weights = new_encoder(SPEC, seed=1)
    other_words = new_encoder(replace(SPEC, classes=("water", "wood")))
    prints = {encoder.fingerprint, other_weights.fingerprint, other_words.fingerprint}
    assert len(prints) == 3
    assert new_encoder(SPEC).fingerprint == encoder.fingerprint


def test_vectors_have_unit_norm_and_do_not_depend_on_the_batch(encoder):
    x = _pixels(150)
    z = encoder(x)
    assert z.dtype == np.float32
    assert z.shape == (150, 16)
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(z[140:], encoder(x[140:]), atol=1e-6)
    assert encoder(x[:0]).shape == (0, 16)


def test_arrays_and_tensors_agree_and_only_tensors_keep_a_graph(encoder):
    x = _pixels()
    z = encoder(torch.from_numpy(x))
    assert z.requires_grad
    np.testing.assert_allclose(z.detach().numpy(), encoder(x), atol=1e-6)
    encoder.train()
    encoder(x)
    assert encoder.training


def test_features_are_projected_to_the_vectors_of_their_tiles(encoder):
    encoder.train()
    tiles = _pixels(20)  # more than a chunk
    features = encoder.features(tiles)
    features.flags.writeable = False
    assert np.array_equal(encoder.projected(features), encoder(tiles))
    assert encoder.training
    assert encoder.projected(features[:0]).shape == (0, SPEC.dimension)


def test_an_invalid_pixel_counts_as_the_bands_mean(encoder):
    holed, filled = _pixels(2), _pixels(2)
    holed[0, 1, :10] = np.nan
    filled[0, 1, :10] = SPEC.band_mean[1]
    np.testing.assert_allclose(encoder(holed), encoder(filled), atol=1e-6)
    everything = np.full((1, 3, 32, 32), np.nan, np.float32)
    assert np.isfinite(encoder(everything)).all()


def test_any_number_type_and_memory_maps_are_encoded(encoder, tmp_path: Path):
    counts = _pixels(4).astype(np.uint16)
    np.save(tmp_path / "x.npy", counts)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert np.array_equal(encoder(mapped), encoder(counts.astype(np.float32)))


@pytest.mark.parametrize("shape", [(1, 4, 32, 32), (1, 3, 64, 64), (3, 32, 32)])
def test_tiles_of_another_kind_are_refused(encoder, shape):
    with pytest.raises(ConfigError, match="blue, green, red"):
        encoder(np.zeros(shape, np.float32))


def test_changed_weights_are_refused(encoder, tmp_path: Path):
    save_bundle(encoder, str(tmp_path))
    path = tmp_path / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(EncoderMismatchError, match=r"model\.safetensors was changed"):
        load_encoder(str(tmp_path))


def test_a_changed_description_is_refused(encoder, tmp_path: Path):
    save_bundle(encoder, str(tmp_path))
    path = tmp_path / "encoder.json"
    path.write_text(path.read_text().replace("500.0", "501.0"))
    with pytest.raises(EncoderMismatchError, match=r"encoder\.json was changed"):
        load_encoder(str(tmp_path))


@pytest.mark.parametrize(
    "text",
    ["not json", "[1]", "{}", '{"format": "skysift-encoder/1"}', '{"format": "other/1"}'],
)
def test_a_malformed_description_is_named(encoder, tmp_path: Path, text):
    save_bundle(encoder, str(tmp_path))
    (tmp_path / "encoder.json").write_text(text)
    with pytest.raises(ConfigError, match=r"encoder\.json"):
        load_encoder(str(tmp_path))


def test_weights_of_another_architecture_are_named(encoder, tmp_path: Path):
    save_bundle(encoder, str(tmp_path))
    wider = new_encoder(replace(SPEC, backbone_options={"width": 16}))
    save_bundle(wider, str(tmp_path / "wider"))
    content = json.loads((tmp_path / "wider" / "encoder.json").read_text())
    honest = json.loads((tmp_path / "encoder.json").read_text())
    content["weights_sha256"] = honest["weights_sha256"]
    (tmp_path / "encoder.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="do not fit"):
        load_encoder(str(tmp_path))


def test_a_missing_bundle_is_named(tmp_path: Path):
    with pytest.raises(NotFoundError, match="nothing"):
        load_encoder(str(tmp_path / "nothing"))


def test_a_bundle_lives_in_an_object_store(encoder, moto_s3):
    folder = moto_s3.location("models", "a")
    fingerprint = save_bundle(encoder, folder)
    assert load_encoder(folder).fingerprint == fingerprint


def test_an_identity_head_returns_the_normalised_features(tmp_path: Path):
    spec = replace(SPEC, head={"kind": "identity"}, dimension=1)
    save_bundle(new_encoder(spec), str(tmp_path))
    encoder = load_encoder(str(tmp_path))
    features = encoder.features(_pixels())
    assert encoder.dimension == features.shape[1] == 64
    expected = features / np.linalg.norm(features, axis=1, keepdims=True)
    np.testing.assert_allclose(encoder(_pixels()), expected, atol=1e-6)


def test_a_principal_head_is_the_projection_on_principal_components():
    scales = np.arange(1, 9, dtype=np.float32)
    features = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32) * scales
    with torch.no_grad():
        ours = principal_head(features, 3)(torch.from_numpy(features)).numpy()
    centred = features - features.mean(0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(ours), np.abs(centred @ directions[:3].T), atol=1e-4)
    with pytest.raises(ConfigError, match="9 dimensions"):
        principal_head(features, 9)
    shifted = features + 20
    with torch.no_grad():
        whole = principal_head(shifted, 8, centred=False)(torch.from_numpy(shifted)).numpy()
    np.testing.assert_allclose(whole @ whole.T, shifted @ shifted.T, rtol=1e-5)


@pytest.mark.parametrize(
    "change",
    [{"band_mean": (1.0,)}, {"band_std": (1.0, 0.0, 1.0)}, {"tile_px": 0}, {"head": {"kind": "?"}}],
)
def test_a_wrong_description_is_named(change):
    with pytest.raises(ConfigError):
        new_encoder(replace(SPEC, **change))


def test_tiles_too_small_for_the_network_are_refused_when_it_is_made():
    with pytest.raises(ConfigError, match=r"tiny-cnn cannot take tiles of 8 px .*larger tile_px"):
        new_encoder(replace(SPEC, tile_px=8))


@pytest.mark.parametrize(
    ("head", "fault"),
    [
        ({"kind": "identity"}, "vectors of norm .* instead of 1"),
        ({"kind": "mlp", "hidden": 64}, "the same vector for different tiles"),
    ],
)
def test_random_weights_that_let_nothing_through_are_refused(head: dict[str, Any], fault: str):
    require_distinct_vectors(new_encoder(SPEC))
    dead = replace(SPEC, backbone="mobilenet_v2", backbone_options={}, head=head, tile_px=64)
    with pytest.raises(ConfigError, match=f"{fault}.*encoder.pretrained"):
        require_distinct_vectors(new_encoder(dead))


def test_weights_that_are_no_numbers_are_refused():
    encoder = new_encoder(SPEC)
    with torch.no_grad():
        next(encoder.backbone.parameters()).fill_(float("nan"))
    with pytest.raises(ConfigError, match="vectors of norm nan instead of 1"):
        require_distinct_vectors(encoder)


def test_two_encoders_saved_at_once_are_never_mixed(encoder: Encoder, tmp_path: Path) -> None:
    folder = str(tmp_path / "bundle")
    with exclusive_lock(folder, "encoder", beside="save"):
        with pytest.raises(SkysiftError, match="encoder: process"):
            save_bundle(encoder, folder)
        assert not (tmp_path / "bundle").exists()
    save_bundle(encoder, folder)
    assert load_encoder(folder).fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_head_becomes_the_label_part_beside_half_whitened_components(tmp_path: Path):
    trained = new_encoder(SPEC)
    tiles = _pixels(40)
    save_bundle(with_appearance(trained, trained.features(tiles), 6, 0.3), str(tmp_path))
    encoder = load_encoder(str(tmp_path))
    assert encoder.spec.parts == read_spec(str(tmp_path)).parts
    assert encoder.spec.parts == Parts(appearance=6, labels=16, blend=0.3)
    appearance, labels = np.split(encoder(tiles) * np.sqrt(2), [6], axis=1)
    np.testing.assert_allclose(labels, trained(tiles), atol=1e-6)
    features = trained.features(tiles).astype(np.float64)  # about zero: a mean is of one collection
    assert (features >= 0).all()
    features **= 0.5
    _, lengths, directions = np.linalg.svd(features, full_matrices=False)
    scores = features @ directions[:6].T / np.sqrt(lengths[:6] / np.sqrt(len(tiles)))
    scores /= np.linalg.norm(scores, axis=1, keepdims=True)
    np.testing.assert_allclose(appearance @ appearance.T, scores @ scores.T, atol=1e-4)


def test_features_below_zero_have_no_roots():
    features = np.random.default_rng(0).standard_normal((20, 8)).astype(np.float32)
    assert appearance_head(features, 3)[1] is False
    head, roots = appearance_head(np.abs(features), 3)
    assert roots
    same = principal_head(np.sqrt(np.abs(features)), 3, 0.5, centred=False)
    inputs = torch.from_numpy(np.abs(features))
    torch.testing.assert_close(head(inputs), same(inputs.sqrt()))


def test_an_encoder_of_two_parts_gets_no_third(encoder: Encoder):
    two = with_appearance(encoder, encoder.features(_pixels(40)), 6)
    with pytest.raises(ConfigError, match="two parts already"):
        with_appearance(two, encoder.features(_pixels(40)), 6)
    with pytest.raises(ConfigError, match="22 values, but dimension is 16"):
        replace(two.spec, dimension=16)
