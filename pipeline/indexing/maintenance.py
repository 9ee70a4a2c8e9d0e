"""Look after the versions of an index: list and verify them, go back to one, drop old ones.

A version is never changed, so whoever reads one goes on undisturbed while others come. Only
:func:`collect_garbage` takes something away: it keeps the current version, the newest few, and
every version that a reader may have opened as the current one within the time that it is told.
"""

import datetime as dt
import logging
from collections.abc import Collection
from dataclasses import dataclass
from itertools import pairwise

from storage.archive.maintenance import unpin_snapshots
from storage.errors import ConfigError, CorruptIndexError, NotFoundError
from storage.index.files import VerifiedFiles
from storage.index.manifest import (
    IndexManifest,
    current_version,
    list_versions,
    read_manifest,
    set_current,
)
from storage.location import StorageOptions, absolute_uri, delete, join_uri, list_files, modified_at
from storage.progress import Progress, ProgressSink, quiet

logger = logging.getLogger(__name__)

READERS_GRACE = dt.timedelta(days=1)
"""How long a version that was replaced is left to those who read it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VersionInfo:
    """One version of an index, as `skysift index list` shows it."""

    version: str
    current: bool
    written: dt.datetime
    snapshot: str
    kind: str
    rows: int
    dead_rows: int
    shards: int
    size_bytes: int
    memory_bytes: int
    recall: float | None
    drift: float
    advice: str


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyReport:
    """What :func:`verify_index` found; ``problems`` is one line for each bad file."""

    version: str
    files: int
    size_bytes: int
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether every file is what the manifest says."""
        return not self.problems


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexGarbage:
    """What :func:`collect_garbage` deleted, or would have."""

    versions: tuple[str, ...]
    files: tuple[str, ...]
    dry_run: bool


def index_versions(index_uri: str, options: StorageOptions | None = None) -> list[VersionInfo]:
    """Return the finished versions, oldest first.

    Raises
    ------
    NotFoundError
        There is no finished index.
    CorruptIndexError
        A manifest or the pointer is damaged.
    """
    current = current_version(index_uri, options)
    return [
        _info(index_uri, read_manifest(index_uri, version, options), current, options)
        for version in list_versions(index_uri, options)
    ]


def _info(
    index_uri: str, manifest: IndexManifest, current: str, options: StorageOptions | None
) -> VersionInfo:
    path = join_uri(index_uri, manifest.version, "manifest.json")
    return VersionInfo(
        version=manifest.version,
        current=manifest.version == current,
        written=modified_at(path, options),
        snapshot=manifest.snapshot,
        kind=manifest.parameters.kind,
        rows=manifest.rows,
        dead_rows=sum(shard.dead_rows for shard in manifest.shards),
        shards=len(manifest.shards),
        size_bytes=sum(entry.size_bytes for entry in manifest.files),
        memory_bytes=manifest.measured_bytes,
        recall=manifest.recall.get(str(manifest.nprobe)),
        drift=manifest.drift,
        advice=manifest.advice,
    )


def verify_index(
    index_uri: str,
    version: str | None = None,
    *,
    options: StorageOptions | None = None,
    progress: ProgressSink = quiet,
) -> VerifyReport:
    """Compare every file of a version (the current one by default) with its manifest.

    Raises
    ------
    NotFoundError
        There is no such index or version.
    CorruptIndexError
        The manifest itself is damaged.
    """
    manifest = read_manifest(index_uri, version, options)
    problems, files = [], VerifiedFiles(index_uri, options)
    for number, entry in enumerate(manifest.files, 1):
        try:
            files.open(entry)
        except CorruptIndexError as error:
            problems.append(str(error))
        progress(Progress(stage="verify", done=number, total=len(manifest.files), unit="files"))
    return VerifyReport(
        version=manifest.version,
        files=len(manifest.files),
        size_bytes=sum(entry.size_bytes for entry in manifest.files),
        problems=tuple(problems),
    )


def rollback_index(
    index_uri: str,
    to: str | None = None,
    *,
    options: StorageOptions | None = None,
    progress: ProgressSink = quiet,
) -> IndexManifest:
    """Make another version current, by default the one before, once its files are verified.

    Raises
    ------
    NotFoundError
        There is no such index or version, or none before the current one.
    CorruptIndexError
        The version is damaged; the current one stays.
    """
    current = current_version(index_uri, options)
    if to is None:
        older = [name for name in list_versions(index_uri, options) if name < current]
        if not older:
            raise NotFoundError(f"index {index_uri} has no version before {current}; it stays")
        to = older[-1]
    report = verify_index(index_uri, to, options=options, progress=progress)
    if not report.ok:
        raise CorruptIndexError(f"version {to} is damaged, {current} stays: {report.problems[0]}")
    set_current(index_uri, to, options)
    return read_manifest(index_uri, to, options)


def collect_garbage(
    index_uri: str,
    keep: int = 2,
    older_than: dt.timedelta = READERS_GRACE,
    *,
    in_use: Collection[str] = (),
    dry_run: bool = False,
    now: dt.datetime | None = None,
    options: StorageOptions | None = None,
) -> IndexGarbage:
    """Delete the versions that nobody needs, and what unfinished builds left.

    CURRENT and the newest ``keep`` versions stay, and so does any version that was replaced less
    than ``older_than`` ago, for those who read it, and any file younger than that, for builds that
    are running. Files that a version which stays has taken over from an older one stay too.

    Parameters
    ----------
    index_uri
        The index.
    keep
        How many of the newest versions stay whatever their age; at least 1.
    older_than
        How long readers and builds are given.
    in_use
        Versions that stay because someone reads them, for example running search actors.
    dry_run
        Delete nothing, only say what would be.
    now
        The time that ages are counted to.
    options
        Where the object store is.

    Raises
    ------
    NotFoundError
        There is no finished index.
    ConfigError
        ``keep`` is less than 1.
    """
    if keep < 1:
        raise ConfigError(f"index gc: keep is {keep}; give at least 1")
    root = absolute_uri(index_uri)
    limit = (now or dt.datetime.now(dt.UTC)) - older_than
    versions = list_versions(root, options)
    kept = _kept_versions(root, versions, keep, limit, options) | set(in_use)
    needed = {join_uri(root, "CURRENT")}
    for version in kept:
        manifest = read_manifest(root, version, options)
        needed.add(join_uri(root, version, "manifest.json"))
        needed |= {join_uri(root, entry.path) for entry in manifest.files}
    garbage = [
        name
        for name in list_files(root, options)
        if name not in needed and modified_at(name, options) < limit
    ]
    garbage.sort(key=lambda name: not name.endswith("/manifest.json"))  # a version goes as a whole
    if not dry_run:
        for name in garbage:
            delete(name, options)
        _unpin(root, kept, options)
    gone = tuple(version for version in versions if version not in kept)
    return IndexGarbage(versions=gone, files=tuple(garbage), dry_run=dry_run)


def _unpin(root: str, kept: set[str], options: StorageOptions | None) -> None:
    """Let the archive forget the snapshots that only versions which are gone have read."""
    archive = read_manifest(root, options=options).archive_uri
    try:
        unpin_snapshots(archive, root, kept, options)
    except NotFoundError:
        logger.warning("archive %s is gone; its snapshots stay as they are", archive)


def _kept_versions(
    root: str, versions: list[str], keep: int, limit: dt.datetime, options: StorageOptions | None
) -> set[str]:
    kept = {current_version(root, options), *versions[-keep:]}
    for version, following in pairwise(versions):
        if modified_at(join_uri(root, following, "manifest.json"), options) >= limit:
            kept.add(version)
    return kept
