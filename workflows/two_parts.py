"""Encoders of two parts, as a recipe asks for them: after a training, or of a trained bundle.

The first part is appearance, or with place pairs a head that has learned places.
"""

from typing import TYPE_CHECKING

from pipeline.training.spec import TrainingSpec
from storage.errors import ConfigError
from storage.location import Location
from storage.parts import DEFAULT_BLEND, PLACE_BLEND
from storage.scene import CatalogSpec
from workflows.console import ProgressView
from workflows.recipe.schema import TrainingSection
from workflows.recipe.sections import spec_from

if TYPE_CHECKING:
    from encoders.bundle import Encoder
    from pipeline.training.place_sources import PlaceSpec
    from workflows.stages import Stages


def training_spec(section: TrainingSection) -> TrainingSpec:
    """Return the settings of a training; with a place part the label head learns labels alone."""
    weight = 0.25 if section.appearance is None else 0.0
    return spec_from(TrainingSpec, section, place_weight=_or(section.place_weight, weight))


def place_source(stages: "Stages", key: str) -> "PlaceSpec":
    """Return the archive or catalog that a key names; scenes are read as those of a catalog.

    Raises
    ------
    ConfigError
        There is no such local file or folder.
    """
    from pipeline.training.place_sources import PlaceSpec

    recipe = stages.recipe
    place = stages.location(stages.need_path(key).uri)
    catalog = spec_from(CatalogSpec, recipe.catalog, source=place)
    return PlaceSpec(catalog=catalog, grid=recipe.grid, rules=recipe.tiles)


def made_of_trained(stages: "Stages") -> "Encoder":
    """Return the encoder ``encoder.trained`` with another part before its own.

    Raises
    ------
    ConfigError, NotFoundError, EncoderMismatchError, SceneError
        As :func:`pipeline.datasets.embed.two_part_encoder` and
        :func:`pipeline.training.place_part.place_part_encoder`.
    """
    from pipeline.datasets.archive_tiles import blocks_kept_apart
    from pipeline.datasets.embed import two_part_encoder
    from pipeline.training.place_part import place_part_encoder
    from storage.dataset import LabelledDataset

    section, trained = stages.recipe.encoder, stages.need_path("encoder.trained")
    if section.place_pairs is None:
        dataset, blend = stages.need_path("dataset.uri"), _or(section.blend, DEFAULT_BLEND)
        return two_part_encoder(trained, dataset, section.appearance, blend)
    labelled = None
    if stages.recipe.dataset.uri is not None:
        labelled = LabelledDataset.open(stages.need_path("dataset.uri"))
    with ProgressView() as progress:
        return place_part_encoder(
            trained,
            place_source(stages, "encoder.place_pairs"),
            training_spec(stages.recipe.training),
            section.appearance,
            _or(section.blend, PLACE_BLEND),
            is_apart=blocks_kept_apart(labelled) if labelled else lambda _: False,
            progress=progress,
        )


def made_of_run(stages: "Stages", dataset: Location, spec: TrainingSpec) -> "Encoder":
    """Return the encoder that a training made, with another part before its own.

    Raises
    ------
    ConfigError, EncoderMismatchError, NotFoundError
        As :func:`pipeline.datasets.embed.two_part_encoder` and
        :func:`pipeline.training.place_part.learn_place_part`.
    """
    from pipeline.datasets.embed import two_part_encoder
    from pipeline.training.place_part import learn_place_part
    from pipeline.training.places import PLACES

    section = stages.recipe.training
    output, width = Location.of(stages.need("training.output")), stages.need("training.appearance")
    if spec.place_pairs is None:
        blend = _or(section.blend, DEFAULT_BLEND)
        return two_part_encoder(output / "bundle", dataset, width, blend)
    blend = _or(section.blend, PLACE_BLEND)
    with ProgressView() as progress:
        return learn_place_part(
            output / "bundle", output / PLACES, spec, width, blend, progress=progress
        )


def require_fitting_width(stages: "Stages", dataset: Location, spec: TrainingSpec) -> None:
    """Refuse an appearance part that could not be fitted after the training.

    Raises
    ------
    ConfigError
        The part is wider than the backbone's features, or there are fewer train rows.
    """
    from pipeline.datasets.embed import most_appearance
    from pipeline.training.worker import initial_encoder
    from storage.dataset import LabelledDataset

    key, labelled = "training.appearance", LabelledDataset.open(dataset)
    width = stages.need(key)
    if width > (most := most_appearance(initial_encoder(labelled, spec), labelled)):
        raise ConfigError(
            f"{stages.settings.where(key)}: {key}: {width} is more than the features of "
            f"{spec.backbone} or than the train rows; give at most {most}"
        )


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
