"""The scenes of an archive as tiles of a web map: the newest clear pixel of each place.

Tiles are those of every web map: 256 x 256 pixels in Web Mercator, row 0 in the north. Pixels come
from overviews. Memory and time of a tile are bounded: few scenes are opened, none of which the file
would be decoded almost whole for want of overviews, and none is begun after some seconds. The
places of scenes that are there and not drawn are hatched, and a note says what helps.
"""

import hashlib
import logging
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from storage.archive.reader import Archive
from storage.errors import NotFoundError
from storage.geometry import BBox, Mask, covers, geojson_footprints, touches
from storage.index.filter import Filter
from storage.quarantine import Quarantine
from storage.raster.pixel_grid import Block, PixelGrid, Window
from storage.raster.reader import SceneReader
from storage.scene import Scene
from workflows.report.by_place import PlaceRenderer
from workflows.report.colours import BYTES, Preset, coloured
from workflows.report.rendering import (
    ADD_OVERVIEWS,
    MOST_FILE_PIXELS,
    TileRenderer,
    as_rgb,
    shown_bands,
)
from workflows.service.footprints import ScenePlace, ScenePlaces

logger = logging.getLogger(__name__)

SIDE_PX = 256
MOST_ZOOM = 24
_MOST_SCENES = 16
_BLOCK_PX, _FEW_BLOCKS, _MOST_TRIES = 4, 4, 3
"""Side of the blocks of pixels that a scene may fill, and scenes read before one stays empty."""
_SECONDS = 4.0
_MOST_HATCHED = 2000
_STRIPE_PX, _STRIPES_PX, _HATCH = 4, 16, (122, 134, 145, 190)
"""Width of stripes; their distance, which divides 256, so that they continue in the next tile."""
_WORLD_M = math.pi * 6_378_137.0
_STAGES_PX = ((900, 400), (1520, 680), (310, 200))
"""Width and height, less the margins, of the map on a laptop, a large screen and a phone."""
_MOST_OPENING_ZOOM = 14


@dataclass(frozen=True, kw_only=True, slots=True)
class MapTile:
    """A tile of the map: zoom, column from 180° west, row from the north.

    Examples
    --------
    >>> MapTile(z=1, x=0, y=0).bbox
    (-180.0, 0.0, 0.0, 85.0511287798066)
    """

    z: int
    x: int
    y: int

    def __post_init__(self) -> None:
        if not (0 <= self.z <= MOST_ZOOM and 0 <= self.x < 2**self.z and 0 <= self.y < 2**self.z):
            raise NotFoundError(
                f"no map has a tile {self.z}/{self.x}/{self.y}; zooms go from 0 to {MOST_ZOOM}, "
                "columns and rows from 0 to 2**zoom - 1"
            )

    @classmethod
    def at(cls, lon: float, lat: float, z: int) -> "MapTile":
        """Return the tile at a place in WGS84 degrees, at a zoom."""
        count = 2**z
        down = (1 - math.asinh(math.tan(math.radians(max(-85.05, min(85.05, lat))))) / math.pi) / 2
        steps = (int((lon + 180) / 360 * count), int(down * count))
        x, y = (max(0, min(count - 1, step)) for step in steps)
        return cls(z=z, x=x, y=y)

    @property
    def bbox(self) -> BBox:
        """West, south, east, north in WGS84 degrees."""
        count = 2**self.z
        west, east = (360 * column / count - 180 for column in (self.x, self.x + 1))
        north, south = (
            math.degrees(math.atan(math.sinh(math.pi * (1 - 2 * row / count))))
            for row in (self.y, self.y + 1)
        )
        return west, south, east, north

    def blocks_of(self, place: ScenePlace) -> Mask:
        """Return the mask of the blocks of pixels whose middle lies in a scene, row by row.

        Of a scene of a few pixels, the blocks that its box touches.
        """
        count, steps = 2**self.z, SIDE_PX // _BLOCK_PX
        found = np.zeros((steps, steps), np.bool_)
        rows, columns = (
            slice(side.start // _BLOCK_PX, -(-side.stop // _BLOCK_PX))
            for side in self.slices_of(place.box)
        )
        parts = (np.arange(steps) + 0.5) / steps
        lons = 360 * (self.x + parts[columns]) / count - 180
        lats = np.degrees(np.arctan(np.sinh(np.pi * (1 - 2 * (self.y + parts[rows]) / count))))
        shape = len(lats), len(lons)
        inside = covers(place.geometry, np.tile(lons, shape[0]), np.repeat(lats, shape[1]))
        found[rows, columns] = inside.reshape(shape) if inside.size > _FEW_BLOCKS else True
        return found

    @property
    def pixels(self) -> PixelGrid:
        """The pixel grid whose first 256 x 256 pixels are the tile."""
        side = 2 * _WORLD_M / 2**self.z
        corner = (self.x * side - _WORLD_M, _WORLD_M - self.y * side)
        return PixelGrid(crs="EPSG:3857", resolution=side / SIDE_PX, anchor=corner)

    def slices_of(self, box: BBox) -> tuple[slice, slice]:
        """Return the rows and columns of the tile's pixels that a box touches."""
        west, _, _, _ = self.bbox
        scale = SIDE_PX * 2**self.z
        turn = 360 * round((west - box[0]) / 360) if box[2] - box[0] < 180 else 0
        left, right = (((lon + turn + 180) / 360) * scale - SIDE_PX * self.x for lon in box[::2])
        bottom, top = (
            (1 - math.asinh(math.tan(math.radians(max(-85.06, min(85.06, lat))))) / math.pi)
            * (scale / 2)
            - SIDE_PX * self.y
            for lat in box[1::2]
        )
        if box[0] > box[2]:  # across the antimeridian: the whole width, to be safe
            left, right = 0, SIDE_PX
        rows, columns = (
            slice(max(0, math.floor(first)), min(SIDE_PX, max(0, math.ceil(last))))
            for first, last in ((top, bottom), (left, right))
        )
        return rows, columns


NO_OVERVIEWS = f"scenes without overviews are hatched at this zoom: zoom in, or {ADD_OVERVIEWS}"
TOO_MANY = (
    f"scenes are hatched where a tile of the map would open more than {_MOST_SCENES}: zoom in, or "
    "choose a day"
)
TOO_LONG = (
    f"scenes are hatched where a tile of the map would read for longer than {_SECONDS:g} s: zoom "
    "in, or choose a day"
)
_LASTING = ("", TOO_MANY)
"""Notes of pictures that would be the same another time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """A picture as a file, and a note about parts that are missing; empty when none is."""

    content: bytes
    note: str = ""

    @property
    def lasts(self) -> bool:
        """Whether it would be the same if it were drawn again: files may get overviews."""
        return self.note in _LASTING


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """What a tile shows: a period, a preset of bands, and the gamma."""

    period: Filter
    preset: Preset
    gamma: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class MosaicScene:
    """A scene on the map; ``grid_id`` names the grid of its stretch."""

    id: str
    datetime: datetime | None
    place: ScenePlace
    grid_id: str


class Mosaic:
    """Scenes on the map; safe to share between threads.

    Parameters
    ----------
    scenes
        The scenes, in any order.
    identity
        Text that differs between sets of scenes.
    """

    def __init__(self, scenes: Iterable[MosaicScene], identity: str) -> None:
        by_id = sorted(scenes, key=lambda scene: scene.id)
        self._found = sorted(by_id, key=lambda scene: str(scene.datetime), reverse=True)
        self._boxes = np.array([scene.place.box for scene in self._found]).reshape(-1, 4)
        moments = (s.datetime and s.datetime.replace(tzinfo=None) for s in self._found)
        self._dates = np.array([np.datetime64(m, "ms") for m in moments], "datetime64[ms]")
        self._identity = identity
        self._told: set[str] = set()

    @classmethod
    def of_archive(cls, archive: Archive, places: ScenePlaces) -> "Mosaic":
        """Return the mosaic of the scenes that an archive embedded."""
        embedded = [entry for entry in archive.ledger.entries.values() if entry.rows]
        scenes = (
            MosaicScene(id=e.scene_id, datetime=e.datetime, place=place, grid_id=str(e.grid_id))
            for e, place in zip(embedded, places.of(embedded), strict=True)
            if place
        )
        return cls(scenes, f"{archive.uri} {archive.snapshot}")

    @classmethod
    def of_catalog(cls, renderer: PlaceRenderer) -> "Mosaic":
        """Return the mosaic of the scenes that tiles of published embeddings are drawn from."""
        scenes = (
            MosaicScene(
                id=scene.id,
                datetime=scene.datetime,
                place=ScenePlace(box=box, geometry=geojson_footprints([box])[0]),
                grid_id="",
            )
            for scene, box in renderer.placed
        )
        return cls(scenes, renderer.identity)

    def etag(self, tile: MapTile, look: Look) -> str:
        """Return a tag that changes whenever the picture of a tile would."""
        identity = f"{self._identity} {tile} {look}"
        return f'"{hashlib.sha256(identity.encode()).hexdigest()[:24]}"'

    def scenes(self, tile: MapTile, period: Filter) -> list[MosaicScene]:
        """Return the scenes of a period that touch a tile, the newest first."""
        start, end = period.interval
        chosen = touches(self._boxes, tile.bbox) if len(self._boxes) else np.zeros(0, np.bool_)
        if start is not None:
            chosen &= self._dates >= start
        if end is not None:
            chosen &= self._dates <= end
        return [self._found[number] for number in np.flatnonzero(chosen).tolist()]

    def draw(self, tile: MapTile, look: Look, renderer: TileRenderer) -> Drawn:
        """Draw a tile as WebP; pixels without data are transparent.

        Clouds, where the scenes have a mask, show only where no scene of the period is clear.
        Scenes that would take too long are hatched.

        Raises
        ------
        NotFoundError
            No scene of the tile can be read; the message has the reason of one.
        """
        image = np.zeros((SIDE_PX, SIDE_PX, 4), np.uint8)
        clear = np.zeros((SIDE_PX, SIDE_PX), np.bool_)
        until, reason = time.monotonic() + _SECONDS, ""
        left = _MOST_SCENES
        hidden: list[tuple[tuple[slice, slice], str]] = []
        tries = np.zeros(_blocks(clear).shape, np.uint8)
        for scene in self.scenes(tile, look.period):
            if clear.all() or len(hidden) == _MOST_HATCHED:
                break
            ground = tile.blocks_of(scene.place)
            painted = _blocks(image[..., 3] > 0)
            empty = ground & ~painted & (tries < _MOST_TRIES)
            cloudy = ground & _blocks((image[..., 3] > 0) & ~clear)
            if not (empty | cloudy).any():
                continue
            place = tile.slices_of(scene.place.box)
            if not left or time.monotonic() > until:
                hidden.append((place, TOO_LONG if left else TOO_MANY))
                continue
            left -= 1
            with Quarantine(f"scene {scene.id}") as fault:
                if _paint(image, clear, scene, tile, place, look, renderer):
                    tries[empty] += 1
                else:
                    hidden.append((place, NO_OVERVIEWS))
                    self._tell(scene.id)
            if fault:
                logger.warning("%s is not on the map: %s", fault.subject, fault.reason)
            reason = reason or (fault.for_clients if fault else "")
        note = _hatch(image, hidden)
        if reason and not image[..., 3].any():
            raise NotFoundError(f"no scene can be drawn here: {reason}")
        return Drawn(content=webp(image), note=note)

    def _tell(self, scene_id: str) -> None:
        """Write once into the log that a scene has no overviews."""
        if scene_id not in self._told:
            self._told.add(scene_id)
            logger.warning("scene %s: %s", scene_id, NO_OVERVIEWS)


def zoom_of(archive: Archive) -> int:
    """Return the zoom at which a pixel of the map is about a pixel of the archive's grids."""
    metres = [
        grid["resolution"] * (1 if grid["resolution"] > 0.02 else 111_320)
        for grid in archive.ledger.grids.values()
        if "resolution" in grid
    ]
    finest = min(metres, default=10.0)
    return max(0, min(MOST_ZOOM, math.ceil(math.log2(2 * _WORLD_M / SIDE_PX / finest))))


def opening_tiles(box: BBox, most_zoom: int) -> list[MapTile]:
    """Return the tiles that pages of usual sizes show of a box when they open.

    Parameters
    ----------
    box
        The box that the page fits; across the antimeridian there are no tiles.
    most_zoom
        The zoom of the finest tiles.

    Examples
    --------
    >>> [(tile.z, tile.x, tile.y) for tile in opening_tiles((9.0, 48.0, 11.0, 49.0), 14)][:4]
    [(9, 268, 175), (9, 269, 175), (9, 270, 175), (9, 271, 175)]
    """
    west, south, east, north = box
    if east < west:
        return []
    corners = [MapTile.at(lon, lat, MOST_ZOOM) for lon, lat in ((west, north), (east, south))]
    sides = [max(1, high - low) for low, high in zip(*((c.x, c.y) for c in corners), strict=True)]
    zooms = []
    for stage in _STAGES_PX:
        shares = [px * 2**MOST_ZOOM / side for px, side in zip(stage, sides, strict=True)]
        fitted = min(_MOST_OPENING_ZOOM, math.log2(min(shares) / (2 * SIDE_PX)))
        zooms.append(max(0, min(round(fitted + 1), most_zoom)))
    found = []
    for zoom in dict.fromkeys(zooms):
        first, last = (MapTile.at(lon, lat, zoom) for lon, lat in ((west, north), (east, south)))
        columns, rows = range(first.x, last.x + 1), range(first.y, last.y + 1)
        found += [MapTile(z=zoom, x=x, y=y) for y in rows for x in columns]
    return found


def _blocks(pixels: Mask) -> Mask:
    """Return which blocks of pixels have at least one of them."""
    blocks = SIDE_PX // _BLOCK_PX
    return np.asarray(pixels.reshape(blocks, _BLOCK_PX, blocks, _BLOCK_PX).any(axis=(1, 3)))


def _paint(
    image: npt.NDArray[np.uint8],
    clear: npt.NDArray[np.bool_],
    scene: MosaicScene,
    tile: MapTile,
    place: tuple[slice, slice],
    look: Look,
    renderer: TileRenderer,
) -> bool:
    """Add a scene below the scenes that are in the image, but above their clouds.

    ``place`` are the rows and columns that the scene covers. False where too much of its file
    would be decoded.
    """
    shown = shown_bands(renderer.scene(scene.id), look.preset)
    block, holds_bytes = _read(shown, tile, place)
    if block is None:
        return False
    values = as_rgb(block.values, look.preset)
    valid = ~np.isnan(values).any(axis=0)
    part, done = image[place], clear[place]
    fresh = valid & ~block.cloud & ~done
    below = valid & (part[..., 3] == 0)  # clouds, where nothing is yet
    if not (fresh.any() or below.any()):
        return True
    stretch = BYTES if holds_bytes else renderer.stretch(scene.grid_id, look.preset)
    colours = coloured(values, stretch, look.gamma)
    added = fresh | below
    part[added, :3] = colours[added]
    part[added, 3] = 255
    done |= fresh
    return True


def _hatch(image: npt.NDArray[np.uint8], hidden: Sequence[tuple[tuple[slice, slice], str]]) -> str:
    """Hatch the places of scenes where nothing is drawn; return why, empty when nothing is."""
    empty, reasons = image[..., 3] == 0, set()
    hatched = np.zeros_like(empty)
    for place, why in hidden:
        if empty[place].any():
            hatched[place] = True
            reasons.add(why)
    rows, columns = np.indices(empty.shape)
    stripes = (rows + columns) % _STRIPES_PX < _STRIPE_PX
    image[hatched & empty & stripes] = _HATCH
    return "; ".join(sorted(reasons))


def _read(scene: Scene, tile: MapTile, place: tuple[slice, slice]) -> tuple[Block | None, bool]:
    """Return the pixels of a scene on rows and columns of a tile.

    None where too much of a file would be decoded.
    """
    rows, columns = place
    window = Window(
        column=columns.start,
        row=rows.start,
        width=columns.stop - columns.start,
        height=rows.stop - rows.start,
    )
    masks: Sequence[Scene] = (replace(scene, mask=None),) if scene.mask else ()
    for version in (scene, *masks):  # the mask has no overviews: better a cloud than no picture
        with SceneReader(version, tile.pixels, overviews=True) as reader:
            if reader.file_pixels(window) <= MOST_FILE_PIXELS:
                return reader.read(window), reader.holds_bytes
    return None, False


def webp(image: npt.NDArray[np.uint8]) -> bytes:
    """Return an image (h, w, 4) as a WebP file."""
    sink = BytesIO()
    Image.fromarray(image).save(sink, "WEBP", quality=85, method=2)
    return sink.getvalue()


NOTHING = Drawn(content=webp(np.zeros((1, 1, 4), np.uint8)))
"""A transparent picture."""
