"""The settings of composites, as plain values."""

from dataclasses import dataclass, field

from pipeline.analysis.periods import PeriodKind
from pipeline.tiles.spec import GridSpec
from storage.location import Location
from storage.scene import CatalogSpec
from storage.values import Count, check_limits


@dataclass(frozen=True, kw_only=True, slots=True)
class CompositeSpec:
    """Which composites to make, and where.

    Parameters
    ----------
    catalog
        The acquisitions. Its query's ``bbox`` also bounds the composites.
    output_uri
        Folder of the composites; a STAC collection, so that it is a catalog itself.
    bands
        Bands of the composites, in their order.
    period
        ``month``, ``season`` (December to February, and so on) or ``year``, in UTC.
    grid
        CRS, resolution and anchor of the composites; ``native`` takes them from the scenes, and
        makes composites on each of their grids.
    name
        Beginning of the ids; give series that go into one archive different names.
    block_bytes
        Largest piece of the stack that one task holds.
    """

    catalog: CatalogSpec
    output_uri: str | Location
    bands: tuple[str, ...]
    period: PeriodKind = "month"
    grid: GridSpec = field(default_factory=GridSpec)
    name: str = "composite"
    block_bytes: Count = 128 * 1024 * 1024

    def __post_init__(self) -> None:
        check_limits(self, "composite")
