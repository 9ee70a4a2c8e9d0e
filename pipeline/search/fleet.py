"""The search actors of one version of an index, and who to ask when one of them is gone.

Actors are named and detached: every client of the cluster, in any job, meets the same ones. A
slot is one actor; slots are dealt to nodes in turn, and shard ``i`` is held by slots ``i``,
``i + 1``, ... up to the number of replicas, so copies are on different nodes when there are enough.
"""

import hashlib
import logging
import re
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ActorDiedError, GetTimeoutError, RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.search.actor import SearchActor
from pipeline.search.local_socket import FAILURES, SocketClient
from pipeline.search.node import NodeState
from storage.errors import ConfigError, SearchUnavailableError, SkysiftError
from storage.location import StorageOptions

logger = logging.getLogger(__name__)

NAMESPACE = "skysift"
LOAD_TIMEOUT_S = 600.0
_START_ATTEMPTS = 3
_RETRY_S = 1.0
_RETIRE_AFTER_S = 600.0
_STATE_TIMEOUT_S = 10.0
_INLINE_BYTES = 100_000
_AT_ONCE = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """How many actors there are, and on how many of them each shard is."""

    slots: int
    replicas: int

    def holders(self, shard: int) -> list[int]:
        """Return the slots that hold the shard with this number.

        Examples
        --------
        >>> Placement(slots=3, replicas=2).holders(2)
        [2, 0]
        """
        return [(shard + copy) % self.slots for copy in range(self.replicas)]


@dataclass(frozen=True, kw_only=True, slots=True)
class PartialResult:
    """The answers that came, and the shards without one, each with the reason.

    ``may_recover`` tells that one of their actors is on its way back.
    """

    answers: list[Any]
    missing: Mapping[str, str]
    may_recover: bool = False


class _NoAnswerError(Exception):
    """An actor gave no answer.

    ``died`` tells that it will not come back by itself, ``refused`` that it runs but cannot load
    its shards.
    """

    def __init__(self, reason: str, *, died: bool = False, refused: bool = False) -> None:
        super().__init__(reason.strip().partition("\n")[0])
        self.died = died
        self.refused = refused


@dataclass(frozen=True, kw_only=True, slots=True)
class _FailedReplica:
    """An actor that did not answer: why, and the probe that tells when it is back."""

    error: _NoAnswerError
    probe: Any
    since: float


class _Broadcast:
    """One question for several actors; a large first argument is put into Ray's store once."""

    def __init__(self, method: str, arguments: Sequence[Any]) -> None:
        self.method, self.arguments = method, arguments
        self._sent: list[Any] = []

    def send(self, actor: Any, names: tuple[str, ...]) -> Any:
        """Send it to an actor; return the reference of the answer."""
        if not self._sent:
            first, *others = self.arguments
            large = getattr(first, "nbytes", 0) > _INLINE_BYTES
            self._sent = [ray.put(first) if large else first, *others]
        return getattr(actor, self.method).remote(*self._sent, names)


class ActorPool:
    """A client's view of the actors that hold an index version; starts those that are missing.

    Parameters
    ----------
    index_uri, version, options
        The index.
    shards
        The names of its shards, in the manifest's order.
    replicas
        Least number of actors that hold each shard.
    timeout_s
        How long an actor may take to answer before another one is asked.
    """

    def __init__(
        self,
        index_uri: str,
        version: str,
        shards: Sequence[str],
        *,
        options: StorageOptions | None,
        replicas: int,
        timeout_s: float,
    ) -> None:
        self._source = (index_uri, version, options)
        self._shards = {name: number for number, name in enumerate(shards)}
        self._timeout_s = timeout_s
        self._prefix = _prefix(index_uri, version)
        slots = max(len(_nodes()), replicas)
        self.placement = self._existing(replicas) or Placement(slots=slots, replicas=replicas)
        self._lock = threading.Lock()
        self._turn = 0
        self._down: dict[int, _FailedReplica] = {}
        self._sockets: dict[int, SocketClient] = {}
        self._actors = [self._actor(slot) for slot in range(self.placement.slots)]
        self._load()

    def gather(
        self, method: str, names: Collection[str], arguments: Sequence[Any]
    ) -> PartialResult:
        """Ask for the named shards, one message an actor; when one fails, ask the other copies.

        Raises
        ------
        ConfigError
            An actor found the question itself wrong.
        """
        with self._lock:
            self._turn += 1
            turn = self._turn
        answers: list[Any] = []
        failed: dict[str, set[int]] = {name: set() for name in names}
        missing, waiting = [], list(names)
        while waiting:
            asked: dict[int, list[str]] = {}
            for name in waiting:
                slot = self._choose(name, failed[name], turn)
                if slot is None:
                    missing.append(name)
                else:
                    asked.setdefault(slot, []).append(name)
            waiting = []
            for slot, answer in self._ask(method, asked, arguments):
                if isinstance(answer, _NoAnswerError):
                    self._mark_down(slot, answer)
                    waiting += asked[slot]
                    for name in asked[slot]:
                        failed[name].add(slot)
                else:
                    answers.append(answer)
        return self._gathered(answers, missing)

    def process_ids(self) -> list[int]:
        """Return the process id of each actor."""
        return [_get(actor.ready.remote(), LOAD_TIMEOUT_S) for actor in self._actors]

    def stop(self) -> None:
        """End the actors; a client that asks again starts new ones."""
        for actor in self._actors:
            ray.kill(actor)

    def _ask(
        self, method: str, asked: Mapping[int, Sequence[str]], arguments: Sequence[Any]
    ) -> Iterator[tuple[int, Any]]:
        message = _Broadcast(method, arguments)
        waiting = {
            slot: self._ask_one(slot, message, tuple(names)) for slot, names in asked.items()
        }
        deadline = time.monotonic() + self._timeout_s
        for slot, answer in waiting.items():
            try:
                yield slot, answer(deadline - time.monotonic())
            except _NoAnswerError as error:
                yield slot, error

    def _ask_one(
        self, slot: int, message: _Broadcast, names: tuple[str, ...]
    ) -> Callable[[float], Any]:
        """Send a request by socket or Ray message; return a function that waits for the reply."""
        client = self._sockets.get(slot) if message.method == "search" else None
        connection = client.request(*message.arguments, names) if client else None
        sent = None if connection else message.send(self._actors[slot], names)

        def answer(timeout_s: float) -> Any:
            found = None
            if client and connection:
                try:
                    found = client.answer(connection, timeout_s)
                except TimeoutError as error:
                    raise _NoAnswerError(str(error)) from error
            if found is None:
                found = _get(sent or message.send(self._actors[slot], names), timeout_s)
                if client:
                    self._connect_local(slot)
            return found

        return answer

    def _connect_local(self, slot: int) -> None:
        """Find the door of an actor that runs; it has none for clients on other machines."""
        self._sockets.pop(slot, None)
        with suppress(_NoAnswerError, *FAILURES):
            if endpoint := _get(self._actors[slot].socket_endpoint.remote(), self._timeout_s):
                self._sockets[slot] = SocketClient(endpoint)

    def _gathered(self, answers: list[Any], missing: Sequence[str]) -> PartialResult:
        with self._lock:
            errors = {
                name: [
                    self._down[slot].error
                    for slot in self.placement.holders(self._shards[name])
                    if slot in self._down
                ]
                for name in missing
            }
        return PartialResult(
            answers=answers,
            missing={name: "; ".join(map(str, found)) for name, found in errors.items()},
            may_recover=any(not error.refused for found in errors.values() for error in found),
        )

    def _existing(self, replicas: int) -> Placement | None:
        """Return the placement of actors that are there already and suffice."""
        there = {tuple(map(int, name.split("/")[2].split("x"))) for name in _named(self._prefix)}
        found = [pair for pair in there if pair[1] >= replicas]
        return Placement(slots=min(found)[0], replicas=min(found)[1]) if found else None

    def _actor(self, slot: int) -> Any:
        """Return the actor of a slot, or start it; shards with the same holders are one group."""
        nodes, placement = _nodes(), self.placement
        node = nodes[slot % len(nodes)]
        neighbours = -(-placement.slots // len(nodes))
        threads = max(int(node["Resources"].get("CPU", 1)) // neighbours, 1)
        names = {
            name: number % placement.slots
            for name, number in self._shards.items()
            if slot in placement.holders(number)
        }
        index_uri, version, options = self._source
        remote: Any = ray.remote(SearchActor)
        return remote.options(
            name=f"{self._prefix}/{placement.slots}x{placement.replicas}/{slot}",
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            memory=1,  # byte; Ray places what asks for nothing anywhere, whatever the affinity
            max_restarts=-1,
            max_concurrency=_AT_ONCE,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=True),
        ).remote(index_uri, version, names, options, threads, _AT_ONCE, _RETIRE_AFTER_S)

    def _load(self) -> None:
        """Wait until every actor has loaded; one that was just stopped is started again."""
        loading = {slot: actor.ready.remote() for slot, actor in enumerate(self._actors)}
        for attempt in range(_START_ATTEMPTS):
            for slot, reference in list(loading.items()):
                try:
                    _get(reference, LOAD_TIMEOUT_S)
                    del loading[slot]
                    self._connect_local(slot)
                except _NoAnswerError as error:
                    if not error.died or attempt == _START_ATTEMPTS - 1:
                        self._mark_down(slot, error)
                        del loading[slot]
            if not loading:
                return
            time.sleep(_RETRY_S)
            for slot in loading:
                self._actors[slot] = self._actor(slot)
                loading[slot] = self._actors[slot].ready.remote()

    def _choose(self, name: str, failed: Collection[int], turn: int) -> int | None:
        """Return an actor that holds a shard and is up; the copies take turns."""
        holders = self.placement.holders(self._shards[name])
        start = turn % len(holders)
        for slot in holders[start:] + holders[:start]:
            if slot not in failed and self._is_up(slot):
                return slot
        return None

    def _is_up(self, slot: int) -> bool:
        """Tell whether an actor can be asked; one that failed is probed without waiting."""
        with self._lock:
            if slot not in self._down:
                return True
            down = self._down[slot]
            if not ray.wait([down.probe], timeout=0)[0]:
                return False
            try:
                _get(down.probe, self._timeout_s)
            except _NoAnswerError as error:
                if time.monotonic() - down.since > _RETRY_S:
                    self._probe(slot, error)
                return False
            del self._down[slot]
        self._connect_local(slot)
        return True

    def _mark_down(self, slot: int, error: _NoAnswerError) -> None:
        logger.warning("search actor %s of %s did not answer: %s", slot, self._source[0], error)
        with self._lock:
            self._probe(slot, error)

    def _probe(self, slot: int, error: _NoAnswerError) -> None:
        self._actors[slot] = self._actor(slot)
        probe = self._actors[slot].ready.remote()
        self._down[slot] = _FailedReplica(error=error, probe=probe, since=time.monotonic())


def running_nodes(index_uri: str, version: str) -> dict[str, NodeState | str]:
    """Return the state of each running search actor of a version by name, or why it gave none.

    Starts nothing.
    """
    prefix = _prefix(index_uri, version)
    names = sorted(_named(prefix))
    asked: list[Any] = [ray.get_actor(name, namespace=NAMESPACE).state.remote() for name in names]
    states: dict[str, NodeState | str] = {}
    for name, reference in zip(names, asked, strict=True):
        try:
            states[name.removeprefix(f"{prefix}/")] = _get(reference, _STATE_TIMEOUT_S)
        except _NoAnswerError as error:
            states[name.removeprefix(f"{prefix}/")] = str(error)
    return states


def require_ray() -> None:
    """Check that this process is connected to Ray.

    Raises
    ------
    SearchUnavailableError
        It is not.
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
    mine = (entry["name"] for entry in entries if entry["namespace"] == NAMESPACE)
    return [name for name in mine if pattern.fullmatch(name)]


def _nodes() -> list[dict[str, Any]]:
    alive = [node for node in ray.nodes() if node["Alive"]]
    workers = [node for node in alive if node["Resources"].get("CPU", 0) > 0]
    return sorted(workers or alive, key=lambda node: str(node["NodeID"]))


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
