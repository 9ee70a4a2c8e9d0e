"""Output of the command line: data on stdout; logs and progress on stderr.

Libraries report :class:`storage.progress.Progress` and log; this module alone decides how a person
sees them. Rich is imported only once there is something to draw, so that ``--help`` is quick.
"""

import dataclasses
import html
import json
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import PurePath
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from storage.progress import Progress
from storage.values import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

QUIET_S = 2.0
PLAIN_EVERY_S = 5.0
_OWN_PACKAGES = ("storage", "encoders", "pipeline", "workflows")


@cache
def stderr_console() -> "Console":
    """Return the one Rich console on stderr; a bar and log lines share it without tearing."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


# ---------------------------------------------------------------- data on stdout


def plain_value(value: Any) -> Any:
    """Turn a result into JSON values; not-a-number and infinities become null, places their URI.

    Fields that are left out of ``repr``, such as credentials, are left out.

    Examples
    --------
    >>> plain_value({"k": (1, float("nan")), "path": PurePath("a/b")})
    {'k': [1, None], 'path': 'a/b'}
    """
    from storage.location import Location

    if isinstance(value, Location):
        return value.uri
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.repr}
    if isinstance(value, Mapping):
        return {str(key): plain_value(item) for key, item in value.items()}
    if hasattr(value, "tolist"):  # numpy arrays and scalars
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain_value(item) for item in value]
    if hasattr(value, "isoformat"):
        return value.isoformat()
    return str(value) if isinstance(value, PurePath) else value


def write_json(value: Any, stream: TextIO | None = None) -> None:
    """Write one JSON document to stdout."""
    out = stream or sys.stdout
    json.dump(plain_value(value), out, indent=2, allow_nan=False)
    out.write("\n")


def format_pairs(pairs: Mapping[str, Any]) -> list[str]:
    """Align names and values in two columns.

    Examples
    --------
    >>> format_pairs({"rows": 1200, "snapshot": "A1"})
    ['rows      1,200', 'snapshot  A1']
    """
    width = max((len(name) for name in pairs), default=0)
    return [f"{name:<{width}}  {_brief(value)}" for name, value in pairs.items()]


def format_table(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], width: int = 80
) -> list[str]:
    """Align rows below their column names within ``width`` characters; numbers to the right.

    The widest text column gives way: its cells are shortened in the middle, where scene names
    differ least.

    Examples
    --------
    >>> format_table(["scene", "rows"], [["a", 2], ["bc", 1000]])
    ['scene   rows', 'a          2', 'bc     1,000']
    """
    cells = [[_cell(value) for value in row] for row in rows]
    right = [bool(rows) and all(isinstance(row[c], (int, float)) for row in rows)
             for c in range(len(columns))]  # fmt: skip
    widths = [
        max(len(name), *(len(row[c]) for row in cells)) if cells else len(name)
        for c, name in enumerate(columns)
    ]
    while sum(widths) + 2 * (len(widths) - 1) > width and max(widths) > 8:
        widths[widths.index(max(widths))] -= 1
    return [
        "  ".join(
            (_shorten(cell, size).rjust(size) if flush else _shorten(cell, size).ljust(size))
            for cell, size, flush in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in [list(columns), *cells]
    ]


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _brief(value: Any) -> str:
    is_fraction = isinstance(value, float) and math.isfinite(value)
    return _cell(value).rstrip("0").rstrip(".") if is_fraction else _cell(value)


def _shorten(text: str, size: int) -> str:
    if len(text) <= size:
        return text
    head = (size - 1) // 2
    return f"{text[:head]}…{text[len(text) - (size - 1 - head) :]}"


# ---------------------------------------------------------------- logs on stderr


class _StderrHandler(logging.Handler):
    """Write records above a bar that may be drawn at the same time."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record as one line."""
        try:
            stderr_console().print(self.format(record), markup=False, soft_wrap=True)
        except (OSError, ValueError):
            self.handleError(record)


class _PrintableFormatter(logging.Formatter):
    """Make messages printable; only a traceback has several lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))


def configure_logging(*, verbose: bool = False, debug: bool = False) -> None:
    """Send logs to stderr: Skysift's own warnings, progress notes with ``verbose``, or all.

    Other libraries' records pass from ERROR on, and from INFO on with ``debug``.
    """
    handler = _StderrHandler()
    handler.setFormatter(
        _PrintableFormatter(
            "%(asctime)s %(levelname)s %(name)s: %(message)s" if debug else "%(message)s"
        )
    )
    root = logging.getLogger()
    for old in [h for h in root.handlers if isinstance(h, _StderrHandler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.INFO if debug else logging.ERROR)
    own = logging.DEBUG if debug else logging.INFO if verbose else logging.WARNING
    for name in _OWN_PACKAGES:
        logging.getLogger(name).setLevel(own)
    logging.captureWarnings(capture=True)
    if not debug:
        # Ray's C++ parts also write errors to stderr that its Python parts handle.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")


def silence_ray() -> None:
    """Keep the notes of Ray's Python parts off stderr; call it once they are imported."""
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    for name in ("ray", "ray.data", "ray.train", "ray.serve"):
        for handler in logging.getLogger(name).handlers:
            if isinstance(handler, logging.StreamHandler) and not hasattr(handler, "baseFilename"):
                handler.setLevel(logging.ERROR)


@contextmanager
def suppress_stderr() -> Iterator[None]:
    """Discard all writes to the stderr of the process, those of native code included.

    For the moment in which Ray starts: it announces its log level before it obeys it.
    """
    sys.stderr.flush()
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)


# ---------------------------------------------------------------- progress on stderr


def in_notebook() -> bool:
    """Tell whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return getattr(shell, "kernel", None) is not None


class Clock(Protocol):
    """Seconds on a clock that never goes back."""

    def __call__(self) -> float:
        """Return the time in seconds."""


class _Stage:
    """State of one stage: its beginning, and its first and latest report."""

    def __init__(self, report: Progress, now: float) -> None:
        self.began_s, self.first_done, self.latest = now, report.done, report
        self.line_s = -math.inf
        self.shown = False
        self.task: TaskID | None = None  # on a terminal
        self.handle: Any = None  # in a notebook

    @property
    def finished(self) -> bool:
        return self.latest.total is not None and self.latest.done >= self.latest.total

    def detail(self, now: float) -> str:
        """Describe count, rate and remaining time."""
        report, elapsed = self.latest, now - self.began_s
        of_total = f"/{report.total:,}" if report.total is not None else ""
        parts = [f"{report.done:,}{of_total} {report.unit}"]
        rate = (report.done - self.first_done) / elapsed if elapsed > 0 else 0.0
        if rate > 0:
            per_second = f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s"
            parts.append(report.speed or per_second)
            if report.total is not None and not self.finished:
                parts.append(f"{duration((report.total - report.done) / rate)} left")
        if self.finished:
            parts.append(f"in {duration(elapsed)}")
        return printable("  ".join([*parts, report.note] if report.note else parts))


def duration(seconds: float) -> str:
    """Format a duration for people.

    Examples
    --------
    >>> duration(7), duration(75), duration(7265)
    ('7 s', '1:15', '2:01:05')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return (
        f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
    )


class ProgressView:
    """A progress sink that draws bars on a terminal and in a notebook, and plain lines elsewhere.

    Nothing is shown of a stage that is done within :data:`QUIET_S` seconds. Reports may come from
    any thread. Use it as a context manager: a thread draws the latest reports, so that a
    stage that reports rarely still shows its age.
    """

    def __init__(
        self,
        *,
        tty: bool | None = None,
        stream: TextIO | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self._stream = stream or sys.stderr
        self._tty = self._stream.isatty() if tty is None else tty
        self._clock = clock
        self._notebook = tty is None and stream is None and in_notebook()
        self._stages: dict[str, _Stage] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._bars: RichProgress | None = None
        self._ticker = threading.Thread(target=self._run, name="progress", daemon=True)

    def __enter__(self) -> "ProgressView":
        self._ticker.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._ticker.join()
        self.tick()
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, report: Progress) -> None:
        """Take a report; a stage that starts again from the beginning is a new one."""
        now = self._clock()
        with self._lock:
            stage = self._stages.get(report.stage)
            if stage is None or (stage.finished and report.done < stage.latest.done):
                self._stages[report.stage] = _Stage(report, now)
            else:
                stage.latest = report

    def tick(self) -> None:
        """Draw the latest reports."""
        now = self._clock()
        with self._lock:
            for name, stage in self._stages.items():
                if stage.shown or (now - stage.began_s >= QUIET_S and not stage.finished):
                    if self._notebook:
                        self._show_html(name, stage, now)
                    elif self._tty:
                        self._draw_bar(name, stage, now)
                    else:
                        self._write_line(name, stage, now)

    def _run(self) -> None:
        while not self._stop.wait(0.25):
            self.tick()

    def _write_line(self, name: str, stage: _Stage, now: float) -> None:
        last = stage.finished and stage.line_s != math.inf
        if last or now - stage.line_s >= PLAIN_EVERY_S:
            stage.shown, stage.line_s = True, math.inf if stage.finished else now
            share = stage.latest.done / stage.latest.total if stage.latest.total else None
            percent = f"{share:4.0%}  " if share is not None else ""
            self._stream.write(f"{name}: {percent}{stage.detail(now)}\n")
            self._stream.flush()

    def _show_html(self, name: str, stage: _Stage, now: float) -> None:
        """Show a bar below the cell, and replace it with each tick; no widget has to be there."""
        if stage.finished and stage.line_s == math.inf:
            return
        from IPython import display

        stage.shown, stage.line_s = True, math.inf if stage.finished else now
        done, total = stage.latest.done, stage.latest.total
        value = "" if total is None else f"value='{done}' max='{max(total, 1)}'"
        text = html.escape(f"{name}: {stage.detail(now)}")
        bar = display.HTML(f"<div><progress {value} style='width:16em'></progress> {text}</div>")
        if stage.handle is None:
            stage.handle = display.display(bar, display_id=True)
        else:
            stage.handle.update(bar)

    def _draw_bar(self, name: str, stage: _Stage, now: float) -> None:
        if self._bars is None:
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as RichProgress
            from rich.table import Column

            console = stderr_console()
            one_line = Column(no_wrap=True, overflow="ellipsis")
            self._bars = RichProgress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24 if console.width >= 100 else 8),
                TextColumn("{task.fields[detail]}", markup=False, table_column=one_line),
                console=console,
            )
            self._bars.start()
        if stage.task is None:
            stage.task = self._bars.add_task(name, total=stage.latest.total, detail="")
        if stage.finished and stage.line_s == math.inf:
            return
        stage.shown, stage.line_s = True, math.inf if stage.finished else now
        self._bars.update(
            stage.task,
            completed=stage.latest.done,
            total=stage.latest.total,
            detail=stage.detail(now),
        )
