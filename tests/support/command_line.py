"""The command line, run in the process of the test, or beside it as its users run it."""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.support.paths import REPOSITORY
from workflows.cli import main


@dataclass(frozen=True)
class Outcome:
    """Exit code and output of a command; ``data`` is its JSON."""

    code: int
    out: str
    err: str

    @property
    def data(self):
        return json.loads(self.out)


def run(*arguments: object) -> Outcome:
    """Run the command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as ended:
            return Outcome(int(ended.code or 0), out.getvalue(), err.getvalue())
    raise AssertionError("main always exits")


def run_beside(folder: Path, *command: str) -> "subprocess.CompletedProcess[str]":
    """Run Python in a folder, as the console script: the folder is not on Python's path."""
    return subprocess.run(
        [sys.executable, "-P", *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "100"},
        capture_output=True,
        text=True,
    )


def page_blocks(page: str, language: str) -> list[str]:
    """Return the blocks of a page of ``docs/howto`` in a language, in order."""
    text = (REPOSITORY / "docs/howto" / page).read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
