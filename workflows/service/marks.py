"""Marks over HTTP: tiles to mark next, detections, accuracy checks, saved searches.

A query with its marks is that of a search (:class:`workflows.service.schema.AskBody`). The
mathematics is in :mod:`pipeline.search.marks`.
"""

from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline.search.accuracy import LEAST_CHECKED, Check, CheckedTile
from pipeline.search.detections import REVIEWED, THRESHOLD, calibration_of, detect, marked_tiles
from pipeline.search.marks import Stratum
from pipeline.search.query import Query, QueryResolver
from pipeline.search.saved import SavedSearch, marks_in, read_search
from pipeline.search.searcher import Searcher
from storage.errors import ConfigError
from storage.formats import hit_records
from storage.index.filter import Filter
from workflows.service.schema import (
    MAX_EXAMPLES,
    AskBody,
    ExampleBody,
    HitBody,
    Message,
    Name,
    QueryAnswer,
)

Threshold = Annotated[
    float, Field(gt=0, lt=1, description="Least probability of a detection, between 0 and 1.")
]
Review = Annotated[
    int, Field(ge=0, le=1_000, description="Tiles to review, nearest to the threshold.")
]
Interval = Annotated[tuple[float, float], Field(description="It holds the figure 9 times in 10.")]
Below = Annotated[
    int | None,
    Field(
        ge=0,
        le=2**53,
        description="Tiles less probable than those in question; None where they were not counted.",
    ),
]
Mark = Annotated[Literal["right", "wrong"] | None, Field(description="None before it is given.")]


class StratumBody(Message):
    """Tiles of similar probability, from which those of a check are drawn."""

    rows: int = Field(ge=1, description="All of them.")
    lowest: float = Field(ge=0, le=1, description="Their least probability.")
    expected: float = Field(ge=0, le=1, description="Share that is expected to be right.")


class CheckedTileBody(Message):
    """A tile of a check."""

    tile: Name = Field(description="Its key.")
    scene: Name
    stratum: int = Field(ge=1, description="Number of its stratum, from 1.")
    probability: float = Field(ge=0, le=1)
    mark: Mark = None


class CheckBody(Message):
    """An accuracy check: tiles that were drawn at random from strata, and their marks."""

    strata: list[StratumBody] = Field(
        min_length=1, max_length=16, description="Those at or above the threshold come first."
    )
    tiles: list[CheckedTileBody] = Field(max_length=1_000)
    below: Below = None

    def plain(self) -> Check:
        """Return the check.

        Raises
        ------
        ConfigError
            A tile is there twice, or of no stratum.
        """
        return Check(
            strata=tuple(Stratum(**one.model_dump()) for one in self.strata),
            tiles=tuple(CheckedTile(**one.model_dump()) for one in self.tiles),
            below=self.below,
        )


class AccuracyBody(Message):
    """Precision, recall and F1 at a threshold, among the tiles that were in question."""

    threshold: float
    rows: int = Field(description="Tiles at or above the threshold.")
    precision: float
    precision_interval: Interval
    recall: float = Field(description="Share of the right tiles in question that are there.")
    recall_interval: Interval
    f1: float
    f1_interval: Interval


class AccuracyAnswer(Message):
    """What a check measures, at the threshold first and then at lower ones."""

    tiles: int
    marked: int = Field(description="Tiles of the check with a mark.")
    below: Below
    scope: str = Field(
        description="Which tiles the figures are of, and how many they leave out, for people."
    )
    accuracy: list[AccuracyBody] = Field(
        description="The last is of all tiles in question: those without a mark of the query whose "
        "probability is 1 % or more."
    )


class SuggestBody(AskBody):
    """Marks, and how many tiles to mark next."""

    k: int = Field(10, ge=1, le=1_000, description="Tiles to mark next.")


class DetectBody(AskBody):
    """Marks, at least ten of them with three of each kind, and a threshold."""

    threshold: Threshold = THRESHOLD
    review: Review = REVIEWED
    k: int = Field(1_000, ge=1, le=2**31 - 1, description="Most detections in the answer.")
    check: int | None = Field(
        None, ge=LEAST_CHECKED, le=1_000, description="Draw as many tiles for an accuracy check."
    )
    checked: CheckBody | None = Field(
        None, description="A check from before; in the answer, if it is one of these detections."
    )


class SaveBody(AskBody):
    """A query with its marks, and how it is answered when it runs again."""

    title: str = Field("", max_length=512, description="For people; the query in words without.")
    k: int = Field(100, ge=1, le=2**31 - 1, description="Most hits.")
    threshold: Threshold | None = Field(
        None, description="Its hits are the detections; needs ten marks, three of each kind."
    )
    review: Review = REVIEWED
    check: CheckBody | None = Field(None, description="The accuracy check of its detections.")


class ExpectedBody(Message):
    """What the marks let expect at the threshold among the tiles without a mark.

    It is no measurement: an accuracy check makes one.
    """

    rows: int = Field(description="Tiles at or above the threshold.")
    right: float = Field(description="Those of them that are right.")
    precision: float = Field(description="Share of the tiles at or above it that are right.")
    recall: float = Field(description="Share of the right tiles that are at or above it.")


class MarkBody(HitBody):
    """A tile and its mark."""

    mark: Literal["right", "wrong"] | None


class DetectionBody(MarkBody):
    """A tile with the probability that it is right, and its mark."""

    probability: float


class DrawnTile(DetectionBody):
    """A tile of an accuracy check, and whether it is a detection."""

    stratum: int
    detected: bool


class DrawnCheck(Message):
    """An accuracy check, its tiles in the order in which they are marked."""

    strata: list[StratumBody]
    tiles: list[DrawnTile]
    below: Below
    measured: AccuracyAnswer


class DetectionsAnswer(QueryAnswer):
    """Detections, the best first, and the tiles to review, nearest to the threshold first."""

    threshold: float
    expected: ExpectedBody
    total: int = Field(description="All detections; the answer has the best `k`.")
    truncated: bool = Field(
        description="Whether more tiles have a probability of 1 % or more than were looked at."
    )
    hits: list[DetectionBody] = Field(description="The detections.")
    review: list[DetectionBody]
    check: DrawnCheck | None = None


class MarksAnswer(Message):
    """The marks that are tiles of the archive, the most like the query first."""

    query: str = Field(description="Description of the query, for people.")
    marks: list[MarkBody]


class OpenedSearch(Message):
    """A saved search as a query of this service."""

    title: str
    positive: list[ExampleBody]
    negative: list[ExampleBody]
    left_out: int = Field(
        description="Marks that are no tiles of this archive, such as pictures and words."
    )
    threshold: float | None
    review: int
    blend: float | None = Field(
        description="Weight of appearance against labels; None where the vector has one part or "
        "was learned from marks."
    )
    check: CheckBody | None
    filter: dict[str, Any] = Field(description="Conditions on the hits, as in a search.")


def detections(
    searcher: Searcher, query: Query, body: DetectBody, where: Filter, about: dict[str, Any]
) -> DetectionsAnswer:
    """Return the places that marks ask for; ``about`` are the fields of every answer."""
    found = detect(searcher, query, threshold=body.threshold, where=where, review=body.review)
    check = None if body.checked is None else body.checked.plain()
    if body.check is not None:
        check = Check.of(found, body.check)
    elif check is not None and not check.fits(found):
        check = None
    return DetectionsAnswer(
        **about,
        snapshot=found.hits.snapshot,
        version=found.hits.version,
        coverage=found.hits.coverage,
        threshold=found.threshold,
        expected=ExpectedBody(**asdict(found.expected)),
        total=int(found.detected.sum()),
        truncated=bool(found.hits.truncated),
        hits=[DetectionBody(**r) for r in hit_records(found.to_arrow(most=body.k))],
        review=[DetectionBody(**r) for r in hit_records(found.to_review())],
        check=None if check is None else _drawn(searcher, query, check),
    )


def _drawn(searcher: Searcher, query: Query, check: Check) -> DrawnCheck:
    table = check.to_arrow(searcher, query)
    of_all = [name for name in table.column_names if name.startswith(("stratum_", "rows_below"))]
    table = table.drop_columns(of_all)
    return DrawnCheck(
        strata=[StratumBody(**asdict(one)) for one in check.strata],
        tiles=[DrawnTile(**record) for record in hit_records(table)],
        below=check.below,
        measured=AccuracyAnswer(**check.summary()),
    )


def measured(body: CheckBody) -> AccuracyAnswer:
    """Return what an accuracy check measures.

    Raises
    ------
    ConfigError
        A tile is there twice, or of no stratum.
    """
    return AccuracyAnswer(**body.plain().summary())


def marks_of_query(searcher: Searcher, query: Query) -> MarksAnswer:
    """Return the marks of a query that are tiles of the archive."""
    records = hit_records(marked_tiles(searcher, query))
    return MarksAnswer(query=query.label, marks=[MarkBody(**record) for record in records])


def saved(searcher: Searcher, query: Query, body: SaveBody, where: Filter) -> SavedSearch:
    """Return a query as a saved search; with a threshold it has a calibration.

    Raises
    ------
    ConfigError
        There is a threshold, and there are too few marks.
    """
    settings: dict[str, Any] = {
        "title": body.title or query.label,
        "k": body.k,
        "review": body.review,
    }
    check = None if body.check is None else body.check.plain()
    if body.threshold is None:
        return SavedSearch.of(searcher, query, where, **settings)
    calibration = calibration_of(searcher, query)
    search = SavedSearch.of(
        searcher, query, where, calibration=calibration, check=check, **settings
    )
    return search.at(body.threshold)


def opened(document: bytes, resolver: QueryResolver) -> OpenedSearch:
    """Return a saved search as a query of an index.

    Raises
    ------
    ConfigError
        It is not a saved search, or has no marks, or more than a request may have.
    EncoderMismatchError, NotFoundError
        It is of another encoder, and a mark has no place, or the archive no tile there.
    """
    search = read_search(document, "the file")
    most = 2 * MAX_EXAMPLES
    if not 0 < len(search.marks) <= most:
        raise ConfigError(
            f"the saved search has {len(search.marks):,} marks, and the map shows 1 to {most:,}; "
            "run it with `skysift search --saved FILE`"
        )
    groups = marks_in(search, resolver)
    right, wrong = ([_example(one) for one in group if one.row is not None] for group in groups)
    return OpenedSearch(
        title=search.title,
        positive=right,
        negative=wrong,
        left_out=len(search.marks) - len(right) - len(wrong),
        threshold=search.threshold,
        review=search.review,
        blend=search.blend,
        check=None if search.check is None else CheckBody(**asdict(search.check)),
        filter=dict(search.filter),
    )


def _example(mark: Query) -> ExampleBody:
    return ExampleBody(tile=str(mark.tile), scene=mark.scene)
