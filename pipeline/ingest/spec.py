"""The request, the plan and the report of an ingest: plain frozen values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from encoders.spec import EncoderSpec
from pipeline.tiles.spec import GridSpec, TileRules
from storage.archive.spec import ArchiveSpec
from storage.display import Described
from storage.location import Location
from storage.scene import CatalogSpec, Rejected, Scene
from storage.values import Count, NonNegative, as_spec, check_limits

if TYPE_CHECKING:
    from pipeline.analysis.landcover import TileLabels
    from storage.archive.reader import Archive


@dataclass(frozen=True, kw_only=True, slots=True)
class IngestSpec:
    """Which scenes to embed, with which encoder, into which archive.

    Attributes
    ----------
    catalog, encoder_uri, archive_uri
        The scenes, the encoder bundle and the archive. The catalog may be given by its source
        alone; catalog, grid and rules also as mappings of their fields.
    grid
        How scenes are cut; None for the encoder's tile size and resolution.
    rules
        Which tiles are kept.
    labels_uri
        A table of tile labels to store beside the vectors.
    retry_quarantined
        Try the scenes again that an earlier run quarantined.
    batch_tiles
        Tiles embedded at once.
    segment_rows
        A segment is written when this many rows of finished scenes are waiting.
    commit_interval_s
        Seconds between commits, 0 for every scene; a killed run loses at most this much work.
    """

    catalog: CatalogSpec
    encoder_uri: str | Location
    archive_uri: str | Location
    grid: GridSpec | None = None
    rules: TileRules = field(default_factory=TileRules)
    labels_uri: str | Location | None = None
    retry_quarantined: bool = False
    batch_tiles: Count = 16
    segment_rows: Count = 8192
    commit_interval_s: NonNegative = 120.0

    def __post_init__(self) -> None:
        settle = object.__setattr__  # the way to set a field of a frozen value
        settle(self, "catalog", CatalogSpec.of(self.catalog))
        if self.grid is not None:
            settle(self, "grid", as_spec(GridSpec, self.grid, "ingest: grid"))
        settle(self, "rules", as_spec(TileRules, self.rules, "ingest: rules"))
        check_limits(self, "ingest")


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedEncoder:
    """The encoder of a plan: its description, and the fingerprint over both bundle files.

    ``version`` changes when a file of the bundle is replaced; see
    :func:`pipeline.ingest.driver.read_encoder`.
    """

    spec: EncoderSpec
    fingerprint: str
    version: str


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class IngestPlan(Described):
    """The work of a run: printable, made before anything is written.

    Attributes
    ----------
    archive, grid
        Attributes of the archive, and the grid with the tile size filled in.
    encoder, labels
        The bundle without its weights and the table of tile labels, as planning read them.
    existing
        The archive at the snapshot that the plan was compared with; None before it is made.
    todo, rejected
        Scenes to embed, and catalog entries to quarantine.
    reprocessed
        Ids of those scenes in ``todo`` that the archive holds in an older version.
    done
        How many scenes of the catalog the archive holds already.
    """

    spec: IngestSpec
    archive: ArchiveSpec
    grid: GridSpec
    encoder: PlannedEncoder
    labels: "TileLabels | None" = field(default=None, repr=False)
    existing: "Archive | None" = field(default=None, repr=False)
    todo: tuple[Scene, ...]
    rejected: tuple[Rejected, ...]
    reprocessed: tuple[str, ...]
    done: int

    def facts(self) -> dict[str, Any]:
        """Return the plan's summary with the scenes that are rejected counted."""
        summary = self.summary()
        return {
            **{name.replace("_", " "): value for name, value in summary.items()},
            "scenes rejected": len(self.rejected),
        }

    def summary(self) -> dict[str, Any]:
        """Return the plan as plain values, for printing."""
        return {
            "archive": str(self.spec.archive_uri),
            "encoder": self.archive.encoder_fingerprint[:16],
            "bands": list(self.archive.bands),
            "tile_px": self.archive.tile_px,
            "grid": {"crs": self.grid.crs, "resolution": self.grid.resolution},
            "scenes_to_embed": len(self.todo),
            "scenes_reprocessed": len(self.reprocessed),
            "scenes_done_before": self.done,
            "scenes_rejected": {item.scene_id: item.reason for item in self.rejected},
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class IngestReport:
    """Result of a run; ``quarantined`` maps scene ids to reasons."""

    snapshot: str
    embedded: int
    empty: int
    quarantined: Mapping[str, str]
    done_before: int
    rows: int
    seconds: float
