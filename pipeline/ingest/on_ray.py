"""The stages of ingest on Ray Data: reads on CPU workers, the encoder in an actor pool.

Pixels never reach the driver; vectors do (hundreds of bytes a tile), because a segment holds whole
scenes and one process then both writes and commits.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import ray
import ray.data
from ray.exceptions import RayError

from encoders.spec import read_bundle
from pipeline.ingest.kernels import (
    Batch,
    EmbedScenes,
    EmbedTiles,
    ReadScenes,
    require_planned_encoder,
    scenes_at_once,
)
from pipeline.ingest.spec import IngestPlan

PIXEL_BLOCK_BYTES = 16 * 1024 * 1024
VECTOR_BLOCK_BYTES = 256 * 1024
READER_CPUS = 0.25
GPU_FEEDER_CPUS = 0.75
TASKS_IN_TURN = 16
MOST_SCENES_A_TASK = 8


def embedded_batches(plan: IngestPlan) -> Iterable[Batch]:
    """Run the stages on Ray Data; yield batches without pixels."""
    resources = ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), max(int(resources.get("CPU", 1)), 1)
    # Workers need neither, and unpickling an archive opens it again.
    plan = replace(plan, existing=None, labels=None)
    with _streaming_context(PIXEL_BLOCK_BYTES if gpus else VECTOR_BLOCK_BYTES):
        rows = _on_gpus(plan, cpus, gpus) if gpus else _on_cpus(plan, cpus)
        try:
            yield from rows.iter_batches(batch_size=None, prefetch_batches=1)
        except RayError:
            # Ray passes on the error of an actor's constructor as text only. Constructors load
            # the encoder, so the encoder is checked again in this process.
            encoder = read_bundle(plan.spec.encoder_uri)
            require_planned_encoder(plan, encoder.fingerprint)
            raise


def scenes_a_task(scenes: int, at_once: int) -> int:
    """Return the number of scenes per task when ``at_once`` tasks run at a time.

    A task costs more than a small scene, so a task reads several. A lost task is repeated and the
    last tasks should end together, so each worker still runs many tasks one after the other.

    Examples
    --------
    >>> [scenes_a_task(count, at_once=2) for count in (10, 100, 1000)]
    [1, 3, 8]
    """
    return min(max(scenes // (TASKS_IN_TURN * at_once), 1), MOST_SCENES_A_TASK)


def _tasks(scenes: int, at_once: int) -> Any:
    """Return the numbers of the scenes, a block of rows for each task."""
    blocks = math.ceil(scenes / scenes_a_task(scenes, at_once))
    rows = [{"scene": number} for number in range(scenes)]
    return ray.data.from_items(rows, override_num_blocks=blocks)


def _on_cpus(plan: IngestPlan, cpus: int) -> Any:
    """Read and embed on every CPU: pixels stay in the process that reads them."""
    scenes, at_once = len(plan.todo), scenes_at_once(plan)
    actors = min(cpus, scenes)
    return _tasks(scenes, actors * at_once).map_batches(
        EmbedScenes,
        fn_constructor_args=(plan,),
        batch_size=None,
        num_cpus=1,
        compute=ray.data.ActorPoolStrategy(
            min_size=1,
            max_size=actors,
            initial_size=actors,
            max_concurrent_calls_per_actor=at_once,
            max_tasks_in_flight_per_actor=max(at_once, 2),
            enable_true_multi_threading=True,
        ),
    )


def _on_gpus(plan: IngestPlan, cpus: int, gpus: int) -> Any:
    """Read on CPUs, wherever they are, for the nodes that have GPUs."""
    scenes = len(plan.todo)
    tasks = _tasks(scenes, int(cpus / READER_CPUS))
    pixels = tasks.map_batches(ReadScenes(plan), batch_size=None, num_cpus=READER_CPUS)
    return pixels.map_batches(
        EmbedTiles,
        fn_constructor_args=(plan, "cuda"),
        batch_size=None,
        num_cpus=GPU_FEEDER_CPUS,
        num_gpus=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(gpus, scenes)),
    )


@contextmanager
def _streaming_context(block_bytes: int) -> Iterator[None]:
    """Small blocks, so that the first tiles come early and memory stays bounded."""
    context = ray.data.DataContext.get_current()
    before = context.target_max_block_size
    context.target_max_block_size = block_bytes
    try:
        yield
    finally:
        context.target_max_block_size = before
