"""`skysift evaluate` of a dataset: which rows search which, and which labels count."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from encoders.bundle import Encoder, load_encoder, new_encoder, save_bundle, with_appearance
from encoders.metrics import retrieval_metrics
from pipeline.training.driver import baseline_bundle
from storage.dataset import LabelledDataset
from storage.dataset_writer import DatasetWriter
from tests.support.command_line import run
from tests.support.training_world import SPEC, ingest_two_dates, write_dataset

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


def test_vectors_of_two_parts_are_scored_at_each_blend(world: Path):
    data = LabelledDataset.open(str(world / "set"))
    tiles, rows = np.asarray(data.images), data.labelled("test")
    frozen = load_encoder(str(world / "bundle"))
    plain = new_encoder(replace(frozen.spec, dimension=8, head={"kind": "mlp"}))
    two = with_appearance(plain, plain.features(tiles), 6, 0.3)
    save_bundle(two, str(world / "two"))
    place = ("--dataset", world / "set", "--encoder", world / "two")
    found = run("evaluate", *place, "--json").data
    assert list(found["by_blend"]) == ["0", "0.3", "0.5", "1"]
    assert found["blend"] == 0.3
    assert found["metrics"] == found["by_blend"]["0.3"]["metrics"]
    whole = two(tiles)
    alone = {"0": plain(tiles), "0.5": whole, "1": whole[:, :6]}
    for blend, z in alone.items():
        known = np.arange(90)
        expected = retrieval_metrics(
            z[rows],
            data.labels[rows],
            z[known],
            data.labels[known],
            rare_counts=data.labels[:60].sum(0),
        )
        for name in ("nDCG@50", "Jaccard@10", "rare mAP"):
            scored = found["by_blend"][blend]["metrics"][name]
            assert scored == pytest.approx(expected[name], abs=1e-3), (blend, name)
    table = run("evaluate", *place, "--blend", 1, "--blend", 0).out.splitlines()
    assert table[0].split() == ["metric", "blend", "0", "blend", "1", "random"]
    refused = run("evaluate", *place[:2], "--encoder", world / "bundle", "--blend", 0)
    assert "these have one; leave it out" in refused.err


def test_a_report_compares_the_encoder_with_its_features_query_by_query(
    world: Path, tmp_path: Path
):
    plain = LabelledDataset.open(str(world / "plain"))
    with DatasetWriter(
        str(tmp_path / "other"), bands=plain.bands, classes=("x", "y", "rare")
    ) as writer:
        rows = {"source": plain.rows["source"].tolist(), "split": ["train"] * 80 + ["test"] * 40}
        labels = plain.labels.copy()
        labels[:, 2] = np.arange(120) == 100
        labels[:, 0] |= labels.sum(1) == 0
        groups = ["town", "sea"] * 40 + ["town", "dam"] * 20
        writer.append(np.asarray(plain.images), labels, rows | {"group": groups})
        digest = writer.finish().digest
    ingest_two_dates(world)
    page, table = tmp_path / "page.html", tmp_path / "queries.parquet"
    other, archive = tmp_path / "other", world / "archive"
    wanted = ("--also", other, "--places", archive, "--report", page, "--per-query", table)
    bundle = load_encoder(str(world / "bundle"))
    spec = replace(bundle.spec, dimension=8, head={"kind": "mlp"}, training={"dataset": digest})
    headed = Encoder(spec, bundle.backbone, new_encoder(spec, seed=1).head).eval()
    save_bundle(headed, str(tmp_path / "headed"))
    place = ("--dataset", world / "set", "--encoder", tmp_path / "headed")
    found = run("evaluate", *place, *wanted, "--json").data
    scored, beside = found["comparison"]["vectors"], found["also"][str(other)]
    assert list(scored) == ["random vectors", "frozen features", "encoder"]
    assert scored["encoder"]["nDCG@50"] == pytest.approx(found["metrics"]["nDCG@50"], abs=1e-6)
    assert beside["comparison"]["labels_left_out"] == ["rare"]
    assert "same scene@10" in beside["comparison"]["vectors"]["encoder"]
    assert "same scene@10" not in scored["encoder"]

    left_out = beside["classes_left_out"]
    assert (left_out["queries"], left_out["items"]) == (20, 119)
    dams = np.arange(81, 120, 2)
    for name, z in (("encoder", headed(plain.images)), ("frozen features", bundle(plain.images))):
        alike = z[dams] @ z.T
        alike[np.arange(20), dams] = -2
        first = np.isin(alike.argmax(1), dams).mean()
        assert left_out["vectors"][name]["same scene@1"] == pytest.approx(first)

    (series,) = found["places"].values()
    own = run("evaluate", "--archive", archive, "--same-place", "--json").data
    assert series["queries"] == own["queries"] == 72
    for k in (1, 10):  # the archive holds the features
        assert series["vectors"]["frozen features"][f"same place@{k}"] == own[f"recall@{k}"]
    assert list(series["differences"]["encoder"]) == ["frozen features", "random vectors"]

    queries = pd.read_parquet(table)
    assert len(queries) == 3 * (20 + 40 + 20 + 72)
    mine = queries[(queries["vectors"] == "encoder") & (queries["dataset"] == str(world / "set"))]
    assert mine["row"].tolist() == list(range(90, 110))
    assert mine["nDCG@50"].mean() == pytest.approx(found["metrics"]["nDCG@50"], abs=1e-6)
    text = page.read_text()
    said = (
        *scored,
        "Labels too few to score: rare",
        "no scene class of the name: dam",
        "36 places",
    )
    assert all(words in text for words in (*said, "The dataset has no scene classes"))
    gap = series["differences"]["encoder"]["frozen features"]["same place@1"]
    assert f"[{gap['low']:+.3f}, {gap['high']:+.3f}]" in text


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (("--per-query", "queries.xlsx"), "end the name in .parquet or .csv"),
        (("--report", "page.html", "--archive-labels"), "for a labelled dataset"),
    ],
)
def test_a_report_that_cannot_be_is_refused_before_the_work(world: Path, wrong, said: str):
    place = ("--dataset", world / "set", "--encoder", world / "nowhere")
    refused = run("evaluate", *place, *wrong)
    assert refused.code == 2
    assert said in refused.err
