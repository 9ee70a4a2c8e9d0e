"""From the sections of a recipe to the plain values that the packages below take.

What is slow to import is imported where it is used, so that each verb pays for its own only.
"""

from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import SecretStr

from storage.location import StorageOptions
from storage.scene import BandMapping, CatalogSpec, MaskMapping, SceneQuery
from workflows.recipe.load import LoadedRecipe
from workflows.recipe.schema import Section, StorageSection

if TYPE_CHECKING:
    from encoders.spec import EncoderSpec
    from pipeline.composite.spec import CompositeSpec
    from pipeline.datasets.rows import SplitRule
    from pipeline.indexing.spec import IndexSpec
    from pipeline.ingest.spec import IngestSpec
    from pipeline.tiles.spec import GridSpec, TileRules
    from pipeline.training.spec import TrainingSpec
    from storage.index.filter import Filter

T = TypeVar("T")


def plain(kind: type[T], section: Section, **others: Any) -> T:
    """Build a dataclass from the section that mirrors it; ``others`` are what it has no key for."""
    values = {
        part.name: _revealed(getattr(section, part.name))
        for part in fields(kind)  # type: ignore[arg-type]
        if part.name not in others and part.name in type(section).model_fields
    }
    return kind(**values, **others)


def storage_options(section: StorageSection) -> StorageOptions:
    """Return how to reach the object store."""
    return plain(StorageOptions, section)


def catalog_spec(loaded: LoadedRecipe) -> CatalogSpec:
    """Return the source of scenes.

    Raises
    ------
    ConfigError
        No source is given, or a local one does not exist.
    """
    section = loaded.recipe.catalog
    return plain(
        CatalogSpec,
        section,
        source=loaded.need_path("catalog.source", "--scenes"),
        bands={name: plain(BandMapping, band) for name, band in section.bands.items()},
        mask=plain(MaskMapping, section.mask) if section.mask else None,
        query=plain(SceneQuery, section.query),
    )


def grid_spec(loaded: LoadedRecipe, tile_px: int | None = None) -> "GridSpec":
    """Return the grid; a tile is ``tile_px`` wide unless the recipe says."""
    from pipeline.tiles.spec import GridSpec

    section = loaded.recipe.grid
    return plain(GridSpec, section, tile_px=section.tile_px or tile_px)


def composite_spec(loaded: LoadedRecipe) -> "CompositeSpec":
    """Return what to make composites of, and where."""
    from pipeline.composite.spec import CompositeSpec

    section = loaded.recipe.composite
    return plain(
        CompositeSpec,
        section,
        catalog=catalog_spec(loaded),
        output_uri=loaded.need("composite.output_uri", "--out"),
        bands=section.bands or loaded.recipe.encoder.bands,
        grid=grid_spec(loaded),
    )


def tile_rules(loaded: LoadedRecipe) -> "TileRules":
    """Return which tiles are kept."""
    from pipeline.tiles.spec import TileRules

    return plain(TileRules, loaded.recipe.tiles)


def split_rule(loaded: LoadedRecipe) -> "SplitRule":
    """Return how images are divided into train, val and test."""
    from pipeline.datasets.rows import SplitRule

    return plain(SplitRule, loaded.recipe.dataset.split)


def ingest_spec(loaded: LoadedRecipe) -> "IngestSpec":
    """Return what to embed, with what, into where."""
    from pipeline.ingest.spec import IngestSpec

    return plain(
        IngestSpec,
        loaded.recipe.ingest,
        catalog=catalog_spec(loaded),
        encoder_uri=loaded.need_path("encoder.bundle", "--encoder"),
        archive_uri=loaded.need("archive.uri", "--archive"),
        grid=grid_spec(loaded),
        rules=tile_rules(loaded),
    )


def training_spec(loaded: LoadedRecipe) -> "TrainingSpec":
    """Return the settings of a training run."""
    from pipeline.training.spec import TrainingSpec

    return plain(TrainingSpec, loaded.recipe.training)


def index_spec(loaded: LoadedRecipe) -> "IndexSpec":
    """Return what is asked of an index."""
    from pipeline.indexing.spec import IndexSpec

    return plain(IndexSpec, loaded.recipe.index)


def search_filter(loaded: LoadedRecipe) -> "Filter":
    """Return which rows a search may return."""
    from storage.index.filter import Filter

    return plain(Filter, loaded.recipe.search.filter)


def encoder_spec(
    loaded: LoadedRecipe, band_mean: tuple[float, ...], band_std: tuple[float, ...]
) -> "EncoderSpec":
    """Return an encoder that no loss has trained yet."""
    from encoders.spec import EncoderSpec

    return plain(EncoderSpec, loaded.recipe.encoder, band_mean=band_mean, band_std=band_std)


def _revealed(value: Any) -> Any:
    return value.get_secret_value() if isinstance(value, SecretStr) else value
