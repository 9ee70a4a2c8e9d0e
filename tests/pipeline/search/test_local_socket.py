"""The socket of a search actor answers as the node does, and only to holders of the secret."""

import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.indexing.driver import build_index
from pipeline.indexing.spec import IndexSpec
from pipeline.search.fleet import ActorPool
from pipeline.search.local_socket import SocketClient, UnixSocketServer
from pipeline.search.node import SearchNode
from pipeline.search.searcher import Searcher
from storage.index.filter import Filter
from storage.index.plan import SearchPlan
from storage.index.search import SearchResult
from storage.location import Location
from tests.support.archive_world import add_scenes, create_archive

pytestmark = [
    pytest.mark.usefixtures("ray_session"),
    pytest.mark.skipif(sys.platform != "linux", reason="abstract sockets are Linux's"),
]
DIMENSION = 16
NAMES = ["shard-00000", "shard-00001"]
EVERYTHING = Filter(
    bbox=(-170, -80, 170, 80),
    polygon="POLYGON ((-170 -80, 170 -80, 170 80, -170 80, -170 -80))",
    since="2024-01-02T03:04:05.678+02:00",
    until="2026-01-01",
    max_cloud_fraction=0.9,
    scenes=("A", "B"),
    labels=("water",),
)
FILTERS = [Filter(), EVERYTHING, Filter(until="2020-01-01")]


@pytest.fixture(scope="module")
def index(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("server")
    archive, index = str(folder / "archive"), str(folder / "index")
    create_archive(archive, DIMENSION)
    add_scenes(archive, {"A": 150, "B": 150})
    manifest = build_index(archive, index, IndexSpec(kind="ivf_flat", shards=2, nlist=4))
    assert [shard.name for shard in manifest.shards] == NAMES
    return index


@pytest.fixture(scope="module")
def node(index: str) -> SearchNode:
    return SearchNode(Location(index), Searcher.local(index).manifest.version)


def queries(count: int) -> np.ndarray[Any, Any]:
    vectors = np.random.default_rng(4).normal(size=(count, DIMENSION))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def plan(k: int, where: Filter | None = None, shards: Sequence[str] = NAMES) -> SearchPlan:
    return SearchPlan(k=k, where=where or Filter(), shards=tuple(shards))


def requested(
    client: SocketClient, plan: SearchPlan, vectors: np.ndarray[Any, Any]
) -> SearchResult:
    connection = client.request("search", plan, vectors)
    assert connection is not None
    found = client.answer(connection, 10.0)
    assert isinstance(found, SearchResult)
    return found


@pytest.mark.parametrize("where", FILTERS)
@pytest.mark.parametrize("count", [1, 70])
def test_the_socket_gives_the_answer_of_the_node(node: SearchNode, where: Filter, count: int):
    server = UnixSocketServer(node, 1)
    assert server.endpoint
    client, request = SocketClient(server.endpoint), plan(9, where)
    found, truth = requested(client, request, queries(count)), node.search(request, queries(count))
    np.testing.assert_array_equal(found.scores, truth.scores)
    np.testing.assert_array_equal(found.rows, truth.rows)
    np.testing.assert_array_equal(found.places, truth.places)
    places = truth.places[truth.places >= 0]
    connection = client.request("columns", request, places)
    assert connection is not None
    columns, expected = client.answer(connection, 10.0), node.columns(request, places)
    assert isinstance(columns, dict)
    assert columns.keys() == expected.keys()
    for name, values in expected.items():
        assert columns[name].dtype == values.dtype
        np.testing.assert_array_equal(columns[name], values)


def test_a_socket_calls_no_other_method(node: SearchNode):
    server = UnixSocketServer(node, 1)
    assert server.endpoint
    client = SocketClient(server.endpoint)
    connection = client.request("ready", plan(3), queries(1))
    assert connection is not None
    assert client.answer(connection, 10.0) is None


def test_threads_share_a_client(node: SearchNode):
    server = UnixSocketServer(node, 2)
    assert server.endpoint
    client = SocketClient(server.endpoint)
    many = queries(64)
    truth = node.search(plan(5), many)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: requested(client, plan(5), many[i : i + 1]), range(64)))
    np.testing.assert_array_equal(np.concatenate([part.rows for part in found]), truth.rows)


def test_a_wrong_secret_is_refused(node: SearchNode):
    server = UnixSocketServer(node, 1)
    assert server.endpoint
    with pytest.raises(AuthenticationError):
        SocketClient((server.endpoint[0], b"guessed"))


def test_a_silent_client_holds_up_no_other(node: SearchNode):
    server = UnixSocketServer(node, 1)
    assert server.endpoint
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(server.endpoint[0])
        found = requested(SocketClient(server.endpoint), plan(3), queries(1))
    assert found.rows.shape == (1, 3)


def test_a_pickle_is_not_opened(node: SearchNode, tmp_path: Path):
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "code-ran",)

    server = UnixSocketServer(node, 1)
    assert server.endpoint
    with Client(server.endpoint[0], "AF_UNIX", authkey=server.endpoint[1]) as client:
        client.send(Bomb())
        with pytest.raises(EOFError):
            client.recv_bytes()
    assert not (tmp_path / "code-ran").exists()


def test_a_request_that_fails_is_left_to_the_message(node: SearchNode):
    server = UnixSocketServer(node, 1)
    assert server.endpoint
    client = SocketClient(server.endpoint)
    connection = client.request("search", plan(3, shards=["no such shard"]), queries(1))
    assert connection is not None
    assert client.answer(connection, 10.0) is None
    assert requested(client, plan(3), queries(1)).rows.shape == (1, 3)


def test_an_answer_that_takes_too_long_is_given_up(node: SearchNode):
    class Slow:
        def search(self, *request: Any) -> SearchResult:
            time.sleep(1.0)
            return node.search(*request)

    server = UnixSocketServer(Slow(), 1)  # type: ignore[arg-type]
    assert server.endpoint
    client = SocketClient(server.endpoint)
    connection = client.request("search", plan(3), queries(1))
    assert connection is not None
    with pytest.raises(TimeoutError, match="no answer in 0 s"):
        client.answer(connection, 0.05)


@pytest.fixture
def searcher(index: str) -> Iterator[Searcher]:
    client = Searcher.connect(index)
    yield client
    client.stop()


def test_a_client_on_the_machine_of_an_actor_uses_the_socket(
    searcher: Searcher, monkeypatch: pytest.MonkeyPatch
):
    pool = searcher._backend
    assert isinstance(pool, ActorPool)
    by_socket = searcher.search(queries(5), 7)
    sockets = len(pool._sockets)
    pool._sockets.clear()
    by_message = searcher.search(queries(5), 7)
    assert sockets == 1
    assert by_socket.to_arrow().equals(by_message.to_arrow())


def test_a_socket_that_closed_is_connected_again(searcher: Searcher):
    pool = searcher._backend
    assert isinstance(pool, ActorPool)
    truth = searcher.search(queries(2), 5)
    (old,) = pool._sockets.values()
    for connection in old._idle:
        connection.close()
    np.testing.assert_array_equal(searcher.search(queries(2), 5).rows, truth.rows)
    (new,) = pool._sockets.values()
    assert new is not old
    threads = [threading.Thread(target=searcher.search, args=(queries(2), 5)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pool._sockets[0] is new
