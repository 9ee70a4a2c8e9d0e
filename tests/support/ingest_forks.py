"""Ingests and imports in processes of their own, which can be killed at any line of their commits.

One process imports everything and is forked for every run, so a run costs tens of milliseconds.
The stages run in the fork itself, without Ray; plan, driver, committer and archive are the real
ones. Run as a module it serves requests (JSON lines on stdin, answers on stdout).
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from encoders.bundle import load_encoder
from pipeline.importing.driver import import_embeddings
from pipeline.importing.plan import plan_import
from pipeline.importing.spec import ImportReport, ImportSpec
from pipeline.ingest.driver import ingest, plan_ingest
from pipeline.ingest.spec import IngestReport, IngestSpec
from storage.errors import SkysiftError
from storage.location import Location, StorageOptions
from storage.scene import CatalogSpec
from tests.support.paths import REPOSITORY

TRACED = (
    "pipeline/ingest/driver.py",
    "pipeline/importing/driver.py",
    "pipeline/ingest/commit.py",
    "storage/archive/reader.py",
    "storage/archive/writer.py",
    "storage/archive/ledger.py",
)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One ingest, or without an encoder an import of pixel embeddings, ``tile_px`` a side.

    ``kill_at`` counts lines of the driver's modules, None lets it live. ``pid_file`` is where the
    process writes its number before it begins.
    """

    source: str
    encoder: str = ""
    archive: str
    tile_px: int = 0
    segment_rows: int = 1
    commit_interval_s: float = 0.0
    retry: bool = False
    kill_at: int | None = None
    options: dict[str, Any] | None = None
    pid_file: str = ""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How it ended: the signal that killed it, its error, or what it did and by which lines."""

    signal: int = 0
    error: str = ""
    rows: int = 0
    lines: tuple[str, ...] = ()


class Forks:
    """The process that forks, as its client sees it."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.support.ingest_forks"],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def run(self, *runs: Run) -> list[Outcome]:
        """Run ingests concurrently; return the outcome of each."""
        assert self._server.stdin
        assert self._server.stdout
        self._server.stdin.write(json.dumps([asdict(run) for run in runs]) + "\n")
        self._server.stdin.flush()
        answers = json.loads(self._server.stdout.readline())
        return [
            Outcome(**{**answer, "lines": tuple(answer.get("lines", ()))}) for answer in answers
        ]

    def close(self) -> None:
        """End the process."""
        self._server.communicate(timeout=30)


@contextmanager
def forks() -> Iterator[Forks]:
    """Keep a process to fork inside the block."""
    server = Forks()
    try:
        yield server
    finally:
        server.close()


def _serve() -> None:
    warm: set[str] = set()
    for request in sys.stdin:
        runs = [Run(**values) for values in json.loads(request)]
        for encoder in {run.encoder for run in runs} - warm:
            warm.add(encoder)
            if encoder and not encoder.startswith("s3:"):
                load_encoder(encoder)  # the first use of torch is slow, and need not be repeated
        started = [_start(run) for run in runs]
        answers = [_wait(child, reading) for child, reading in started]
        sys.stdout.write(json.dumps(answers) + "\n")
        sys.stdout.flush()


def _start(run: Run) -> tuple[int, int]:
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    os.close(reading)
    with os.fdopen(writing, "w") as answer:
        json.dump(_carry_out(run), answer)
    os._exit(0)


def _wait(child: int, reading: int) -> dict[str, Any]:
    with os.fdopen(reading) as answer:
        text = answer.read()
    _pid, status = os.waitpid(child, 0)
    return {"signal": os.WTERMSIG(status)} if os.WIFSIGNALED(status) else json.loads(text)


def _carry_out(run: Run) -> dict[str, Any]:
    if run.pid_file:
        Path(run.pid_file).write_text(str(os.getpid()))
    lines: list[str] = []
    try:
        with _traced(lines, run.kill_at):
            report = _imported(run) if run.tile_px else _ingested(run)
    except SkysiftError as error:
        return {"error": f"{type(error).__name__}: {error}", "lines": lines}
    except Exception as error:
        return {"error": f"unexpected {type(error).__name__}: {error}", "lines": lines}
    return {"rows": report.rows, "lines": lines}


def _ingested(run: Run) -> IngestReport:
    options = StorageOptions(**run.options or {})
    spec = IngestSpec(
        catalog=CatalogSpec(source=Location(run.source, options)),
        encoder_uri=Location(run.encoder, options),
        archive_uri=Location(run.archive, options),
        segment_rows=run.segment_rows,
        commit_interval_s=run.commit_interval_s,
        retry_quarantined=run.retry,
    )
    return ingest(plan_ingest(spec), local=True)


def _imported(run: Run) -> ImportReport:
    spec = ImportSpec(
        source=run.source,
        archive_uri=run.archive,
        tile_px=run.tile_px,
        segment_rows=run.segment_rows,
        commit_interval_s=run.commit_interval_s,
    )
    return import_embeddings(plan_import(spec))


@contextmanager
def _traced(lines: list[str], kill_at: int | None) -> Iterator[None]:
    """Record every line of the driver that runs; kill the process at line ``kill_at``."""
    names = {str(REPOSITORY / name): name for name in TRACED}

    def in_file(frame: FrameType, event: str, _argument: Any) -> Any:
        if event == "line":
            if len(lines) == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            lines.append(f"{names[frame.f_code.co_filename]}:{frame.f_lineno}")
        return in_file

    def anywhere(frame: FrameType, event: str, argument: Any) -> Any:
        return in_file if frame.f_code.co_filename in names else None

    sys.settrace(anywhere)
    try:
        yield
    finally:
        sys.settrace(None)


def evenly(lines: Sequence[str], count: int) -> list[int]:
    """Return ``count`` positions spread evenly over a run's lines, the last line included."""
    return sorted({round(position) for position in np.linspace(0, len(lines) - 1, count).tolist()})


if __name__ == "__main__":
    _serve()
