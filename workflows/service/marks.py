"""Marks over HTTP: tiles to mark next, detections, saved searches; their messages and answers.

A query with its marks is that of a search (:class:`workflows.service.schema.AskBody`). The
mathematics is in :mod:`pipeline.search.marks`.
"""

from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline.search.detections import REVIEWED, THRESHOLD, calibration_of, detect, marked_tiles
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
    QueryAnswer,
)

Threshold = Annotated[
    float, Field(gt=0, lt=1, description="Least probability of a detection, between 0 and 1.")
]
Review = Annotated[
    int, Field(ge=0, le=1_000, description="Tiles to review, nearest to the threshold.")
]
Interval = Annotated[
    tuple[float, float], Field(description="Range over resampled marks: nine in ten lie in it.")
]


class SuggestBody(AskBody):
    """Marks, and how many tiles to mark next."""

    k: int = Field(10, ge=1, le=1_000, description="Tiles to mark next.")


class DetectBody(AskBody):
    """Marks, at least ten of them with three of each kind, and a threshold."""

    threshold: Threshold = THRESHOLD
    review: Review = REVIEWED
    k: int = Field(1_000, ge=1, le=2**31 - 1, description="Most detections in the answer.")


class SaveBody(AskBody):
    """A query with its marks, and how it is answered when it runs again."""

    title: str = Field("", max_length=512, description="For people; the query in words without.")
    k: int = Field(100, ge=1, le=2**31 - 1, description="Most hits.")
    threshold: Threshold | None = Field(
        None, description="Its hits are the detections; needs ten marks, three of each kind."
    )
    review: Review = REVIEWED


class ExpectedBody(Message):
    """Expectation at the threshold among the tiles without a mark, as far as the marks tell."""

    rows: int = Field(description="Tiles at or above the threshold.")
    right: float = Field(description="Those of them that are right.")
    precision: float = Field(description="Share of the tiles at or above it that are right.")
    precision_interval: Interval
    recall: float = Field(description="Share of the right tiles that are at or above it.")
    recall_interval: Interval


class MarkBody(HitBody):
    """A tile and its mark."""

    mark: Literal["right", "wrong"] | None


class DetectionBody(MarkBody):
    """A tile with the probability that it is right, and its mark."""

    probability: float


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
    filter: dict[str, Any] = Field(description="Conditions on the hits, as in a search.")


def detections(
    searcher: Searcher, query: Query, body: DetectBody, where: Filter, about: dict[str, Any]
) -> DetectionsAnswer:
    """Return the places that marks ask for; ``about`` are the fields of every answer."""
    found = detect(searcher, query, threshold=body.threshold, where=where, review=body.review)
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
    )


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
    settings = {"title": body.title or query.label, "k": body.k, "review": body.review}
    if body.threshold is None:
        return SavedSearch.of(searcher, query, where, **settings)
    calibration = calibration_of(searcher, query)
    search = SavedSearch.of(searcher, query, where, calibration=calibration, **settings)
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
        filter=dict(search.filter),
    )


def _example(mark: Query) -> ExampleBody:
    return ExampleBody(tile=str(mark.tile), scene=mark.scene)
