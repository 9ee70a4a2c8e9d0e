"""Index builds in the test's own process: the same workers, without Ray."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import pytest

import pipeline.indexing.driver as driver
import pipeline.indexing.steps as steps
import workflows.stages as stages
from storage.progress import Progress, ProgressSink, ignore


def _run(
    worker: Callable[[Any], Any],
    jobs: Sequence[Any],
    *,
    stage: str,
    progress: ProgressSink = ignore,
    **_: Any,
) -> list[Any]:
    done = []
    progress(Progress(stage=stage, done=0, total=len(jobs)))
    for job in jobs:
        done.append(worker(job))
        progress(Progress(stage=stage, done=len(done), total=len(jobs)))
    return done


def patch_out_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the workers of builds, updates and compactions in this process."""
    for module in (driver, steps):
        monkeypatch.setattr(module, "run_tasks", _run)
        monkeypatch.setattr(module, "threads_for", lambda _: 1)
    for module in (driver, stages):
        monkeypatch.setattr(module, "ray_session", lambda *_: nullcontext())


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Build, update and compact without Ray."""
    patch_out_ray(monkeypatch)
