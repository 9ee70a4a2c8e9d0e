"""Requests to a search actor on the same machine by a Unix socket instead of a Ray message.

A Ray message takes longer than searching for one query. The actor therefore also listens on a
socket in Linux's abstract namespace. The socket is local to the machine and vanishes with the
process; clients authenticate with a secret distributed by Ray. Frames are JSON and plain arrays,
never pickles. The socket carries no errors: a request that fails is sent again by Ray message.
"""

import json
import logging
import math
import secrets
import select
import sys
import threading
from collections import deque
from dataclasses import asdict
from functools import lru_cache
from multiprocessing import AuthenticationError
from multiprocessing.connection import (
    Client,
    Connection,
    Listener,
    answer_challenge,
    deliver_challenge,
)
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.search.node import SearchNode
from storage.errors import SkysiftError
from storage.index.filter import Filter
from storage.index.plan import SearchPlan
from storage.index.search import SearchResult
from storage.index.sidecar import Columns

logger = logging.getLogger(__name__)

Array = npt.NDArray[Any]
Answer = SearchResult | Columns
Head = tuple[str, str, tuple[int, ...], tuple[str, ...] | None]
Endpoint = tuple[str, bytes]
"""The address of a socket, and the secret that authenticates its clients."""
FAILURES = (OSError, EOFError, AuthenticationError)
"""The exceptions of a connection that fails."""
METHODS = ("search", "columns")
"""The methods of a search node that a socket calls; others take longer than a Ray message."""
_FEW_NAMES = 100
_CACHED_PLANS = 64
_CACHED_HEADS = 16


class UnixSocketServer:
    """Answers clients on this machine from a search node.

    Parameters
    ----------
    node
        The search node.
    at_once
        Requests that are answered at the same time.
    """

    def __init__(self, node: SearchNode, at_once: int) -> None:
        self._node, self._slots = node, threading.Semaphore(at_once)
        self.endpoint: Endpoint | None = None
        if sys.platform != "linux":
            return
        self.endpoint = (f"\0skysift-search-{secrets.token_hex(16)}", secrets.token_bytes(32))
        self._listener = Listener(self.endpoint[0], "AF_UNIX", backlog=64)
        threading.Thread(target=self._accept, name="search-socket", daemon=True).start()

    def _accept(self) -> None:
        while True:
            client = self._listener.accept()
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: Connection) -> None:
        assert self.endpoint is not None
        try:
            with client:
                deliver_challenge(client, self.endpoint[1])
                answer_challenge(client, self.endpoint[1])
                while True:
                    call, arguments = _unpacked(client.recv_bytes())
                    method, plan = _plan_of(call)
                    with self._slots:
                        answer = getattr(self._node, method)(plan, *arguments.values())
                    client.send_bytes(_packed(_arrays(answer)))
        except FAILURES:
            pass  # the client closed the connection, or did not authenticate
        except (SkysiftError, ValueError, TypeError) as error:
            logger.info("a request failed (%s); the client repeats it by message", error)


class SocketClient:
    """A client of a :class:`UnixSocketServer`; safe to share between threads.

    Parameters
    ----------
    endpoint
        From the actor.

    Raises
    ------
    OSError, EOFError, AuthenticationError
        The socket is not on this machine, or the secret is wrong.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._idle: deque[Connection] = deque([self._connected()])

    def request(self, method: str, plan: SearchPlan, argument: Array) -> Connection | None:
        """Send a call of one of :data:`METHODS`; return the connection for :meth:`answer`.

        None when the socket fails.
        """
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = None
        try:
            connection = connection or self._connected()
            connection.send_bytes(_packed({"": argument}, _plan_text(method, plan)))
        except FAILURES:
            return None
        return connection

    def answer(self, connection: Connection, timeout_s: float) -> Answer | None:
        """Return the answer to a request; None when the socket fails.

        Raises
        ------
        TimeoutError
            There was no answer in time.
        """
        try:
            waiting = select.poll()  # a tenth of the time of `Connection.poll`
            waiting.register(connection.fileno(), select.POLLIN)
            if waiting.poll(1000 * timeout_s):
                arrays = _unpacked(connection.recv_bytes())[1]
                self._idle.append(connection)
                return SearchResult(**arrays) if "scores" in arrays else arrays
        except FAILURES:
            return None
        connection.close()
        raise TimeoutError(f"no answer in {timeout_s:.0f} s")

    def _connected(self) -> Connection:
        address, secret = self._endpoint
        return Client(address, "AF_UNIX", authkey=secret)


@lru_cache(_CACHED_PLANS)
def _plan_text(method: str, plan: SearchPlan) -> bytes:
    """Return a call of a method with a plan as one line of JSON."""
    return json.dumps({"method": method, **asdict(plan)}, default=str).encode() + b"\n"


@lru_cache(_CACHED_PLANS)
def _plan_of(text: bytes) -> tuple[str, SearchPlan]:
    values = json.loads(text)
    if (method := values.pop("method")) not in METHODS:
        raise ValueError(f"a socket does not call {method!r}")
    values |= {"where": Filter(**values["where"]), "shards": tuple(values["shards"]), "passes": ()}
    return method, SearchPlan(**values)


def _arrays(answer: Answer) -> Columns:
    if isinstance(answer, dict):
        return answer
    return {"scores": answer.scores, "rows": answer.rows, "places": answer.places}


def _packed(arrays: Columns, call: bytes = b"\n") -> bytes:
    """Encode a call and arrays: a line of each, then the bytes of the arrays.

    Text is sent as numbers into a list of names, which for more than a few rows is shorter.
    """
    heads: list[Head] = []
    parts = []
    for name, array in arrays.items():
        values, names = array, None
        if array.dtype == object:
            few = len(array) <= _FEW_NAMES  # factorizing takes longer than sending
            numbers, unique = (np.arange(len(array)), array) if few else pd.factorize(array)
            values, names = numbers.astype(np.int32), tuple(unique)
        heads.append((name, values.dtype.str, values.shape, names))
        parts.append(_padded(values.tobytes(), b"\0"))
    return b"".join((_padded(call + _line_of(tuple(heads)) + b"\n", b"\n"), *parts))


def _unpacked(data: bytes) -> tuple[bytes, Columns]:
    """Decode a call and arrays."""
    first = data.index(b"\n") + 1
    second = data.index(b"\n", first) + 1
    offset, arrays = second + -second % 8, {}
    for name, dtype, shape, names in _heads_of(data[first:second]):
        values = np.frombuffer(data, dtype, math.prod(shape), offset).reshape(shape)
        offset += -(-values.nbytes // 8) * 8
        arrays[name] = values if names is None else np.array(names, object)[values]
    return data[:first], arrays


@lru_cache(_CACHED_HEADS)  # most requests and answers are like the one before
def _line_of(heads: tuple[Head, ...]) -> bytes:
    return json.dumps(heads).encode()


@lru_cache(_CACHED_HEADS)
def _heads_of(line: bytes) -> list[Head]:
    heads: list[Head] = json.loads(line)
    return heads


def _padded(data: bytes, by: bytes) -> bytes:
    """Pad to a multiple of 8 bytes, so that the next array is aligned."""
    return data + by * (-len(data) % 8)
