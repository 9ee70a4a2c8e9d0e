"""What an ingest is asked to do, would do and did: plain frozen values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.tiles.spec import GridSpec, TileRules
from storage.archive.spec import ArchiveSpec
from storage.scene import CatalogSpec, Rejected, Scene
from storage.values import Count, Positive, check_limits


@dataclass(frozen=True, kw_only=True, slots=True)
class IngestSpec:
    """What to embed, with what, into where.

    Attributes
    ----------
    catalog, encoder_uri, archive_uri
        Which scenes, with which bundle, into which archive.
    grid, rules
        How scenes are cut (None: the encoder's own tile size and resolution); which tiles count.
    labels_uri
        A table of tile labels to store beside the vectors.
    retry_quarantined
        Try the scenes again that an earlier run quarantined.
    batch_tiles
        Tiles embedded at once.
    segment_rows
        A segment is written when this many rows of finished scenes are waiting.
    commit_interval_s
        Seconds between commits; a killed run loses at most this much work.
    """

    catalog: CatalogSpec
    encoder_uri: str
    archive_uri: str
    grid: GridSpec | None = None
    rules: TileRules = field(default_factory=TileRules)
    labels_uri: str | None = None
    retry_quarantined: bool = False
    batch_tiles: Count = 16
    segment_rows: Count = 8192
    commit_interval_s: Positive = 120.0

    def __post_init__(self) -> None:
        check_limits(self, "ingest")


@dataclass(frozen=True, kw_only=True, slots=True)
class IngestPlan:
    """What a run would do: pure, printable, made before anything is written."""

    spec: IngestSpec
    archive: ArchiveSpec
    grid: GridSpec
    todo: tuple[Scene, ...]
    rejected: tuple[Rejected, ...]
    reprocessed: tuple[str, ...]
    done: int

    def summary(self) -> dict[str, Any]:
        """Return the plan as plain values, for printing."""
        return {
            "archive": self.spec.archive_uri,
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
    """What a run did; ``quarantined`` maps scene ids to reasons."""

    snapshot: str
    embedded: int
    empty: int
    quarantined: Mapping[str, str]
    done_before: int
    rows: int
    seconds: float
