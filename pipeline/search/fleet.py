"""The search actors of one version of an index, and the failover between them.

Actors are named and detached: every client of the cluster, in any job, finds the same actors. They
are numbered and assigned to nodes in turn. Shard ``i`` is held by the actors ``i``, ``i + 1``, ...
up to the number of replicas, so replicas are on different nodes when there are enough.
"""

import hashlib
import logging
import re
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import ActorDiedError, GetTimeoutError, RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.search.actor import NodeState, SearchActor
from pipeline.search.local_socket import FAILURES, METHODS, SocketClient
from storage.errors import ConfigError, SearchUnavailableError, SkysiftError
from storage.index.plan import SearchPlan
from storage.location import Location

logger = logging.getLogger(__name__)

NAMESPACE = "skysift"
LOAD_TIMEOUT_S = 600.0
_START_ATTEMPTS = 3
_RETRY_S = 1.0
_RETIRE_AFTER_S = 600.0
_STATE_TIMEOUT_S = 10.0
_INLINE_BYTES = 100_000
_AT_ONCE = 4
_PROBES = "probes"
"""Threads of an actor that answer probes, whatever the others are doing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """The number of actors, and the number of actors that hold each shard."""

    actors: int
    replicas: int

    def holders(self, shard: int) -> list[int]:
        """Return the actors that hold the shard with this number, the first choice first.

        Where each actor holds every shard, the first choice is the same for all shards, so that one
        message asks for all of them.

        Examples
        --------
        >>> Placement(actors=3, replicas=2).holders(2)
        [2, 0]
        >>> Placement(actors=2, replicas=2).holders(1)
        [0, 1]
        """
        first = shard if self.actors > self.replicas else 0
        return [(first + copy) % self.actors for copy in range(self.replicas)]


@dataclass(frozen=True, kw_only=True, slots=True)
class PartialResult:
    """The answers of the actors, and the shards without an answer, each with the reason.

    ``may_recover`` tells that an actor that holds a missing shard is restarting.
    """

    answers: list[Any]
    missing: Mapping[str, str]
    may_recover: bool = False


class _NoAnswerError(Exception):
    """An actor gave no answer.

    ``died`` tells that the actor will not restart by itself, ``refused`` that it runs but cannot
    load its shards.
    """

    def __init__(self, reason: str, *, died: bool = False, refused: bool = False) -> None:
        super().__init__(reason.strip().partition("\n")[0])
        self.died = died
        self.refused = refused


@dataclass(frozen=True, kw_only=True, slots=True)
class _FailedReplica:
    """An actor that did not answer: the error, and the call that succeeds once it is back."""

    error: _NoAnswerError
    probe: Any
    since: float


class _Broadcast:
    """One request for several actors; large arguments are put into Ray's store once."""

    def __init__(self, method: str, arguments: Sequence[Any]) -> None:
        self.method, self.arguments = method, arguments
        self._sent: list[Any] | None = None

    def send(self, actor: Any, plan: SearchPlan) -> Any:
        """Send the request to an actor; return the reference of the answer."""
        if self._sent is None:
            self._sent = [
                ray.put(value) if getattr(value, "nbytes", 0) > _INLINE_BYTES else value
                for value in self.arguments
            ]
        return getattr(actor, self.method).remote(plan, *self._sent)


class ActorPool:
    """A client's view of the actors that hold an index version; starts missing actors.

    Parameters
    ----------
    index, version
        The index version.
    shards
        The names of its shards, in the manifest's order.
    replicas
        Least number of actors that hold each shard.
    timeout_s
        Time for an actor to answer before another replica is tried.
    """

    def __init__(
        self,
        index: Location,
        version: str,
        shards: Sequence[str],
        *,
        replicas: int,
        timeout_s: float,
    ) -> None:
        self._index, self._version = index, version
        self._shards = {name: number for number, name in enumerate(shards)}
        self._timeout_s = timeout_s
        self._prefix = _prefix(index.uri, version)
        actors = max(len(_nodes()), replicas)
        self.placement = self._existing(replicas) or Placement(actors=actors, replicas=replicas)
        self._lock = threading.Lock()
        self._requests = 0
        self._down: dict[int, _FailedReplica] = {}
        self._sockets: dict[int, SocketClient] = {}
        self._actors = [self._actor(number) for number in range(self.placement.actors)]
        self._load()

    def gather(self, method: str, plan: SearchPlan, *arguments: Any) -> PartialResult:
        """Call a method of the search nodes that hold the plan's shards, one message an actor.

        The plan in a message names the actor's shards only. The shards of an actor that fails go to
        their other replicas.

        Raises
        ------
        ConfigError
            An actor refused the request as invalid.
        """
        with self._lock:
            self._requests += 1
            request = self._requests
        answers: list[Any] = []
        failed: dict[str, set[int]] = {name: set() for name in plan.shards}
        missing, pending = [], list(plan.shards)
        while pending:
            shards_of: dict[int, list[str]] = {}
            for name in pending:
                replica = self._choose(name, failed[name], request)
                if replica is None:
                    missing.append(name)
                else:
                    shards_of.setdefault(replica, []).append(name)
            pending = []
            plans = {r: replace(plan, shards=tuple(names)) for r, names in shards_of.items()}
            for replica, answer in self._request_all(_Broadcast(method, arguments), plans):
                if isinstance(answer, _NoAnswerError):
                    self._mark_down(replica, answer)
                    pending += shards_of[replica]
                    for name in shards_of[replica]:
                        failed[name].add(replica)
                else:
                    answers.append(answer)
        return self._partial_result(answers, missing)

    def silent(self, timeout_s: float) -> list[str]:
        """Return the shards of which no actor answers a probe in time; start actors that died.

        An actor answers probes in a thread of their own, however many searches wait.
        """
        probes = [actor.ready.options(concurrency_group=_PROBES).remote() for actor in self._actors]
        done, _ = ray.wait(probes, num_returns=len(probes), timeout=timeout_s)
        alive = set()
        for replica, probe in enumerate(probes):
            try:
                if probe in done:
                    _get(probe, timeout_s)
                    alive.add(replica)
            except _NoAnswerError as error:
                if self._is_up(replica):
                    self._mark_down(replica, error)
        holders = self.placement.holders
        return [name for name, shard in self._shards.items() if alive.isdisjoint(holders(shard))]

    def process_ids(self) -> list[int]:
        """Return the process id of each actor."""
        return [_get(actor.ready.remote(), LOAD_TIMEOUT_S) for actor in self._actors]

    def stop(self) -> None:
        """End the actors; a client that searches again starts new actors."""
        for actor in self._actors:
            ray.kill(actor)

    def _request_all(
        self, message: _Broadcast, plans: Mapping[int, SearchPlan]
    ) -> Iterator[tuple[int, Any]]:
        """Send a request to several actors at once; yield each actor's answer or its error."""
        waiting = {
            replica: self._request(replica, message, plan) for replica, plan in plans.items()
        }
        deadline = time.monotonic() + self._timeout_s
        for replica, answer in waiting.items():
            try:
                yield replica, answer(deadline - time.monotonic())
            except _NoAnswerError as error:
                yield replica, error

    def _request(
        self, replica: int, message: _Broadcast, plan: SearchPlan
    ) -> Callable[[float], Any]:
        """Send a request by socket or Ray message; return a function that waits for the reply."""
        client = self._sockets.get(replica) if message.method in METHODS else None
        connection = client.request(message.method, plan, *message.arguments) if client else None
        reference = None if connection else message.send(self._actors[replica], plan)

        def answer(timeout_s: float) -> Any:
            result = None
            if client and connection:
                try:
                    result = client.answer(connection, timeout_s)
                except TimeoutError as error:
                    raise _NoAnswerError(str(error)) from error
            if result is None:
                sent = reference or message.send(self._actors[replica], plan)
                result = _get(sent, timeout_s)
                if client:
                    self._connect_local(replica)
            return result

        return answer

    def _connect_local(self, replica: int) -> None:
        """Connect to the socket of an actor; actors on other machines cannot be reached."""
        self._sockets.pop(replica, None)
        with suppress(_NoAnswerError, *FAILURES):
            if endpoint := _get(self._actors[replica].socket_endpoint.remote(), self._timeout_s):
                self._sockets[replica] = SocketClient(endpoint)

    def _partial_result(self, answers: list[Any], missing: Sequence[str]) -> PartialResult:
        with self._lock:
            errors = {
                name: [
                    self._down[replica].error
                    for replica in self.placement.holders(self._shards[name])
                    if replica in self._down
                ]
                for name in missing
            }
        return PartialResult(
            answers=answers,
            missing={name: "; ".join(map(str, reasons)) for name, reasons in errors.items()},
            may_recover=any(not error.refused for reasons in errors.values() for error in reasons),
        )

    def _existing(self, replicas: int) -> Placement | None:
        """Return the placement of running actors that have enough replicas."""
        running = {tuple(map(int, name.split("/")[2].split("x"))) for name in _named(self._prefix)}
        found = [pair for pair in running if pair[1] >= replicas]
        return Placement(actors=min(found)[0], replicas=min(found)[1]) if found else None

    def _actor(self, number: int) -> Any:
        """Return an actor, or start it; shards with the same holders are one group."""
        nodes, placement = _nodes(), self.placement
        node = nodes[number % len(nodes)]
        # A search asks one of the replicas, so a node's actors share its CPUs only beyond those.
        at_work = -(-placement.actors // (placement.replicas * len(nodes)))
        threads = max(int(node["Resources"].get("CPU", 1)) // at_work, 1)
        groups = {
            name: placement.holders(shard)[0]
            for name, shard in self._shards.items()
            if number in placement.holders(shard)
        }
        remote_class: Any = ray.remote  # its types do not know all of its options
        remote = remote_class(concurrency_groups={_PROBES: 1})(SearchActor)
        return remote.options(
            name=f"{self._prefix}/{placement.actors}x{placement.replicas}/{number}",
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            memory=1,  # byte; Ray ignores the affinity of an actor that requests no resource
            max_restarts=-1,
            max_concurrency=_AT_ONCE,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=True),
        ).remote(self._index, self._version, groups, threads, _AT_ONCE, _RETIRE_AFTER_S)

    def _load(self) -> None:
        """Wait until every actor has loaded; an actor that was just stopped is started again."""
        loading = {replica: actor.ready.remote() for replica, actor in enumerate(self._actors)}
        for attempt in range(_START_ATTEMPTS):
            for replica, reference in list(loading.items()):
                try:
                    _get(reference, LOAD_TIMEOUT_S)
                    del loading[replica]
                    self._connect_local(replica)
                except _NoAnswerError as error:
                    if not error.died or attempt == _START_ATTEMPTS - 1:
                        self._mark_down(replica, error)
                        del loading[replica]
            if not loading:
                return
            time.sleep(_RETRY_S)
            for replica in loading:
                self._actors[replica] = self._actor(replica)
                loading[replica] = self._actors[replica].ready.remote()

    def _choose(self, name: str, failed: Collection[int], request: int) -> int | None:
        """Return an actor that holds a shard and is up; requests rotate over the replicas."""
        holders = self.placement.holders(self._shards[name])
        start = request % len(holders)
        for replica in holders[start:] + holders[:start]:
            if replica not in failed and self._is_up(replica):
                return replica
        return None

    def _is_up(self, replica: int) -> bool:
        """Tell whether an actor can answer; a failed actor is probed without waiting."""
        with self._lock:
            if replica not in self._down:
                return True
            down = self._down[replica]
            if not ray.wait([down.probe], timeout=0)[0]:
                return False
            try:
                _get(down.probe, self._timeout_s)
            except _NoAnswerError as error:
                if time.monotonic() - down.since > _RETRY_S:
                    self._probe(replica, error)
                return False
            del self._down[replica]
        self._connect_local(replica)
        return True

    def _mark_down(self, replica: int, error: _NoAnswerError) -> None:
        logger.warning("search actor %s of %s did not answer: %s", replica, self._index, error)
        with self._lock:
            self._probe(replica, error)

    def _probe(self, replica: int, error: _NoAnswerError) -> None:
        self._actors[replica] = self._actor(replica)
        probe = self._actors[replica].ready.remote()
        self._down[replica] = _FailedReplica(error=error, probe=probe, since=time.monotonic())


def running_nodes(index_uri: str | Location, version: str) -> dict[str, NodeState | str]:
    """Return the state of each running search actor of a version by name, or its error.

    Starts no actor.
    """
    prefix = _prefix(str(index_uri), version)
    names = sorted(_named(prefix))
    sent: list[Any] = [ray.get_actor(name, namespace=NAMESPACE).state.remote() for name in names]
    states: dict[str, NodeState | str] = {}
    for name, reference in zip(names, sent, strict=True):
        try:
            states[name.removeprefix(f"{prefix}/")] = _get(reference, _STATE_TIMEOUT_S)
        except _NoAnswerError as error:
            states[name.removeprefix(f"{prefix}/")] = str(error)
    return states


def is_served(index: Location, version: str) -> bool:
    """Tell whether search actors of a version of an index run on the cluster; starts none."""
    return bool(_named(_prefix(index.absolute.uri, version)))


def require_ray() -> None:
    """Check that this process is connected to Ray.

    Raises
    ------
    SearchUnavailableError
        The process is not connected.
    """
    if not ray.is_initialized():
        raise SearchUnavailableError(
            "this process is not connected to Ray; call ray.init() or use "
            "pipeline.runtime.cluster.ray_session(), or search without Ray by Searcher.local()"
        )


def _prefix(index_uri: str, version: str) -> str:
    digest = hashlib.sha256(f"{index_uri}\n{version}".encode()).hexdigest()[:16]
    return f"skysift-search/{digest}"


def _named(prefix: str) -> list[str]:
    """Return the names of the actors of one version of an index."""
    pattern = re.compile(re.escape(prefix) + r"/\d+x\d+/\d+")
    entries = ray.util.list_named_actors(all_namespaces=True)
    names = (entry["name"] for entry in entries if entry["namespace"] == NAMESPACE)
    return [name for name in names if pattern.fullmatch(name)]


def _nodes() -> list[dict[str, Any]]:
    """Return the nodes for search actors: those with the resource `search`, else with CPUs."""
    chosen = alive = [node for node in ray.nodes() if node["Alive"]]
    for resource in ("search", "CPU"):
        if found := [node for node in alive if node["Resources"].get(resource, 0) > 0]:
            chosen = found
            break
    return sorted(chosen, key=lambda node: str(node["NodeID"]))


def _get(reference: Any, timeout_s: float) -> Any:
    try:
        return ray.get(reference, timeout=max(timeout_s, 0.001))
    except RayActorError as error:
        raise _NoAnswerError(str(error), died=isinstance(error, ActorDiedError)) from error
    except GetTimeoutError as error:
        raise _NoAnswerError(f"no answer in {timeout_s:.0f} s") from error
    except RayTaskError as error:
        if isinstance(error.cause, ConfigError):
            raise error.cause from None
        if isinstance(error.cause, SkysiftError):
            raise _NoAnswerError(str(error.cause), refused=True) from error
        raise
