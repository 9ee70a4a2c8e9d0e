"""`skysift evaluate` of a dataset: which rows search which, and which labels count."""

from pathlib import Path

import numpy as np
import pytest

from encoders.bundle import load_encoder
from encoders.metrics import retrieval_metrics
from pipeline.training.driver import baseline_bundle
from storage.dataset import DatasetWriter, LabelledDataset
from tests.support.command_line import run
from tests.support.training_world import SPEC, write_dataset

SPLITS = ["train"] * 60 + ["val"] * 30 + ["test"] * 20 + ["train"] * 10


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder, and a dataset of all three splits whose last ten rows have probabilities."""
    folder = tmp_path_factory.mktemp("world")
    write_dataset(str(folder / "plain"))
    plain = LabelledDataset.open(str(folder / "plain"))
    labels = plain.labels.astype(np.float32)
    labels[-10:] = 0.7
    with DatasetWriter(str(folder / "set"), bands=plain.bands, classes=plain.classes) as writer:
        rows = {"source": plain.rows["source"].tolist(), "split": SPLITS}
        writer.append(np.asarray(plain.images), labels, rows)
        writer.finish()
    baseline_bundle(str(folder / "set"), SPEC, str(folder / "bundle"), "features")
    return folder


@pytest.mark.parametrize(("split", "items"), [("test", 90), ("val", 60), ("train", 60)])
def test_a_split_searches_those_known_before_it(world: Path, split: str, items: int):
    place = ("--dataset", world / "set", "--encoder", world / "bundle")
    found = run("evaluate", *place, "--set", f"evaluate.split={split}", "--json").data
    assert found["items"] == items  # without the rows of probabilities
    data = LabelledDataset.open(str(world / "set"))
    rows, known = data.labelled(split), np.arange(items)
    z = load_encoder(str(world / "bundle"))(np.asarray(data.images))
    own = rows if split == "train" else None  # a query does not find itself
    expected = retrieval_metrics(
        z[rows],
        data.labels[rows],
        z[known],
        data.labels[known],
        exclude_self=own,
        rare_counts=data.labels[:60].sum(0),
    )
    for name in ("nDCG@50", "rare mAP"):
        assert found["metrics"][name] == pytest.approx(expected[name], abs=1e-6)
