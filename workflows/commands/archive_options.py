"""What the verbs of `skysift archive` share: which archive, and which state of it."""

from typing import TYPE_CHECKING

from workflows.commands.common import Run
from workflows.commands.options import recipe_option

if TYPE_CHECKING:
    from storage.archive.reader import Archive
    from storage.location import Location

archive_option = recipe_option("--archive", "archive.uri")
snapshot_option = recipe_option("--snapshot", "archive.snapshot", metavar="ID")


def archive_uri(run: Run) -> "Location":
    """Return the place of the archive."""
    return run.need_path("archive.uri", "--archive")


def open_archive(run: Run) -> "Archive":
    """Open the archive at the snapshot or tag that is asked for."""
    from storage.archive.maintenance import resolve_snapshot
    from storage.archive.reader import Archive

    uri, name = archive_uri(run), run.recipe.archive.snapshot
    return Archive.open(uri, name and resolve_snapshot(uri, name))
