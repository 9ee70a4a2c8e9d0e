"""Where pairs of places come from: an archive, or scenes of a catalog that were never ingested.

A source says which tiles were seen when and how cloudy, and gives the pixels of those that are
chosen. Tiles of both are cut by `pipeline.tiles`, as an ingest cuts them.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from encoders.spec import EncoderSpec
from pipeline.datasets.archive_tiles import SceneTiles, append_scenes, scene_tiles
from pipeline.tiles.grid import encoder_grid, grid_for_scene
from pipeline.tiles.read import read_tiles
from pipeline.tiles.spec import GridSpec, TileRules
from storage.archive.reader import Archive
from storage.catalog.read import read_scenes
from storage.dataset import DatasetInfo
from storage.dataset_writer import DatasetWriter
from storage.errors import ConfigError, NotFoundError
from storage.location import Location
from storage.progress import Progress, ProgressSink
from storage.quarantine import none_readable, set_aside
from storage.scene import CatalogSpec
from storage.values import json_digest

Ints = NDArray[np.int64]
Inputs = DatasetInfo | EncoderSpec
"""What says which bands, tile size and pixel size tiles have to have."""
_BATCH = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class PlaceSpec:
    """A source of pairs of places.

    Attributes
    ----------
    catalog
        The scenes, of several dates, or in ``source`` the address of an archive.
    grid, rules
        How scenes are cut into tiles; None for tile size and resolution of the inputs. An archive
        has its own.
    """

    catalog: CatalogSpec
    grid: GridSpec | None = None
    rules: TileRules = field(default_factory=TileRules)

    @property
    def place(self) -> Location:
        """Address of the archive or catalog."""
        return Location.of(self.catalog.source)

    def archive(self) -> Archive | None:
        """Return the archive at the address; None where none is."""
        if self.place.is_web:
            return None
        try:
            return Archive.open(self.place)
        except NotFoundError:
            return None

    @property
    def digest(self) -> str:
        """SHA-256 (hexadecimal) over what decides the tiles of scenes; empty for an archive."""
        if self.archive() is not None:
            return ""
        plain = asdict(
            replace(self, catalog=replace(self.catalog, source=str(self.place.absolute)))
        )
        return json_digest(json.loads(json.dumps(plain, default=str)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """Acquisitions of tiles, by position: key of the tile, time (datetime64) and cloud fraction."""

    tile_key: NDArray[np.object_]
    datetime: NDArray[Any]
    cloud_fraction: NDArray[np.float32]


class PlaceSource(Protocol):
    """Acquisitions of tiles, and their pixels."""

    name: str
    origin: Mapping[str, Any]

    def seen(self, progress: ProgressSink) -> Seen:
        """Return all acquisitions."""

    def append(
        self, writer: DatasetWriter, chosen: Ints, labels: NDArray[np.uint8], progress: ProgressSink
    ) -> dict[str, str]:
        """Append those at these positions of `seen`; return the scenes left out, with reasons."""


def open_source(spec: PlaceSpec, inputs: Inputs) -> PlaceSource:
    """Return the archive or, where none is at the address, the catalog.

    Raises
    ------
    ConfigError
        Its tiles have other bands or another size than the inputs.
    CatalogError, NotFoundError
        There is neither.
    """
    if (archive := spec.archive()) is not None:
        return ArchivePlaces(archive, inputs)
    return CatalogPlaces(spec, inputs)


class ArchivePlaces:
    """Rows of an archive."""

    def __init__(self, archive: Archive, inputs: Inputs) -> None:
        ours, theirs = (inputs.bands, inputs.tile_px), (archive.spec.bands, archive.spec.tile_px)
        if ours != theirs:
            raise ConfigError(
                f"archive {archive.uri} has bands {', '.join(theirs[0])} and tiles of {theirs[1]} "
                f"px, but expected are {', '.join(ours[0])} and {ours[1]} px; take an archive of "
                "these bands and tile size"
            )
        self._archive, self.name = archive, f"archive {archive.uri}"
        self.origin: Mapping[str, Any] = {"archive": archive.uri, "snapshot": archive.snapshot}

    def seen(self, progress: ProgressSink) -> Seen:
        """Return tiles and dates of all rows."""
        columns = self._archive.read_all(["tile_key", "datetime", "cloud_fraction"])
        self._row: Ints = columns.pop("row")
        return Seen(**{name: columns[name] for name in ("tile_key", "datetime", "cloud_fraction")})

    def append(
        self, writer: DatasetWriter, chosen: Ints, labels: NDArray[np.uint8], progress: ProgressSink
    ) -> dict[str, str]:
        """Read the scenes of the chosen rows again."""
        tiles = self._archive.read(self._row[chosen], ["scene", "tile_key"])

        def cut(scene_id: str) -> SceneTiles:
            return scene_tiles(self._archive, scene_id)

        return append_scenes(writer, cut, tiles["scene"], tiles["tile_key"], labels, {}, progress)


class CatalogPlaces:
    """Tiles of the scenes of a catalog; every scene is read twice, first for dates and clouds."""

    def __init__(self, spec: PlaceSpec, inputs: Inputs) -> None:
        self._grid = encoder_grid(spec.grid, inputs.tile_px, inputs.resolution_m)
        if self._grid.tile_px != inputs.tile_px:
            raise ConfigError(
                f"training: grid.tile_px is {self._grid.tile_px}, but the tiles of place pairs "
                f"have to be of {inputs.tile_px} px; set grid.tile_px to {inputs.tile_px}"
            )
        listing = read_scenes(spec.catalog, inputs.bands)
        self._rules, self.name = spec.rules, f"catalog {spec.place}"
        self._scenes = {scene.id: scene for scene in listing.scenes}
        self._left_out = {item.scene_id: item.reason for item in listing.distinct_rejected}
        fingerprints = {scene.id: scene.fingerprint for scene in listing.scenes}
        self.origin: Mapping[str, Any] = {"catalog": str(spec.place), "scenes": fingerprints}

    def seen(self, progress: ProgressSink) -> Seen:
        """Read all scenes; one that cannot be read is left out."""
        columns: dict[str, list[Any]] = {"scene": [], "key": [], "moment": [], "cloud": []}
        for number, (scene_id, scene) in enumerate(self._scenes.items(), start=1):
            with set_aside(scene_id, self._left_out):
                keys, clouds = self._tiles_of(scene_id)
                moment = scene.datetime.replace(tzinfo=None)
                ids, moments = [scene_id] * len(keys), [moment] * len(keys)
                rows: tuple[list[Any], ...] = (ids, keys, moments, clouds)
                for column, values in zip(columns.values(), rows, strict=True):
                    column += values
            total = len(self._scenes)
            progress(Progress(stage="clouds", done=number, total=total, unit="scenes"))
        if not columns["key"] and self._left_out:
            raise none_readable(self._left_out)
        self._scene, self._key = (np.array(columns[name], object) for name in ("scene", "key"))
        return Seen(
            tile_key=self._key,
            datetime=np.array(columns["moment"], "datetime64[ms]"),
            cloud_fraction=np.array(columns["cloud"], np.float32),
        )

    def append(
        self, writer: DatasetWriter, chosen: Ints, labels: NDArray[np.uint8], progress: ProgressSink
    ) -> dict[str, str]:
        """Read the scenes of the chosen tiles again."""
        scene, key = self._scene[chosen], self._key[chosen]
        left_out = append_scenes(writer, self._cut, scene, key, labels, {}, progress)
        return self._left_out | left_out

    def _cut(self, scene_id: str) -> SceneTiles:
        scene = self._scenes[scene_id]
        return scene, grid_for_scene(scene, self._grid), self._rules

    def _tiles_of(self, scene_id: str) -> tuple[list[str], list[float]]:
        """Return the keys and cloud fractions of the tiles of a scene."""
        scene, grid, rules = self._cut(scene_id)
        named = grid.naming(rules.edge)
        keys: list[str] = []
        clouds: list[float] = []
        for batch in read_tiles(scene, grid, rules, batch_size=_BATCH):
            keys += named.keys(batch.tiles)
            clouds += batch.cloud_fraction.tolist()
        return keys, clouds
