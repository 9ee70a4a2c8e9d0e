"""Join Ray, or start a private instance, and look at each node; a program of its own.

Ray takes no limit of time, so :mod:`workflows.doctor.cluster` runs this program and ends it
when its time is over. It reads an address or nothing on stdin, and writes one line of JSON::

    python -m workflows.doctor.on_ray <<< '{"address": "10.0.0.1:6379", "cpus": null}'
"""

import json
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from itertools import zip_longest
from typing import Any

import ray
from ray import cloudpickle
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.runtime.cluster import ray_session
from storage.errors import SkysiftError
from workflows.doctor import facts

_NODES_S = 10.0
_MOST_NODES = 64


def look(address: str | None, cpus: int | None) -> dict[str, Any]:
    """Return the nodes as Ray knows them, and for a cluster the facts of each.

    Parameters
    ----------
    address
        Address of the cluster; None starts a private instance.
    cpus
        CPUs of the private instance.

    Raises
    ------
    SkysiftError
        The cluster cannot be joined.
    """
    with ray_session(address, cpus):
        alive = [node for node in ray.nodes() if node["Alive"]]
        nodes = [
            {"address": node["NodeManagerAddress"], "resources": node["Resources"]}
            for node in alive
        ]
        if address:
            answers = _ask([node["NodeID"] for node in alive[:_MOST_NODES]])
            pairs = zip_longest(nodes, answers, fillvalue={"fault": "not asked"})
            nodes = [{**node, **answer} for node, answer in pairs]
        return {"nodes": nodes, "grows": is_autoscaler_v2(fetch_from_server=True)}


def _ask(node_ids: Sequence[str]) -> list[dict[str, Any]]:
    """Run the look at a machine on each node, side by side; it takes no CPU of Ray's."""
    cloudpickle.register_pickle_by_value(facts)  # a node need not have Skysift installed
    task: Any = ray.remote(facts.gather)
    asked_s = time.time()
    answers = []
    for node in node_ids:
        there = NodeAffinitySchedulingStrategy(node, soft=False)
        answers.append(task.options(num_cpus=0, max_retries=0, scheduling_strategy=there).remote())
    until_s = asked_s + _NODES_S
    return [_answer(reference, asked_s, until_s) for reference in answers]


def _answer(reference: Any, asked_s: float, until_s: float) -> dict[str, Any]:
    """Return the facts of a node, and by how many seconds its clock differs at least."""
    try:
        answer = ray.get(reference, timeout=max(0.1, until_s - time.time()))
    except GetTimeoutError:
        return {"fault": f"no worker started within {_NODES_S:g} s"}
    except RayError as error:
        return {"fault": str(error).strip().splitlines()[-1]}
    early, late = asked_s - answer["now_s"], answer["now_s"] - time.time()
    return {"facts": answer, "ahead_s": early if early > 0 else -max(0.0, late)}


def main() -> None:
    """Answer the request on stdin."""
    request = json.load(sys.stdin)
    try:
        with redirect_stdout(sys.stderr):  # Ray prints
            answer = look(request["address"], request["cpus"])
    except (SkysiftError, RayError, OSError, RuntimeError, ValueError) as error:
        answer = {"fault": " ".join(str(error).split())}
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
