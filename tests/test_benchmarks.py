"""The benchmarks work on a few rows: what they measure is left to `make results`."""

import argparse
import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import (
    dial,
    finetune,
    gpu,
    layers,
    leads,
    losses,
    metrics,
    results,
    scale,
    scale_model,
    training,
    vectors,
)
from benchmarks.dial_world import Table
from benchmarks.results_page import baselines, dominated_by, gains, write_page
from benchmarks.results_plan import (
    ABLATION,
    COLUMNS,
    GAIN,
    TRIALS,
    TRIALS_EACH,
    Budget,
    trials,
    with_settings,
)
from benchmarks.results_runs import Run, World, measure, score, train
from benchmarks.results_sections import dial as dial_section
from benchmarks.results_sections import finetune as finetune_section
from benchmarks.results_sections import leads as leads_section
from benchmarks.scale_fleet import Fleet, Routes, simulate
from encoders.bundle import load_encoder
from encoders.loop import TrainingRows
from encoders.losses import LabelStatistics, build_loss, loss_names
from encoders.metrics import retrieval_metrics
from pipeline.training.spec import TrainingSpec
from storage.archive.reader import Archive
from storage.dataset import LabelledDataset
from storage.dataset_writer import DatasetWriter
from tests.support.paths import REPOSITORY

FOLDER = REPOSITORY / "benchmarks"
BASE = Run(loss="macl", epochs=2, batch_size=16, hidden=8, dimension=4)


@pytest.fixture(scope="module")
def world():
    rng = np.random.default_rng(0)
    labels = (rng.random((60, 3)) < [0.7, 0.4, 0.3]).astype(np.uint8)
    labels[:, 0] |= labels.sum(1) == 0
    return World(
        features_NF=(labels @ rng.normal(size=(3, 6))).astype(np.float32),
        labels_NC=labels,
        split_N=np.array(["train", "val", "test"] * 20, dtype=object),
        statistics=LabelStatistics.from_labels(labels[::3]),
        digest="few rows",
    )


@pytest.fixture(scope="module")
def result(world, tmp_path_factory):
    budget = Budget(base=BASE, seeds=2, losses=("macl", "mulsupcon", "bce"))
    bench = results.Bench(world, budget, tmp_path_factory.mktemp("scratch"), say=lambda line: None)
    return bench.results(("exactness",)) | {"seconds": {"runs": bench.seconds}}


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("[a-z]*.py")))
def test_every_benchmark_can_be_imported(name: str):
    """The names that it imports from the four packages exist."""
    try:
        import_module(f"benchmarks.{name}")
    except ModuleNotFoundError as error:
        if error.name != "lancedb":
            raise
        pytest.skip("lancedb is not installed")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize(
    ("program", "options"), [(gpu.main, []), (finetune.main, ["--device", "gpu"])]
)
def test_what_needs_a_gpu_ends_with_one_line_where_there_is_none(program, options, capsys):
    assert program(options) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("no CUDA device: ")
    assert "skysift doctor --gpus 1" in line


def test_every_loss_of_the_registry_has_equally_many_valid_trials(world):
    assert {name.partition(",")[0] for name in TRIALS} == set(loss_names())
    assert {len(grid) for grid in TRIALS.values()} == {TRIALS_EACH}
    for _, run in trials(Budget()):
        build_loss(run.loss, world.statistics, dimension=4, **run.options)


def test_page_has_every_loss_and_column(result, tmp_path):
    ablation = dict.fromkeys(ABLATION, result["losses"]["macl"])
    ablation[GAIN] = dict.fromkeys(COLUMNS, (0.8642, 0.01))
    write_page(result | {"ablation": ablation}, tmp_path)
    text = (tmp_path / "results.md").read_text()
    rows = ("macl", "macl, tuned", "mulsupcon", "random", *ABLATION)
    assert all(f"| {name} |" in text for name in rows)
    assert "such weights reach nDCG@50 0.864 (the default" in text
    assert all(column in text for column in COLUMNS)
    assert (tmp_path / "images" / "frontier.png").read_bytes()[:4] == b"\x89PNG"
    json.dumps(result)


def test_the_bar_compares_with_the_best_baseline_of_each_column(result):
    for column, (name, lead) in gains(result).items():
        best = max(scores[column][0] for scores in baselines(result).values())
        assert result["losses"][name][column][0] == best
        assert lead == pytest.approx(result["losses"]["macl"][column][0] - best)


def test_a_setting_behind_on_one_column_dominates_nobody():
    low = dict.fromkeys(COLUMNS, (0.5, 0.0))
    high = dict.fromkeys(COLUMNS, (0.6, 0.0))
    assert dominated_by(low, {"x": high}) == ["x"]
    assert dominated_by(low, {"x": high | {"Jaccard@10": (0.4, 0.0)}}) == []
    assert dominated_by(low, {"x": high | {"mAP": (0.496, 0.0)}}) == ["x"]


def test_a_finished_run_is_taken_from_the_scratch_folder(world, tmp_path):
    first = measure(world, BASE, "val", tmp_path)
    (record,) = (tmp_path / "runs").iterdir()
    record.write_text(record.read_text().replace(f'"seconds": {first["seconds"]}', '"seconds": 77'))
    assert measure(world, BASE, "val", tmp_path) == first | {"seconds": 77}
    assert measure(world, with_settings(BASE, "bce", {}), "val", tmp_path)["seconds"] != 77


def test_runs_learn_and_repeat_exactly(world):
    run = with_settings(BASE, "macl", {})
    z = train(world, run)
    np.testing.assert_array_equal(z, train(world, run))
    longer = Run(**{**{f: getattr(run, f) for f in run.__slots__}, "epochs": 40})
    assert score(world, train(world, longer), "test")["nDCG@50"] > 0.9


def test_without_the_images_nothing_is_written(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("AID_TAR", str(tmp_path / "none.tar"))
    assert results.main(["--output", str(tmp_path)]) == 0
    assert "AID_TAR" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_loss_step_is_measured_beside_supcon():
    row = losses.step_row("macl", turns=1, rows=32)
    assert row.ours > 0
    assert row.ratio == pytest.approx(row.ours / row.peer)


def test_a_temperature_schedule_changes_the_run(world):
    run = with_settings(BASE, "mulsupcon", {"temperature": 0.2})
    falling = with_settings(run, "mulsupcon", {"temperature": 0.2, "temperature_end": 0.05})
    assert np.abs(train(world, run) - train(world, falling)).max() > 1e-4


def test_a_benchmark_archive_is_an_archive_of_the_same_vectors(tmp_path):
    uri = vectors.make_archive(tmp_path, 5000, dimension=8, clusters=20)
    archive = Archive.open(uri)
    (segment,) = archive.segments
    rows = archive.read_segment(segment.ordinal)
    (drawn,) = vectors.clustered(5000, dimension=8, clusters=20)
    np.testing.assert_array_equal(rows["embedding"], drawn.astype(np.float16))
    assert len(set(zip(rows["tile_key"], rows["scene"], strict=True))) == 5000
    assert np.linalg.norm(drawn, axis=1) == pytest.approx(1, abs=1e-5)
    assert vectors.make_archive(tmp_path, 5000, dimension=8, clusters=20) == uri
    vectors.add_rows(uri, 100, clusters=20, seed=1)
    assert len(Archive.open(uri)) == 5100


def test_pages_of_layers_are_timed_at_both_ends_of_an_index(tmp_path, ray_session):
    found = layers.layer_rows(tmp_path, 12_000)
    assert found[0].note.endswith("the first 10 held 10,000 tiles.")
    assert all(row.ours == pytest.approx(row.ratio * row.peer) for row in found)
    assert len(found) == 3


def test_the_benchmark_of_metrics_measures_time_and_memory():
    for full in (True, False):
        found = metrics.scored(4, 2000, full)
        assert found["seconds"] > 0
        assert found["bytes"] >= 0
    assert metrics.multiplied(4, 9000)["seconds"] > 0


def test_the_bare_loop_and_the_workers_loop_train_on_the_same(tmp_path):
    size = training.Size(images=256, tile_px=16, epochs=1)
    training.write_dataset(str(tmp_path / "set"), size)
    tiny = next(model for model in training.MODELS if model.backbone == "tiny-cnn")
    spec = training.specification(tiny, size)
    dataset = LabelledDataset.open(str(tmp_path / "set"))
    assert next(training._bare_loop(dataset, spec, 1)) > 0
    encoder = training.initial_encoder(dataset, spec)
    statistics = LabelStatistics.from_labels(dataset.labels[:256])
    rows = TrainingRows(
        inputs=dataset.images, rows=dataset.indices("train"), labels=dataset.labels[:256]
    )
    loss = build_loss("macl", statistics, dimension=128)
    loop = training._WaitTimed(encoder, loss, rows, spec)
    assert len(list(loop.run_epoch())) == loop.steps_per_epoch
    assert loop.waited_s > 0


ROUTES = Routes(
    parts=8,
    within=[np.array([2]), np.array([6, 7])],
    probed=np.array([[0, 1], [2, 3]]),
    list_rows=np.array([10, 10, 10, 10]),
)
COSTS = scale_model.Constants(
    dimension=128,
    centre=8,
    assign=5,
    fixed=20_000,
    row=2,
    candidate=90,
    disk=5e4,
    add=3e3,
    carry=5e3,
    merge=1e3,
)
ARCHIVE = scale_model.Archive(rows=1_000_000, dimension=128, lists=1024)


def fleet_of(nodes: int) -> Fleet:
    return Fleet(nodes=nodes, cores=4, message_ns=400_000, network_ns=100_000)


def test_a_simulated_query_without_waiting_takes_the_sum_of_its_steps():
    calm = simulate("rows", fleet_of(1), ARCHIVE, COSTS, ROUTES, load=0.001, requests=300)
    steps = 400_000 + 2 * 100_000 + 1e3 + scale_model.cpu_ns(COSTS, ARCHIVE)
    assert calm.p50_ms == pytest.approx(steps / 1e6)
    busy = simulate("rows", fleet_of(1), ARCHIVE, COSTS, ROUTES, load=0.95, requests=3000)
    assert busy.p99_ms > 2 * calm.p99_ms
    assert busy.queries_a_second == pytest.approx(1e9 / (400_000 + 1e3))
    assert busy.busiest == "clients"


@pytest.mark.parametrize(("layout", "nodes"), [("rows", 4), ("places", 1.25), ("lists", 2)])
def test_a_layout_decides_how_many_nodes_are_asked(layout, nodes):
    """Regions lie within parts 2 (node 1) and 6 to 7 (node 3); each query probes two lists."""
    routes = replace(ROUTES, within=[*ROUTES.within, np.array([1, 2]), np.array([0])])
    outcome = simulate(layout, fleet_of(4), ARCHIVE, COSTS, routes, regions=1.0, requests=4000)
    assert outcome.asked == pytest.approx(nodes, rel=0.03)


def test_batches_share_messages():
    one, many = (
        simulate("rows", fleet_of(4), ARCHIVE, COSTS, ROUTES, batch=batch, requests=500)
        for batch in (1, 256)
    )
    assert many.queries_a_second > 10 * one.queries_a_second
    assert (one.busiest, many.busiest) == ("clients", "search nodes")


def test_tables_replace_those_on_the_page(tmp_path):
    page = tmp_path / "scale.md"
    page.write_text("A\n<!-- x -->old<!-- end -->\nB\n<!-- y -->\n<!-- end -->\n")
    scale.write_page({"x": ["1", "2"], "y": ["3"]}, page)
    assert page.read_text() == (
        "A\n<!-- x -->\n1\n2\n<!-- end -->\nB\n<!-- y -->\n3\n<!-- end -->\n"
    )


@pytest.fixture(scope="module")
def dial_table():
    """Two labelled sets of 60 rows and 6 scene classes, and a series of 2 dates of 10 tiles."""
    rng = np.random.default_rng(0)
    labels = (rng.random((140, 3)) < [0.7, 0.4, 0.3]).astype(np.uint8)
    labels[:, 0] |= labels.sum(1) == 0
    features = labels @ rng.normal(size=(3, 6)) + 0.1 * rng.normal(size=(140, 6))
    features[130:] = features[120:130]
    return Table(
        features_NF=features.astype(np.float32),
        labels_NC=labels,
        set_N=np.repeat(np.array(["one", "two", "series"], dtype=object), [60, 60, 20]),
        split_N=np.array(["train", "val", "test"] * 40 + ["0"] * 10 + ["1"] * 10, dtype=object),
        group_N=np.array(
            [f"class {row % 6}" for row in range(120)] + [f"tile {n}" for n in range(10)] * 2,
            dtype=object,
        ),
        digest="few rows",
        epochs=1,
        folds={name: tuple((f"class {n}",) for n in range(5)) for name in ("one", "two")},
    )


def test_the_dial_is_chosen_on_validation_and_its_section_says_what_is_met(
    dial_table, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(dial, "SERIES", {"series": ()})
    monkeypatch.setattr(dial, "WIDTHS", (4, 5))
    monkeypatch.setattr(dial, "LABEL_LOSSES", ("macl",))
    monkeypatch.setattr(dial, "TRIED", (0.1, 0.3))
    monkeypatch.setattr(dial, "ELSEWHERE", ("one", "two"))
    monkeypatch.setattr(dial, "WEIGHTS", (0.0, 0.5, 1.0))
    found = {p: dial.run(dial_table, tmp_path, p) for p in dial.trials(("one", "two"), 1)}
    settings = dial.chosen(found)
    assert len(settings) == 4
    for one in settings:
        margins = [*one["margins"]["one"].values(), *one["margins"]["two"].values()]
        assert one["least"] == min(*margins, *one["elsewhere"].values())
    whole = [one for one in settings if one["least"] >= 0]
    short = min((one["appearance"] for one in whole), default=None)
    among = [one for one in whole if one["appearance"] == short] or settings
    assert settings[0]["least"] == max(one["least"] for one in among)
    tested = {
        p: dial.run(dial_table, tmp_path, p) for p in dial.tests(("one", "two"), settings[0], 1)
    }
    figures = dial.collected(found, settings, tested) | {
        "seeds": 1,
        "seconds": 1.0,
        "twins": {"one": [0, 20]},
    }
    # The label part alone and w 0 differ by float16; a still series finds every place.
    ends = figures["bars"]["macl"]["labels alone"]
    assert all(min(margins.values()) > 0 for margins in ends.values())
    assert figures["places"]["series"]["one"]["macl, w 1"]["r@1"][0] == 1
    page = dial_section(json.loads(json.dumps(figures)))
    width, blend = settings[0]["appearance"], settings[0]["blend"]
    assert f"**macl, {width} numbers of appearance, w {blend:g}**" in page
    assert "- At w 0 no column is more than .005 below the label part alone: met in 8 of 8" in page
    first = dial.tests(("one", "two"), settings[0], 1)[0]
    again = dial.run(dial_table, tmp_path, first)
    assert json.dumps(again) == json.dumps(tested[first]), "finished parts are kept"


def test_frozen_features_are_scored_and_the_section_has_every_form(tmp_path):
    uri, rng = str(tmp_path / "set"), np.random.default_rng(0)
    labels = (rng.random((60, 3)) < 0.5).astype(np.uint8)
    rows = {"source": [str(n) for n in range(60)], "group": ["town", "sea"] * 30}
    with DatasetWriter(uri, bands=("red", "nir"), classes=("a", "b", "c")) as writer:
        images = rng.normal(1000, 40, (60, 2, 16, 16)).astype(np.float32)
        writer.append(images, labels, {**rows, "split": ["train", "val", "test"] * 20})
        writer.finish()
    spec = TrainingSpec(backbone="tiny-cnn", backbone_options={"width": 8})
    found = finetune.figures(uri, spec, finetune.FROZEN, tmp_path)
    z_ND = load_encoder(str(tmp_path / "bundle"))(images)
    known, test = (np.flatnonzero(np.arange(60) % 3 != 2), np.arange(2, 60, 3))
    own = retrieval_metrics(z_ND[test], labels[test], z_ND[known], labels[known])
    assert found["nDCG@50"] == pytest.approx(own["nDCG@50"])
    budget = finetune.Budget(device="cpu", epochs=2, seeds=1, tile_px={"one": 16})
    parts = finetune.plan(["one"], budget.forms, budget.seeds)
    trained = {part: {**found, "seconds": 60.0, "best epoch": 2} for part in parts}
    page = finetune_section(finetune.collected(trained, budget))
    assert [part.form for part in parts] == list(finetune.FORMS)[:-1]
    assert all(f"| {form} | {own['nDCG@50']:.3f} |" in page for form in budget.forms)
    assert "one seed" in page


@pytest.mark.parametrize(("gpus", "workers"), [(0, 1), (1, 1), (3, 2), (8, 8)])
def test_fine_tuning_has_a_worker_a_gpu_and_one_on_the_cpu(gpus, workers, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    given = argparse.Namespace(device="gpu", workers=None, epochs=None, seeds=None, sets=["AID"])
    on_gpu = finetune.budget_of(given)
    assert (on_gpu.workers, on_gpu.seeds, on_gpu.tile_px) == (workers, 3, {"AID": None})
    assert on_gpu.spec(Path("weights")).precision == "bf16"
    given.device = "cpu"
    assert finetune.budget_of(given).workers == 1


def test_other_splits_keep_the_shares_of_each_scene_class(dial_table):
    first, again, second = (leads.resplit(dial_table, number) for number in (0, 0, 1))
    for name in ("one", "two"):
        for group in set(dial_table.group_N[dial_table.rows(name)]):
            rows = np.flatnonzero((dial_table.set_N == name) & (dial_table.group_N == group))
            assert sorted(first.split_N[rows]) == sorted(dial_table.split_N[rows])
    assert (first.split_N == again.split_N).all()
    assert (first.split_N != second.split_N).any()


def test_the_section_of_the_lead_shows_equal_effort_and_intervals(dial_table, tmp_path):
    assert leads.drawn("macl", 3) == leads.drawn("macl", 3)
    names = (leads.DEFAULT, "mulsupcon, falling temperature", "macl, default")
    searched = {name: {"test": dict.fromkeys(COLUMNS, (0.5, 0.01))} for name in names}
    for name in names[:2]:
        searched[name] |= {
            "ranges": {"temperature": "0.1 to 0.2"},
            "chosen": {"temperature": 0.15},
            "validation": {"nDCG@50": 0.6},
        }
    choice = {"loss": "macl", "appearance": 4, "blend": 0.15}
    rows = {
        form.name: [leads.split_scores(dial_table, tmp_path, ("one", n, form)) for n in range(2)]
        for form in leads.forms(choice)
    }
    splits = {"one": leads.compared(rows)}
    figures = {"search": searched, "splits": splits, "trials": 2, "seeds": 1, "seconds": 1.0}
    page = leads_section(json.loads(json.dumps(figures)))
    assert "- macl, searched: +0.0 points of nDCG@50" in page
    assert "it does not reach 3.2 in each" in page
    pairs = zip(rows["macl"], rows["mulsupcon"], strict=True)
    gaps = [ours["nDCG@50"] - others["nDCG@50"] for ours, others in pairs]
    (line,) = (n for n in page.splitlines() if n.startswith("| macl over mulsupcon |"))
    assert f"| {np.mean(gaps):+.3f} [" in line
    assert f"], {min(gaps):+.3f} to {max(gaps):+.3f}" in line
