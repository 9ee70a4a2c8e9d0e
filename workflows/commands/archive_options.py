"""Options of the verbs of `skysift archive`: the archive, and the state to read."""

from typing import TYPE_CHECKING

from workflows.commands.common import Run, recipe_option

if TYPE_CHECKING:
    from storage.archive.reader import Archive

archive_option = recipe_option("--archive", "archive.uri")
snapshot_option = recipe_option("--snapshot", "archive.snapshot", metavar="ID")


def open_archive(run: Run) -> "Archive":
    """Open the archive at the snapshot or tag of the recipe, else at the newest."""
    from storage.archive.maintenance import resolve_snapshot
    from storage.archive.reader import Archive

    uri, name = run.need_path("archive.uri"), run.recipe.archive.snapshot
    return Archive.open(uri, name and resolve_snapshot(uri, name))
