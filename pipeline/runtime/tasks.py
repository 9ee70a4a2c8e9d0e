"""Run many small jobs as Ray tasks: a bounded number at a time, with progress and clean errors."""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import ray
from ray.exceptions import RayTaskError

from storage.errors import SkysiftError
from storage.progress import Progress, ProgressSink, ignore

Job = TypeVar("Job")
Result = TypeVar("Result")


def run_tasks(
    work: Callable[[Job], Result],
    jobs: Sequence[Job],
    *,
    stage: str,
    unit: str = "items",
    cpus: float = 1,
    progress: ProgressSink = ignore,
) -> list[Result]:
    """Call ``work`` on every job in Ray tasks and return the results in the order of the jobs.

    Raises
    ------
    SkysiftError
        Raised by a task, passed on as the same error; the other tasks are cancelled.
    """
    width = math.ceil(2 * ray.cluster_resources().get("CPU", 1) / cpus)
    task: Any = ray.remote(_call).options(num_cpus=cpus)
    shared = ray.put(work)
    results: dict[int, Result] = {}
    running: dict[Any, int] = {}
    waiting = iter(enumerate(jobs))
    progress(Progress(stage=stage, done=0, total=len(jobs), unit=unit))
    try:
        while len(results) < len(jobs):
            while len(running) < width and (following := next(waiting, None)):
                running[task.remote(shared, following[1])] = following[0]
            finished, _ = ray.wait(list(running), num_returns=1)
            results[running.pop(finished[0])] = _result(finished[0])
            progress(Progress(stage=stage, done=len(results), total=len(jobs), unit=unit))
    finally:
        for reference in running:
            ray.cancel(reference)
    return [results[number] for number in range(len(jobs))]


def _call(work: Callable[[Job], Result], job: Job) -> Result:
    return work(job)


def _result(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, SkysiftError):
            raise error.cause from None
        raise
