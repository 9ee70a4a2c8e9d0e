"""Standing queries: each new hit once, whatever ends the process, and whatever a receiver does."""

import hashlib
import hmac
import json
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.indexing.driver import build_index, update_index
from pipeline.indexing.spec import IndexSpec
from pipeline.search import standing
from pipeline.search.saved import SavedSearch
from pipeline.search.searcher import Searcher
from pipeline.search.standing import StandingQuery
from storage.archive.maintenance import create_tag, rollback
from storage.archive.reader import Archive
from storage.errors import ConfigError, CorruptIndexError, SkysiftError
from storage.location import Location
from storage.webhook import ATTEMPTS, Webhook
from tests.support.archive_world import FINGERPRINT, create_archive
from tests.support.dated_world import add_scene

DIMENSION = 8
WANTED = np.eye(DIMENSION)[0]
SEARCH = SavedSearch(
    title="lakes",
    encoder_fingerprint=FINGERPRINT,
    vector=tuple(WANTED.tolist()),
    min_score=0.9,
)


class Receiver:
    """An HTTP server that answers as it is told, 200 when it is told nothing more."""

    def __init__(self) -> None:
        self.answers: list[int] = []
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
                receiver.headers.append(dict(self.headers))
                status = receiver.answers.pop(0) if receiver.answers else 200
                if status:  # 0 hangs up without an answer
                    self.send_response(status)
                    self.send_header("Content-Length", "0")
                    self.send_header("Location", "/elsewhere")
                    self.end_headers()
                else:
                    self.connection.close()

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hook"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def ids(self) -> list[str]:
        return [headers["Skysift-Event"] for headers in self.headers]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.server.shutdown()
    made.server.server_close()


def _add(archive: str, scene: str, date: str, hits: int) -> None:
    """Add a scene of ten tiles, of which some are hits."""
    others = np.eye(DIMENSION)[1 + np.arange(10) % (DIMENSION - 1)]
    others[:hits] = WANTED
    add_scene(archive, scene, date, others)


@pytest.fixture
def world(ray_session: None, tmp_path: Path) -> tuple[str, str]:
    """An archive with one scene, and its index."""
    archive, index = str(tmp_path / "archive"), str(tmp_path / "index")
    create_archive(archive, DIMENSION)
    _add(archive, "old", "2024-01-01", 2)
    build_index(archive, index, IndexSpec(kind="flat", shards=1))
    return archive, index


def _ledger(index: str) -> Any:
    manifest = Searcher.local(index).manifest
    return Archive.open(str(manifest.archive_uri), manifest.snapshot).ledger


def _poll(index: str, **receivers: Any) -> list[str]:
    """Poll as `watch` does; return the scenes told."""
    query = StandingQuery(SEARCH, Location(f"{index}.standing"), **receivers)
    told = query.deliver() + query.poll(lambda: Searcher.local(index), _ledger(index))
    return [event["scene"] for event in told]


def _begin(index: str) -> None:
    StandingQuery(SEARCH, Location(f"{index}.standing")).begin(lambda: _ledger(index))


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_hits_of_new_scenes_are_told_once_also_after_a_rollback(
    world: tuple[str, str], tmp_path: Path
):
    archive, index = world
    file = tmp_path / "hits.jsonl"
    _begin(index)
    assert _poll(index, file=file) == []
    create_tag(archive, "before")
    _add(archive, "new", "2024-02-01", 3)
    _add(archive, "without", "2024-02-02", 0)
    assert _poll(index, file=file) == []  # the index does not have them yet
    update_index(index)
    assert _poll(index, file=file) == ["new"]
    assert _poll(index, file=file) == []
    [event] = _lines(file)
    assert event["search"] == "lakes"
    assert [hit["scene"] for hit in event["hits"]] == ["new"] * 3
    assert all(hit["score"] >= 0.9 and hit["geometry"] for hit in event["hits"])

    rollback(archive, "before")
    _add(archive, "new", "2024-02-01", 3)
    build_index(archive, index, IndexSpec(kind="flat", shards=1))
    assert _poll(index, file=file) == []
    assert len(_lines(file)) == 1


@pytest.mark.parametrize("state", ["kept", "copied"])
@pytest.mark.parametrize("copied", ["before", "after"])
def test_after_a_restore_nothing_is_told_twice_and_nothing_new_is_lost(
    world: tuple[str, str], tmp_path: Path, state: str, copied: str
):
    """The archive was copied before a scene was told, or after; its queries' states before both."""
    archive, index = world
    file, copy = tmp_path / "hits.jsonl", tmp_path / "copy"

    def copy_archive() -> None:
        for place in (index, archive):
            shutil.copytree(place, copy / Path(place).name)

    _begin(index)
    _add(archive, "first", "2024-02-01", 1)
    update_index(index)
    assert _poll(index, file=file) == ["first"]
    shutil.copytree(f"{index}.standing", copy / "index.standing")
    if copied == "before":
        copy_archive()
    _add(archive, "second", "2024-02-02", 3)
    update_index(index)
    assert _poll(index, file=file) == ["second"]
    if copied == "after":
        copy_archive()
    for place in (archive, index, *([f"{index}.standing"] if state == "copied" else [])):
        shutil.rmtree(place)
        shutil.copytree(copy / Path(place).name, place)
    if copied == "before":
        _add(archive, "second", "2024-02-02", 3)  # the ingest embeds what the copy lacks
    _add(archive, "third", "2024-02-03", 2)
    update_index(index)
    _poll(index, file=file)
    assert [event["scene"] for event in _lines(file)] == ["first", "second", "third"]
    assert _poll(index, file=file) == []


def test_a_receiver_that_fails_gets_the_same_event_again_and_no_other(
    world: tuple[str, str], receiver: Receiver, tmp_path: Path
):
    archive, index = world
    waited: list[float] = []
    hook = Webhook(receiver.url, "secret", ["127.0.0.1"], wait=waited.append)
    file = tmp_path / "hits.jsonl"
    _begin(index)
    _add(archive, "new", "2024-02-01", 3)
    _add(archive, "newer", "2024-02-02", 1)
    update_index(index)
    receiver.answers = [503, 0, 429, 200] + [500] * ATTEMPTS
    with pytest.raises(SkysiftError, match=r"answered 500: event \w+ waits, and the next poll"):
        _poll(index, file=file, webhook=hook)
    assert waited == [1, 2, 4, 1, 2, 4, 8]
    first, second = dict.fromkeys(receiver.ids)
    assert Counter(receiver.ids) == {first: 4, second: ATTEMPTS}
    moved = tmp_path / "yesterday.jsonl"
    file.rename(moved)  # as a rotation of logs does; what was filed is not filed again
    assert _poll(index, file=file, webhook=hook) == ["newer"]
    assert Counter(receiver.ids) == {first: 4, second: ATTEMPTS + 1}
    assert _poll(index, file=file, webhook=hook) == []
    assert [event["id"] for event in _lines(moved)] == [first, second]
    assert not file.exists()
    for body, headers in zip(receiver.bodies, receiver.headers, strict=True):
        digest = hmac.new(b"secret", body, hashlib.sha256).hexdigest()
        assert headers["Skysift-Signature"] == f"sha256={digest}"
        assert json.loads(body)["id"] == headers["Skysift-Event"]
    assert "secret" not in file.with_name("yesterday.jsonl").read_text()


def test_a_refusal_and_a_redirect_are_not_repeated(world: tuple[str, str], receiver: Receiver):
    hook = Webhook(receiver.url, hosts=["127.0.0.1"])
    for status in (404, 307):
        receiver.answers = [status]
        with pytest.raises(SkysiftError, match=f"answered {status}") as refused:
            hook.send({"id": "a"})
        assert "/hook" not in str(refused.value)
    assert len(receiver.ids) == 2


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1:9/", "not a public address; name a host of your own network"),
        ("http://169.254.169.254/latest", "not a public address"),
        ("file:///etc/passwd", "only http and https"),
        ("gopher://example.com", "only http and https"),
    ],
)
def test_events_go_to_public_and_named_hosts_alone(url: str, reason: str):
    with pytest.raises(ConfigError, match=reason):
        Webhook(url)


# Forks for each line of its input, a number of a step, and kills the child there; steps are the
# beginnings and ends of what reaches a disk or a receiver.
STEPS = """
import os, signal, sys
import pipeline.search.standing as standing
from pathlib import Path
from storage.location import Location
from storage.webhook import Webhook
from tests.pipeline.search.test_standing import _poll

def around(owner, name, steps):
    inner = getattr(owner, name)
    def call(*arguments, **named):
        steps()
        result = inner(*arguments, **named)
        steps()
        return result
    setattr(owner, name, call)

def poll(index, file, url, fatal, torn):
    count = 0
    def step():
        nonlocal count
        count += 1
        if count == fatal:
            if torn:  # half of the last line is on the disk
                os.truncate(file, os.path.getsize(file) - 40)
            os.kill(os.getpid(), signal.SIGKILL)
    around(Location, "write", step)
    around(standing, "_append", step)
    around(Webhook, "send", step)
    _poll(index, file=Path(file), webhook=Webhook(url, "", ["127.0.0.1"]))

for line in sys.stdin:
    index, file, url, fatal, torn = line.split()
    child = os.fork()
    if not child:
        poll(index, file, url, int(fatal), torn == "True")
        os._exit(0)
    print(os.waitpid(child, 0)[1], flush=True)
"""
APPENDED, STEP_COUNT = 4, 14
"""The end of the append; the state is written 4 times, and 2 events are sent."""


def test_a_kill_between_any_two_steps_loses_and_repeats_nothing(
    world: tuple[str, str], receiver: Receiver, tmp_path: Path
):
    archive, index = world
    _begin(index)
    _add(archive, "new", "2024-02-01", 3)
    _add(archive, "newer", "2024-02-02", 1)
    update_index(index)
    state = next(Path(f"{index}.standing").iterdir())
    start, killed = state.read_bytes(), 0
    with subprocess.Popen(
        [sys.executable, "-c", STEPS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin
        assert child.stdout
        for fatal, torn in [(APPENDED, True), *((n, False) for n in range(1, STEP_COUNT + 2))]:
            state.write_bytes(start)
            file = tmp_path / f"hits-{fatal}-{torn}.jsonl"
            receiver.headers.clear()
            receiver.bodies.clear()
            child.stdin.write(f"{index} {file} {receiver.url} {fatal} {torn}\n")
            child.stdin.flush()
            status = int(child.stdout.readline())
            assert status in (0, signal.SIGKILL)
            killed += status == signal.SIGKILL
            _poll(index, file=file, webhook=Webhook(receiver.url, "", ["127.0.0.1"]))
            assert [event["scene"] for event in _lines(file)] == ["new", "newer"]
            contents = set(zip(receiver.ids, receiver.bodies, strict=True))
            assert len(contents) == 2
            assert len(receiver.ids) <= 3  # one event may come twice, with its id and content
            assert _poll(index, file=file, webhook=Webhook(receiver.url, "", ["127.0.0.1"])) == []
        child.stdin.close()
    assert killed == STEP_COUNT + 1


def test_a_search_without_a_score_and_a_damaged_state_are_refused(
    world: tuple[str, str], tmp_path: Path
):
    _, index = world
    with pytest.raises(ConfigError, match="'lakes' has no least score"):
        StandingQuery(
            SavedSearch(title="lakes", encoder_fingerprint="", vector=(1.0,)), Location("x")
        )
    _begin(index)
    next(Path(f"{index}.standing").iterdir()).write_text("{")
    with pytest.raises(CorruptIndexError, match="is not the state of a standing query"):
        _poll(index)


def test_lines_of_other_programs_stay_as_they_are(tmp_path: Path):
    file, events = tmp_path / "hits.jsonl", [{"id": "a"}, {"id": "b"}]
    file.write_bytes(b"a line\nhalf a line")
    for _ in range(2):
        standing._append(file, events, len(b"a line\nhalf a line"))
        assert file.read_text().splitlines() == [
            "a line",
            "half a line",
            '{"id": "a"}',
            '{"id": "b"}',
        ]
    whole = file.read_bytes()
    for kept in range(len(b"a line\nhalf a line"), len(whole)):
        file.write_bytes(whole[:kept])  # the process ended while it wrote
        standing._append(file, events, len(b"a line\nhalf a line"))
        assert file.read_bytes() == whole


def test_a_watch_that_was_overtaken_tells_nothing(world: tuple[str, str], tmp_path: Path):
    """It slept between its search and its first write, as on a machine that was cut off."""
    archive, index = world
    file = tmp_path / "hits.jsonl"
    _begin(index)
    _add(archive, "new", "2024-02-01", 3)
    update_index(index)
    slow = StandingQuery(SEARCH, Location(f"{index}.standing"), file=file)

    def overtaken() -> Searcher:
        assert _poll(index, file=file) == ["new"]
        return Searcher.local(index)

    with pytest.raises(SkysiftError, match="written by another watch meanwhile"):
        slow.poll(overtaken, _ledger(index))
    assert [event["scene"] for event in _lines(file)] == ["new"]
    assert _poll(index, file=file) == []
