"""An index at rest: immutable versions of hashed files, and a pointer that moves last.

Layout, below the index's folder::

    CURRENT                      the version that new readers open
    <version>/manifest.json      everything about the version, with its own digest
    <version>/trained.faiss      the trained quantizers that all shards start from
    <version>/shard-00000.faiss  .arrow  .vectors  .lists  .dead

A version may name files of an earlier version: an update adds shards and keeps present ones.
No byte is parsed before its SHA-256 was compared with the manifest's.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from storage.errors import ArchiveConflictError, CorruptIndexError, NotFoundError
from storage.geometry import BBox, enclosing
from storage.index.pairs import PairScores
from storage.index.quantizer import QuantizationError, ShardParameters
from storage.location import Location
from storage.locks import exchange
from storage.parts import Parts
from storage.values import json_digest, refuse_later

FORMAT = 2
_PATH = re.compile(r"[\w-]+/[\w-]+\.(faiss|arrow|vectors|lists|dead)")
_VERSION = re.compile(r"\d{4}-[0-9a-f]{8}")


def shard_name(number: int) -> str:
    """Return the name of a shard by its number."""
    return f"shard-{number:05d}"


def shard_number(name: str) -> int:
    """Return the number of a shard by its name."""
    return int(name.rpartition("-")[2])


@dataclass(frozen=True, kw_only=True, slots=True)
class FileEntry:
    """A file of an index: its path below the index's folder, its digest and its size."""

    path: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardEntry:
    """A shard in a manifest.

    ``bbox`` (WGS84 w s e n) and ``since``/``until`` (ISO 8601 UTC) enclose its rows;
    ``memory_bytes`` is its size when loaded; ``fit`` is the quantization error of a sample of its
    rows; ``trained_rows`` counts its rows that the quantizers could be trained on. The file
    ``lists`` holds the number of rows in each list, ``dead`` the positions of deleted rows.
    """

    name: str
    rows: int
    bbox: BBox
    since: str
    until: str
    memory_bytes: int
    trained_rows: int
    fit: QuantizationError
    index: FileEntry
    columns: FileEntry
    lists: FileEntry
    vectors: FileEntry | None = None
    dead: FileEntry | None = None
    dead_rows: int = 0

    @property
    def files(self) -> list[FileEntry]:
        """Every file of the shard."""
        files = (self.index, self.columns, self.lists, self.vectors, self.dead)
        return [file for file in files if file is not None]

    @property
    def live_rows(self) -> int:
        """Rows that are not deleted."""
        return self.rows - self.dead_rows


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexManifest:
    """One version of an index.

    Attributes
    ----------
    version, digest
        The version's name, and the digest of its sources: the same digest is the same index.
    archive_uri, snapshot, encoder_fingerprint, classes
        The archive it was made from.
    segments
        Ids of the archive's segments that it covers.
    parameters, spec
        Kind and sizes, shared by all shards; and the request that they follow from.
    nprobe, rerank
        Lists to probe and candidates per result to rescore, by default.
    recall
        Measured recall@10 by nprobe on sampled rows, in version ``recall_version``; of vectors of
        two parts that of the worst measured blend.
    recall_by_blend
        The same for each measured blend of vectors of two parts; empty for others, and in an index
        of before.
    predicted_bytes, measured_bytes
        Memory of all shards when loaded, before and after the build.
    fit, grown_fit
        Quantization error of the rows of the build, and of the ``grown_rows`` added since.
    list_imbalance, trained_imbalance
        1 when all lists are equally full (FAISS's measure), now and after the build.
    empty_lists
        Lists without rows.
    drift
        ``grown_fit`` over ``fit``, the worse of the two errors; 1 when no rows were added.
    advice
        The recommended step for the operator, empty when there is none.
    pairs
        The scores between random rows of the archive; None in an index of before.
    grids
        The plain description of each tile grid by its id; empty in an index of before.
    parts
        The parts of the vectors; None where the encoder has one part.
    """

    version: str
    digest: str
    archive_uri: str
    snapshot: str
    encoder_fingerprint: str
    segments: tuple[str, ...]
    parameters: ShardParameters
    spec: Mapping[str, Any]
    trained: FileEntry
    shards: tuple[ShardEntry, ...]
    predicted_bytes: int
    measured_bytes: int
    nprobe: int
    rerank: int
    recall: Mapping[str, float]
    recall_version: str
    fit: QuantizationError
    trained_imbalance: float
    list_imbalance: float
    empty_lists: int = 0
    grown_fit: QuantizationError | None = None
    grown_rows: int = 0
    drift: float = 1.0
    classes: tuple[str, ...] = ()
    advice: str = ""
    pairs: PairScores | None = None
    grids: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    parts: Parts | None = None
    recall_by_blend: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    format: int = field(default=FORMAT)

    @property
    def rows(self) -> int:
        """Live rows of all shards."""
        return sum(shard.live_rows for shard in self.shards)

    @property
    def bbox(self) -> BBox:
        """The WGS84 box (west, south, east, north) around all rows."""
        return enclosing([shard.bbox for shard in self.shards])

    @property
    def mapped(self) -> bool:
        """Whether searches map the FAISS files instead of reading them."""
        return bool(self.spec["mapped"])

    @property
    def recalls(self) -> dict[str, float]:
        """Measured recall@10 with the default ``nprobe`` by blend; empty where not measured."""
        probed = str(self.nprobe)
        return {blend: found[probed] for blend, found in self.recall_by_blend.items()}

    @property
    def files(self) -> list[FileEntry]:
        """Every file of the version but the manifest."""
        return [self.trained, *(file for shard in self.shards for file in shard.files)]

    def to_dict(self) -> dict[str, Any]:
        """Return the manifest as JSON values.

        Vectors of one part have no ``parts`` and no blends: a release of before reads the index.
        """
        values = asdict(self)
        if self.parts is None:
            del values["parts"], values["recall_by_blend"]
        return values


def sealed(name: str, values: Mapping[str, Any]) -> bytes:
    """Return a JSON document that holds values under a name, and their SHA-256."""
    content = {"sha256": json_digest(values), name: values}
    return json.dumps(content, indent=1, sort_keys=True).encode()


def unsealed(name: str, data: bytes) -> dict[str, Any]:
    """Return the values of a document of :func:`sealed`.

    Raises
    ------
    ValueError, KeyError, TypeError
        The document is damaged.
    """
    content = json.loads(data)
    values: dict[str, Any] = content[name]
    if json_digest(values) != content["sha256"]:
        raise ValueError("its digest differs")
    return values


def write_manifest(index: Location, manifest: IndexManifest, replaces: bytes | None = None) -> None:
    """Write a version's manifest, then move CURRENT to the version; see :func:`set_current`."""
    check_current(index, manifest.version, replaces)
    file = index / manifest.version / "manifest.json"
    file.write(sealed("manifest", manifest.to_dict()))
    try:
        set_current(index, manifest.version, replaces)
    except ArchiveConflictError:
        file.delete()  # a version that was never current is none to go back to
        raise


def check_current(index: Location, version: str, replaces: bytes | None) -> None:
    """Refuse to publish a version when CURRENT is no longer as it was read.

    Raises
    ------
    ArchiveConflictError
        Another writer has moved CURRENT.
    """
    if replaces is not None and (now := read_pointer(index)) != replaces:
        raise _outrun(index, version, replaces, now)


def set_current(index_uri: str | Location, version: str, replaces: bytes | None = None) -> None:
    """Move CURRENT to a finished version.

    Parameters
    ----------
    replaces
        The content of CURRENT that the version was made from (:func:`read_pointer`); None to move
        CURRENT from any version.

    Raises
    ------
    NotFoundError
        The version does not exist.
    CorruptIndexError
        The manifest is damaged.
    ArchiveConflictError
        Another writer has moved CURRENT meanwhile; it stays where that writer moved it.
    """
    index = Location.of(index_uri)
    read_manifest(index, version)
    if replaces is None:
        (index / "CURRENT").write(version.encode())
    elif not exchange(index, "CURRENT", replaces, version.encode()):
        raise _outrun(index, version, replaces, read_pointer(index))


def read_pointer(index_uri: str | Location) -> bytes:
    """Return the content of CURRENT, valid or not; empty when there is none."""
    try:
        return (Location.of(index_uri) / "CURRENT").read()
    except NotFoundError:
        return b""


def _outrun(index: Location, version: str, before: bytes, now: bytes) -> ArchiveConflictError:
    first, second = (text.decode(errors="replace")[:40] or "none" for text in (before, now))
    return ArchiveConflictError(
        f"index {index}: version {version} was made while {first} was current, and another writer "
        f"has made {second} current since; it stays: run the same command again"
    )


def list_versions(index_uri: str | Location) -> list[str]:
    """Return the names of the finished versions, oldest first."""
    found = (Location.of(index_uri) / "*/manifest.json").list()
    return sorted(file.uri.rpartition("/")[0].rpartition("/")[2] for file in found)


def current_version(index_uri: str | Location) -> str:
    """Return the version that CURRENT names.

    Raises
    ------
    NotFoundError
        There is no finished index.
    CorruptIndexError
        CURRENT does not hold a version's name.
    """
    name = read_pointer(index_uri).decode(errors="replace").strip()
    if _VERSION.fullmatch(name):
        return name
    versions = list_versions(index_uri)
    if not name and not versions:
        raise NotFoundError(f"no finished index at {index_uri}; `skysift index build` makes one")
    raise CorruptIndexError(
        f"{index_uri}/CURRENT holds {name[:40]!r}, not a version; `skysift index rollback --to` "
        f"makes one of these versions current: {', '.join(versions) or 'none'}"
    )


def read_manifest(index_uri: str | Location, version: str | None = None) -> IndexManifest:
    """Read the manifest of a version, the current version by default.

    Raises
    ------
    NotFoundError
        There is no finished index, or it has no such version.
    CorruptIndexError
        The manifest is damaged.
    """
    version = version or current_version(index_uri)
    location = Location.of(index_uri) / version / "manifest.json"
    try:
        data = location.read()
    except NotFoundError as error:
        raise NotFoundError(
            f"index {index_uri} has no version {version}; it has "
            f"{', '.join(list_versions(index_uri)) or 'none'} (`skysift index rollback --to` makes "
            "a version current)"
        ) from error
    try:
        values = unsealed("manifest", data)
        refuse_later(f"version {version} of index {index_uri}", values["format"], FORMAT)
        manifest = _manifest(values)
        if manifest.version != version:
            raise ValueError(f"it is the manifest of version {manifest.version}")
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptIndexError(
            f"{location} is damaged ({error}); restore it, or build the index again with "
            "`skysift index build`"
        ) from error
    return manifest


def _manifest(values: dict[str, Any]) -> IndexManifest:
    if values["format"] != FORMAT:
        raise ValueError(f"its format is {values['format']}, this Skysift reads {FORMAT}")

    return IndexManifest(
        **{
            **values,
            "parameters": ShardParameters(**values["parameters"]),
            "trained": _file(values["trained"]),
            "fit": QuantizationError(**values["fit"]),
            "grown_fit": values["grown_fit"] and QuantizationError(**values["grown_fit"]),
            "shards": tuple(shard_entry(value) for value in values["shards"]),
            "segments": tuple(values["segments"]),
            "classes": tuple(values["classes"]),
            "pairs": _pairs(values.get("pairs")),
            "parts": Parts(**parts) if (parts := values.get("parts")) else None,
        }
    )


def shard_entry(values: Mapping[str, Any]) -> ShardEntry:
    """Return a shard's entry from its JSON values.

    Raises
    ------
    ValueError, KeyError, TypeError
        The values are not those of a shard.
    """
    names = ("index", "columns", "lists", "vectors", "dead")
    files: dict[str, Any] = {name: values[name] and _file(values[name]) for name in names}
    others = {"fit": QuantizationError(**values["fit"]), "bbox": tuple(values["bbox"])}
    return ShardEntry(**{**values, **files, **others})


def _pairs(values: Mapping[str, Any] | None) -> PairScores | None:
    if values is None:
        return None
    shares, scores = (tuple(map(float, values[name])) for name in ("shares", "scores"))
    return PairScores(rows=int(values["rows"]), shares=shares, scores=scores)


def _file(values: Mapping[str, Any]) -> FileEntry:
    if not _PATH.fullmatch(values["path"]):
        raise ValueError(f"the file name {values['path']!r} is not one of an index")
    return FileEntry(**values)
