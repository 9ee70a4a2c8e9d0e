"""The event log: a line for everything that happens, whole at any moment."""

import datetime as dt
import json
from pathlib import Path

import pytest

from storage.errors import ConfigError, SkysiftError
from storage.progress import Event, event_log


def _fail(path: Path) -> None:
    with event_log(path) as events:
        events(Event(event="scene", scene="a", state="embedded", rows=16))
        assert len(path.read_text().splitlines()) == 1  # at once, not at the end
        raise SkysiftError("the store\n failed")


def test_lines_are_appended_as_things_happen_and_an_error_is_the_last(tmp_path: Path):
    path = tmp_path / "logs" / "events.jsonl"
    with pytest.raises(SkysiftError):
        _fail(path)
    with event_log(path) as events:
        events(Event(event="committed", snapshot="A1", scenes=0, rows=0))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    times = [dt.datetime.fromisoformat(line.pop("time")) for line in lines]
    assert times == sorted(times)
    assert times[0].utcoffset() == dt.timedelta(0)
    assert lines == [
        {"event": "scene", "stage": "ingest", "scene": "a", "state": "embedded", "rows": 16},
        {"event": "failed", "stage": "ingest", "reason": "the store failed"},
        {"event": "committed", "stage": "ingest", "snapshot": "A1", "scenes": 0, "rows": 0},
    ]


def test_a_log_that_cannot_be_written_is_named_before_the_run(tmp_path: Path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(ConfigError, match=r"event log .*/events.jsonl cannot be written"),
        event_log(tmp_path / "file" / "events.jsonl"),
    ):
        raise AssertionError
