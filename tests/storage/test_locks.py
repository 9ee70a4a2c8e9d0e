"""One process at a time works on a place; a dead one blocks nobody."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from storage.errors import SkysiftError
from storage.location import Location
from storage.locks import Holder, commit_lock, exclusive_lock, watcher_lock
from tests.support.fault_proxy import Fault, fault_proxy

REPOSITORY = Path(__file__).resolve().parents[2]
HOLD = """
import sys, time
from storage.locks import exclusive_lock
with exclusive_lock(sys.argv[1], "training"):
    print("held", flush=True)
    time.sleep(60)
"""
ELSEWHERE = Holder(host="elsewhere", pid=7, since="2026-01-01T00:00:00+00:00", token="t")


def test_the_second_is_told_who_the_first_is(tmp_path: Path):
    with exclusive_lock(str(tmp_path / "run"), "training"):
        named = rf"training: process {os.getpid()} on {socket.gethostname()} since .* is at work"
        with (
            pytest.raises(SkysiftError, match=named),
            exclusive_lock(str(tmp_path / "run"), "training"),
        ):
            pytest.fail("two at once")
    with exclusive_lock(str(tmp_path / "run"), "training") as check:
        check()


@pytest.mark.parametrize("beside", ["", "making"])
def test_a_lock_leaves_no_file(tmp_path: Path, beside: str):
    place = tmp_path / "place"
    place.mkdir()
    with exclusive_lock(str(place), "making", beside=beside):
        assert bool(list(place.iterdir())) == (not beside)
    assert list(tmp_path.rglob("*")) == [place]


def test_a_killed_process_leaves_the_place_free(tmp_path: Path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout
    assert holder.stdout.readline() == "held\n"
    refused = rf"process {holder.pid} on"
    with pytest.raises(SkysiftError, match=refused), exclusive_lock(str(tmp_path), "training"):
        pytest.fail("two at once")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    with exclusive_lock(str(tmp_path), "training"):
        assert Holder.read((tmp_path / ".owner.json").read_bytes()).pid == os.getpid()


def test_a_lease_in_an_object_store_refuses_and_is_given_back(moto_s3):
    place = moto_s3.location("run")
    for _ in range(2):
        with (
            exclusive_lock(place, "training"),
            pytest.raises(SkysiftError, match=rf"process {os.getpid()} .* is free in \d+ s"),
            exclusive_lock(place, "training"),
        ):
            pytest.fail("two at once")


def test_the_lease_of_a_dead_process_is_taken_over(moto_s3):
    place = moto_s3.location("run")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    gone = Holder(host=socket.gethostname(), pid=ended.pid, since="", token="t")
    (place / ".owner.json").write(gone.to_bytes())
    with exclusive_lock(place, "training"):
        pass
    # One on another machine is dead when it was silent for a lease.
    (place / ".owner.json").write(ELSEWHERE.to_bytes())
    with (
        pytest.raises(SkysiftError, match="process 7 on elsewhere"),
        exclusive_lock(place, "training"),
    ):
        pytest.fail("its lease is not over")
    _until(lambda: _is_taken(place))


def _is_taken(place: Location) -> bool:
    try:
        with exclusive_lock(place, "training", lease_s=1.0):
            return True
    except SkysiftError:
        return False


def test_who_lost_a_lease_is_told_and_leaves_the_new_one_alone(moto_s3):
    lease = moto_s3.location("run", ".owner.json")

    def is_lost() -> bool:
        try:
            check()
        except SkysiftError as error:
            return "process 7 on elsewhere" in str(error)
        return False

    with exclusive_lock(moto_s3.location("run"), "training", lease_s=0.4) as check:
        check()
        lease.write(ELSEWHERE.to_bytes())
        _until(is_lost)
    assert Holder.read(lease.read()) == ELSEWHERE


def test_one_watcher_of_an_archive_wherever_it_lies(moto_s3, tmp_path: Path):
    for uri in (str(tmp_path / "archive"), moto_s3.uri("archive")):
        place = Location(uri, moto_s3.options)
        with watcher_lock(place) as check:
            check()
            named = rf"`skysift watch`: process {os.getpid()} on .* is at work on {uri}"
            with pytest.raises(SkysiftError, match=named), watcher_lock(place):
                pytest.fail("two at once")
            assert place.list() == []  # an archive is made in an empty folder only
        with watcher_lock(place):
            pass


def test_commits_to_a_disk_wait_for_each_other(tmp_path: Path):
    place, order = Location.of(tmp_path / "archive"), []

    def commit() -> None:
        with commit_lock(place):
            order.append("second")

    with commit_lock(place):
        other = threading.Thread(target=commit)
        other.start()
        time.sleep(0.2)
        order.append("first")
    other.join()
    assert order == ["first", "second"]
    with commit_lock(Location("s3://bucket/archive")):
        pass


def test_a_lost_answer_costs_no_lease(moto_s3):
    lost = [Fault(kind="lose", methods=("PUT",), path=".owner.json", turn=lambda n: n in (0, 2))]
    with fault_proxy(str(moto_s3.options.endpoint_url)) as proxy:
        proxy.plan(*lost)
        options = replace(moto_s3.options, endpoint_url=proxy.address)
        with exclusive_lock(
            Location(moto_s3.uri("run"), options), "training", lease_s=0.4
        ) as check:
            _until(lambda: proxy.passed.count(("PUT", proxy.passed[0][1])) > 5)
            check()
        assert proxy.struck == 2


def test_a_store_without_conditional_writes_is_used_with_a_warning(moto_s3, caplog):
    with fault_proxy(str(moto_s3.options.endpoint_url)) as proxy:
        proxy.plan(Fault(kind="refuse", methods=("PUT",), status=501, code="NotImplemented"))
        options = replace(moto_s3.options, endpoint_url=proxy.address)
        with exclusive_lock(Location(moto_s3.uri("run"), options), "training") as check:
            check()
    assert "lacks conditional writes" in caplog.text


def _until(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
