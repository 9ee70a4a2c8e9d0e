"""The whole chain on the synthetic world: `skysift demo`.

Wiring only: every stage is the call that a person would make on real scenes. All output lies below
one folder. A stage continues its own unfinished output; ``demo.json`` names the finished stages,
so an interrupted demo continues where it stopped and a finished demo returns at once.
"""

import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import yaml

from encoders.bundle import load_encoder, save_bundle
from pipeline.analysis.landcover import TileLabels, join_labels
from pipeline.analysis.statistics import BandStatistics, band_statistics
from pipeline.datasets.embed import two_part_encoder
from pipeline.datasets.scenes import import_scenes
from pipeline.datasets.spec import SplitRule
from pipeline.indexing.driver import build_index
from pipeline.indexing.spec import IndexSpec
from pipeline.ingest.driver import ingest, plan_ingest
from pipeline.ingest.spec import IngestSpec
from pipeline.runtime.cluster import ray_session
from pipeline.search.searcher import Searcher
from pipeline.tiles.grid import grid_for_scene
from pipeline.tiles.spec import GridSpec, TileRules
from pipeline.training.driver import train
from pipeline.training.spec import TrainingSpec
from pipeline.training.worker import initial_encoder
from storage.archive.reader import Archive
from storage.catalog.read import read_scenes
from storage.dataset import LabelledDataset
from storage.errors import ConfigError, SkysiftError
from storage.location import Location
from storage.parts import DEFAULT_BLEND
from storage.progress import ProgressSink, ignore
from storage.scene import CatalogSpec, MaskMapping, Scene
from workflows.demo.evaluate import RANKINGS, choose_queries, score, search_queries
from workflows.demo.landscape import BANDS, CLASSES
from workflows.demo.report import write_page
from workflows.demo.world import CLOUD_VALUES, World, WorldSpec, build_world
from workflows.labels import label_scenes
from workflows.report.html import Timing

MASK = MaskMapping(asset="scl", cloud_values=CLOUD_VALUES)
GRID = GridSpec(tile_px=64)
RULES = TileRules(min_valid_fraction=0.7, max_cloud_fraction=0.25)
SPLIT = SplitRule(val=0.1, test=0.25)
TRAINING = TrainingSpec(
    dimension=64,
    hidden=128,
    learning_rate=2e-3,
    sampling_power=1.0,
    loss_options={"exactness": 0.2},
    workers=2,
    device="cpu",
)
APPEARANCE = 64
_BUNDLE = "encoder/two-parts"


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoSpec(WorldSpec):
    """The settings of a demo; the defaults take a few minutes on two cores."""

    epochs: int = 20
    batch_size: int = 128
    shards: int = 2


# The first stage that a setting changes; the settings of the world change all stages.
_CHANGES = {"epochs": "training", "batch_size": "training", "shards": "index", "folder": "index"}


@dataclass(frozen=True, kw_only=True, slots=True)
class FinishedStage:
    """A stage and its duration; ``skipped`` when an earlier run had finished it."""

    name: str
    seconds: float
    skipped: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoResult:
    """The output of a demo: the page, a recipe that names everything, and commands to try next.

    ``scores`` maps rankings (see `workflows.demo.evaluate.RANKINGS`) to metrics by name.
    """

    folder: Path
    report: Path
    recipe: Path
    scores: Mapping[str, Mapping[str, float]]
    commands: tuple[str, ...]
    stages: tuple[FinishedStage, ...]


def run_demo(
    folder: str | Path,
    *,
    seed: int = 7,
    spec: DemoSpec | None = None,
    cluster: Callable[[], AbstractContextManager[None]] | None = None,
    progress: ProgressSink = ignore,
) -> DemoResult:
    """Make a world, train on it, embed it, index it, search it, score it and draw the report.

    Parameters
    ----------
    folder
        Folder of all output: new, empty, or that of an earlier demo, which is completed. Stages
        that other settings change are done again.
    seed, spec
        The seed of the default settings, or all settings.
    cluster
        Context in which this process is connected to Ray, entered by the first stage that needs
        Ray; a private instance on this machine, or ``RAY_ADDRESS``, when None.

    Raises
    ------
    ConfigError
        The folder holds files that are not a demo's, or its ``demo.json`` is damaged.
    SkysiftError
        A stage failed; the message names the cause.
    """
    with ExitStack() as cleanup:
        # Two workers and two encoders are started even where there is one CPU.
        cluster = cluster or partial(ray_session, cpus=max(2, os.cpu_count() or 2))
        join_ray = cache(lambda: cleanup.enter_context(cluster()))
        return _Run(Path(folder), spec or DemoSpec(seed=seed), join_ray, progress).all()


class _Run:
    """One run: a method for each stage, in order."""

    def __init__(
        self, folder: Path, spec: DemoSpec, join_ray: Callable[[], object], progress: ProgressSink
    ) -> None:
        self.given, self.folder, self.spec = folder, folder.absolute(), spec
        self.join_ray, self.progress = join_ray, progress
        self.seconds: dict[str, float] = {}  # of the finished stages

    def all(self) -> DemoResult:
        """Run every stage that is not finished."""
        settings = {**asdict(self.spec), "folder": str(self.folder)}
        self._open_folder(settings)
        stages = []
        for name, (work, _, outputs) in _STAGES.items():
            exist = all((self.folder / output).exists() for output in outputs)
            if not (skipped := exist and name in self.seconds):
                started = time.monotonic()
                work(self)
                self.seconds[name] = round(time.monotonic() - started, 2)
                self._write_record(settings)
            stages.append(FinishedStage(name=name, seconds=self.seconds[name], skipped=skipped))
        scores = json.loads((self.folder / "scores.json").read_text())
        return DemoResult(
            folder=self.folder,
            report=self.folder / "report.html",
            recipe=self.folder / "recipe.yaml",
            scores={name: scores[name] for name in RANKINGS},
            commands=tuple(line for _, line in self._commands()),
            stages=tuple(stages),
        )

    def _open_folder(self, settings: dict[str, Any]) -> None:
        """Read the record of an earlier run; delete the outputs that other settings change."""
        before = settings
        self.folder.mkdir(parents=True, exist_ok=True)
        if (path := self.folder / "demo.json").exists():
            try:
                record = json.loads(path.read_text())
                before, self.seconds = dict(record["settings"]), dict(record["seconds"])
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigError(
                    f"{path} is not a demo's record ({type(error).__name__}: {error}); "
                    "delete the folder and start again"
                ) from error
        elif any(self.folder.iterdir()):
            raise ConfigError(
                f"{self.folder} holds files that are not a demo's; give a new or an empty folder"
            )
        order = list(_STAGES)
        changed = [n for n, value in settings.items() if before.get(n) != value]
        first = min((order.index(_CHANGES.get(n, "world")) for n in changed), default=len(order))
        self.seconds = {n: s for n, s in self.seconds.items() if n in order[:first]}
        # The new settings are recorded last: interrupted, the next run deletes the rest.
        self._write_record(before)
        for output in (output for name in order[first:] for output in _STAGES[name][2]):
            Location(self._path(output)).delete()
        self._write_record(settings)

    def _write_record(self, settings: Mapping[str, Any]) -> None:
        self._write("demo.json", json.dumps({"settings": settings, "seconds": self.seconds}))

    def _write(self, name: str, text: str) -> None:
        Location(self._path(name)).write(text.encode())

    def _path(self, name: str) -> str:
        return str(self.folder / name)

    @property
    def _training(self) -> TrainingSpec:
        spec = self.spec
        return replace(TRAINING, batch_size=spec.batch_size, epochs=spec.epochs, seed=spec.seed)

    @cached_property
    def _world(self) -> World:
        return build_world(self.folder / "world", self.spec, self.progress)

    @property
    def _catalog(self) -> CatalogSpec:
        return CatalogSpec(source=self._world.catalog, mask=MASK)

    @cached_property
    def _scenes(self) -> tuple[Scene, ...]:
        return read_scenes(self._catalog, BANDS).scenes

    def _dataset(self) -> LabelledDataset:
        return LabelledDataset.open(self._path("dataset"))

    def measure_bands(self) -> None:
        """Compute mean, deviation and percentiles of the bands with Dask."""
        statistics = self._path("statistics.json")
        band_statistics(self._scenes, progress=self.progress).to_json(statistics)

    def label_tiles(self) -> None:
        """Compute the land-cover classes of every tile with Dask, zone by zone."""
        parts = [
            label_scenes(
                [scene for scene in self._scenes if grid_for_scene(scene, GRID).crs == crs],
                GRID,
                raster,
                CLASSES,
                min_fraction=0.1,
                progress=self.progress,
            )
            for crs, raster in self._world.landcover.items()
        ]
        join_labels(parts).to_parquet(self._path("labels.parquet"))

    def make_dataset(self) -> None:
        """Cut the scenes into labelled tiles; the split is by blocks of ground, for all days."""
        import_scenes(
            self._scenes,
            GRID,
            TileLabels.from_parquet(self._path("labels.parquet")),
            self._path("dataset"),
            bands=BANDS,
            rules=RULES,
            split=SPLIT,
            statistics=BandStatistics.from_json(self._path("statistics.json")),
            progress=self.progress,
        )

    def train(self) -> None:
        """Train the encoder with two Ray Train workers and negatives gathered from both.

        The archive's encoder has an appearance part as well, so that searches have a dial.
        """
        self.join_ray()
        dataset, output = self._path("dataset"), self._path("encoder")
        result = train(dataset, self._training, output, progress=self.progress)
        two = two_part_encoder(result.bundle_uri, dataset, APPEARANCE, DEFAULT_BLEND)
        save_bundle(two, self._path(_BUNDLE))

    def save_untrained(self) -> None:
        """Save the encoder that training started from, to compare with."""
        save_bundle(initial_encoder(self._dataset(), self._training), self._path("untrained"))

    def ingest(self) -> None:
        """Tile and embed every scene with Ray Data, and commit them to the archive."""
        self.join_ray()
        spec = IngestSpec(
            catalog=self._catalog,
            encoder_uri=self._path(_BUNDLE),
            archive_uri=self._path("archive"),
            grid=GRID,
            rules=RULES,
            labels_uri=self._path("labels.parquet"),
        )
        bad = dict(ingest(plan_ingest(spec), progress=self.progress).quarantined)
        if bad:
            raise SkysiftError(
                f"scenes of the demo were quarantined ({bad}); delete the folder and start again"
            )

    def score(self) -> None:
        """Score retrieval on held-out ground: trained, untrained and by chance."""
        encoders = (load_encoder(self._path(uri)) for uri in (_BUNDLE, "untrained"))
        self._write("scores.json", json.dumps(score(self._dataset(), *encoders), indent=1))

    def index(self) -> None:
        """Build the search index in shards."""
        self.join_ray()
        spec = IndexSpec(shards=self.spec.shards)
        build_index(self._path("archive"), self._path("index"), spec, progress=self.progress)

    def search(self) -> None:
        """Write the recipe of the demo, and the hits of a few queries."""
        self.join_ray()
        self._write_recipe()
        archive = Archive.open(self._path("archive"))
        labels = TileLabels.from_parquet(self._path("labels.parquet"))
        rows = choose_queries(self._dataset(), archive, labels)
        searcher = Searcher.connect(self._path("index"))
        self._write("searches.json", json.dumps(search_queries(archive, searcher, rows)))

    def report(self) -> None:
        """Draw the report."""
        timings = tuple(
            Timing(stage=title, seconds=self.seconds[name])
            for name, (_, title, _) in _STAGES.items()
            if name != "report"
        )
        write_page(self.folder, self.spec.seed, self._scenes, timings, self._commands())

    def _write_recipe(self) -> None:
        """Write a recipe that names everything, so that every verb works on the demo."""
        mask = {"asset": MASK.asset, "cloud_values": list(CLOUD_VALUES)}
        recipe = {
            "name": "my-demo",
            "description": "What `skysift demo` made here; written by it.",
            "catalog": {"source": self._world.catalog, "mask": mask},
            "grid": {"tile_px": GRID.tile_px},
            "tiles": asdict(RULES),
            "dataset": {"uri": self._path("dataset")},
            "encoder": {"bundle": self._path(_BUNDLE)},
            "archive": {"uri": self._path("archive")},
            "ingest": {"labels_uri": self._path("labels.parquet")},
            "index": {"uri": self._path("index"), "shards": self.spec.shards},
        }
        self._write("recipe.yaml", yaml.safe_dump(recipe, sort_keys=False))

    def _commands(self) -> tuple[tuple[str, str], ...]:
        """Return commands to try after the demo, as (why, command line)."""
        example = json.loads((self.folder / "searches.json").read_text())["example"]
        recipe = f"-r {self.given / 'recipe.yaml'}"
        tile = f"--tile {example['tile_key']} --scene {example['scene']}"
        lon, lat = example["place"]
        return (
            (
                "Find places in autumn that look like a tile of the summer day.",
                f"skysift search {recipe} {tile} --since 2024-10-01",
            ),
            (
                "Search by a place, for tiles that look alike whatever their labels.",
                f"skysift search {recipe} --at {lon:.4f},{lat:.4f} --blend 1 -k 5",
            ),
            ("Summarise the archive.", f"skysift archive info {recipe}"),
            ("Answer searches over HTTP.", f"skysift serve {recipe}"),
        )


# Stage -> method, title in the report, and its output below the folder.
_STAGES: dict[str, tuple[Callable[[_Run], object], str, tuple[str, ...]]] = {
    "world": (lambda run: run._world, "Make the world", ("world",)),
    "statistics": (_Run.measure_bands, "Band statistics (Dask)", ("statistics.json",)),
    "labels": (_Run.label_tiles, "Tile labels (Dask)", ("labels.parquet",)),
    "dataset": (_Run.make_dataset, "Labelled tiles", ("dataset",)),
    "training": (_Run.train, "Training (Ray Train, 2 workers)", ("encoder",)),
    "untrained": (_Run.save_untrained, "Untrained encoder", ("untrained",)),
    "ingest": (_Run.ingest, "Tiles and embeddings (Ray Data)", ("archive",)),
    "scores": (_Run.score, "Scores", ("scores.json",)),
    "index": (_Run.index, "Index (Ray tasks)", ("index",)),
    "search": (_Run.search, "Searches", ("recipe.yaml", "searches.json")),
    "report": (_Run.report, "Report", ("report.html",)),
}
