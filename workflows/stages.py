"""The stages of a recipe, each a method, the same for the command line and Python.

A stage takes its inputs from the recipe, shows its progress, connects to Ray where it has to, and
returns its report. The verbs in :mod:`workflows.commands` print the reports;
:class:`workflows.notebook.recipe.Recipe` returns them.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from encoders.spec import EncoderSpec, pretrained_folder
from pipeline.composite.spec import CompositeSpec
from pipeline.datasets.spec import SoftLabelSpec, SuggestSpec
from pipeline.indexing.spec import IndexSpec
from pipeline.ingest.spec import IngestPlan, IngestReport, IngestSpec
from pipeline.runtime.cluster import joins_cluster, ray_session
from storage.errors import ConfigError, NotFoundError
from storage.location import Location
from storage.progress import EventSink, ignore
from storage.scene import CatalogSpec, Scene
from workflows.console import ProgressView, silence_ray, suppress_stderr
from workflows.recipe.schema import Recipe
from workflows.recipe.sections import spec_from

if TYPE_CHECKING:
    from encoders.bundle import Encoder
    from pipeline.composite.plan import CompositePlan, CompositeReport
    from pipeline.datasets.extend import Extension
    from pipeline.datasets.suggest import Suggestion
    from pipeline.indexing.plan import IndexPlan
    from pipeline.ingest.cost import IngestCost
    from pipeline.runtime.dask import Scheduler
    from pipeline.training.spec import TrainingResult
    from storage.archive.reader import Archive
    from storage.index.manifest import IndexManifest
    from workflows.datasets import ImportedDataset
    from workflows.recipe.load import LoadedRecipe


class MadeEncoder(NamedTuple):
    """The fingerprint of a new bundle, and why scenes are missing from its statistics."""

    fingerprint: str
    left_out: dict[str, str]


class Stages(ABC):
    """A recipe and the ways to carry out its stages.

    Attributes
    ----------
    debug
        Whether Ray's own messages are shown.
    """

    debug: bool = False

    @property
    @abstractmethod
    def settings(self) -> "LoadedRecipe":
        """The recipe with the places where its values were written."""

    @property
    def recipe(self) -> Recipe:
        """The effective values."""
        return self.settings.recipe

    # ------------------------------------------------------------ inputs

    def location(self, uri: str) -> Location:
        """Return a place that the options of the recipe reach."""
        return Location(uri, self.recipe.storage)

    def need(self, key: str) -> Any:
        """Return a value of the recipe that a stage cannot do without.

        Raises
        ------
        ConfigError
            The value is not given.
        """
        value, source = attrgetter(key)(self.recipe), self.settings.source
        if value is None:
            raise ConfigError(
                f"{key} is not given{f' in {source}' if source else ''}: {self.way_to_give(key)}"
            )
        return value

    @abstractmethod
    def way_to_give(self, key: str) -> str:
        """Return how a value that is missing can be given, for messages."""

    def need_path(self, key: str) -> Location:
        """Return a place that a stage reads.

        Raises
        ------
        ConfigError
            The place is not given, or is a local path that does not exist.
        """
        from workflows.recipe.errors import missing_path

        place = Location.of(self.need(key))
        if "://" not in place.uri and not (fixed := _before_pattern(place.uri)).exists():
            raise ConfigError(f"{self.settings.where(key)}: {key}: {missing_path(fixed)}")
        return place

    def catalog_spec(self) -> CatalogSpec:
        """Return the source of scenes.

        Raises
        ------
        ConfigError
            No source is given, or a local source does not exist.
        """
        source = self.need_path("catalog.source")
        return spec_from(CatalogSpec, self.recipe.catalog, source=source)

    def pictured_scenes(self, archive: "Archive") -> tuple[Scene, ...] | None:
        """Return the scenes to draw tiles of an archive from: those of the catalog, if given.

        Returns
        -------
        None without a catalog: the scenes are those that the archive remembers.
        """
        from workflows.report.by_place import catalog_scenes

        return catalog_scenes(archive.spec, self.pictured_catalog)

    @property
    def pictured_catalog(self) -> CatalogSpec | None:
        """The catalog to draw tiles of an archive from, if one is given."""
        return self.catalog_spec() if self.recipe.catalog.source else None

    def ingest_spec(self) -> IngestSpec:
        """Return the scenes, encoder, archive and settings of an ingest."""
        return spec_from(
            IngestSpec,
            self.recipe.ingest,
            catalog=self.catalog_spec(),
            encoder_uri=self.need_path("encoder.bundle"),
            archive_uri=self.need("archive.uri"),
            grid=self.recipe.grid,
            rules=self.recipe.tiles,
        )

    def open_archive(self) -> "Archive":
        """Open the archive at the snapshot or tag of the recipe, else at the newest.

        Raises
        ------
        ConfigError, NotFoundError
            No archive is given, or there is none.
        """
        from storage.archive.maintenance import resolve_snapshot
        from storage.archive.reader import Archive

        uri, name = self.need_path("archive.uri"), self.recipe.archive.snapshot
        return Archive.open(uri, name and resolve_snapshot(uri, name))

    def index_spec(self) -> IndexSpec:
        """Return the settings of an index."""
        return spec_from(IndexSpec, self.recipe.index)

    # ------------------------------------------------------------ surroundings

    @contextmanager
    def ray(self, needed: bool = True) -> Iterator[None]:
        """Be connected to Ray inside the block."""
        section = self.recipe.cluster
        with ExitStack() as stack:
            self.silence_ray()
            if needed:
                with nullcontext() if self.debug else suppress_stderr():
                    stack.enter_context(ray_session(section.address, section.cpus))
            yield

    def silence_ray(self) -> None:
        """Keep Ray's own notes off stderr, unless messages are debugged."""
        if not self.debug:
            silence_ray()

    # ------------------------------------------------------------ scenes to vectors

    def plan_ingest(self, sample_scenes: int | None = None) -> "tuple[IngestPlan, IngestCost]":
        """Return the plan of :meth:`ingest` and its costs; nothing is written.

        Parameters
        ----------
        sample_scenes
            Open at most this number of scenes to estimate the costs; None for all.

        Raises
        ------
        ConfigError, CatalogError, NotFoundError, EncoderMismatchError
            As :func:`pipeline.ingest.driver.plan_ingest`.
        """
        return self._planned_ingest(self.ingest_spec(), sample_scenes)

    def ingest(self, *, events: EventSink = ignore) -> IngestReport:
        """Tile and embed the scenes that the archive lacks, exactly once.

        A small run of a local catalog works in this process, others on Ray. A stopped run continues
        where the last commit ended.

        Parameters
        ----------
        events
            Gets an event for each scene and commit.

        Raises
        ------
        ConfigError, CatalogError, NotFoundError, EncoderMismatchError, ArchiveConflictError
            As :func:`pipeline.ingest.driver.ingest`.
        """
        from pipeline.ingest.cost import SAMPLE_SCENES
        from pipeline.ingest.driver import ingest

        spec = self.ingest_spec()
        with ThreadPoolExecutor(1) as pool:
            planning = pool.submit(self._planned_ingest, spec, SAMPLE_SCENES)
            local = self._fits_locally(spec, planning)
            with self.ray(needed=not local):  # starts while the thread plans
                plan, cost = planning.result()
                cost.require_room()
                self.silence_ray()  # again: the plan imported more of it
                with ProgressView() as progress:
                    return ingest(plan, local=local, progress=progress, events=events)

    def _planned_ingest(
        self, spec: IngestSpec, sample_scenes: int | None
    ) -> "tuple[IngestPlan, IngestCost]":
        from pipeline.ingest.cost import estimate_cost
        from pipeline.ingest.driver import plan_ingest

        plan = plan_ingest(spec)
        with ProgressView() as progress:
            cost = estimate_cost(
                plan,
                sample_scenes=sample_scenes,
                cpus=self.recipe.cluster.cpus,
                on_cluster=joins_cluster(self.recipe.cluster.address),
                progress=progress,
            )
        return plan, cost

    def _fits_locally(
        self, spec: IngestSpec, planning: "Future[tuple[IngestPlan, IngestCost]]"
    ) -> bool:
        """Tell whether a run is so small that it does without Ray; waits for local plans only."""
        from pipeline.ingest.driver import LOCAL_TILES

        source = Location.of(spec.catalog.source)
        if not source.is_local or joins_cluster(self.recipe.cluster.address):
            return False
        _, cost = planning.result()
        return cost.tiles <= LOCAL_TILES

    def plan_composites(self) -> "CompositePlan":
        """Return the composites that :meth:`make_composites` would make.

        Raises
        ------
        ConfigError, CatalogError
            As :func:`pipeline.composite.plan.plan_composites`.
        """
        from pipeline.composite.plan import plan_composites

        section = self.recipe.composite
        spec = spec_from(
            CompositeSpec,
            section,
            catalog=self.catalog_spec(),
            output_uri=self.need("composite.output_uri"),
            bands=section.bands or self.recipe.encoder.bands,
            grid=self.recipe.grid,
        )
        return plan_composites(spec)

    def make_composites(self) -> "CompositeReport":
        """Write the median of the clear pixels of each period, as scenes.

        Raises
        ------
        ConfigError, CatalogError
            As :meth:`plan_composites`.
        """
        from pipeline.composite.driver import make_composites

        plan = self.plan_composites()
        on_ray = bool(self.recipe.cluster.address or os.environ.get("RAY_ADDRESS"))
        with self.ray() if on_ray else nullcontext(), ProgressView() as progress:
            scheduler: Scheduler = "ray" if on_ray else "threads"
            return make_composites(plan, scheduler=scheduler, progress=progress)

    # ------------------------------------------------------------ vectors to an index

    def plan_index(self) -> "IndexPlan":
        """Return the plan of :meth:`build_index`; nothing is written.

        Raises
        ------
        ConfigError, NotFoundError
            As :func:`pipeline.indexing.driver.plan_build`.
        """
        from pipeline.indexing.driver import plan_build

        return plan_build(self.need_path("archive.uri"), self.index_spec())

    def build_index(self, *, other_archive: bool = False) -> "IndexManifest":
        """Index the newest snapshot of the archive; nothing is done when that is there.

        Parameters
        ----------
        other_archive
            The index may be of another archive; searches change over to this one.

        Raises
        ------
        ConfigError, NotFoundError
            As :func:`pipeline.indexing.driver.build_index`.
        """
        from pipeline.indexing.driver import build_index

        archive, target, spec = (
            self.need_path("archive.uri"),
            self.need("index.uri"),
            self.index_spec(),
        )
        with self.ray(), ProgressView() as progress:
            return build_index(
                archive, target, spec, other_archive=other_archive, progress=progress
            )

    def update_index(self) -> "IndexManifest":
        """Add the archive's new rows to the index and hide those that are gone.

        Raises
        ------
        NotFoundError, ArchiveConflictError
            As :func:`pipeline.indexing.driver.update_index`.
        """
        from pipeline.indexing.driver import update_index

        target = self.need_path("index.uri")  # before Ray starts
        with self.ray(), ProgressView() as progress:
            return update_index(target, progress=progress)

    def compact_index(self) -> "IndexManifest":
        """Merge the small shards that updates left and drop deleted rows; answers stay the same.

        Raises
        ------
        NotFoundError, ArchiveConflictError
            As :func:`pipeline.indexing.driver.compact_index`.
        """
        from pipeline.indexing.driver import compact_index

        target = self.need_path("index.uri")  # before Ray starts
        with self.ray(), ProgressView() as progress:
            return compact_index(target, progress=progress)

    # ------------------------------------------------------------ datasets and encoders

    def import_dataset(self) -> "ImportedDataset":
        """Import a labelled dataset; an existing one from the same source is kept.

        Raises
        ------
        ConfigError, NotFoundError, CatalogError
            The source is not of the importer's layout, or cannot be read.
        """
        from workflows.datasets import import_images, import_tiles

        make = import_tiles if self.recipe.dataset.importer == "scenes" else import_images
        with ProgressView() as progress:
            return make(self, progress)

    def suggest_tiles(self) -> "Suggestion":
        """Choose tiles to label next, and write them for annotation programs.

        Candidates are tiles of the archive, or without one the rows of the dataset that have no
        label.

        Raises
        ------
        ConfigError, NotFoundError, EncoderMismatchError, SceneError
            As :mod:`pipeline.datasets.suggest`.
        """
        from encoders.bundle import load_encoder
        from pipeline.datasets.suggest import suggest_rows, suggest_tiles
        from storage.dataset import LabelledDataset
        from workflows.report.rendering import row_painter

        section = self.recipe.dataset
        output = Location.of(self.need("dataset.suggest.output"))
        spec, dataset = spec_from(SuggestSpec, section.suggest), None
        if section.uri is not None:
            try:
                dataset = LabelledDataset.open(self.need_path("dataset.uri"))
            except NotFoundError:
                if not spec.classes:  # which begin a first dataset
                    raise
        with ProgressView() as progress:
            if self.recipe.archive.uri is None and dataset is not None:
                encoder = load_encoder(self.need_path("encoder.bundle"))
                return suggest_rows(dataset, encoder, output, spec, row_painter, progress=progress)
            return suggest_tiles(
                self.open_archive(),
                dataset,
                output,
                spec,
                row_painter,
                block_tiles=section.block_tiles,
                progress=progress,
            )

    def extend_dataset(self) -> "Extension":
        """Add tiles of the archive to the dataset, with probabilities for labels.

        Raises
        ------
        ConfigError, NotFoundError, EncoderMismatchError
            Archive and dataset do not fit, or there are too few labelled rows.
        SkysiftError
            The measured gain is not larger than its error, or macro mAP falls.
        """
        from pipeline.datasets.extend import extend

        section = self.recipe.dataset
        with ProgressView() as progress:
            return extend(
                self.need_path("dataset.uri"),
                self.open_archive(),
                self.need("dataset.extend.output"),
                spec_from(SoftLabelSpec, section.extend),
                rows=section.extend.rows,
                steps=section.extend.steps,
                seed=section.extend.seed,
                progress=progress,
            )

    def make_encoder(self) -> MadeEncoder:
        """Write an encoder bundle without training it.

        The statistics of the bands are those of the recipe, else of the labelled dataset, else they
        are computed over the scenes of the catalog. Without any of these, a pretrained network of
        red, green and blue has its own, for values 0 to 255.

        Raises
        ------
        ConfigError, CatalogError, NotFoundError
            The network cannot be built, or the statistics not computed.
        """
        from encoders.bundle import save_bundle
        from workflows import two_parts

        target = self.need("encoder.bundle")
        section = self.recipe.encoder
        if section.trained is not None:
            return MadeEncoder(save_bundle(two_parts.made_of_trained(self), target), {})
        if section.place_pairs is not None:
            raise ConfigError(
                f"{self.settings.where('encoder.place_pairs')}: encoder.place_pairs adds a part to "
                "a trained encoder; give the encoder with --trained"
            )
        untrained, left_out = self.untrained_encoder()
        return MadeEncoder(save_bundle(untrained, target), left_out)

    def untrained_encoder(self) -> tuple["Encoder", dict[str, str]]:
        """Return the encoder that :meth:`make_encoder` writes, and the scenes left out, by reason.

        Raises
        ------
        ConfigError, CatalogError, NotFoundError
            As :meth:`make_encoder`.
        """
        from encoders.bundle import new_encoder, require_distinct_vectors, with_text

        section = self.recipe.encoder
        self._check_pretrained("encoder.pretrained")
        spec, left_out = self._encoder_spec()
        untrained = new_encoder(spec, pretrained=section.pretrained, seed=section.seed)
        require_distinct_vectors(untrained)
        return with_text(untrained, section.pretrained, section.prompt), left_out

    def _check_pretrained(self, key: str) -> None:
        """Refuse pretrained weights of a folder that does not exist; an id of the hub may."""
        from workflows.recipe.errors import missing_path

        source = attrgetter(key)(self.recipe)
        folder = None if source is None else pretrained_folder(source)
        if folder is not None and not folder.exists():
            raise ConfigError(f"{self.settings.where(key)}: {key}: {missing_path(folder)}")

    def _encoder_spec(self) -> tuple[EncoderSpec, dict[str, str]]:
        """Return the spec of a new encoder, and why scenes are missing from its statistics."""
        from pipeline.analysis.statistics import band_statistics
        from storage.catalog.read import read_scenes
        from storage.dataset import read_info
        from storage.quarantine import none_readable

        section = self.recipe.encoder
        if section.band_mean is not None and section.band_std is not None:
            return spec_from(EncoderSpec, section), {}
        if self.recipe.dataset.uri is not None:
            info = read_info(self.recipe.dataset.uri)
            names = ("band_mean", "band_std", "bands", "tile_px", "classes")
            found = {name: getattr(info, name) for name in names}
            return spec_from(EncoderSpec, section, **found), {}
        if section.pretrained is not None and not self.recipe.catalog.source:
            from encoders.backbones.transformers import ARCHITECTURES, byte_statistics

            if section.backbone in ARCHITECTURES and section.bands == ("red", "green", "blue"):
                mean, std = byte_statistics(section.pretrained)
                return spec_from(EncoderSpec, section, band_mean=mean, band_std=std), {}
        listing = read_scenes(self.catalog_spec(), section.bands)
        rejected = {item.scene_id: item.reason for item in listing.distinct_rejected}
        if not listing.scenes:
            raise none_readable(rejected)
        with ProgressView() as progress:
            statistics = band_statistics(listing.scenes, progress=progress)
        spec = spec_from(EncoderSpec, section, band_mean=statistics.mean, band_std=statistics.std)
        return spec, {**rejected, **statistics.skipped}

    def train(self, *, resume: bool = False) -> "TrainingResult":
        """Train an encoder on the labelled dataset; a stopped run continues.

        With ``training.appearance`` the result's bundle is the encoder of two parts. With
        ``training.place_pairs`` as well its first part has learned places.

        Parameters
        ----------
        resume
            Go on although settings changed, where that works.

        Raises
        ------
        ConfigError, NotFoundError
            The appearance part is too wide, or as :func:`pipeline.training.driver.train`.
        """
        from encoders.bundle import save_bundle
        from pipeline.training.driver import train
        from workflows import two_parts

        dataset, output = self.need_path("dataset.uri"), self.need("training.output")
        section = self.recipe.training
        self._check_pretrained("training.pretrained")
        spec, source = two_parts.training_spec(section), None
        if section.place_pairs is not None:
            source = two_parts.place_source(self, "training.place_pairs")
        elif section.appearance is not None:
            two_parts.require_fitting_width(self, dataset, spec)
        with self.ray(), ProgressView() as progress:
            result = train(
                dataset, spec, output, place_source=source, resume=resume, progress=progress
            )
        if section.appearance is None:
            return result
        two, target = two_parts.made_of_run(self, dataset, spec), self.trained_bundle
        return replace(result, bundle_uri=str(target), fingerprint=save_bundle(two, target))

    @property
    def trained_bundle(self) -> Location:
        """Folder of the encoder that :meth:`train` makes."""
        parts = self.recipe.training.appearance is not None
        return Location.of(self.need("training.output")) / ("two-parts" if parts else "bundle")

    def finished_encoder(self) -> Location:
        """Return the encoder to score or to export: the one named, or that of the training.

        Raises
        ------
        ConfigError
            Neither is there.
        """
        if self.recipe.encoder.bundle is None and self.recipe.training.output is not None:
            trained = self.trained_bundle
            if not trained.is_local or trained.path.exists():
                return trained
            raise ConfigError(
                f"there is no encoder at {trained}: `skysift train` with the same recipe makes it; "
                "or give one with --encoder"
            )
        return self.need_path("encoder.bundle")


def _before_pattern(path: str) -> Path:
    """Return the folder in which a pattern begins; a path without one as it is."""
    parts = Path(path).parts
    marked = (n for n, part in enumerate(parts) if any(mark in part for mark in "*?["))
    return Path(*parts[: next(marked, len(parts))])
