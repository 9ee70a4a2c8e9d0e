"""Resources of a training run: the request, its refusal when impossible, and waiting for it.

Ray Train waits silently for CPUs and GPUs that are in use; `SchedulingMonitor` reports the wait. A
request that the cluster can never satisfy is refused before anything starts.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.util import placement_group_table

from pipeline.training.spec import TrainingSpec
from storage.errors import ConfigError
from storage.progress import Progress, ProgressSink

logger = logging.getLogger(__name__)

_CHECK_INTERVAL_S = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ResourceRequest:
    """A number of equal workers and the resources of each, such as ``{"CPU": 1, "GPU": 1}``."""

    workers: int
    per_worker: Mapping[str, float]

    @classmethod
    def of(cls, spec: TrainingSpec) -> "ResourceRequest":
        """Return the request of a run; ``auto`` takes GPUs if the cluster has enough of them."""
        gpus = ray.cluster_resources().get("GPU", 0)
        uses_gpu = spec.device == "gpu" or (spec.device == "auto" and gpus >= spec.workers)
        gpu = {"GPU": 1.0} if uses_gpu else {}
        return cls(workers=spec.workers, per_worker={"CPU": float(spec.cpus_per_worker), **gpu})

    @property
    def uses_gpu(self) -> bool:
        """Whether each worker has a GPU."""
        return "GPU" in self.per_worker

    def total(self, kind: str) -> float:
        """Return the amount of a resource that all workers need."""
        return self.workers * self.per_worker[kind]

    def capacity(self, nodes: Sequence[Mapping[str, float]]) -> int:
        """Return the number of such workers that fit on idle machines.

        Parameters
        ----------
        nodes
            Resources of each machine.

        Examples
        --------
        >>> request = ResourceRequest(workers=3, per_worker={"CPU": 4.0})
        >>> request.capacity([{"CPU": 6.0}, {"CPU": 8.0}])
        3
        """
        each = (
            min(int(node.get(kind, 0) // count) for kind, count in self.per_worker.items())
            for node in nodes
        )
        return sum(each)


def refuse_impossible(request: ResourceRequest) -> None:
    """Refuse a request that the connected cluster can never satisfy.

    With Ray's autoscaler (version 2) the cluster may grow, and no request is refused.

    Raises
    ------
    ConfigError
        The workers do not fit on the idle cluster.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if request.capacity(nodes) >= request.workers or is_autoscaler_v2(fetch_from_server=True):
        return
    each = " and ".join(f"{count:g} {kind}s" for kind, count in request.per_worker.items())
    wants = " and ".join(f"{request.total(kind):g} {kind}s" for kind in request.per_worker)
    has = " and ".join(
        f"{sum(node.get(kind, 0) for node in nodes):g} {kind}s" for kind in request.per_worker
    )
    raise ConfigError(
        f"training: {request.workers} workers of {each} each need {wants}; the cluster has {has} "
        f"on {len(nodes)} machines, room for {request.capacity(nodes)} of them; ask for fewer or "
        "smaller workers"
    )


class SchedulingMonitor:
    """Forwards reports of the workers; reports missing resources while they cannot start.

    Parameters
    ----------
    request
        Resources of the workers.
    progress
        Receives the reports.
    """

    def __init__(self, request: ResourceRequest, progress: ProgressSink) -> None:
        self._request, self._progress = request, progress
        self._last = Progress(stage="train", done=0, unit="batches")
        self._checked_at, self._last_note = time.monotonic(), ""

    def on_report(self, report: Progress) -> None:
        """Forward a report of the workers."""
        self._last, self._last_note = report, ""
        self._progress(report)

    def on_idle(self) -> None:
        """Check, every two seconds, whether silent workers are waiting for resources."""
        if time.monotonic() - self._checked_at < _CHECK_INTERVAL_S:
            return
        self._checked_at = time.monotonic()
        if not self._is_queued():
            return
        note = f"waiting for {self._shortage()}"
        if not self._last_note:
            logger.warning("training: %s", note)
        self._last_note = note
        self._progress(replace(self._last, note=note))

    def _is_queued(self) -> bool:
        """Tell whether a placement group of such workers is pending."""
        bundles = [dict(self._request.per_worker)] * self._request.workers
        groups: Sequence[dict[str, Any]] = placement_group_table().values()
        return any(
            group["state"] in ("PENDING", "RESCHEDULING")
            and group["stats"]["scheduling_attempt"] > 0
            and list(group["bundles"].values()) == bundles
            for group in groups
        )

    def _shortage(self) -> str:
        has, free = ray.cluster_resources(), ray.available_resources()
        kinds = list(self._request.per_worker)
        short = [kind for kind in kinds if free.get(kind, 0) < self._request.total(kind)]
        return " and ".join(
            f"{self._request.total(kind):g} {kind}s (the cluster has {has.get(kind, 0):g}, "
            f"{free.get(kind, 0):g} free)"
            for kind in short or kinds
        )
