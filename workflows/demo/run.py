"""The whole chain on the made-up world, each stage done once: `skysift demo`.

Wiring only: every stage is the call that a person would make on real scenes. What a stage leaves
is kept below one folder, so a run that was stopped goes on and a finished one returns at once.
"""

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import yaml

from encoders.bundle import load_encoder, save_bundle
from pipeline.analysis.landcover import TileLabels, join_labels
from pipeline.analysis.statistics import BandStatistics, band_statistics
from pipeline.datasets.scenes import import_scenes
from pipeline.datasets.spec import SplitRule
from pipeline.indexing.driver import build_index
from pipeline.indexing.spec import IndexSpec
from pipeline.ingest.driver import ingest, plan_ingest
from pipeline.ingest.spec import IngestSpec
from pipeline.runtime.cluster import ray_session
from pipeline.tiles.grid import grid_for_scene
from pipeline.tiles.spec import GridSpec, TileRules
from pipeline.training.driver import train
from pipeline.training.spec import TrainingSpec
from pipeline.training.worker import initial_encoder
from storage.archive.reader import Archive
from storage.catalog.read import read_scenes
from storage.dataset import LabelledDataset
from storage.errors import SkysiftError
from storage.location import write_bytes
from storage.progress import ProgressSink, quiet
from storage.scene import CatalogSpec, MaskMapping, Scene
from workflows.demo.evaluate import ask, choose_queries, score
from workflows.demo.landscape import BANDS
from workflows.demo.report import Results, write_page
from workflows.demo.stages import Done, StageCache
from workflows.demo.world import CLOUD_VALUES, World, WorldSpec, build_world
from workflows.labels import label_scenes

TILE_PX = 64
RULES = TileRules(min_valid_fraction=0.7, max_cloud_fraction=0.25)
SPLIT = SplitRule(val=0.1, test=0.25)
MIN_FRACTION = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoSpec:
    """What decides a demo; the defaults take a few minutes on two cores."""

    seed: int = 7
    scene_px: int = 1024
    scenes_per_zone: int = 3
    epochs: int = 40
    batch_size: int = 128
    shards: int = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoResult:
    """What a demo came to.

    Attributes
    ----------
    report
        The HTML page.
    recipe
        A recipe that names everything the demo made, for further commands.
    scores
        Encoder (trained, untrained, random) to metrics by name.
    commands
        Command lines to try next.
    stages
        What was done, and what had been done before.
    """

    folder: Path
    report: Path
    recipe: Path
    scores: Mapping[str, Mapping[str, float]]
    commands: tuple[str, ...]
    stages: tuple[Done, ...]

    @property
    def seconds(self) -> float:
        """How long the stages of this run took."""
        return sum(stage.seconds for stage in self.stages if not stage.skipped)


def run_demo(
    folder: str | Path,
    *,
    seed: int = 7,
    spec: DemoSpec | None = None,
    cluster: Callable[[], AbstractContextManager[None]] | None = None,
    progress: ProgressSink = quiet,
) -> DemoResult:
    """Make a world, train on it, embed it, index it, search it, score it and draw the report.

    Parameters
    ----------
    folder
        Where everything goes: new, empty, or that of an earlier demo, which is completed.
    seed
        Decides the world and the training; ignored when ``spec`` is given.
    spec
        Another size than the usual.
    cluster
        Makes the context in which this process is connected to Ray, entered by the first stage
        that needs it; a private instance on this machine, or ``RAY_ADDRESS``, when None.

    Raises
    ------
    ConfigError
        The folder holds something else.
    SkysiftError
        A stage failed; its message says how.
    """
    with ExitStack() as cleanup:
        run = _Run(Path(folder), spec or DemoSpec(seed=seed), progress)
        run.join_ray = cache(lambda: cleanup.enter_context((cluster or _private_ray)()))
        return run.all()


def _private_ray() -> AbstractContextManager[None]:
    # Two workers and two encoders are started even where there is one CPU.
    return ray_session(cpus=max(2, os.cpu_count() or 2))


class _Run:
    """One run: a method for each stage, in order."""

    def __init__(self, folder: Path, spec: DemoSpec, progress: ProgressSink) -> None:
        self.shown, self.folder, self.spec, self.progress = (
            folder,
            folder.absolute(),
            spec,
            progress,
        )
        self.book = StageCache(self.folder)
        self.join_ray: Callable[[], object] = _private_ray

    def all(self) -> DemoResult:
        """Run every stage that is not done."""
        step = self.book.run
        world = step("world", self._world_spec, ["world"], self.make_world).digest
        bands = step("statistics", {"world": world}, ["statistics.json"], self.measure_bands).digest
        inputs: dict[str, Any] = {"world": world, "min_fraction": MIN_FRACTION}
        labels = step("labels", inputs, ["labels.parquet"], self.label_tiles).digest
        inputs = {"labels": labels, "bands": bands, "rules": repr((RULES, SPLIT))}
        dataset = step("dataset", inputs, ["dataset"], self.make_dataset).digest
        inputs = {"dataset": dataset, "training": repr(self._training)}
        encoder = step("training", inputs, ["encoder"], self.train).digest
        untrained = step("untrained", inputs, ["untrained"], self.save_untrained).digest
        archive = step("ingest", {"encoder": encoder}, ["archive"], self.ingest).digest
        inputs = {"archive": archive, "shards": self.spec.shards}
        index = step("index", inputs, ["index"], self.index).digest
        answers = step("search", {"index": index}, ["recipe.yaml"], self.search)
        inputs = {"archive": archive, "untrained": untrained}
        scores = step("scores", inputs, [], self.score)
        inputs = {"answers": answers.digest, "scores": scores.digest}
        commands = next_commands(self.shown, answers.result["example"])
        step("report", inputs, ["report.html"], lambda: self.report(commands))
        return DemoResult(
            folder=self.folder,
            report=self.folder / "report.html",
            recipe=self.folder / "recipe.yaml",
            scores={name: scores.result[name] for name in ("trained", "untrained", "random")},
            commands=tuple(line for _, line in commands),
            stages=tuple(self.book.finished),
        )

    # ------------------------------------------------------------ values

    @property
    def _world_spec(self) -> dict[str, Any]:
        return asdict(
            WorldSpec(
                seed=self.spec.seed,
                scene_px=self.spec.scene_px,
                scenes_per_zone=self.spec.scenes_per_zone,
            )
        )

    @property
    def _training(self) -> TrainingSpec:
        return TrainingSpec(
            dimension=64,
            hidden=128,
            loss="macl",
            batch_size=self.spec.batch_size,
            epochs=self.spec.epochs,
            learning_rate=2e-3,
            sampling_power=1.0,
            workers=2,
            device="cpu",
            seed=self.spec.seed,
        )

    @property
    def _grid(self) -> GridSpec:
        return GridSpec(tile_px=TILE_PX)

    @cached_property
    def _world(self) -> World:
        return build_world(self.folder / "world", WorldSpec(**self._world_spec), self.progress)

    @cached_property
    def _catalog(self) -> CatalogSpec:
        mask = MaskMapping(asset="scl", cloud_values=CLOUD_VALUES)
        return CatalogSpec(source=self._world.catalog, mask=mask)

    @cached_property
    def _scenes(self) -> tuple[Scene, ...]:
        return read_scenes(self._catalog, BANDS).scenes

    @cached_property
    def _dataset(self) -> LabelledDataset:
        return LabelledDataset.open(self._at("dataset"))

    def _at(self, name: str) -> str:
        return str(self.folder / name)

    # ------------------------------------------------------------ stages

    def make_world(self) -> dict[str, Any]:
        """Write the scenes, the land cover and the catalog."""
        return {"scenes": len(self._scenes)}

    def measure_bands(self) -> dict[str, Any]:
        """Compute mean, deviation and percentiles of the bands with Dask."""
        found = band_statistics(self._scenes, progress=self.progress)
        found.to_json(self._at("statistics.json"))
        return {"mean": found.mean, "std": found.std, "valid_pixels": found.valid_pixels}

    def label_tiles(self) -> dict[str, Any]:
        """Compute the land-cover classes of every tile with Dask, zone by zone."""
        parts = [
            label_scenes(
                [scene for scene in self._scenes if grid_for_scene(scene, self._grid).crs == crs],
                self._grid,
                raster,
                self._world.classes,
                min_fraction=MIN_FRACTION,
                progress=self.progress,
            )
            for crs, raster in self._world.landcover.items()
        ]
        labels = join_labels(parts)
        labels.to_parquet(self._at("labels.parquet"))
        return {"tiles": len(labels)}

    def make_dataset(self) -> dict[str, Any]:
        """Cut the scenes into labelled tiles; ground is split in blocks, the same on every day."""
        info = import_scenes(
            self._scenes,
            self._grid,
            TileLabels.from_parquet(self._at("labels.parquet")),
            self._at("dataset"),
            bands=BANDS,
            rules=RULES,
            split=SPLIT,
            statistics=BandStatistics.from_json(self._at("statistics.json")),
            progress=self.progress,
        )
        return {"tiles": info.count}

    def train(self) -> dict[str, Any]:
        """Train the encoder with two Ray Train workers and negatives gathered from both."""
        self.join_ray()
        done = train(
            self._at("dataset"), self._training, self._at("encoder"), progress=self.progress
        )
        return {"fingerprint": done.fingerprint, "best_epoch": done.best_epoch}

    def save_untrained(self) -> dict[str, Any]:
        """Keep the encoder that training started from, to compare with."""
        encoder = initial_encoder(self._dataset, self._training)
        return {"fingerprint": save_bundle(encoder, self._at("untrained"))}

    def ingest(self) -> dict[str, Any]:
        """Tile and embed every scene with Ray Data, and commit them to the archive."""
        self.join_ray()
        spec = IngestSpec(
            catalog=self._catalog,
            encoder_uri=self._at("encoder/bundle"),
            archive_uri=self._at("archive"),
            grid=self._grid,
            rules=RULES,
            labels_uri=self._at("labels.parquet"),
        )
        done = ingest(plan_ingest(spec), progress=self.progress)
        if done.quarantined:
            raise SkysiftError(
                f"the demo's own scenes were quarantined ({dict(done.quarantined)}); "
                "delete the folder and start again"
            )
        return {"snapshot": done.snapshot}

    def index(self) -> dict[str, Any]:
        """Build the search index in shards."""
        self.join_ray()
        made = build_index(
            self._at("archive"),
            self._at("index"),
            IndexSpec(shards=self.spec.shards),
            progress=self.progress,
        )
        return {"version": made.version, "snapshot": made.snapshot, "shards": len(made.shards)}

    def search(self) -> dict[str, Any]:
        """Ask the index from here, from a Ray task and from the command line."""
        self.join_ray()
        archive = Archive.open(self._at("archive"))
        labels = TileLabels.from_parquet(self._at("labels.parquet"))
        rows = choose_queries(self._dataset, archive, labels)
        return ask(archive, self._at("index"), rows, self._write_recipe())

    def score(self) -> dict[str, Any]:
        """Score retrieval on held-out ground: trained, untrained and by chance."""
        untrained = load_encoder(self._at("untrained"))
        return dict(score(self._dataset, Archive.open(self._at("archive")), untrained))

    def report(self, commands: tuple[tuple[str, str], ...]) -> dict[str, Any]:
        """Draw the report."""
        left = Results(
            folder=self.folder,
            seed=self.spec.seed,
            scenes=self._scenes,
            stages=self.book.finished,
            commands=commands,
        )
        write_page(left, self.folder / "report.html")
        return {}

    # ------------------------------------------------------------ what next

    def _write_recipe(self) -> Path:
        """Write a recipe that names everything, so that every verb works on the demo."""
        recipe = {
            "name": "my-demo",
            "description": "What `skysift demo` made here; written by it.",
            "catalog": {
                "source": self._world.catalog,
                "mask": {"asset": "scl", "cloud_values": list(CLOUD_VALUES)},
            },
            "grid": {"tile_px": TILE_PX},
            "tiles": asdict(RULES),
            "dataset": {"uri": self._at("dataset")},
            "encoder": {"bundle": self._at("encoder/bundle")},
            "archive": {"uri": self._at("archive")},
            "ingest": {"labels_uri": self._at("labels.parquet")},
            "index": {"uri": self._at("index"), "shards": self.spec.shards},
        }
        path = self.folder / "recipe.yaml"
        write_bytes(str(path), yaml.safe_dump(recipe, sort_keys=False).encode())
        return path


def next_commands(folder: Path, example: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Return what to try after a demo, as (why, command line).

    Parameters
    ----------
    folder
        Of the demo, as the user named it.
    example
        A tile to ask about: ``tile_key``, ``scene`` and ``place`` (longitude, latitude).
    """
    recipe = f"-r {folder / 'recipe.yaml'}"
    lon, lat = example["place"]
    return (
        (
            "Ask by a tile of the summer day what looks like it in autumn.",
            f"skysift search {recipe} --tile {example['tile_key']} --scene {example['scene']} "
            "--since 2024-10-01",
        ),
        ("Ask by a place.", f"skysift search {recipe} --at {lon:.4f},{lat:.4f} -k 5"),
        ("See what the archive holds.", f"skysift archive info {recipe}"),
        ("Answer searches over HTTP.", f"skysift serve {recipe}"),
    )
