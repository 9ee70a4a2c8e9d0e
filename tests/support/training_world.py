"""A labelled dataset that a tiny network learns in seconds, how to train on it, and an archive."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from encoders.plugins import Plugin
from encoders.spec import read_bundle
from pipeline.ingest.driver import ingest, plan_ingest
from pipeline.ingest.spec import IngestSpec
from pipeline.training import driver
from pipeline.training.spec import TrainingJob, TrainingSpec
from pipeline.training.worker import TrainingWorker
from storage.dataset_writer import DatasetWriter
from storage.location import Location
from storage.scene import CatalogSpec
from tests.support.place_world import write_scenes

TILE_PX = 16
SPEC = TrainingSpec(
    backbone_options={"width": 8},
    dimension=8,
    hidden=16,
    batch_size=16,
    epochs=3,
    learning_rate=3e-3,
    workers=1,
    device="cpu",
)
LONG = replace(SPEC, workers=2, epochs=10)


def write_dataset(
    uri: str | Location,
    rows: int = 120,
    *,
    bands: tuple[str, ...] = ("red", "nir"),
    test_rows: int = 0,
) -> None:
    """Stripes whose direction and spacing are the labels; where they begin tells nothing."""
    rng = np.random.default_rng(0)
    labels = (rng.random((rows, 3)) < 0.4).astype(np.uint8)
    labels[labels.sum(1) == 0, 0] = 1
    y, x = np.mgrid[:TILE_PX, :TILE_PX]
    shift = rng.uniform(0, 6, (3, rows, 1, 1))
    waves = np.stack([np.sin(1.5 * x + shift[0]), np.sin(1.5 * y + shift[1])])
    waves = np.concatenate([waves, np.sin(0.7 * (x + y) + shift[2])[None]])
    contrast = 200 / np.arange(1, len(bands) + 1).reshape(-1, 1, 1)
    images = np.einsum("nk,knhw->nhw", labels, waves)[:, None] * contrast
    images = images + rng.normal(1000, 40, (rows, len(bands), TILE_PX, TILE_PX))
    splits = np.where(np.arange(rows) % 5 == 0, "val", "train").tolist()
    splits[rows - test_rows :] = ["test"] * test_rows
    with DatasetWriter(uri, bands=bands, classes=("a", "b", "c"), resolution_m=10.0) as writer:
        source = [str(i) for i in range(rows)]
        writer.append(images.astype(np.float32), labels, {"source": source, "split": splits})
        writer.finish()


def ingest_two_dates(folder: Path) -> None:
    """Make ``scenes`` and ``archive`` by ``bundle``: the same ground at two dates."""
    write_scenes(folder / "scenes", read_bundle(str(folder / "bundle")).spec.bands)
    plan = IngestSpec(
        catalog=CatalogSpec(source=str(folder / "scenes" / "*.tif")),
        encoder_uri=str(folder / "bundle"),
        archive_uri=str(folder / "archive"),
    )
    ingest(plan_ingest(plan), local=True)


def train_here() -> None:
    """Let one worker train in this process from now on, without checkpoints; several on Ray."""
    on_ray = driver._run_on_ray

    def run(
        job: TrainingJob, request: Any, plugins: Collection[Plugin], progress: Any, check_lock: Any
    ) -> Any:
        if job.spec.workers > 1:
            return on_ray(job, request, plugins, progress, check_lock)
        return TrainingWorker(job, progress=progress).run(None, lambda metrics, save: None)

    driver._run_on_ray = run
