"""The keys of a recipe: the specifications of the packages below, and sections of workflows' own.

Only light modules are imported: reading a recipe needs none of the libraries behind it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le

from encoders.spec import EncoderSpec
from pipeline.composite.spec import CompositeSpec
from pipeline.datasets.spec import SoftLabelSpec, SplitRule, SuggestSpec
from pipeline.indexing.spec import IndexSpec
from pipeline.ingest.spec import IngestSpec
from pipeline.tiles.spec import GridSpec, TileRules
from pipeline.training.spec import TrainingSpec
from storage.index.filter import Filter
from storage.location import Location, StorageOptions
from storage.scene import CatalogSpec
from storage.values import Count, Fraction, NonNegative, Positive
from workflows.recipe.sections import Key, Section, keys_of, section_in, section_of

_RGB = ("red", "green", "blue")


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterSection:
    """Which Ray cluster to use.

    Attributes
    ----------
    address
        Address of the cluster; None starts a private one on this machine.
    cpus
        CPUs of the private cluster; None for all.
    dashboard
        URL of the dashboard to which `skysift submit` sends jobs.
    """

    address: str | None = None
    cpus: Count | None = None
    dashboard: str = "http://127.0.0.1:8265"


@section_of(CatalogSpec)
class CatalogSection(Section):
    """Where the scenes are: STAC documents, or a folder or glob of GeoTIFFs."""


@section_of(CompositeSpec, without=("catalog", "grid"))
class CompositeSection(Section):
    """Composites of a series of scenes.

    Attributes
    ----------
    bands
        Bands of the composites, in their order; empty for those of the encoder.
    """

    bands: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class LandcoverSection:
    """A land-cover raster that labels tiles.

    Attributes
    ----------
    href
        URI of the GeoTIFF.
    classes
        Pixel value to class name.
    min_fraction
        Smallest share of a tile's pixels that makes a class a label of the tile.
    """

    href: str | Location | None = None
    classes: Mapping[int, str] = field(default_factory=dict)
    min_fraction: Fraction = 0.05


@section_of(SoftLabelSpec)
class ExtendSection(Section):
    """Tiles of an archive that join a dataset with probabilities for labels.

    Attributes
    ----------
    output
        Folder of the extended dataset.
    rows
        Largest number of tiles to add, drawn uniformly from the archive.
    steps
        Steps of each training that measures the gain, and of those of further rounds.
    seed
        Seed of that draw, and of the measurement.
    """

    output: str | Location | None = None
    rows: Count = 10_000
    steps: Count = 360
    seed: int = 0


@section_of(SuggestSpec)
class SuggestSection(Section):
    """Tiles to label next, by coverage.

    Attributes
    ----------
    output
        Folder of the suggested tiles: pictures, and files for annotation programs.
    """

    output: str | Location | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetSection:
    """A labelled dataset: its folder, and the source of its import.

    Attributes
    ----------
    uri
        Folder of the dataset.
    importer
        Layout of `source`: see `skysift dataset import --help`. `package.module:Name` is one of
        your own.
    importer_options
        Keyword arguments of an importer of your own.
    source
        Folder or tar file of images.
    table
        Importers `folder` and `annotated`: name of the file of labels beside the images.
    add_to
        Importer `annotated`: labelled dataset whose rows come first; None for the new rows alone.
    min_share
        Importers `dlrsd` and `whdld`: smallest share of an image's pixels that makes a class a
        label of the image.
    tile_px
        Side of the tiles; None keeps the images' own.
    bands
        Names of the images' bands, in their order; for `bigearthnet` the bands to import.
    resolution_m
        Metres per pixel; None when unknown.
    split
        How rows without a split are divided.
    landcover
        Raster that labels the tiles of scenes.
    marks
        File of right and wrong marks that labels the tiles of scenes, in place of the raster.
    block_tiles
        Tiles on a side of a block of neighbouring tiles that share a split.
    extend
        How `skysift dataset extend` labels the tiles of an archive.
    suggest
        Which tiles `skysift dataset suggest` chooses.
    """

    uri: str | Location | None = None
    importer: str = "folder"
    importer_options: Mapping[str, Any] = field(default_factory=dict)
    source: str | Location | None = None
    table: str = "labels.csv"
    add_to: str | Location | None = None
    min_share: Fraction = 0.01
    tile_px: Count | None = None
    bands: tuple[str, ...] = _RGB
    resolution_m: Positive | None = None
    split: SplitRule = SplitRule()
    landcover: LandcoverSection = LandcoverSection()
    marks: str | Location | None = None
    block_tiles: Count = 4
    extend: ExtendSection = ExtendSection()
    suggest: SuggestSection = SuggestSection()


@section_of(TrainingSpec)
class TrainingSection(Section):
    """A training run: its folder and its settings.

    Attributes
    ----------
    appearance
        Width of an appearance part before the trained vectors, or with ``place_pairs`` of a part
        that learns from these pairs alone; the encoder of two parts is in ``two-parts`` of the
        output. None for an encoder of one part.
    blend
        With ``appearance``: its weight in a search that names none, from 0 to 1; None for 0.15, or
        for 0.5 where the part has learned places.
    place_weight
        Weight of the loss of place pairs in the training of the label head; None for 0.25, or for 0
        with ``appearance``, where a part of their own learns from the pairs.
    output
        Folder of the run: bundle, checkpoints, logs.
    """

    output: str | Location | None = None
    appearance: Count | None = None
    blend: Fraction | None = None
    place_weight: NonNegative | None = None


@section_of(EncoderSpec, without=("classes", "loss", "training", "text"))
class EncoderSection(Section):
    """The encoder: its bundle, and the settings of `skysift encoder make`.

    Attributes
    ----------
    bundle
        Folder of the encoder bundle.
    pretrained
        Folder of the backbone's weights, or their id on the model hub; None for random weights.
    trained
        Bundle of a trained encoder: its vectors become the label part, with an appearance part
        before them; None for an encoder of one part.
    place_pairs
        With ``trained``: archive, or catalog of scenes, of several dates of the same ground. The
        part before is then a head that learns from the pairs of acquisitions of a tile, which
        ``training.place_cloud``, ``place_season_days``, ``most_places`` and ``place_batch`` choose.
    appearance
        With ``trained``: width of the part before.
    blend
        With ``trained``: weight of the part before in a search that names none, from 0 to 1; None
        for 0.15, or for 0.5 where the part has learned places.
    seed
        Seed of the weights that are drawn.
    prompt
        Text that words are put into before an encoder with a text tower embeds them, with ``{}`` at
        their place, such as ``a satellite image of {}``.
    """

    bundle: str | Location | None = None
    pretrained: str | None = None
    trained: str | Location | None = None
    place_pairs: str | None = None
    appearance: Count = 128
    blend: Fraction | None = None
    seed: int = 0
    prompt: str = "{}"
    backbone: str = "mobilenet_v2"
    bands: tuple[str, ...] = _RGB
    tile_px: Count = 64
    dimension: Count = 128
    head: Mapping[str, Any] = field(default_factory=lambda: {"kind": "identity"})


@dataclass(frozen=True, kw_only=True, slots=True)
class ArchiveSection:
    """The embedding archive.

    Attributes
    ----------
    uri
        URI of the archive.
    snapshot
        Commit or tag to read; None for the newest.
    """

    uri: str | Location | None = None
    snapshot: str | None = None


@section_of(IngestSpec, without=("catalog", "encoder_uri", "archive_uri", "grid", "rules"))
class IngestSection(Section):
    """How an ingest works."""


@section_of(IndexSpec)
class IndexSection(Section):
    """A search index: its folder and its settings.

    Attributes
    ----------
    uri
        Folder of the index's versions.
    """

    uri: str | Location | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSection:
    """How searches are made.

    Attributes
    ----------
    k
        Number of hits of a query.
    replicas
        Nodes that hold a copy of each shard.
    filter
        Which rows may be returned.
    """

    k: Count = 10
    replicas: Count = 1
    filter: Filter = Filter()


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateSection:
    """How retrieval is scored.

    Attributes
    ----------
    k
        Depth of nDCG@k, WAP@k and similar metrics.
    same_place_k
        Depths at which other acquisitions of a tile count.
    split
        Split of the dataset whose images are queries.
    most_queries
        Largest number of queries, drawn by `seed`.
    seed
        Seed of that draw.
    """

    k: Count = 50
    same_place_k: tuple[Count, ...] = (1, 5, 10)
    split: Literal["train", "val", "test"] = "test"
    most_queries: Count = 2000
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class ServiceSection:
    """How searches are answered over HTTP.

    Attributes
    ----------
    host
        Address to listen on.
    port
        Port to listen on.
    token
        Secret that every request must carry; required beyond this machine. Several with commas
        between them are all accepted, so that one can be replaced.
    access
        File of tokens with their rights on the indexes and their quotas; read again on change.
    indexes
        Locations of further indexes by their names in addresses, beside index.uri.
    max_k
        Largest number of hits of one answer.
    max_body_bytes
        Largest request.
    max_image_px
        Most pixels of an uploaded picture, at four bands.
    request_timeout_s
        Seconds after which a request is given up.
    rate_per_s
        Requests a second that one client may make on average; 0 does not limit.
    burst
        Requests that one client may make at once.
    replicas
        Processes that answer.
    thumbnail_cache_bytes
        Size of the pictures of tiles that each process keeps.
    searches
        Folder of saved searches (.json), each of which is a layer of the default index; its
        subfolder NAME has those of the index NAME.
    base_map
        URL template of raster tiles below the map, such as https://host/{z}/{x}/{y}.png. None by
        default, and nothing foreign is loaded then.
    base_map_attribution
        Whom the tiles below the map are from.
    cors_origins
        Other web pages that may call the API, such as https://maps.example.org.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Ge(0), Le(65535)] = 8000
    token: str | None = field(default=None, repr=False)
    access: str | None = None
    indexes: Mapping[str, str] = field(default_factory=dict)
    max_k: Count = 1000
    max_body_bytes: Count = 16 * 1024 * 1024
    max_image_px: Count = 16 * 1024 * 1024
    request_timeout_s: Positive = 60.0
    rate_per_s: NonNegative = 50.0
    burst: Count = 300
    replicas: Count = 1
    thumbnail_cache_bytes: Count = 64 * 1024 * 1024
    searches: str | None = None
    base_map: str | None = None
    base_map_attribution: str = ""
    cors_origins: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """All settings of a run: its inputs, its outputs and their places."""

    __pydantic_config__ = {"extra": "forbid"}

    name: str | None = None
    description: str | None = None
    storage: StorageOptions = StorageOptions()
    cluster: ClusterSection = ClusterSection()
    catalog: CatalogSection = CatalogSection()
    grid: GridSpec = GridSpec()
    tiles: TileRules = TileRules()
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


def key_at(dotted: str) -> Key:
    """Return the key of a recipe with a name such as ``catalog.query.since``.

    Raises
    ------
    KeyError
        A recipe has no such key.
    """
    *above, last = dotted.split(".")
    section: Any = Recipe
    for name in above:
        section = section_in(keys_of(section)[name].annotation)
    return keys_of(section)[last]
