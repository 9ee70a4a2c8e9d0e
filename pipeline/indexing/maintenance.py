"""Maintain the versions of an index: list, verify, roll back, delete old versions.

A version is never changed, so its readers are not disturbed by newer versions. Only
:func:`collect_garbage` deletes: it keeps the current version, the newest versions, and every
version that a reader may have opened as the current version within a given time.
"""

import datetime as dt
import logging
from collections.abc import Collection, Sequence
from contextlib import suppress
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
    read_pointer,
    set_current,
)
from storage.location import Location
from storage.locks import commit_lock
from storage.progress import Progress, ProgressSink, ignore

logger = logging.getLogger(__name__)

READERS_GRACE = dt.timedelta(days=1)
"""The time for which a replaced version is left to its readers."""


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
    """The result of :func:`verify_index`; ``problems`` has one line for each bad file."""

    version: str
    files: int
    size_bytes: int
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether every file matches the manifest."""
        return not self.problems


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexGarbage:
    """The versions and files that :func:`collect_garbage` deleted, or would delete."""

    versions: tuple[str, ...]
    files: tuple[str, ...]
    dry_run: bool


def index_versions(index_uri: str | Location) -> list[VersionInfo]:
    """Return the finished versions, oldest first.

    Raises
    ------
    NotFoundError
        There is no finished index.
    CorruptIndexError
        A manifest or the pointer is damaged.
    """
    index = Location.of(index_uri)
    current = current_version(index)
    return [
        _info(index, read_manifest(index, version), current) for version in list_versions(index)
    ]


def recall_in_words(manifest: IndexManifest) -> str:
    """Return the measured recall@10 of a version at its default nprobe, for people.

    Vectors of two parts have the worst of the measured blends, and each of them.
    """
    recall = manifest.recall.get(str(manifest.nprobe))
    if recall is None:
        return "not measured"
    each = ", ".join(f"blend {blend}: {value:.3f}" for blend, value in manifest.recalls.items())
    return f"{recall:.3f} ({each})" if each else f"{recall:.3f}"


def _info(index: Location, manifest: IndexManifest, current: str) -> VersionInfo:
    return VersionInfo(
        version=manifest.version,
        current=manifest.version == current,
        written=_written(index, manifest.version),
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


def _written(index: Location, version: str) -> dt.datetime:
    return (index / version / "manifest.json").modified_at()


def verify_index(
    index_uri: str | Location, version: str | None = None, *, progress: ProgressSink = ignore
) -> VerifyReport:
    """Compare every file of a version (by default the current version) with its manifest.

    Raises
    ------
    NotFoundError
        There is no such index or version.
    CorruptIndexError
        The manifest itself is damaged.
    """
    manifest = read_manifest(index_uri, version)
    problems, files = [], VerifiedFiles(index_uri)
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
    index_uri: str | Location, to: str | None = None, *, progress: ProgressSink = ignore
) -> IndexManifest:
    """Make another version current, by default the previous version, once its files are verified.

    Raises
    ------
    NotFoundError
        There is no such index or version, or no version before the current version.
    CorruptIndexError
        The version is damaged; the current version stays.
    ArchiveConflictError
        Another writer has made another version current meanwhile.
    """
    pointer = read_pointer(index_uri)
    if to is None:
        current = current_version(index_uri)
        older = [name for name in list_versions(index_uri) if name < current]
        if not older:
            raise NotFoundError(f"index {index_uri} has no version before {current}; it stays")
        to = older[-1]
    report = verify_index(index_uri, to, progress=progress)
    if not report.ok:
        raise CorruptIndexError(
            f"version {to} is damaged, {pointer.decode(errors='replace')[:40] or 'CURRENT'} stays: "
            f"{report.problems[0]}"
        )
    set_current(index_uri, to, pointer)
    return read_manifest(index_uri, to)


def collect_garbage(
    index_uri: str | Location,
    keep: int = 2,
    older_than: dt.timedelta = READERS_GRACE,
    *,
    in_use: Collection[str] = (),
    dry_run: bool = False,
    now: dt.datetime | None = None,
) -> IndexGarbage:
    """Delete unneeded versions, and the files of unfinished builds.

    The current version and the newest ``keep`` versions stay, and so does any version that was
    replaced less than ``older_than`` ago, for its readers, and any younger file, for running
    builds. Files of an older version that a remaining version uses stay too.

    Parameters
    ----------
    index_uri
        The index.
    keep
        Number of the newest versions that stay at any age; at least 1.
    older_than
        The time left to readers and builds.
    in_use
        Versions that stay because they are read, for example by running search actors.
    dry_run
        Delete nothing, only report the garbage.
    now
        The time to which ages are counted.

    Raises
    ------
    NotFoundError
        There is no finished index.
    ConfigError
        ``keep`` is less than 1.
    """
    if keep < 1:
        raise ConfigError(f"index gc: keep is {keep}; give at least 1")
    index = Location.of(index_uri).absolute
    limit = (now or dt.datetime.now(dt.UTC)) - older_than
    with commit_lock(index):
        return _collect(index, keep, limit, in_use, dry_run)


def _collect(
    index: Location, keep: int, limit: dt.datetime, in_use: Collection[str], dry_run: bool
) -> IndexGarbage:
    versions = list_versions(index)
    remaining = {current_version(index), *versions[-keep:], *in_use}
    remaining |= {old for old, new in pairwise(versions) if _written(index, new) >= limit}
    needed = {index / "CURRENT"}
    for version in remaining:
        needed.add(index / version / "manifest.json")
        needed |= {index / entry.path for entry in read_manifest(index, version).files}
    garbage = [file for file in index.list() if file not in needed and file.modified_at() < limit]
    # Manifests go first: a version without one is not there, whatever of it is left.
    garbage.sort(key=lambda file: not file.uri.endswith("/manifest.json"))
    if not dry_run:
        archives = _archives(index, versions)
        for file in garbage:
            file.delete()
        for archive in archives:
            _unpin(archive, index, remaining)
    return IndexGarbage(
        versions=tuple(version for version in versions if version not in remaining),
        files=tuple(map(str, garbage)),
        dry_run=dry_run,
    )


def _archives(index: Location, versions: Sequence[str]) -> list[Location]:
    """Return the archives of versions; a damaged version says nothing."""
    found = set()
    for version in versions:
        with suppress(CorruptIndexError):
            found.add(read_manifest(index, version).archive_uri)
    return [index.at(uri) for uri in sorted(found)]


def _unpin(archive: Location, index: Location, remaining: set[str]) -> None:
    """Release the snapshots of an archive that only deleted versions have read."""
    try:
        unpin_snapshots(archive, index, remaining)
    except NotFoundError:
        logger.warning("archive %s is gone; its snapshots stay as they are", archive)
