"""Reports of progress and events of long work.

Libraries report :class:`Progress` values to a sink; only the command line decides whether that
becomes a bar, plain lines or nothing.
"""

import datetime as dt
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from storage.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One report: ``done`` of ``total`` units (``total`` is None while unknown) of a stage.

    ``speed`` replaces units per second where another measure fits better.
    """

    stage: str
    done: int
    total: int | None = None
    unit: str = "items"
    speed: str = ""
    note: str = ""


ProgressSink = Callable[[Progress], None]


def ignore(report: object) -> None:
    """Discard a report or an event: the default sink."""


EventName = Literal["started", "scene", "committed", "finished", "failed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One thing that happened; fields that are None are left out of the log.

    Parameters
    ----------
    event
        ``started``, ``scene`` (its state was recorded), ``committed``, ``finished`` or ``failed``.
    stage
        ``ingest`` or ``watch``.
    archive
        URI of the archive.
    scene, state, reason
        The scene's id, its state (``embedded``, ``empty``, ``quarantined``) and the reason;
        ``reason`` is also the cause of a failed run.
    rows, scenes
        Rows of the scene, of the commit or of the run; scenes of the plan, of the commit
        or of the run.
    snapshot
        Snapshot of the archive after the commit.
    seconds
        That the run took.
    """

    event: EventName
    stage: str = "ingest"
    archive: str | None = None
    scene: str | None = None
    state: str | None = None
    reason: str | None = None
    rows: int | None = None
    scenes: int | None = None
    snapshot: str | None = None
    seconds: float | None = None


EventSink = Callable[[Event], None]


@contextmanager
def event_log(path: Path | None) -> Iterator[EventSink]:
    """Append events to a file, each with its time (UTC); discard them when ``path`` is None.

    An error that leaves the block is the last event.

    Raises
    ------
    ConfigError
        The file cannot be written.
    """
    if path is None:
        yield ignore
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("a", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise ConfigError(f"event log {path} cannot be written: {error.strerror}") from error

    def write(event: Event) -> None:
        fields = {name: value for name, value in asdict(event).items() if value is not None}
        now = dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds")
        stream.write(json.dumps({"time": now, **fields}, ensure_ascii=False) + "\n")
        stream.flush()

    with stream:
        try:
            yield write
        except BaseException as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            write(Event(event="failed", reason=reason))
            raise
