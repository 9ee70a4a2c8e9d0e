"""The messages of the HTTP API: requests and answers, as OpenAPI shows them.

Requests are strict: a number in quotes is not a number.
"""

import datetime as dt
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, model_validator

Degrees = Annotated[float, Field(allow_inf_nan=False)]
Longitude = Annotated[float, Field(ge=-180, le=180)]
Latitude = Annotated[float, Field(ge=-90, le=90)]
Box = tuple[Longitude, Latitude, Longitude, Latitude]
Moment = dt.datetime | dt.date
Name = Annotated[str, Field(min_length=1, max_length=512)]

Bounds = Annotated[
    list[float],
    Field(min_length=4, max_length=4, description="West, south, east, north in WGS84 degrees."),
]

Geometry = Annotated[
    dict[str, Any], Field(description="The footprint: a GeoJSON geometry in WGS84 degrees.")
]

QUERIES = ("vector", "lonlat", "tile", "box", "text", "image_base64")
MAX_EXAMPLES = 1_000
_TILE = "epsg32648-10-64/4/7"


class Message(BaseModel):
    """An answer, or parameters of an address."""

    model_config = ConfigDict(extra="forbid")


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class FilterBody(_Request):
    """Conditions on the hits; all given conditions must hold."""

    bbox: Box | None = Field(
        None, description="West, south, east, north in WGS84 degrees; west > east crosses 180°."
    )
    polygon: dict[str, Any] | None = Field(
        None,
        description="GeoJSON: a geometry, Feature or FeatureCollection, whose polygons are joined; "
        "WGS84, or the CRS that its member crs names by a code.",
    )
    since: Moment | None = Field(None, description="First acquisition time; UTC without a zone.")
    until: Moment | None = Field(
        None, description="Last acquisition time; UTC without a zone. A date includes that day."
    )
    max_cloud_fraction: float | None = Field(None, ge=0, le=1)
    scenes: list[Name] = Field([], max_length=10_000)
    labels: list[Name] = Field([], max_length=1_000)


class ExampleBody(_Request):
    """A tile of the archive as a positive or negative example."""

    tile: Name = Field(description="Its key.")
    scene: Name | None = Field(None, description="The scene it is of; the newest without.")


class AskBody(_Request):
    """A query: one of ``text``, ``vector``, ``lonlat``, ``tile``, ``box``, an image; marks.

    With ``positive`` marks the query may be left out; beside marks it counts as a right one.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"positive": [{"tile": _TILE}], "negative": [{"tile": "epsg32648-10-64/5/7"}]}
            ]
        },
    )

    vector: list[Degrees] | None = Field(None, min_length=1, max_length=65_536)
    lonlat: tuple[Longitude, Latitude] | None = Field(
        None, description="The tile of the archive at this place."
    )
    date: Moment | None = Field(None, description="With lonlat: the acquisition nearest to this.")
    tile: Name | None = Field(None, description="The key of a tile of the archive.")
    scene: Name | None = Field(None, description="With tile: of this scene.")
    box: Box | None = Field(
        None, description="The mean of the tiles in this box, of all dates; at most 1,000 tiles."
    )
    text: Name | None = Field(
        None, description="Words, where the index's `words` says that the encoder embeds them."
    )
    image_base64: str | None = Field(None, description="A PNG, JPEG or GeoTIFF file, in base64.")
    bands: list[Annotated[int, Field(ge=0, le=65_535)]] | None = Field(
        None,
        min_length=1,
        max_length=1_000,
        description="With an image: its band, from 1, for each of the encoder's; 0 fills the band "
        "with the encoder's mean.",
    )
    positive: list[ExampleBody] = Field(
        [], max_length=MAX_EXAMPLES, description="Tiles that are marked as right."
    )
    negative: list[ExampleBody] = Field(
        [], max_length=MAX_EXAMPLES, description="Tiles that are marked as wrong."
    )
    blend: float | None = Field(
        None,
        ge=0,
        le=1,
        description="For an encoder of two parts: the weight of appearance against labels, from 0 "
        "(labels only) to 1 (appearance only); the encoder's without.",
    )
    filter: FilterBody = FilterBody()

    @model_validator(mode="after")
    def _one_query(self, info: ValidationInfo) -> Self:
        given = [name for name in QUERIES if getattr(self, name) is not None]
        given += info.context or []  # the image of a form
        if len(given) > 1 or not (given or self.positive):
            raise ValueError(
                f"give exactly one of {', '.join(QUERIES)}, or positive examples"
                + (f", not {' and '.join(given)}" if given else "")
            )
        if self.date is not None and self.lonlat is None:
            raise ValueError("date goes with lonlat")
        if self.scene is not None and self.tile is None:
            raise ValueError("scene goes with tile")
        if self.bands is not None and not {"image", "image_base64"} & set(given):
            raise ValueError("bands go with an image")
        return self


class SearchBody(AskBody):
    """A query, and how many hits it has. Rows of the query are not among them."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"lonlat": [103.75, 17.92], "k": 5},
                {"text": "solar farm in desert", "k": 5},
                {"tile": _TILE, "filter": {"max_cloud_fraction": 0.1}},
                {"positive": [{"tile": _TILE}], "negative": [{"tile": "epsg32648-10-64/5/7"}]},
            ]
        },
    )

    k: int = Field(10, ge=1, le=2**31 - 1)
    distinct: Literal["place"] | None = Field(
        None, description="`place`: one hit for each of k places, with every date of it inside."
    )


class DateBody(Message):
    """One acquisition of the place of a hit."""

    score: float
    row: int
    scene: str
    datetime: dt.datetime
    cloud_fraction: float


class HitBody(Message):
    """One hit: a tile of one acquisition."""

    rank: int
    score: float = Field(description="Cosine similarity, -1 to 1.")
    closer_than: float | None = Field(
        None,
        description="Share of random pairs of tiles of the archive with a lower score; at most "
        "0.9999. None for words, and where the index does not know; `skysift index update` adds "
        "it.",
    )
    row: int = Field(description="The row's id in the archive.")
    tile_key: str
    scene: str
    datetime: dt.datetime
    cloud_fraction: float
    labels: list[str]
    bbox: Bounds
    geometry: Geometry
    dates: list[DateBody] = Field(
        [], description="With `distinct`: the acquisitions of the place, most alike first."
    )


class QueryAnswer(Message):
    """The query of an answer, and the versions and coverage of the search."""

    query: str = Field(description="Description of the query, for people.")
    tile: str | None = Field(
        None, description="Key of the tile that was searched with, if one was."
    )
    scene: str | None = Field(None, description="With tile: its scene.")
    snapshot: str = Field(description="Archive snapshot that the index was built from.")
    version: str = Field(description="Index version that answered.")
    coverage: float = Field(description="Fraction of the index's shards that answered.")
    note: str = Field(
        "", description="What to know about the hits, such as that the picture has no contrast."
    )
    blend: float | None = Field(
        None,
        description="The weight of appearance in the query; None where its vector has one part, or "
        "was learned from marks.",
    )
    learned: bool = Field(
        description="Whether the query was learned from marks, as it is from ten on; with fewer it "
        "is the mean of the right ones less half the mean of the wrong ones."
    )
    like: str = Field(description="The query's vector as text, for /v1/scores.")


class SearchAnswer(QueryAnswer):
    """Hits in order."""

    ordinary: bool = Field(
        description="Whether nothing is like the query: its best hit is no more alike than random "
        "tiles of the archive are."
    )
    hits: list[HitBody]


class PlaceFilterBody(_Request):
    """Conditions on changes; all given conditions must hold."""

    # Not strict: the framework has turned JSON into lists, which strict tuples refuse.
    bbox: Box | None = Field(None, strict=False, description="Rank only places in this box.")
    polygon: dict[str, Any] | None = Field(None, description="Rank only places in this area.")
    max_cloud_fraction: float | None = Field(None, ge=0, le=1, description="Of both tiles.")
    scenes: list[Name] = Field([], max_length=10_000, description="Of both tiles.")
    labels: list[Name] = Field([], max_length=1_000, description="Of the later tile.")


Period = Annotated[str, Field(min_length=4, max_length=100)]


class ChangeQuery(_Request):
    """Two periods: a year, month or day, or START/END, where `..` is an open end."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"before": "2019-06/2019-08", "after": "2024-06/2024-08", "k": 5}]
        },
    )

    before: Period
    after: Period
    toward: str | None = Field(
        None,
        min_length=2,
        max_length=175_000,
        description="`like` of the answer to a search: rank by how much more alike to it places "
        "became.",
    )
    blend: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Without `toward`, for an encoder of two parts: the weight of appearance "
        "against labels; the encoder's without.",
    )
    k: int = Field(10, ge=1, le=2**31 - 1)
    min_score: float | None = Field(None, allow_inf_nan=False)
    filter: PlaceFilterBody = PlaceFilterBody()


class ChangeBody(Message):
    """A place at two periods; tile, scene, labels and place are those of the later tile."""

    rank: int
    score: float = Field(description="Robust standard deviations of `moved` above `usual`.")
    moved: float = Field(
        description="Degrees between the two vectors, each less the mean of its date (0 to 180); "
        "with `toward`, the gain in similarity (-2 to 2)."
    )
    usual: float = Field(description="Median of `moved` over the pairs of the same dates.")
    pairs: int = Field(description="Pairs that the place is judged by.")
    row: int = Field(description="The row's id in the archive.")
    tile_key: str
    scene: str
    datetime: dt.datetime
    cloud_fraction: float
    labels: list[str]
    before_row: int
    before_scene: str
    before_datetime: dt.datetime
    before_cloud_fraction: float
    bbox: Bounds
    geometry: Geometry


class ChangeAnswer(Message):
    """Changes in order, the largest first."""

    query: str = Field(description="Description of the query, for people.")
    snapshot: str = Field(description="Archive snapshot that was compared.")
    version: str = Field(description="Index version that pins it.")
    compared: int = Field(description="Pairs of tiles that were judged.")
    beyond: int = Field(description="Of them, those with a score of 3.5 or more.")
    unjudged: int = Field(description="Pairs without 30 others to judge them by.")
    changes: list[ChangeBody]


class AcquisitionBody(Message):
    """One acquisition of a tile."""

    scene: str
    datetime: dt.datetime
    row: int
    cloud_fraction: float
    labels: list[str]


class TileAnswer(Message):
    """A tile and every acquisition of it, oldest first."""

    snapshot: str
    version: str
    tile: str
    bbox: Bounds
    geometry: Geometry
    acquisitions: list[AcquisitionBody]


SceneState = Literal["embedded", "empty", "quarantined", "deleted"]


class ScenesQuery(Message):
    """A page of the ledger, and the state of its scenes."""

    offset: int = Field(0, ge=0, le=2**53)
    limit: int = Field(100, ge=1, le=1000)
    state: SceneState | None = None


class LookQuery(Message):
    """The bands and the brightness of a picture."""

    preset: Name | None = Field(
        None, description="Bands to show, one of the index's `presets`; the first without."
    )
    gamma: float = Field(1.0, ge=0.2, le=5, description="Above 1 brightens dark places.")


class MosaicQuery(LookQuery):
    """The period of a tile of the map, and its look."""

    since: Moment | None = Field(None, description="First acquisition time.")
    until: Moment | None = Field(
        None, description="Last acquisition time; a date includes that day."
    )


class ThumbnailQuery(LookQuery):
    """The scene, the size and the look of a picture of a tile."""

    scene: Name | None = Field(None, description="The scene to show; the newest without.")
    size: int = Field(128, ge=16, le=512, description="Pixels a side.")


class ScoresQuery(Message):
    """The vector that a map tile compares places with."""

    like: str = Field(
        min_length=2, max_length=175_000, description="`like` of the answer to a search."
    )


class SceneBody(Message):
    """The state of a scene.

    Its geometry is the hull of its tiles and its box encloses them; both are None without tiles.
    """

    scene: str
    state: SceneState
    reason: str
    rows: int
    datetime: dt.datetime | None
    bbox: Bounds | None = None
    geometry: Geometry | None = None


class ScenesAnswer(Message):
    """A page of the ledger."""

    snapshot: str
    total: int
    offset: int
    scenes: list[SceneBody]


class HealthAnswer(Message):
    """The process runs."""

    status: str = "ok"


class ReadyAnswer(Message):
    """The index is loaded and answers."""

    status: str = "ready"
    version: str
    snapshot: str
    rows: int


class NamedIndexBody(Message):
    """An index that a token may read."""

    name: str = Field(description="Its routes are at `/v1/{name}/`.")
    right: str = Field(description="`read`, `mark` or `admin`; each includes those before it.")


class IndexesAnswer(Message):
    """The indexes that a token may read."""

    default: str = Field(description="The index whose routes are at `/v1/` without a name too.")
    indexes: list[NamedIndexBody]


class PairsBody(Message):
    """Scores that shares of the random pairs of tiles do not reach; both ascending."""

    shares: list[float]
    scores: list[float]


class PresetBody(Message):
    """A choice of bands for pictures."""

    name: str
    title: str = Field(description="For people.")


class PartsBody(Message):
    """The parts of the vectors of an encoder of two parts."""

    appearance: int = Field(description="Width of the appearance part.")
    labels: int = Field(description="Width of the label part.")
    blend: float = Field(description="Weight of appearance in a query that names no `blend`.")


class IndexAnswer(Message):
    """Description of the index, for the map."""

    version: str
    snapshot: str
    rows: int
    dimension: int
    parts: PartsBody | None = Field(
        None, description="The parts of the vectors, for `blend`; None where there is one part."
    )
    bbox: Bounds
    since: dt.datetime
    until: dt.datetime
    classes: list[str]
    bands: list[str] = Field(description="The bands that the encoder needs of an image.")
    words: bool = Field(False, description="Whether the encoder embeds words: see `text`.")
    no_words_because: str = Field("", description="Why not; empty when it does.")
    pairs: PairsBody | None = Field(
        description="The scores between random tiles; None in an index of before."
    )
    pictures: bool = Field(description="Whether thumbnails can be drawn: the files are known.")
    no_pictures_because: str = Field("", description="Why not; empty when they can be drawn.")
    presets: list[PresetBody] = Field([], description="Bands that pictures can show.")
    mosaic_zoom: int = Field(0, description="Zoom at which the map has the scenes' own pixels.")
    max_k: int
    base_map: str | None = Field(description="URL template of a raster base map.")
    base_map_attribution: str


class ErrorBody(Message):
    """The reason why a request was refused."""

    error: str
    message: str
    bands: int | None = Field(
        None,
        description="Bands of the picture that was sent, where they are not those that the "
        "encoder needs: send `bands`.",
    )
