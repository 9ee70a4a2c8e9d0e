"""The stages of ingest on Ray Data: reads on CPU workers, the encoder in an actor pool.

Pixels never reach the driver; vectors do (hundreds of bytes a tile), because a segment holds whole
scenes and one process then both writes and commits.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
import ray.data

from pipeline.ingest_plan import IngestPlan
from pipeline.ingest_stages import Batch, EmbedScenes, EmbedTiles, ReadScenes
from storage.object_store import StorageOptions
from storage.uris import is_local

PIXEL_BLOCK_BYTES = 16 * 1024 * 1024
VECTOR_BLOCK_BYTES = 64 * 1024
READER_CPUS = 0.25
GPU_FEEDER_CPUS = 0.75
LOCAL_SCENES_AT_ONCE = 2
REMOTE_SCENES_AT_ONCE = 8


def embedded_batches(plan: IngestPlan, options: StorageOptions | None) -> Iterable[Batch]:
    """Run the stages on Ray Data; yield batches without pixels."""
    resources = ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), max(int(resources.get("CPU", 1)), 1)
    with _streaming_context(PIXEL_BLOCK_BYTES if gpus else VECTOR_BLOCK_BYTES):
        indexes = [{"scene": index} for index in range(len(plan.todo))]
        scenes: Any = ray.data.from_items(indexes, override_num_blocks=len(indexes))
        if gpus:
            rows = _on_gpus(scenes, plan, options, min(gpus, len(indexes)))
        else:
            rows = _on_cpus(scenes, plan, options, min(cpus, len(indexes)))
        yield from rows.iter_batches(batch_size=None, prefetch_batches=1)


def _on_cpus(scenes: Any, plan: IngestPlan, options: StorageOptions | None, actors: int) -> Any:
    """Read and embed on every CPU: pixels stay in the process that reads them."""
    local = all(is_local(band.href) for band in plan.todo[0].bands)
    at_once = LOCAL_SCENES_AT_ONCE if local else REMOTE_SCENES_AT_ONCE
    return scenes.map_batches(
        EmbedScenes,
        fn_constructor_args=(plan, options),
        batch_size=1,
        num_cpus=1,
        compute=ray.data.ActorPoolStrategy(
            min_size=1,
            max_size=actors,
            initial_size=actors,
            max_concurrent_calls_per_actor=at_once,
            max_tasks_in_flight_per_actor=at_once,
            enable_true_multi_threading=True,
        ),
    )


def _on_gpus(scenes: Any, plan: IngestPlan, options: StorageOptions | None, actors: int) -> Any:
    """Read on CPUs, wherever they are, for the nodes that have GPUs."""
    return scenes.map_batches(
        ReadScenes(plan, options), batch_size=1, num_cpus=READER_CPUS
    ).map_batches(
        EmbedTiles,
        fn_constructor_args=(plan.spec.encoder_uri, options, "cuda"),
        batch_size=None,
        num_cpus=GPU_FEEDER_CPUS,
        num_gpus=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=actors),
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
