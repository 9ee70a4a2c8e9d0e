"""The sections of a recipe that say where scenes are, how they are cut, and what labels them."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, Strict

from workflows.values import (
    Box,
    Bytes,
    Count,
    Flag,
    Fraction,
    Moment,
    Number,
    Positive,
    Until,
    Whole,
)


class Section(BaseModel):
    """A part of a recipe: unknown keys are refused, values never change.

    ``mirrors`` names the dataclass whose fields, defaults and documentation the section shares.
    """

    mirrors: ClassVar[str] = ""

    model_config = ConfigDict(extra="forbid", frozen=True)


class StorageSection(Section):
    """How to reach the object store; what is left out comes from the ``AWS_*`` variables."""

    mirrors: ClassVar[str] = "storage.object_store.StorageOptions"

    endpoint_url: str | None = None
    region: str | None = None
    anonymous: Flag = False
    access_key_id: SecretStr | None = None
    secret_access_key: SecretStr | None = None
    session_token: SecretStr | None = None


class BandSection(Section):
    """Where one band of the encoder is in a scene."""

    mirrors: ClassVar[str] = "storage.scenes.BandMapping"

    asset: str | None = None
    index: Count = 1
    scale: Number | None = None
    offset: Number | None = None
    nodata: Number | None = None


class QuerySection(Section):
    """Which scenes of a catalog to take."""

    mirrors: ClassVar[str] = "storage.scenes.SceneQuery"

    bbox: Box | None = None
    polygon: str | dict[str, Any] | None = None
    since: Moment | None = None
    until: Until | None = None
    max_cloud_cover_percent: Annotated[float, Strict(), Field(ge=0, le=100)] | None = None
    collections: tuple[str, ...] = ()


class MaskSection(Section):
    """Where the cloud mask of a scene is, and which of its numbers mean cloud or shadow."""

    mirrors: ClassVar[str] = "storage.scenes.MaskMapping"

    asset: str | None = None
    index: Count = 1
    cloud_values: tuple[Whole, ...] = ()
    cloud_bits: tuple[Whole, ...] = ()


class CatalogSection(Section):
    """Where the scenes are: STAC documents, or a folder or glob of GeoTIFFs."""

    mirrors: ClassVar[str] = "storage.scenes.CatalogSpec"

    source: str | None = None
    bands: dict[str, BandSection] = {}
    mask: MaskSection | None = None
    datetime_pattern: str | None = None
    allow: tuple[str, ...] = ()
    query: QuerySection = QuerySection()


class GridSection(Section):
    """How scenes are cut into tiles; what is left out follows from the scene and the encoder."""

    mirrors: ClassVar[str] = "pipeline.grids.GridSpec"

    crs: str = "native"
    resolution: Positive | Literal["native"] = "native"
    tile_px: Count | None = None
    stride_px: Count | None = None
    anchor: tuple[Number, Number] = (0.0, 0.0)


class TilesSection(Section):
    """Which tiles are worth an embedding."""

    mirrors: ClassVar[str] = "pipeline.tiling.TileRules"

    edge: Literal["pad", "shift", "drop"] = "pad"
    min_valid_fraction: Fraction = 0.5
    max_cloud_fraction: Fraction = 1.0


class CompositeSection(Section):
    """Composites of a series of scenes; without bands, of the encoder's."""

    mirrors: ClassVar[str] = "pipeline.composite_plan.CompositeSpec"

    output_uri: str | None = None
    bands: tuple[str, ...] = ()
    period: Literal["month", "season", "year"] = "month"
    name: str = "composite"
    block_bytes: Bytes = 128 * 1024 * 1024


class SplitSection(Section):
    """How images without a split of their own are divided; the rest is for training."""

    mirrors: ClassVar[str] = "pipeline.datasets.SplitRule"

    val: Fraction = 0.15
    test: Fraction = 0.15
    seed: Whole = 0


class LandcoverSection(Section):
    """A land-cover raster that labels tiles.

    Attributes
    ----------
    href
        The GeoTIFF.
    classes
        Pixel value to class name.
    min_fraction
        Share of a tile's pixels from which on a class is one of its labels.
    """

    href: str | None = None
    classes: dict[int, str] = {}
    min_fraction: Fraction = 0.05


class DatasetSection(Section):
    """A labelled dataset: where it is, and what it is imported from.

    Attributes
    ----------
    uri
        Folder of the dataset.
    importer
        What `source` is: see `skysift dataset import --help`.
    source
        Folder or tar file of images.
    table
        Importer `folder`: name of the table of labels beside the images.
    min_share
        Importers `dlrsd` and `whdld`: share of an image's pixels from which on a class is one of
        its labels.
    tile_px
        Side of the tiles; None keeps the images' own.
    bands
        Names of the images' bands, in their order; for `bigearthnet` those to import.
    resolution_m
        Metres per pixel; None when unknown.
    split
        How rows without a split are divided.
    landcover
        What labels the tiles of scenes.
    block_tiles
        Tiles on a side of one block of land cover read at once.
    """

    uri: str | None = None
    importer: Literal[
        "folder", "dlrsd", "whdld", "uc-merced", "ml-aid", "bigearthnet", "scenes"
    ] = "folder"
    source: str | None = None
    table: str = "labels.csv"
    min_share: Fraction = 0.01
    tile_px: Count | None = None
    bands: tuple[str, ...] = ("red", "green", "blue")
    resolution_m: Positive | None = None
    split: SplitSection = SplitSection()
    landcover: LandcoverSection = LandcoverSection()
    block_tiles: Count = 4
