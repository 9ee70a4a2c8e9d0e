"""A labelled dataset that a tiny network learns in seconds, and how to train on it."""

from dataclasses import replace

import numpy as np

from pipeline.training.spec import TrainingSpec
from storage.dataset import DatasetWriter
from storage.location import Location

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


def write_dataset(uri: str | Location, rows: int = 120) -> None:
    """Stripes whose direction and spacing are the labels; where they begin tells nothing."""
    rng = np.random.default_rng(0)
    labels = (rng.random((rows, 3)) < 0.4).astype(np.uint8)
    labels[labels.sum(1) == 0, 0] = 1
    y, x = np.mgrid[:16, :16]
    shift = rng.uniform(0, 6, (3, rows, 1, 1))
    waves = np.stack([np.sin(1.5 * x + shift[0]), np.sin(1.5 * y + shift[1])])
    waves = np.concatenate([waves, np.sin(0.7 * (x + y) + shift[2])[None]])
    images = np.einsum("nk,knhw->nhw", labels, waves)[:, None] * np.array([[[200]], [[100]]])
    images = images + rng.normal(1000, 40, (rows, 2, 16, 16))
    splits = np.where(np.arange(rows) % 5 == 0, "val", "train").tolist()
    with DatasetWriter(
        uri, bands=("red", "nir"), classes=("a", "b", "c"), resolution_m=10.0
    ) as writer:
        source = [str(i) for i in range(rows)]
        writer.append(images.astype(np.float32), labels, {"source": source, "split": splits})
        writer.finish()
