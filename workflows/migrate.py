"""`skysift migrate`: the formats of the files of earlier releases, and the newest form of each.

All formats that this Skysift reads are read as they are, so nothing has to be migrated before an
upgrade. Two of them gain by it: segments of an archive without digests, whose damage nothing would
notice, and saved searches of versions 1 and 2. docs/upgrades.md lists the formats.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass

from encoders.spec import DESCRIPTION_FILE, read_spec
from pipeline.search.saved import VERSION, load_search, save_search
from storage.archive.audit import unsealed_segments
from storage.archive.maintenance import mend
from storage.archive.reader import Archive
from storage.archive.spec import FORMAT
from storage.dataset import read_info
from storage.index.manifest import list_versions, read_manifest
from storage.location import Location


@dataclass(frozen=True, kw_only=True, slots=True)
class Migration:
    """The kind of a place, the format that it states, and the change to it; empty if there is none.

    ``changed`` tells that the change was made.
    """

    place: str
    kind: str
    format: str
    change: str = ""
    changed: bool = False


def migrate(uri: str | Location, *, dry_run: bool = False) -> Migration:
    """Bring an archive, index, dataset, bundle or saved search to the newest form.

    Readers see the old form or the new. Migrating again changes nothing.

    Parameters
    ----------
    uri
        A saved search's file, or the folder of one of the others.
    dry_run
        Change nothing; the result names the change.

    Raises
    ------
    NotFoundError
        There is no such thing.
    ConfigError, CorruptIndexError
        It is damaged, or something else.
    SkysiftError
        A later Skysift wrote it.
    """
    place = Location.of(uri)
    kind, stated, change, make = _inspect(place)
    changed = bool(change) and not dry_run
    if changed:
        make(place)
    return Migration(place=str(place), kind=kind, format=stated, change=change, changed=changed)


def _inspect(place: Location) -> tuple[str, str, str, Callable[[Location], object]]:
    """Return the kind of a place, its format, the change to make, and the function to do so."""
    if place.uri.endswith(".json"):
        load_search(place)
        version = json.loads(place.read())["version"]
        change = f"written as version {VERSION}" if version < VERSION else ""
        return "saved search", str(version), change, _rewrite
    if (place / "dataset.json").exists():
        read_info(place)
        return "dataset", _stated(place / "dataset.json"), "", _keep
    if (place / DESCRIPTION_FILE).exists():
        read_spec(place)
        return "bundle", _stated(place / DESCRIPTION_FILE), "", _keep
    if list_versions(place):
        return "index", str(read_manifest(place).format), "", _keep
    bare = len(unsealed_segments(Archive.open(place)))
    return "archive", str(FORMAT), f"digests of segments ({bare})" if bare else "", mend


def _stated(document: Location) -> str:
    return str(json.loads(document.read())["format"])


def _rewrite(place: Location) -> None:
    save_search(load_search(place), place)


def _keep(_: Location) -> None:
    """Leave a file of the newest form."""
