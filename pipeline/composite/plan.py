"""Which composites a catalog makes: periods, extents and sources, before any pixel is read."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial, reduce
from typing import Any, TypeVar

from pipeline.analysis.periods import PERIODS, PeriodKind, period_of
from pipeline.composite.spec import CompositeSpec
from pipeline.composite.stack import Placed, place
from pipeline.tiles.grid import grid_crs, pixels_for_scene, window_of_bbox
from pipeline.tiles.read import local_revision, read_each
from pipeline.tiles.spec import GridSpec
from storage.catalog.read import read_scenes
from storage.catalog.stac_write import FINGERPRINT, is_sound, written_items
from storage.display import Described
from storage.errors import ConfigError
from storage.location import Location
from storage.quarantine import Quarantine, none_readable
from storage.raster.pixel_grid import PixelGrid, Window
from storage.scene import Scene
from storage.values import json_digest

logger = logging.getLogger(__name__)

T = TypeVar("T")

_TILE_PX = 256
_BLOCK_STEP_PX = 64
_LARGEST_BLOCK_PX = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Composite:
    """One composite to make: its period, its grid and window on it, and its sources."""

    id: str
    start: datetime
    end: datetime
    pixels: PixelGrid
    extent: Window
    placed: tuple[Placed, ...]
    fingerprint: str
    block_px: int


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class CompositePlan(Described):
    """Composites to make; ``unchanged`` ones exist already, made from the same sources.

    ``unmasked`` counts the scenes without a cloud mask, of all composites.
    """

    spec: CompositeSpec
    grids: tuple[PixelGrid, ...]
    todo: tuple[Composite, ...]
    unchanged: tuple[str, ...]
    left_out: Mapping[str, str]
    unmasked: int

    def facts(self) -> dict[str, Any]:
        """Return the plan's summary with the composites counted."""
        return {
            **self.summary(),
            "composites": len(self.todo),
            "scenes_left_out": len(self.left_out),
        }

    def summary(self) -> dict[str, Any]:
        """Return the plan as plain values, for printing."""
        return {
            "output": str(self.spec.output_uri),
            "grids": [{"crs": grid.crs, "resolution": grid.resolution} for grid in self.grids],
            "composites": {composite.id: len(composite.placed) for composite in self.todo},
            "unchanged": len(self.unchanged),
            "pixels": sum(item.extent.width * item.extent.height for item in self.todo),
            "scenes_left_out": dict(self.left_out),
            "scenes_without_mask": self.unmasked,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class CompositeReport:
    """Result of a run; ``failed`` maps composites, ``left_out`` scenes, to reasons."""

    output: str
    made: tuple[str, ...]
    unchanged: tuple[str, ...]
    failed: Mapping[str, str]
    left_out: Mapping[str, str]


def plan_composites(spec: CompositeSpec) -> CompositePlan:
    """Find the composites that a catalog makes and that do not exist yet.

    Scenes of several CRS or pixel sizes make composites of their own on each native grid, where the
    spec states none.

    Raises
    ------
    CatalogError
        The catalog cannot be read, or holds nothing that satisfies the query.
    ConfigError
        The spec is wrong.
    GridError
        The spec's area has no place on its grid.
    """
    if spec.period not in PERIODS:
        raise ConfigError(f"a composite's period is {spec.period!r}: use {', '.join(PERIODS)}")
    grid_crs(spec.grid)  # a wrong one would leave out every scene
    listing = read_scenes(spec.catalog, spec.bands)
    left_out = {entry.scene_id: entry.reason for entry in listing.rejected}
    grids = _grids(listing.scenes, spec.grid, left_out)
    composites = [
        composite
        for pixels, scenes in grids.items()
        for composite in _on_grid(spec, pixels, scenes, left_out)
    ]
    unmasked = sum(scene.mask is None for scenes in grids.values() for scene in scenes)
    if unmasked:
        logger.warning(
            "%d of %d scenes have no cloud mask: their clouds stay in the composites; state one "
            "as catalog.mask",
            unmasked,
            sum(map(len, grids.values())),
        )
    written = written_items(spec.output_uri)
    todo = tuple(item for item in composites if not _is_made(item, written, spec.output_uri))
    return CompositePlan(
        spec=spec,
        grids=tuple(grids),
        todo=todo,
        unchanged=tuple(item.id for item in composites if item not in todo),
        left_out=left_out,
        unmasked=unmasked,
    )


def _is_made(
    composite: Composite, written: Mapping[str, Mapping[str, Any]], output: str | Location
) -> bool:
    """Tell whether a composite of the same sources is written and whole."""
    item = written.get(composite.id)
    if item is None or item["properties"].get(FINGERPRINT) != composite.fingerprint:
        return False
    if is_sound(item, output):
        return True
    logger.warning("making %s again: its GeoTIFF or its item is damaged or missing", composite.id)
    return False


def _read(
    scenes: Sequence[Scene], read: Callable[[Scene], T], left_out: dict[str, str]
) -> list[tuple[Scene, T]]:
    """Read the headers of scenes; note in ``left_out`` the scenes that cannot be read."""
    readable: list[tuple[Scene, T]] = []
    for scene, outcome in read_each(scenes, read):
        if isinstance(outcome, Quarantine):
            left_out[scene.id] = outcome.reason
        else:
            readable.append((scene, outcome))
    return readable


def _grids(
    scenes: Sequence[Scene], spec: GridSpec, left_out: dict[str, str]
) -> dict[PixelGrid, list[Scene]]:
    """Return the scenes that can be read, by their grids."""
    grids: dict[PixelGrid, list[Scene]] = {}
    for scene, grid in _read(scenes, partial(pixels_for_scene, spec=spec), left_out):
        grids.setdefault(grid, []).append(scene)
    if not grids:
        raise none_readable(left_out)
    return grids


def _on_grid(
    spec: CompositeSpec, pixels: PixelGrid, scenes: Sequence[Scene], left_out: dict[str, str]
) -> list[Composite]:
    """Return the composites of the scenes of one grid."""
    box = spec.catalog.query.bbox
    clip = window_of_bbox(pixels, box) if box else None
    placed = [item for _, item in _read(scenes, partial(place, pixels=pixels), left_out)]
    found = [_composite(spec, pixels, clip, group) for group in _by_period(placed, spec.period)]
    return [composite for composite in found if composite is not None]


def _by_period(placed: Iterable[Placed], kind: PeriodKind) -> list[tuple[Placed, ...]]:
    """Group scenes by period, in the order of time."""
    groups: dict[datetime, list[Placed]] = {}
    for source in sorted(placed, key=lambda source: (source.scene.datetime, source.scene.id)):
        groups.setdefault(period_of(source.scene.datetime, kind)[1], []).append(source)
    return [tuple(group) for group in groups.values()]


def _composite(
    spec: CompositeSpec, pixels: PixelGrid, clip: Window | None, placed: tuple[Placed, ...]
) -> Composite | None:
    """Return the composite of the scenes of one period; None where the area has none of them."""
    if clip is not None:
        placed = tuple(source for source in placed if source.extent.intersection(clip))
    if not placed:
        return None
    extent = reduce(Window.union, (source.extent for source in placed))
    extent = extent if clip is None else extent.intersection(clip) or extent
    label, start, end = period_of(placed[0].scene.datetime, spec.period)
    area = json_digest([asdict(pixels), asdict(clip) if clip else None, spec.bands])[:16]
    days = len({source.day for source in placed})
    scenes = [source.scene for source in placed]
    # A composite of remote scenes keeps the fingerprint that it had before files were compared.
    sources = [
        [scene.id, scene.fingerprint, *filter(None, [local_revision(scene)])] for scene in scenes
    ]
    return Composite(
        id=f"{spec.name}-{label}-{area[:6]}",
        start=start,
        end=end,
        pixels=pixels,
        extent=extent,
        placed=placed,
        fingerprint=json_digest([area, asdict(extent), sources])[:16],
        block_px=block_side(days * len(spec.bands), spec.block_bytes),
    )


def block_side(layers: int, block_bytes: int) -> int:
    """Return the side of the largest square block of float32 layers that fits a size.

    The side is a multiple of 256 pixels, the usual tile of a GeoTIFF, if that fits.

    Examples
    --------
    >>> block_side(16 * 4, 128 * 1024 * 1024), block_side(4, 128 * 1024 * 1024)
    (512, 1024)
    >>> block_side(365 * 10, 128 * 1024 * 1024)
    64
    """
    side = int((block_bytes / (4 * layers)) ** 0.5)
    step = _TILE_PX if side >= _TILE_PX else _BLOCK_STEP_PX
    return min(max(side // step * step, _BLOCK_STEP_PX), _LARGEST_BLOCK_PX)
