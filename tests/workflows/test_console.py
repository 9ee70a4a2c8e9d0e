"""What a person sees: progress only when it is worth it, one line an error, JSON that parses."""

import contextlib
import datetime as dt
import errno
import io
import json
import logging
import os
import pty
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import pytest

from storage.errors import CatalogError, ConfigError, NotFoundError, SceneError
from storage.location import Location, StorageOptions
from storage.progress import Event, Progress, event_log
from workflows.commands.common import Run
from workflows.console import (
    ProgressView,
    configure_logging,
    format_pairs,
    format_table,
    write_json,
)
from workflows.exit_codes import failure_line, run_to_exit_code


class _Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def view():
    stream, clock = io.StringIO(), _Clock()
    return ProgressView(tty=False, stream=stream, clock=clock), stream, clock


def _report(done: int, total: int | None = 100, note: str = "") -> Progress:
    return Progress(stage="ingest", done=done, total=total, unit="tiles", note=note)


def test_work_under_two_seconds_shows_nothing(view):
    sink, stream, clock = view
    for done in range(0, 101, 10):
        sink(_report(done))
        sink.tick()
        clock.now += 0.19
    sink.tick()
    assert stream.getvalue() == ""


def test_longer_work_shows_a_line_every_five_seconds_and_one_at_the_end(view):
    sink, stream, clock = view
    for done in range(0, 101, 10):
        sink(_report(done, note="0 quarantined"))
        sink.tick()
        clock.now += 1.0
    for _ in range(3):
        sink.tick()
    lines = stream.getvalue().splitlines()
    assert lines == [
        "ingest:  20%  20/100 tiles  10/s  8 s left  0 quarantined",
        "ingest:  70%  70/100 tiles  10/s  3 s left  0 quarantined",
        "ingest: 100%  100/100 tiles  10/s  in 10 s  0 quarantined",
    ]


def test_a_stage_that_reports_rarely_still_shows_its_age(view):
    sink, stream, clock = view
    sink(_report(0, total=None))
    for _ in range(11):
        clock.now += 1.0
        sink.tick()
    assert stream.getvalue().splitlines() == ["ingest: 0 tiles"] * 2


def test_a_stage_that_runs_again_starts_again(view):
    sink, stream, clock = view
    for _ in range(2):
        sink(_report(0))
        clock.now += 3
        sink.tick()
        sink(_report(100))
        sink.tick()
    assert [line[:12] for line in stream.getvalue().splitlines()] == [
        "ingest:   0%",
        "ingest: 100%",
    ] * 2


def test_a_terminal_gets_a_bar():
    code = (
        "import time\n"
        "from workflows.console import ProgressView\n"
        "from storage.progress import Progress\n"
        "with ProgressView() as sink:\n"
        "    for done in range(6):\n"
        "        sink(Progress(stage='ingest', done=2000 * done, total=10000, unit='scenes',\n"
        "                      speed='1,234 tiles/s', note='12 empty, 3 quarantined'))\n"
        "        time.sleep(0.6)\n"
    )
    terminal, end = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    with subprocess.Popen([sys.executable, "-c", code], stderr=end, env=environment) as process:
        os.close(end)
        shown = b""
        with contextlib.suppress(OSError):  # the terminal is gone when the process is
            while part := os.read(terminal, 65536):
                shown += part
    os.close(terminal)
    assert process.returncode == 0
    text = shown.decode()
    assert "10,000/10,000 scenes" in text
    drawn = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text).replace("\r", "\n").split("\n")
    assert max(map(len, drawn)) <= 80
    whole = r"ingest [━╸╺]+ 6,000/10,000 scenes  1,234 tiles/s  \d s left  12 empty, 3 quarantined"
    assert any(re.fullmatch(whole, line.strip()) for line in drawn)


@dataclass(frozen=True)
class _Result:
    scores: np.ndarray
    when: dt.datetime
    where: Path


def test_json_holds_arrays_dates_paths_and_no_nan():
    out = io.StringIO()
    result = _Result(
        np.array([1.5, np.nan], np.float32), dt.datetime(2020, 1, 2, tzinfo=dt.UTC), Path("a/b")
    )
    write_json({"result": result, "rows": np.int64(7)}, out)
    assert json.loads(out.getvalue()) == {
        "result": {"scores": [1.5, None], "when": "2020-01-02T00:00:00+00:00", "where": "a/b"},
        "rows": 7,
    }


def test_a_table_fits_its_width_and_shortens_names_in_the_middle():
    scene = "S2B_MSIL2A_20200219T112109_N0214_R037_T29RKH_20200219T133821"
    lines = format_table(["rank", "score", "scene", "tile"], [[1, 0.98765, scene, "g/1/2"]], 60)
    assert all(len(line) <= 60 for line in lines)
    assert "S2B_MSIL2A" in lines[1]
    assert "133821" in lines[1]
    assert "0.9877" in lines[1]


def _raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        raise error from cause
    except type(error) as caught:
        return caught


class _RayTaskError(Exception):
    """Ray's wrapper as it arrives at the driver: the text is a traceback, the cause is inside."""

    def __init__(self, cause: Exception) -> None:
        super().__init__("ray::task() Traceback (most recent call last): ...")
        self.cause = cause


@pytest.mark.parametrize(
    ("error", "line", "code"),
    [
        (SceneError("scene a.tif has\n no CRS"), "scene a.tif has no CRS", 1),
        (NotFoundError("no archive at x"), "no archive at x", 1),
        (ConfigError("grid.tile_px is 0"), "grid.tile_px is 0", 2),
        (_RayTaskError(CatalogError("empty catalog")), "empty catalog", 1),
        (_raised(RuntimeError("wrapped"), CatalogError("inside")), "inside", 1),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "/x: Permission denied", 1),
        (
            _raised(SceneError("cannot write"), OSError(errno.ENOSPC, "No space", "/data/a")),
            "no space left on the disk while writing /data/a: free some space or choose another "
            "place and run the same command again; what was committed is kept",
            1,
        ),
        (
            RuntimeError("object store error: No space left on device (os error 28)"),
            "no space left on the disk: free some space or choose another place and run the same "
            "command again; what was committed is kept",
            1,
        ),
        (
            ZeroDivisionError("division by zero"),
            "unexpected ZeroDivisionError: division by zero; run again with --debug to see where, "
            "and please report it",
            1,
        ),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(error, line, code, capsys):
    assert failure_line(error) == (line, code)

    def fail() -> None:
        raise error

    assert run_to_exit_code(fail) == code
    assert capsys.readouterr().err == f"skysift: {line}\n"


def test_debug_shows_the_traceback_as_well(capsys):
    def fail() -> None:
        raise ConfigError("wrong")

    assert run_to_exit_code(fail, debug=True) == 2
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert shown.endswith("skysift: wrong\n")


def test_usage_errors_and_chosen_exit_codes_pass(capsys):
    @click.command()
    @click.option("--n", type=int)
    @click.pass_context
    def command(ctx: click.Context, n: int) -> None:
        ctx.exit(n)

    def run(*arguments: str) -> int:
        return run_to_exit_code(lambda: command.main(list(arguments), standalone_mode=False))

    assert run("--n", "3") == 3
    assert run("--n", "x") == 2
    assert "not a valid integer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 143, "stopped by SIGTERM"),
        (signal.SIGHUP, 129, "stopped by SIGHUP"),
    ],
)
def test_a_signal_ends_with_one_line_and_runs_what_cleans_up(number, code, word, tmp_path):
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from workflows.exit_codes import run_to_exit_code\n"
        "def work():\n"
        "    try:\n"
        "        print('started', flush=True)\n"
        "        time.sleep(60)\n"
        "    finally:\n"
        f"        Path({str(tmp_path / 'closed')!r}).touch()\n"
        "sys.exit(run_to_exit_code(work))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "started\n"
    time.sleep(0.1)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert err.count("\n") == 1
    assert word in err
    assert (tmp_path / "closed").exists()


@pytest.mark.parametrize(
    "lose",
    [
        # A finalizer, an event loop, and a library that takes it for an error of its own.
        "Finalizer()",
        "asyncio.run(in_event_loop())",
        "taken_for_an_error()",
    ],
)
def test_a_signal_whose_exception_is_lost_ends_the_command_and_cleaning_up_goes_on(lose, tmp_path):
    program = (
        "import asyncio, signal, sys, time\n"
        "from pathlib import Path\n"
        "from workflows import exit_codes\n"
        "exit_codes._AGAIN_S = 0.2\n"
        "class Finalizer:\n"
        "    def __del__(self):\n"
        "        signal.raise_signal(signal.SIGTERM)\n"
        "async def in_event_loop():\n"
        "    asyncio.get_running_loop().call_soon(signal.raise_signal, signal.SIGTERM)\n"
        "    await asyncio.sleep(0)\n"
        "def taken_for_an_error():\n"
        "    try:\n"
        "        signal.raise_signal(signal.SIGTERM)\n"
        "    except BaseException:\n"
        "        raise ImportError from None\n"
        "def work():\n"
        "    try:\n"
        f"        {lose}\n"
        "        print('goes on', flush=True)\n"
        "        time.sleep(60)\n"
        "    finally:\n"
        "        time.sleep(1)\n"
        f"        Path({str(tmp_path / 'closed')!r}).touch()\n"
        "sys.exit(exit_codes.run_to_exit_code(work))\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=False
    )
    assert process.returncode == 143
    assert process.stderr.splitlines()[-1] == (
        "skysift: stopped by SIGTERM; what was committed is kept, and the same command continues"
    )
    assert ("goes on" in process.stdout) == (lose != "taken_for_an_error()")
    assert (tmp_path / "closed").exists()


ODD = "\x1b]0;t\x07\x1b[31mRED\nspoofed \u202e\ud800"


def test_no_control_character_reaches_the_terminal(view, capsys):
    sink, stream, clock = view
    sink(_report(0, note=ODD))
    clock.now += 3
    sink.tick()
    configure_logging()
    logging.getLogger("storage").warning("scene %s is odd", ODD)
    shown = io.StringIO()
    lines = [ODD, *format_pairs({"a": ODD})]
    settings = {"recipe_name": None, "sets": (), "overrides": {}, "as_json": False}
    Run(**settings, stdout=shown).show({"scene": ODD}, lines)

    def fail() -> None:
        raise CatalogError(ODD)

    run_to_exit_code(fail)
    for text in (stream.getvalue(), shown.getvalue(), capsys.readouterr().err):
        assert "RED" in text
        assert all(line.isprintable() for line in text.split("\n"))
        assert not re.search("^ *spoofed", text, re.MULTILINE)


def test_an_event_with_odd_text_is_written(tmp_path):
    with event_log(tmp_path / "events.jsonl") as events:
        events(Event(event="failed", reason=ODD))
    [line] = (tmp_path / "events.jsonl").read_bytes().splitlines()
    assert json.loads(line)["reason"] == ODD


def test_a_terminal_without_unicode_shows_names_escaped():
    program = (
        "from workflows import cli, exit_codes\n"
        "cli.run_to_exit_code = lambda *a, **k: print('Z\\u00fcrich') or 0\n"
        "cli.main(['doctor'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=True,
    )
    assert done.stdout == b"Z\\xfcrich\n"


def test_json_names_a_place_by_its_uri_and_never_its_credentials():
    options = StorageOptions(access_key_id="key", secret_access_key="s3cret")
    stream = io.StringIO()
    write_json({"archive": Location("s3://bucket/archive", options), "options": options}, stream)
    written = json.loads(stream.getvalue())
    assert written["archive"] == "s3://bucket/archive"
    assert set(written["options"]) == {"endpoint_url", "region", "anonymous", "sidecars"}
