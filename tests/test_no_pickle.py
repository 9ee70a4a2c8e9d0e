"""Files that would run code when unpickled are refused, and their code does not run."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from encoders.bundle import load_encoder, new_encoder, save_bundle
from encoders.spec import EncoderSpec
from storage.dataset import DatasetInfo, LabelledDataset
from storage.errors import CorruptIndexError, SkysiftError
from storage.index.sidecar import Sidecar
from workflows.commands.search import _vectors


class _Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self):
        return Path.touch, (self._marker,)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "code-ran"


@pytest.fixture
def bomb(marker: Path) -> bytes:
    data = pickle.dumps(_Bomb(marker))
    pickle.loads(data)  # it works
    assert marker.exists()
    marker.unlink()
    return data


def test_a_bundle_of_pickled_weights_is_refused(tmp_path: Path, bomb: bytes, marker: Path):
    bundle = tmp_path / "bundle"
    spec = EncoderSpec(
        backbone="tiny-cnn",
        bands=("red",),
        band_mean=(0.0,),
        band_std=(1.0,),
        tile_px=32,
        dimension=8,
    )
    save_bundle(new_encoder(spec), str(bundle))
    (bundle / "model.safetensors").write_bytes(bomb)
    with pytest.raises(SkysiftError):
        load_encoder(str(bundle))
    assert not marker.exists()


def test_a_pickled_query_vector_is_refused(tmp_path: Path, marker: Path):
    path = tmp_path / "vector.npy"
    np.save(path, np.array([_Bomb(marker)], dtype=object), allow_pickle=True)
    with pytest.raises(SkysiftError):
        list(_vectors(str(path)))
    assert not marker.exists()


def test_a_dataset_of_pickled_labels_is_refused(tmp_path: Path, marker: Path):
    np.save(tmp_path / "images.npy", np.zeros((1, 1, 2, 2), np.float32))
    np.save(tmp_path / "labels.npy", np.array([[_Bomb(marker)]], object), allow_pickle=True)
    info = DatasetInfo(
        bands=("red",),
        classes=("a",),
        tile_px=2,
        count=1,
        band_mean=(0.0,),
        band_std=(1.0,),
        sha256={},
    )
    with pytest.raises(CorruptIndexError, match="damaged"):
        LabelledDataset(tmp_path, info)
    assert not marker.exists()


def test_a_pickled_sidecar_is_refused(bomb: bytes, marker: Path):
    with pytest.raises(CorruptIndexError):
        Sidecar(bomb, "shard")
    assert not marker.exists()
