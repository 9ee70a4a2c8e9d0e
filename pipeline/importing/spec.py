"""The request, the plan and the report of an import: plain frozen values."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Protocol

from storage.archive.spec import ArchiveSpec, PublishedModel
from storage.dates import parse_moment
from storage.embeddings.layouts import Choice, Columns
from storage.geometry import BBox, check_bbox
from storage.location import Location
from storage.scene import Rejected
from storage.values import Count, Natural, NonNegative, PositiveFraction, check_limits

if TYPE_CHECKING:
    from pipeline.importing.places import PlacedRows
    from storage.archive.reader import Archive

_REMEMBERED = ("model", "version", "tile_px", "min_valid_fraction")


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportSpec:
    """Which published embeddings to import, and into which archive.

    Attributes
    ----------
    source
        A file, folder or glob of tables or GeoTIFFs, or a Zarr group.
    archive_uri
        The archive.
    choice
        What is stated about the source, in place of what it says.
    model, version
        Name and version of the model, in place of those of the layout or the footer.
    centre
        Subtract the product's mean before vectors are scaled to unit norm.
    sample_rows
        Rows from which the mean is taken, spread over the source.
    tile_px
        Side of a tile in pixels, over which pixel embeddings are averaged.
    min_valid_fraction
        Least share of a tile's pixels that hold data.
    bbox
        West, south, east, north in WGS84 degrees: only the blocks of a raster that touch the box.
    retry_quarantined
        Read the files again that an earlier run quarantined.
    segment_rows
        A segment is written when this many rows are waiting.
    commit_interval_s
        Seconds between commits, 0 for every file; a killed run loses at most this much work.
    """

    source: str | Location
    archive_uri: str | Location
    choice: Choice = field(default_factory=Choice)
    model: str = ""
    version: str = ""
    centre: bool = True
    sample_rows: Count = 16_384
    tile_px: Count = 32
    min_valid_fraction: PositiveFraction = 0.5
    bbox: BBox | None = None
    retry_quarantined: bool = False
    segment_rows: Count = 65_536
    commit_interval_s: NonNegative = 120.0

    def __post_init__(self) -> None:
        check_limits(self, "import")
        if self.bbox is not None:
            object.__setattr__(self, "bbox", check_bbox(self.bbox, "import"))


def stated_rules(spec: ImportSpec) -> dict[str, Any]:
    """Return what a person stated about a source as JSON values, for the archive to remember."""
    choice = spec.choice
    stated = asdict(choice) | {
        "columns": choice.columns and choice.columns.named,
        "date": choice.date and parse_moment(choice.date, "date").isoformat(),
    }
    return stated | {name: getattr(spec, name) for name in _REMEMBERED}


def as_before(spec: ImportSpec, archive: ArchiveSpec) -> ImportSpec:
    """Return a spec with what an archive remembers of its first import, where nothing is stated.

    The date of an earlier source says nothing about another source.
    """
    if archive.published is None:
        return spec
    before = import_spec(archive, spec.source, spec.archive_uri)
    stated = {f.name: getattr(spec.choice, f.name) for f in fields(Choice)}
    own = {name: value for name, value in stated.items() if value} | {"date": spec.choice.date}
    again = {name: getattr(before, name) for name in _REMEMBERED}
    if spec.model:
        again |= {"model": spec.model, "version": spec.version}
    return replace(spec, choice=replace(before.choice, **own), **again)


def import_spec(
    archive: ArchiveSpec, source: str | Location, archive_uri: str | Location
) -> ImportSpec:
    """Return the request of an archive's first import, for a source."""
    rules = dict(archive.rules)
    columns = rules["columns"] and Columns(**rules["columns"])
    names = ("layout", "date", "crs", "chip_m")
    return ImportSpec(
        source=source,
        archive_uri=archive_uri,
        choice=Choice(columns=columns, **{name: rules[name] for name in names}),
        **{name: rules[name] for name in _REMEMBERED},
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Unusable:
    """A file that cannot be imported, its name without suffix, and why."""

    place: Location
    name: str
    reason: str


class Source(Protocol):
    """A part of a source that is read in one go: rows of a table, or a block of a raster."""

    @property
    def scene_id(self) -> str:
        """The id in the ledger."""

    @property
    def fingerprint(self) -> str:
        """Changes when the content or the way to read it changes."""

    @property
    def rows(self) -> int:
        """Rows at most."""

    def read(self) -> "PlacedRows":
        """Read its vectors as published, with their tiles."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportPlan:
    """The work of a run: printable, made before anything is written.

    Attributes
    ----------
    archive, model
        Attributes of the archive, and the model of its vectors.
    layout
        Name of the layout, and its columns where it is one of tables.
    existing
        The archive at the snapshot that the plan was compared with; None before it is made.
    todo, rejected
        Parts to import, and files to quarantine.
    done, parts
        Parts that the archive holds already, and ids with fingerprints of all parts.
    sampled_rows
        Rows that the centre was computed from; 0 where the archive has one.
    """

    spec: ImportSpec
    archive: ArchiveSpec
    model: PublishedModel
    layout: str
    columns: Mapping[str, str]
    existing: "Archive | None" = field(default=None, repr=False)
    todo: tuple[Source, ...]
    rejected: tuple[Rejected, ...]
    done: int
    parts: Mapping[str, str] = field(repr=False)
    sampled_rows: Natural = 0

    @property
    def rows(self) -> int:
        """Rows of the parts to import, at most."""
        return sum(part.rows for part in self.todo)

    def summary(self) -> dict[str, Any]:
        """Return the plan as plain values, for printing."""
        row_bytes = 2 * self.model.dimension + 76
        return {
            "archive": str(self.spec.archive_uri),
            "model": self.model.name,
            "version": self.model.version,
            "dimension": self.model.dimension,
            "encoder": self.archive.encoder_fingerprint[:16],
            "layout": self.layout,
            "columns": dict(self.columns),
            "quantization": self.model.quantization,
            "centred": bool(self.model.centre),
            "sampled_rows": self.sampled_rows,
            "parts_to_import": len(self.todo),
            "parts_done_before": self.done,
            "parts_rejected": {item.scene_id: item.reason for item in self.rejected},
            "rows_at_most": self.rows,
            "archive_bytes": self.rows * row_bytes,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportReport:
    """Result of a run.

    ``quarantined`` maps scene ids to reasons; ``left_out`` maps reasons to the number of rows that
    were left out of imported scenes.
    """

    snapshot: str
    imported: int
    empty: int
    quarantined: Mapping[str, str]
    left_out: Mapping[str, int]
    done_before: int
    rows: int
    seconds: float
