"""The command line, run in the process of the test."""

import contextlib
import io
import json
from dataclasses import dataclass

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
