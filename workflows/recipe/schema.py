"""The sections of a recipe, as pydantic models.

Each mirrors a plain dataclass of the packages below, name for name and default for default (a
test holds them together), so that reading a recipe imports none of the libraries behind them.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, Strict

from workflows.recipe.types import (
    Box,
    Bytes,
    Count,
    Flag,
    Fraction,
    Moment,
    Natural,
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

    mirrors: ClassVar[str] = "storage.location.StorageOptions"

    endpoint_url: str | None = None
    region: str | None = None
    anonymous: Flag = False
    access_key_id: SecretStr | None = None
    secret_access_key: SecretStr | None = None
    session_token: SecretStr | None = None


class BandSection(Section):
    """Where one band of the encoder is in a scene."""

    mirrors: ClassVar[str] = "storage.scene.BandMapping"

    asset: str | None = None
    index: Count = 1
    scale: Number | None = None
    offset: Number | None = None
    nodata: Number | None = None


class QuerySection(Section):
    """Which scenes of a catalog to take."""

    mirrors: ClassVar[str] = "storage.scene.SceneQuery"

    bbox: Box | None = None
    polygon: str | dict[str, Any] | None = None
    since: Moment | None = None
    until: Until | None = None
    max_cloud_cover_percent: Annotated[float, Strict(), Field(ge=0, le=100)] | None = None
    collections: tuple[str, ...] = ()


class MaskSection(Section):
    """Where the cloud mask of a scene is, and which of its numbers mean cloud or shadow."""

    mirrors: ClassVar[str] = "storage.scene.MaskMapping"

    asset: str | None = None
    index: Count = 1
    cloud_values: tuple[Whole, ...] = ()
    cloud_bits: tuple[Whole, ...] = ()


class CatalogSection(Section):
    """Where the scenes are: STAC documents, or a folder or glob of GeoTIFFs."""

    mirrors: ClassVar[str] = "storage.scene.CatalogSpec"

    source: str | None = None
    bands: dict[str, BandSection] = {}
    mask: MaskSection | None = None
    datetime_pattern: str | None = None
    allow: tuple[str, ...] = ()
    query: QuerySection = QuerySection()


class GridSection(Section):
    """How scenes are cut into tiles; what is left out follows from the scene and the encoder."""

    mirrors: ClassVar[str] = "pipeline.tiles.spec.GridSpec"

    crs: str = "native"
    resolution: Positive | Literal["native"] = "native"
    tile_px: Count | None = None
    stride_px: Count | None = None
    anchor: tuple[Number, Number] = (0.0, 0.0)


class TilesSection(Section):
    """Which tiles are worth an embedding."""

    mirrors: ClassVar[str] = "pipeline.tiles.spec.TileRules"

    edge: Literal["pad", "shift", "drop"] = "pad"
    min_valid_fraction: Fraction = 0.5
    max_cloud_fraction: Fraction = 1.0


class CompositeSection(Section):
    """Composites of a series of scenes; without bands, of the encoder's."""

    mirrors: ClassVar[str] = "pipeline.composite.spec.CompositeSpec"

    output_uri: str | None = None
    bands: tuple[str, ...] = ()
    period: Literal["month", "season", "year"] = "month"
    name: str = "composite"
    block_bytes: Bytes = 128 * 1024 * 1024


class SplitSection(Section):
    """How images without a split of their own are divided; the rest is for training."""

    mirrors: ClassVar[str] = "pipeline.datasets.spec.SplitRule"

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


class EncoderSection(Section):
    """The encoder: its bundle, and what `skysift encoder make` makes it from.

    Attributes
    ----------
    bundle
        The encoder that a command uses or makes.
    pretrained
        Folder of the backbone's weights.
    seed
        Of the weights that are drawn.
    """

    mirrors: ClassVar[str] = "encoders.spec.EncoderSpec"

    bundle: str | None = None
    backbone: str = "mobilenet_v2"
    backbone_options: dict[str, Any] = {}
    pretrained: str | None = None
    head: dict[str, Any] = {"kind": "identity"}
    bands: tuple[str, ...] = ("red", "green", "blue")
    band_mean: tuple[Number, ...] | None = None
    band_std: tuple[Positive, ...] | None = None
    tile_px: Count = 64
    resolution_m: Positive | None = None
    dimension: Count = 128
    seed: Whole = 0


class TrainingSection(Section):
    """A training run: where it is kept, and how it trains.

    Attributes
    ----------
    output
        Folder of the run: bundle, checkpoints, logs.
    """

    mirrors: ClassVar[str] = "pipeline.training.spec.TrainingSpec"

    output: str | None = None
    backbone: str = "tiny-cnn"
    backbone_options: dict[str, Any] = {}
    pretrained: str | None = None
    freeze_backbone: Flag = False
    dimension: Count = 128
    hidden: Count = 512
    embedding: Literal["projection", "features"] = "projection"
    loss: str = "macl"
    loss_options: dict[str, Any] = {}
    batch_size: Count = 128
    epochs: Count = 20
    learning_rate: Positive = 1e-3
    weight_decay: Annotated[float, Strict(), Field(ge=0)] = 0.01
    warmup_epochs: Annotated[float, Strict(), Field(ge=0)] = 1.0
    gradient_clip: Positive = 1.0
    sampling_power: Number = 0.5
    precision: Literal["fp32", "bf16"] = "fp32"
    queue_rows: Natural = 0
    chunk_rows: Natural = 0
    seed: Whole = 0
    augment: dict[str, Any] | None = {}
    monitor: str = "nDCG@50"
    eval_every: Count = 1
    eval_rows: Count = 2000
    patience: Count | None = None
    workers: Count = 1
    cpus_per_worker: Count = 1
    device: Literal["auto", "cpu", "gpu"] = "auto"
    max_failures: Whole = 3
    checkpoint_every_steps: Count | None = None
    features_uri: str | None = None


class ArchiveSection(Section):
    """The embedding archive.

    Attributes
    ----------
    uri
        Where it is.
    snapshot
        A commit or tag to read; None for the newest.
    """

    uri: str | None = None
    snapshot: str | None = None


class IngestSection(Section):
    """How an ingest works; see `pipeline.ingest.spec.IngestSpec`."""

    mirrors: ClassVar[str] = "pipeline.ingest.spec.IngestSpec"

    labels_uri: str | None = None
    retry_quarantined: Flag = False
    batch_tiles: Count = 16
    segment_rows: Count = 8192
    commit_interval_s: Positive = 120.0


class IndexSection(Section):
    """A search index: where it is, and how it is built.

    Attributes
    ----------
    uri
        Folder of the index's versions.
    """

    mirrors: ClassVar[str] = "pipeline.indexing.spec.IndexSpec"

    uri: str | None = None
    kind: Literal["auto", "flat", "ivf_flat", "ivf_sq8", "ivf_rabitq", "ivf_opq", "ivf_pq"] = "auto"
    shards: Count | None = None
    rows_per_shard: Count = 1_000_000
    nlist: Count | None = None
    memory_bytes: Bytes | None = None
    builder_memory_bytes: Bytes | None = None
    recall: Annotated[float, Strict(), Field(gt=0, le=1)] = 0.95
    sample_rows: Count = 262_144
    rerank: Flag = True
    mapped: Flag = False
    seed: Whole = 0


class FilterSection(Section):
    """Which rows a search may return."""

    mirrors: ClassVar[str] = "storage.index.filter.Filter"

    bbox: Box | None = None
    polygon: str | dict[str, Any] | None = None
    since: Moment | None = None
    until: Until | None = None
    max_cloud_fraction: Fraction | None = None
    scenes: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    tiles: tuple[str, ...] = ()


class SearchSection(Section):
    """How searches are made.

    Attributes
    ----------
    k
        Hits of a query.
    replicas
        Nodes that hold a copy of each shard.
    filter
        Which rows may be returned.
    """

    k: Count = 10
    replicas: Count = 1
    filter: FilterSection = FilterSection()


class EvaluateSection(Section):
    """How retrieval is scored.

    Attributes
    ----------
    k
        Depth of nDCG@k, WAP@k and their like.
    same_place_k
        Depths at which a tile's other acquisitions are looked for.
    split
        Which images ask.
    most_queries
        Tiles that ask at most, drawn by `seed`.
    seed
        Of that draw.
    """

    k: Count = 50
    same_place_k: tuple[Count, ...] = (1, 5, 10)
    split: Literal["train", "val", "test"] = "test"
    most_queries: Count = 2000
    seed: Whole = 0


class ClusterSection(Section):
    """Which Ray cluster to use.

    Attributes
    ----------
    address
        Of the cluster; None starts a private one on this machine.
    cpus
        Of the private one; None for all.
    dashboard
        Where `skysift submit` sends jobs.
    """

    address: str | None = None
    cpus: Count | None = None
    dashboard: str = "http://127.0.0.1:8265"


class ServiceSection(Section):
    """How searches are answered over HTTP.

    Attributes
    ----------
    host, port
        Where to listen.
    token
        What every request must carry; beyond this machine there has to be one. Several, with
        commas between them, are all let in, so that one can be replaced.
    max_k
        Most hits of one answer.
    max_body_bytes
        Largest request.
    max_image_px
        Most pixels of an uploaded picture, at four bands.
    request_timeout_s
        Seconds after which a request is given up.
    rate_per_s, burst
        Requests that one client may make: on average, and at once. A rate of 0 does not limit.
    replicas
        Processes that answer.
    thumbnail_cache_bytes
        Size of the pictures of tiles that each of them keeps.
    base_map, base_map_attribution
        URL template of raster tiles below the map, such as https://host/{z}/{x}/{y}.png, and whom
        they are from; none by default, and nothing foreign is loaded then.
    cors_origins
        Other web pages that may ask, such as https://maps.example.org; none by default.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Strict(), Field(ge=0, le=65535)] = 8000
    token: SecretStr | None = None
    max_k: Count = 1000
    max_body_bytes: Bytes = 16 * 1024 * 1024
    max_image_px: Count = 16 * 1024 * 1024
    request_timeout_s: Positive = 60.0
    rate_per_s: Annotated[float, Strict(), Field(ge=0)] = 50.0
    burst: Count = 300
    replicas: Count = 1
    thumbnail_cache_bytes: Bytes = 64 * 1024 * 1024
    base_map: str | None = None
    base_map_attribution: str = ""
    cors_origins: tuple[str, ...] = ()


class Recipe(Section):
    """Everything that a run reads, makes, and where it puts it."""

    name: str | None = None
    description: str | None = None
    storage: StorageSection = StorageSection()
    cluster: ClusterSection = ClusterSection()
    catalog: CatalogSection = CatalogSection()
    grid: GridSection = GridSection()
    tiles: TilesSection = TilesSection()
    composite: CompositeSection = CompositeSection()
    dataset: DatasetSection = DatasetSection()
    training: TrainingSection = TrainingSection()
    encoder: EncoderSection = EncoderSection()
    archive: ArchiveSection = ArchiveSection()
    ingest: IngestSection = IngestSection()
    index: IndexSection = IndexSection()
    search: SearchSection = SearchSection()
    evaluate: EvaluateSection = EvaluateSection()
    service: ServiceSection = ServiceSection()
