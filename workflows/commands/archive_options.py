"""Options of the verbs of `skysift archive`: the archive, and the state to read."""

from workflows.commands.common import recipe_option

archive_option = recipe_option("--archive", "archive.uri")
snapshot_option = recipe_option("--snapshot", "archive.snapshot", metavar="ID")
