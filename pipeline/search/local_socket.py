"""The short way to a search actor on the same machine: a Unix socket instead of a Ray message.

A Ray message takes longer than searching for one query. The actor therefore also listens on a
socket of Linux's abstract namespace, which no other machine sees and which ends with the process;
who knocks has to know a secret that only Ray hands out. Frames are JSON and plain arrays, never
pickles. The door carries answers only: what fails is asked again by message, which can tell why.
"""

import json
import logging
import math
import secrets
import sys
import threading
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import asdict
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
import pandas as pd

from pipeline.search.node import SearchNode
from storage.errors import SkysiftError
from storage.index.filter import Filter
from storage.index.ranking import Float32
from storage.index.search import SearchResult
from storage.index.sidecar import Columns

logger = logging.getLogger(__name__)

Key = tuple[str, bytes]
"""Where a door is, and the secret that opens it."""
FAILURES = (OSError, EOFError, AuthenticationError)
"""What knocking may raise."""
_FEW_WORDS = 100


class UnixSocketServer:
    """Lets clients on this machine ask a search node.

    Parameters
    ----------
    node
        Answers, in up to ``at_once`` threads.
    """

    def __init__(self, node: SearchNode, at_once: int) -> None:
        self._node, self._turns = node, threading.Semaphore(at_once)
        self.endpoint: Key | None = None
        if sys.platform != "linux":
            return
        self.endpoint = (f"\0skysift-search-{secrets.token_hex(16)}", secrets.token_bytes(32))
        self._listener = Listener(self.endpoint[0], "AF_UNIX", backlog=64)
        threading.Thread(target=self._accept, name="search-door", daemon=True).start()

    def _accept(self) -> None:
        while True:
            visitor = self._listener.accept()
            threading.Thread(target=self._serve, args=(visitor,), daemon=True).start()

    def _serve(self, visitor: Connection) -> None:
        assert self.endpoint is not None
        try:
            with visitor:
                deliver_challenge(visitor, self.endpoint[1])
                answer_challenge(visitor, self.endpoint[1])
                while True:
                    question = _question(visitor.recv_bytes())
                    with self._turns:
                        found = self._node.search(*question)
                    visitor.send_bytes(_answer_bytes(found))
        except FAILURES:
            pass  # the client went away, or was none
        except (SkysiftError, ValueError) as error:
            logger.info("a question at the door failed (%s); it comes again by message", error)


class SocketClient:
    """A client of a door; safe to share between threads.

    Parameters
    ----------
    endpoint
        From the actor.

    Raises
    ------
    OSError, EOFError, AuthenticationError
        The door is not on this machine, or does not open.
    """

    def __init__(self, endpoint: Key) -> None:
        self._endpoint = endpoint
        self._idle: deque[Connection] = deque([self._connected()])

    def request(self, *question: Any) -> Connection | None:
        """Send what :meth:`SearchNode.search` takes; return what :meth:`answer` takes.

        None when the door fails.
        """
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = None
        try:
            connection = connection or self._connected()
            connection.send_bytes(_question_bytes(*question))
        except FAILURES:
            return None
        return connection

    def answer(self, connection: Connection, timeout_s: float) -> SearchResult | None:
        """Return what :meth:`SearchNode.search` does; None when the door fails.

        Raises
        ------
        TimeoutError
            There was no answer in time.
        """
        try:
            if connection.poll(timeout_s):
                found = _answer(connection.recv_bytes())
                self._idle.append(connection)
                return found
        except FAILURES:
            return None
        connection.close()
        raise TimeoutError(f"no answer in {timeout_s:.0f} s")

    def _connected(self) -> Connection:
        address, secret = self._endpoint
        return Client(address, "AF_UNIX", authkey=secret)


def _question_bytes(
    queries: Float32, k: int, where: Filter, nprobe: int | None, names: Collection[str]
) -> bytes:
    conditions = asdict(where) if where else {}
    terms = {"k": k, "where": conditions, "nprobe": nprobe, "names": list(names)}
    return _packed(terms, {"queries": queries})


def _question(data: bytes) -> tuple[Float32, int, Filter, int | None, list[str]]:
    terms, arrays = _unpacked(data)
    where = Filter(**terms["where"])
    return arrays["queries"], terms["k"], where, terms["nprobe"], terms["names"]


def _answer_bytes(found: SearchResult) -> bytes:
    return _packed({}, {"": found.rows, " ": found.scores, **found.columns})


def _answer(data: bytes) -> SearchResult:
    _, columns = _unpacked(data)
    return SearchResult(rows=columns.pop(""), scores=columns.pop(" "), columns=columns)


def _packed(terms: Mapping[str, Any], arrays: Columns) -> bytes:
    """Return plain values and arrays as a line of JSON and the arrays' bytes, text as numbers."""
    heads: list[tuple[str, str, tuple[int, ...], list[str] | None]] = []
    parts = []
    for name, given in arrays.items():
        values, words = given, None
        if given.dtype == object:
            few = len(given) <= _FEW_WORDS  # which take longer to count than to send
            numbers, unique = (np.arange(len(given)), given) if few else pd.factorize(given)
            values, words = numbers.astype(np.int32), list(unique)
        heads.append((name, values.dtype.str, values.shape, words))
        parts.append(_padded(values.tobytes(), b"\0"))
    line = json.dumps([terms, heads], default=str).encode()
    return b"".join((_padded(line + b"\n", b"\n"), *parts))


def _unpacked(data: bytes) -> tuple[dict[str, Any], Columns]:
    line = data[: data.index(b"\n") + 1]
    terms, heads = json.loads(line)
    at, arrays = len(_padded(line, b"\n")), {}
    for name, dtype, shape, words in heads:
        values = np.frombuffer(data, dtype, math.prod(shape), at).reshape(shape)
        at += -(-values.nbytes // 8) * 8
        arrays[name] = values if words is None else np.array(words, object)[values]
    return terms, arrays


def _padded(data: bytes, by: bytes) -> bytes:
    """Fill up to a multiple of 8 bytes, so that the next array lies where a processor wants it."""
    return data + by * (-len(data) % 8)
