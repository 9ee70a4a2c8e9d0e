"""Index builds in the test's own process: the same workers, without Ray."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import pytest

import pipeline.indexing.driver as driver
import pipeline.indexing.steps as steps


def _run(worker: Callable[[Any], Any], jobs: Sequence[Any], **_: Any) -> list[Any]:
    return [worker(job) for job in jobs]


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Build, update and compact without Ray."""
    for module in (driver, steps):
        monkeypatch.setattr(module, "run_tasks", _run)
    monkeypatch.setattr(driver, "ray_session", lambda *_: nullcontext())
    for module in (driver, steps):
        monkeypatch.setattr(module, "threads_for", lambda _: 1)
