"""The embedding archive: an Icechunk repository of Zarr v3 groups, one commit at a time.

Layout, below the repository's root group::

    /                      attributes: the archive's spec, and the `geoemb:` convention
    segments/<id>/         immutable rows: embedding (n, D) float16 L2-normalised, tile (n, 2),
                           window (n, 4), bbox (n, 4), datetime (n,), valid_fraction (n,),
                           cloud_fraction (n,), scene_index (n,), labels (n, K) when there are any;
                           origins: the files of its scenes (storage.archive.origins)
    ledger/<page>          scenes that each commit recorded (storage.archive.ledger)

The first read of a column of a segment compares the column with the digest in the ledger, so that
damaged content is an error and never an answer.

A row is addressed by ``ordinal * 2**32 + position`` in its segment: an int64 that stays the same
in every later snapshot. This module reads; :mod:`storage.archive.writer` writes, whole commits or
nothing; :mod:`storage.archive.repository` opens. These are the only homes of zarr and icechunk.
"""

import datetime as dt
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import icechunk
import numpy as np
import numpy.typing as npt
import zarr

from storage.archive.ledger import (
    Ledger,
    LedgerEntry,
    Segment,
    column_digest,
    first_page_to_read,
    fold_page,
    page_name,
)
from storage.archive.origins import ORIGINS, Origin, origins_from_bytes
from storage.archive.repository import (
    BRANCH,
    UNREADABLE,
    has_root,
    make_repository,
    open_repository,
    read_session,
    translate_errors,
)
from storage.archive.spec import ArchiveSpec, root_attributes, spec_of
from storage.display import Described, box_in_words
from storage.errors import ArchiveConflictError, ConfigError, NotFoundError
from storage.geometry import EDGES, enclosing
from storage.location import Location
from storage.locks import commit_lock
from storage.outlines import Shapes, tile_outlines
from storage.scene import Scene
from storage.values import json_digest

if TYPE_CHECKING:
    import xarray

Columns = dict[str, npt.NDArray[Any]]

ROW_BITS = 32
_ROWS_WITH_BOX = 1_000_000
"""Most rows whose boxes are read to show an archive: 32 MB."""
_PAGES_AT_MOST = 10**8
_MEND = "`skysift archive verify --mend` lets the next `skysift ingest` embed its scenes again"
_REMEMBER = (
    "`skysift archive remember --scenes CATALOG` notes them, or give --scenes here to draw from it"
)
STORED_COLUMNS = (
    "embedding",
    "scene_index",
    "tile",
    "window",
    "bbox",
    "datetime",
    "valid_fraction",
    "cloud_fraction",
)
DERIVED_COLUMNS = ("scene", "grid", "tile_key", "row")


class Archive(Described):
    """An archive as it was at one snapshot, for reading.

    Safe to share between threads; pickles by opening the same location and snapshot again.

    Attributes
    ----------
    location
        Location of the archive.
    snapshot
        Id of the snapshot.
    spec
        The fields that were fixed when the archive was made.
    ledger
        State of every scene at the snapshot.
    """

    def __init__(
        self,
        location: Location,
        snapshot: str | None,
        repository: icechunk.Repository | None = None,
    ) -> None:
        self.location = location
        self.repository = open_repository(location) if repository is None else repository
        session = read_session(self.repository, location, snapshot)
        self.snapshot: str = session.snapshot_id
        with translate_errors(location, reading=f"snapshot {self.snapshot}"):
            self._root = zarr.open_group(session.store, mode="r")
            self.spec = spec_of(self._root.attrs, self.uri)  # of a later format, so is the ledger
            self.ledger = read_ledger(self._root)
            if self.ledger.spec_digest not in ("", json_digest(dict(self._root.attrs))):
                raise ValueError("its attributes differ from the digest in the ledger")
        self._sound: set[tuple[int, str]] = set()
        self._live_positions: dict[int, npt.NDArray[np.int64]] = {}
        self._origins: dict[int, dict[str, Origin]] = {}
        self._newest: Archive | None = None

    @classmethod
    def open(
        cls,
        uri: str | Location,
        snapshot: str | None = None,
    ) -> "Archive":
        """Open an archive at a snapshot, the newest by default.

        Raises
        ------
        NotFoundError
            There is no archive at the URI, or it has no such snapshot.
        """
        return cls(Location.of(uri), snapshot)

    @classmethod
    def create(cls, uri: str | Location, spec: ArchiveSpec) -> "Archive":
        """Create an empty archive.

        Raises
        ------
        ArchiveConflictError
            The place holds an archive already.
        ConfigError
            The place holds other files.
        """
        place = Location.of(uri)
        with commit_lock(place), translate_errors(place):
            repository = make_repository(place)
            session = repository.writable_session(BRANCH)
            taken = ArchiveConflictError(
                f"an archive exists at {uri}; open it, or choose another place"
            )
            if has_root(session):
                raise taken
            root = zarr.open_group(session.store, mode="a")
            root.attrs.update(root_attributes(spec))
            root.create_group("segments")
            root.create_group("ledger")
            try:
                session.commit("create archive")
            except icechunk.ConflictError as error:
                raise taken from error
        return cls(place, None, repository)

    @staticmethod
    def exists(uri: str | Location) -> bool:
        """Tell whether an archive is at the URI; one whose creation was cut off is not."""
        place = Location.of(uri)
        try:
            repository = open_repository(place)
        except NotFoundError:
            return False
        with translate_errors(place):
            return has_root(repository.readonly_session(BRANCH))

    def latest(self) -> "Archive":
        """Return the archive at its newest snapshot: this object if no commit came since."""
        with translate_errors(self.location):
            newest = self.repository.lookup_branch(BRANCH)
        if newest == self.snapshot:
            return self
        return Archive(self.location, newest, self.repository)

    def __reduce__(self) -> tuple[Any, ...]:
        return Archive, (self.location.absolute, self.snapshot)

    @property
    def uri(self) -> str:
        """URI of :attr:`location`."""
        return self.location.uri

    @property
    def encoder(self) -> Location:
        """Bundle of the encoder that the archive was made with.

        Older archives may state a path relative to the folder in which they were made. Where there
        is no such bundle, the path is taken from the folder of the archive.

        Raises
        ------
        ConfigError
            The archive holds imported embeddings, for which there is no bundle.
        """
        if self.spec.published:
            raise ConfigError(
                f"archive {self.uri} holds imported embeddings of {self.spec.published.title}, and "
                "there is no encoder to embed a picture with; ask by place, tile, vector or marks"
            )
        stated = self.location.at(self.spec.encoder_uri)
        if not (stated.is_local and self.location.is_local) or stated.path.exists():
            return stated
        return self.location.at(str(self.location.absolute.path.parent / stated.path))

    def __len__(self) -> int:
        return sum(entry.rows for entry in self.ledger.entries.values())

    def facts(self) -> dict[str, Any]:
        """Return rows, scenes, dates, box and encoder; the box of small archives only."""
        entries = self.ledger.entries.values()
        states = Counter(entry.state for entry in entries)
        days = [entry.datetime.date() for entry in entries if entry.rows and entry.datetime]
        boxes = self.read_all(["bbox"])["bbox"] if 0 < len(self) <= _ROWS_WITH_BOX else None
        return {
            "location": str(self.location),
            "rows": len(self),
            "scenes": dict(states),
            "dates": f"{min(days)} to {max(days)}" if days else None,
            "box": f"not read, of more than {_ROWS_WITH_BOX:,} rows"
            if len(self) > _ROWS_WITH_BOX
            else box_in_words(None if boxes is None else enclosing(boxes)),
            "bands": self.spec.bands,
            "labels": self.spec.classes,
            "vectors": f"{self.spec.dimension} values of tiles of {self.spec.tile_px} px",
            "encoder": f"{self.spec.encoder_fingerprint[:16]} ({self.encoder})",
            "snapshot": self.snapshot,
        }

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Every segment at this snapshot, in commit order."""
        return self.ledger.segments

    def scenes(self) -> list[LedgerEntry]:
        """Return the ledger's entry of every scene, ordered by scene id."""
        return sorted(self.ledger.entries.values(), key=lambda entry: entry.scene_id)

    def scene(self, scene_id: str) -> Scene:
        """Return a scene with its files, as the newest snapshot remembers it.

        Raises
        ------
        NotFoundError
            The archive has no tiles of the scene, or does not know the addresses of its files.
        """
        if self.spec.published:
            raise NotFoundError(
                f"archive {self.uri} holds imported embeddings of {self.spec.published.title}, "
                "which come without pixels"
            )
        self._newest = (self._newest or self).latest()
        homes = [
            (archive, entry.segment_ordinal)
            for archive in dict.fromkeys((self._newest, self))  # the newest may have deleted it
            if (entry := archive.ledger.entries.get(scene_id)) is not None
            and entry.segment_ordinal is not None
        ]
        if not homes:
            raise NotFoundError(f"archive {self.uri} has no tiles of scene {scene_id}")
        found = (archive.origins(ordinal).get(scene_id) for archive, ordinal in homes)
        origin = next(filter(None, found), None)
        if origin is None:
            raise NotFoundError(
                f"archive {self.uri} does not know the files of scene {scene_id}: an earlier "
                f"Skysift wrote it; {_REMEMBER}"
            )
        if origin.signed:
            raise NotFoundError(
                f"scene {scene_id} came from signed addresses ({origin.scene.hrefs[0]}), and an "
                f"archive keeps no signature; give its catalog: --scenes {origin.catalog}"
            )
        return origin.scene

    def origins(self, ordinal: int) -> dict[str, Origin]:
        """Return the origins of a segment's scenes by scene id; empty in an older archive.

        Raises
        ------
        CorruptIndexError
            They are damaged.
        """
        if ordinal not in self._origins:
            segment = self._segment(ordinal)
            part = f"{ORIGINS} of segment {segment.id}"
            with translate_errors(self.location, reading=part, remedy=_REMEMBER):
                group = self._root[f"segments/{segment.id}"]
                assert isinstance(group, zarr.Group)
                stored = group.get(ORIGINS)
                data = np.asarray(stored[:]).tobytes() if isinstance(stored, zarr.Array) else None
                self._origins[ordinal] = origins_from_bytes(data, self.location) if data else {}
        return self._origins[ordinal]

    def digests(self, segment: Segment) -> dict[str, str]:
        """Return the digest of each stored column of a segment, computed from its content."""
        names = [name for name in self._column_names() if name not in DERIVED_COLUMNS]
        return {name: column_digest(self.stored(segment, name, slice(None))) for name in names}

    def live_rows(self, ordinal: int) -> npt.NDArray[np.int64]:
        """Return the row ids (n,) of a segment that are live at this snapshot, ascending."""
        return (ordinal << ROW_BITS) + self._live(ordinal)

    def read_segment(self, ordinal: int, columns: Sequence[str] | None = None) -> Columns:
        """Read the live rows of one segment.

        Parameters
        ----------
        ordinal
            The segment's number.
        columns
            Names to read, everything by default; ``row`` (int64 row ids) is always included.

        Raises
        ------
        NotFoundError
            The segment or a column does not exist.
        SkysiftError
            The store refuses, breaks off or cannot be reached.
        """
        return self._read_positions(ordinal, self._live(ordinal), columns)

    def read_all(self, columns: Sequence[str]) -> Columns:
        """Read columns and ``row`` of all live rows into memory, in row order."""
        parts = [self.read_segment(segment.ordinal, columns) for segment in self.segments]
        parts = parts or [self._empty([*columns, "row"])]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def read(self, rows: npt.ArrayLike, columns: Sequence[str] | None = None) -> Columns:
        """Read rows by id, in the order given (repeats allowed).

        Parameters
        ----------
        rows
            Row ids (n,) int64.
        columns
            Names to read, everything by default.

        Raises
        ------
        NotFoundError
            A row does not exist or is not live at this snapshot, or a column does not exist.
        """
        ids = np.asarray(rows, dtype=np.int64).reshape(-1)
        distinct, inverse = np.unique(ids, return_inverse=True)
        ordinals = distinct >> ROW_BITS
        parts: list[Columns] = []
        for ordinal in np.unique(ordinals).tolist():
            positions = distinct[ordinals == ordinal] & ((1 << ROW_BITS) - 1)
            known = ordinal < len(self.segments)
            if not known or not np.isin(positions, self._live(ordinal)).all():
                raise NotFoundError(
                    f"archive {self.uri} at snapshot {self.snapshot} has no live row among "
                    f"{(ordinal << ROW_BITS) + int(positions[0])}…; the index may be newer or "
                    "older than the snapshot: open the snapshot that the index pins"
                )
            parts.append(self._read_positions(ordinal, positions, columns))
        if not parts:
            return self._empty(columns)
        return {name: np.concatenate([part[name] for part in parts])[inverse] for name in parts[0]}

    def footprints(self, columns: Columns) -> Shapes:
        """Return the ground (n,) of rows as shapely polygons in WGS84 degrees.

        Parameters
        ----------
        columns
            At least ``grid``, ``tile`` and ``bbox`` of the rows, as the methods here read them.

        Notes
        -----
        A row whose grid the archive does not describe has its box.
        """
        return tile_outlines(self.ledger.grids, columns["grid"], columns["tile"], columns["bbox"])

    def to_dask(self, column: str = "embedding") -> Any:
        """Return a stored column of all live rows as a lazy ``dask.array.Array``, in row order."""
        import dask.array as da

        parts = []
        for segment in self.segments:
            live = self._live(segment.ordinal)
            if not len(live):
                continue
            with self._named_damage(segment, column):
                checked = _Checked(self, segment, self._array(segment, column), column)
            lazy = da.from_array(checked, chunks=checked.chunks, name=f"{segment.id}-{column}")
            parts.append(lazy if len(live) == segment.rows else lazy[live])
        if not parts:
            return da.from_array(self._empty([column])[column])
        return da.concatenate(parts)

    def to_xarray(self) -> "xarray.Dataset":
        """Return all live rows as a lazy Dataset over ``row``, with scene and tile key."""
        import xarray

        names = {
            "embedding": ("row", "dimension"),
            "bbox": ("row", "edge"),
            "datetime": ("row",),
            "valid_fraction": ("row",),
            "cloud_fraction": ("row",),
        }
        if self.spec.classes:
            names["labels"] = ("row", "class")
        variables: dict[str, Any] = {
            name: (dims, self.to_dask(name)) for name, dims in names.items()
        }
        variables["datetime"] = (("row",), variables["datetime"][1].astype("datetime64[ms]"))
        identity = self.read_all(["scene", "tile_key"])
        coordinates: dict[str, Any] = {
            name: ("row", identity[name]) for name in ("row", "scene", "tile_key")
        }
        coordinates["edge"] = list(EDGES)
        if self.spec.classes:
            coordinates["class"] = list(self.spec.classes)
        return xarray.Dataset(variables, coords=coordinates, attrs=asdict(self.spec))

    @property
    def committed_at(self) -> dt.datetime:
        """The time at which this snapshot was committed."""
        with translate_errors(self.location):
            return self.repository.lookup_snapshot(self.snapshot).written_at

    def snapshots(self) -> list[tuple[str, str, str]]:
        """Return (snapshot id, ISO time, message) of this snapshot and its ancestors."""
        with translate_errors(self.location):
            ancestry = self.repository.ancestry(snapshot_id=self.snapshot)
            return [(item.id, item.written_at.isoformat(), item.message) for item in ancestry]

    def _segment(self, ordinal: int) -> Segment:
        if not 0 <= ordinal < len(self.segments):
            raise NotFoundError(
                f"archive {self.uri} has {len(self.segments)} segments; none is number {ordinal}"
            )
        return self.segments[ordinal]

    def _array(self, segment: Segment, name: str) -> "zarr.Array[Any]":
        array = self._root[f"segments/{segment.id}/{name}"]
        assert isinstance(array, zarr.Array)
        return array

    def stored(self, segment: Segment, name: str, chosen: Any) -> npt.NDArray[Any]:
        """Return rows of a stored column of a segment, dead rows included.

        The first read of the column reads the whole column and compares it with its digest.

        Parameters
        ----------
        chosen
            A slice, slices, or positions (n,) in ascending order.

        Raises
        ------
        CorruptIndexError
            The column is damaged.
        """
        if name not in self._column_names():
            raise NotFoundError(
                f"archive {self.uri} has no column {name!r}; it has "
                f"{', '.join(self._column_names())}"
            )
        key = segment.ordinal, name
        with self._named_damage(segment, name):
            array = self._array(segment, name)
            if key in self._sound:
                return np.asarray(array.oindex[chosen])
            values = np.asarray(array[:])
            digest = segment.digests.get(name)
            if digest and column_digest(values) != digest:
                raise ValueError("its digest differs from that in the ledger")
        self._sound.add(key)
        return np.asarray(values[chosen])

    def _named_damage(self, segment: Segment, name: str) -> AbstractContextManager[None]:
        """Name the column of a segment that cannot be read, and the remedy."""
        part = f"column {name} of segment {segment.id}"
        return translate_errors(self.location, reading=part, remedy=_MEND)

    def _column_names(self) -> tuple[str, ...]:
        labels = ("labels",) if self.spec.classes else ()
        return (*STORED_COLUMNS, *labels, *DERIVED_COLUMNS)

    def _live(self, ordinal: int) -> npt.NDArray[np.int64]:
        if ordinal not in self._live_positions:
            segment = self._segment(ordinal)
            live = self.ledger.live_scenes(segment)
            if len(live) == len(segment.scenes):
                positions = np.arange(segment.rows, dtype=np.int64)
            elif not live:
                positions = np.empty(0, dtype=np.int64)
            else:
                alive = np.array([scene in live for scene in segment.scenes], dtype=bool)
                index = self.stored(segment, "scene_index", slice(None))
                positions = np.flatnonzero(alive[index]).astype(np.int64)
            self._live_positions[ordinal] = positions
        return self._live_positions[ordinal]

    def _read_positions(
        self, ordinal: int, positions: npt.NDArray[np.int64], columns: Sequence[str] | None
    ) -> Columns:
        segment = self._segment(ordinal)
        names = dict.fromkeys(self._column_names() if columns is None else (*columns, "row"))
        if not len(positions):
            return self._empty(list(names))
        chosen = slice(None) if len(positions) == segment.rows else positions

        def stored(name: str) -> npt.NDArray[Any]:
            return self.stored(segment, name, chosen)

        def derived(name: str) -> npt.NDArray[Any]:
            index = stored("scene_index")
            if name == "scene":
                return np.asarray(np.array(segment.scenes, dtype=object)[index])
            grids = np.array(self._grids(segment), dtype=object)[index]
            if name == "grid":
                return np.asarray(grids)
            pairs = zip(grids, stored("tile").tolist(), strict=True)
            keys = [f"{grid}/{column}/{row}" for grid, (column, row) in pairs]
            return np.array(keys, dtype=object)

        def column(name: str) -> npt.NDArray[Any]:
            if name == "row":
                return (ordinal << ROW_BITS) + positions
            if name == "datetime":
                return stored(name).astype("datetime64[ms]")
            return derived(name) if name in DERIVED_COLUMNS else stored(name)

        return {name: column(name) for name in names}

    def _grids(self, segment: Segment) -> list[str]:
        """Return the grid of each scene of a segment; only those of live scenes count."""
        entries = self.ledger.entries
        live = self.ledger.live_scenes(segment)
        return [(entries[scene].grid_id or "") if scene in live else "" for scene in segment.scenes]

    def _empty(self, columns: Sequence[str] | None) -> Columns:
        widths = {
            "embedding": ((self.spec.dimension,), np.float16),
            "labels": ((len(self.spec.classes),), np.uint8),
            "tile": ((2,), np.int32),
            "window": ((4,), np.int32),
            "bbox": ((4,), np.float64),
            "datetime": ((), "datetime64[ms]"),
            "scene": ((), object),
            "grid": ((), object),
            "tile_key": ((), object),
            "scene_index": ((), np.int32),
            "row": ((), np.int64),
        }
        names = self._column_names() if columns is None else columns
        shapes = {name: widths.get(name, ((), np.float32)) for name in names}
        return {name: np.empty((0, *shape), dtype) for name, (shape, dtype) in shapes.items()}  # type: ignore[call-overload]


class _Checked:
    """A stored column as Dask reads it, block by block, compared with its digest once."""

    def __init__(
        self, archive: Archive, segment: Segment, array: "zarr.Array[Any]", name: str
    ) -> None:
        self._archive, self._segment, self._name = archive, segment, name
        self.shape, self.dtype, self.ndim = array.shape, array.dtype, array.ndim
        self.chunks = array.chunks

    def __getitem__(self, chosen: tuple[slice, ...]) -> npt.NDArray[Any]:
        return self._archive.stored(self._segment, self._name, chosen)


def read_ledger(root: zarr.Group) -> Ledger:
    """Fold the ledger pages of an open archive."""
    pages = root["ledger"]
    assert isinstance(pages, zarr.Group)
    # Pages are numbered without a gap; listing them would read the metadata of each.
    count = bisect_left(range(_PAGES_AT_MOST), True, key=lambda n: page_name(n) not in pages)
    ledger = Ledger(pages=first_page_to_read(count))
    for number in range(ledger.pages, count):
        page = pages[page_name(number)]
        assert isinstance(page, zarr.Array)
        try:
            ledger = fold_page(ledger, np.asarray(page[:]).tobytes())
        except UNREADABLE as error:
            raise ValueError(f"ledger page {number}: {error}") from error
    return ledger
