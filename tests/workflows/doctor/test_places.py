"""The object store, its clock and its credentials, and folders; by real servers on loopback."""

import os
import re
import socket
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from storage.location import Location
from tests.support.http_server import Answers, answering
from workflows.doctor.findings import Finding, run_probes
from workflows.doctor.places import clock_finding, place_finding, place_probes

TOO_LARGE = "The difference between the request time and the current time is too large."


def looked_at(places: dict[str, Location]) -> dict[str, Finding]:
    return {finding.what: finding for finding in run_probes(place_probes(places))}


def test_a_store_its_clock_and_its_places_are_findings_of_one_probe(moto_s3):
    Location.of(moto_s3.location("archive", "a")).write(b"x")
    other = replace(moto_s3.location("index"), uri="s3://no-such-bucket/index")
    found = looked_at({"archive.uri": moto_s3.location("archive"), "index.uri": other})
    assert list(found) == ["object store", "clock", "archive.uri", "index.uri"]
    assert [finding.verdict for finding in found.values()] == ["ok", "ok", "ok", "broken"]
    assert "`aws s3 mb s3://no-such-bucket`" in found["index.uri"].advice
    assert looked_at({"index.uri": moto_s3.location("new")})["index.uri"].verdict == "note"


def test_refused_credentials_are_told_by_the_reason_of_the_store(moto_s3, monkeypatch, tmp_path):
    def checks_keys(calls: str) -> None:
        request = urllib.request.Request(
            f"{moto_s3.options.endpoint_url}/moto-api/reset-auth",
            data=calls.encode(),
            headers={"Content-Type": "text/plain"},
        )
        urllib.request.urlopen(request).close()

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    without = replace(moto_s3.options, access_key_id=None, secret_access_key=None)
    checks_keys("0")
    try:
        wrong = looked_at({"archive.uri": moto_s3.location("archive")})["archive.uri"]
        none = looked_at({"archive.uri": Location(moto_s3.uri("archive"), without)})["archive.uri"]
    finally:
        checks_keys("inf")
    assert (wrong.verdict, none.verdict) == ("broken", "broken")
    assert "`aws configure list`" in wrong.advice
    assert "AWS_ACCESS_KEY_ID" in none.advice


class _Skewed(Answers):
    """An object store whose clock is twenty minutes ahead, and refuses requests for it."""

    def date_time_string(self, timestamp: float | None = None) -> str:
        return super().date_time_string(time.time() + 1200)

    def do_HEAD(self) -> None:
        self.send_response(403)
        self.end_headers()

    def do_GET(self) -> None:
        body = f"<Error><Code>RequestTimeTooSkewed</Code><Message>{TOO_LARGE}</Message></Error>"
        self.answer(403, body)


@pytest.fixture
def skewed() -> Iterator[str]:
    with answering(_Skewed) as address:
        yield address


def test_a_clock_that_the_store_refuses_is_named(skewed, moto_s3):
    options = replace(moto_s3.options, endpoint_url=skewed)
    found = looked_at({"archive.uri": Location("s3://bucket/archive", options)})
    assert found["clock"].verdict == "broken"
    assert re.match(r"1,(200|19\d) s behind", found["clock"].found)
    assert "chronyc makestep" in found["clock"].advice
    assert "chronyc makestep" in found["archive.uri"].advice


@pytest.mark.parametrize(
    ("ahead_s", "verdict"), [(-5, "ok"), (5, "ok"), (100, "note"), (-901, "broken")]
)
def test_clocks_may_differ_a_little(ahead_s, verdict):
    assert clock_finding("a node", ahead_s).verdict == verdict


def test_a_store_that_is_not_there_is_one_finding_at_once(moto_s3):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        options = replace(moto_s3.options, endpoint_url=f"http://127.0.0.1:{free.getsockname()[1]}")
        began = time.monotonic()
        found = looked_at(
            {key: Location("s3://bucket/a", options) for key in ("archive.uri", "index.uri")}
        )
    assert time.monotonic() - began < 3
    assert list(found) == ["object store"]
    assert found["object store"].verdict == "broken"
    assert "archive.uri, index.uri" in found["object store"].found
    assert f"`curl -I {options.endpoint_url}`" in found["object store"].advice
    wrong = replace(options, endpoint_url="minio:9000")
    found = looked_at({"index.uri": Location("s3://bucket/a", wrong)})
    assert "no URL" in found["object store"].found


def test_folders_exist_or_can_be_made(tmp_path: Path):
    there = Location(str(tmp_path))
    assert place_finding("archive.uri", there).verdict == "ok"
    assert place_finding("archive.uri", there / "new" / "er").verdict == "note"
    missing = place_finding("catalog.source", there / "scenes")
    assert (missing.verdict, missing.advice) == (
        "broken",
        "`--set catalog.source=...`, or correct the recipe",
    )
    (tmp_path / "file").touch()
    blocked = place_finding("archive.uri", there / "file" / "archive")
    assert f"{tmp_path / 'file'} is a file" in blocked.advice
