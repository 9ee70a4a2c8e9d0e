"""What a training run asks of a cluster, whether it can ever get it, and whether it waits for it.

Ray Train waits without a word for CPUs and GPUs that others hold; `SchedulingMonitor` says so. What
no machine of the cluster can give is refused before anything starts.
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

_LOOK_EVERY_S = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ResourceRequest:
    """Equal workers, and what each of them needs: ``{"CPU": 1, "GPU": 1}``."""

    workers: int
    per_worker: Mapping[str, float]

    @classmethod
    def of(cls, spec: TrainingSpec) -> "ResourceRequest":
        """Return what a run asks of the connected cluster; ``auto`` takes GPUs if they suffice."""
        has = ray.cluster_resources().get("GPU", 0)
        gpu = spec.device == "gpu" or (spec.device == "auto" and has >= spec.workers)
        more = {"GPU": 1.0} if gpu else {}
        return cls(workers=spec.workers, per_worker={"CPU": float(spec.cpus_per_worker), **more})

    @property
    def uses_gpu(self) -> bool:
        """Whether each worker has a GPU."""
        return "GPU" in self.per_worker

    def total(self, kind: str) -> float:
        """Return what all workers need of a kind."""
        return self.workers * self.per_worker[kind]

    def capacity(self, nodes: Sequence[Mapping[str, float]]) -> int:
        """Return how many of the workers fit on empty machines.

        Parameters
        ----------
        nodes
            What each machine has.

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


def refuse_impossible(demand: ResourceRequest) -> None:
    """Refuse what the connected cluster can never give.

    A cluster that Ray's autoscaler (version 2) makes larger is left to it.

    Raises
    ------
    ConfigError
        The workers would not fit, were the cluster empty.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if demand.capacity(nodes) >= demand.workers or is_autoscaler_v2(fetch_from_server=True):
        return
    each = " and ".join(f"{count:g} {kind}s" for kind, count in demand.per_worker.items())
    wants = " and ".join(f"{demand.total(kind):g} {kind}s" for kind in demand.per_worker)
    has = " and ".join(
        f"{sum(node.get(kind, 0) for node in nodes):g} {kind}s" for kind in demand.per_worker
    )
    raise ConfigError(
        f"training: {demand.workers} workers of {each} each need {wants}; the cluster has {has} "
        f"on {len(nodes)} machines, room for {demand.capacity(nodes)} of them; ask for fewer or "
        "smaller workers"
    )


class SchedulingMonitor:
    """Forwards reports of the workers and, while these cannot start, says what they wait for.

    Parameters
    ----------
    demand
        What they need.
    progress
        Where reports go.
    """

    def __init__(self, demand: ResourceRequest, progress: ProgressSink) -> None:
        self._demand, self._progress = demand, progress
        self._last = Progress(stage="train", done=0, unit="batches")
        self._looked_at, self._said = time.monotonic(), ""

    def on_report(self, report: Progress) -> None:
        """Forward a report of the workers."""
        self._last, self._said = report, ""
        self._progress(report)

    def on_idle(self) -> None:
        """Look, every two seconds, whether silent workers have no place to start."""
        if time.monotonic() - self._looked_at < _LOOK_EVERY_S:
            return
        self._looked_at = time.monotonic()
        if not self._is_queued():
            return
        note = f"waiting for {self._shortage()}"
        if not self._said:
            logger.warning("training: %s", note)
        self._said = note
        self._progress(replace(self._last, note=note))

    def _is_queued(self) -> bool:
        """Tell whether a group of such workers has found no room."""
        bundles = [dict(self._demand.per_worker)] * self._demand.workers
        groups: Sequence[dict[str, Any]] = placement_group_table().values()
        return any(
            group["state"] in ("PENDING", "RESCHEDULING")
            and group["stats"]["scheduling_attempt"] > 0
            and list(group["bundles"].values()) == bundles
            for group in groups
        )

    def _shortage(self) -> str:
        has, free = ray.cluster_resources(), ray.available_resources()
        kinds = list(self._demand.per_worker)
        short = [kind for kind in kinds if free.get(kind, 0) < self._demand.total(kind)]
        return " and ".join(
            f"{self._demand.total(kind):g} {kind}s (the cluster has {has.get(kind, 0):g}, "
            f"{free.get(kind, 0):g} free)"
            for kind in short or kinds
        )
