"""Archives, indexes, bundles, datasets and saved searches of the release before, read and updated.

``tests/support/write_release_before.py`` says which release wrote them, and how.
"""

import json
import tarfile
import threading
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import zarr

from encoders.bundle import load_encoder
from encoders.spec import read_bundle
from pipeline.indexing.driver import update_index
from pipeline.ingest.driver import _local_batches, ingest, plan_ingest
from pipeline.ingest.spec import IngestSpec
from pipeline.search.query import QueryResolver
from pipeline.search.saved import VERSION, load_search
from pipeline.search.searcher import Searcher
from pipeline.search.standing import StandingQuery
from pipeline.tiles.spec import GridSpec
from storage.archive.audit import row_faults
from storage.archive.reader import Archive
from storage.archive.repository import open_repository
from storage.dataset import LabelledDataset
from storage.errors import SkysiftError
from storage.index.manifest import read_manifest, sealed, unsealed
from storage.location import Location
from storage.scene import CatalogSpec
from tests.support.indexing_world import patch_out_ray
from tests.support.object_store import MotoS3
from tests.support.paths import REPOSITORY
from tests.support.service_world import serving
from tests.support.write_release_before import BANDS, TILE_PX, write_scene
from workflows.migrate import migrate
from workflows.service.app import create_service
from workflows.service.backend import IndexBackend
from workflows.service.settings import BackendConfig, Limits
from workflows.service.tokens import Access
from workflows.watch import Watcher, WatchJob

FIXTURES = REPOSITORY / "tests" / "fixtures" / "release-before.tar.gz"


@dataclass(frozen=True)
class Before:
    """The output of the release before, in a bucket of its own, and the facts that it printed."""

    store: MotoS3
    facts: dict[str, Any]

    def at(self, name: str) -> Location:
        return self.store.location(name)


@pytest.fixture
def before(moto_s3: MotoS3) -> Before:
    facts = {}
    with tarfile.open(FIXTURES) as packed:
        for member in packed:
            data = packed.extractfile(member).read()
            if member.name == "facts.json":
                facts = json.loads(data)
            else:
                moto_s3.location(member.name).write(data)
    return Before(moto_s3, facts)


def _ingest(before: Before) -> IngestSpec:
    return IngestSpec(
        catalog=CatalogSpec(source=before.at("scenes")),
        encoder_uri=before.at("bundle"),
        archive_uri=before.at("archive"),
        grid=GridSpec(tile_px=TILE_PX),
    )


def test_everything_is_read_and_finds_the_same(before: Before):
    archive, facts = Archive.open(before.at("archive")), before.facts["hits"]["hits"]
    stated = before.facts["archive"]
    assert (len(archive), archive.snapshot) == (stated["rows"], stated["snapshot"])
    assert not row_faults(archive)
    assert load_encoder(before.at("bundle")).spec.bands == BANDS
    assert read_bundle(before.at("bundle")).fingerprint == archive.spec.encoder_fingerprint
    dataset = LabelledDataset.open(before.at("dataset"))
    assert (dataset.info.count, dataset.soft_labels.dtype) == (12, np.uint8)
    searcher = Searcher.local(before.at("index"))
    query = QueryResolver(searcher).point(6.78, 43.33)
    kept = list(load_search(before.at("search.json")).answer(searcher))  # knows not its own tile
    assert (kept[0]["tile_key"], kept[0]["scene"]) == (query.tile, query.scene)
    for hits, expected in ((searcher.answer(query, 5), facts), (kept[1:], facts[:-1])):
        for name in ("tile_key", "scene"):
            assert [hit[name] for hit in hits] == [hit[name] for hit in expected]
        scores = [[hit["score"] for hit in each] for each in (hits, expected)]
        np.testing.assert_allclose(*scores, atol=1e-6)
    assert archive.scene(facts[0]["scene"]).bands[0].href.exists()


def test_an_archive_and_its_index_are_continued(before: Before, tmp_path, monkeypatch):
    patch_out_ray(monkeypatch)
    write_scene(tmp_path, "three_20240801", 3)
    before.at("scenes/three_20240801.tif").upload(tmp_path / "three_20240801.tif")
    plan = plan_ingest(_ingest(before))
    assert [scene.id for scene in plan.todo] == ["three_20240801"]
    ingest(plan, local=True)
    index = update_index(before.at("index"))
    assert index.rows == len(Archive.open(before.at("archive"))) == 48
    searcher = Searcher.local(before.at("index"))
    query = QueryResolver(searcher).tile("epsg32632-10-32/1000/-15000", "three_20240801")
    assert len(searcher.answer(query, 5)) == 5
    assert not row_faults(Archive.open(before.at("archive")))


@pytest.mark.usefixtures("ray_session")
def test_an_upgrade_under_a_running_service_loses_nothing_and_tells_once(
    before: Before, tmp_path, monkeypatch
):
    """Files are migrated and a scene arrives under queries; each is answered from one version."""
    monkeypatch.setattr("workflows.service.backend._POLL_S", 0.2)
    monkeypatch.setattr("pipeline.ingest.driver._batches_on_ray", _local_batches)
    told, search = tmp_path / "told.jsonl", load_search(before.at("search.json"))
    query = StandingQuery(replace(search, min_score=-1.0), before.at("standing"), told)
    watcher = Watcher(
        WatchJob(ingest=_ingest(before), index_uri=before.at("index"), standing=(query,))
    )
    backend = IndexBackend(BackendConfig(index_uri=before.at("index")))
    service = create_service({"default": backend}, Access(), limits=Limits(rate_per_s=0))
    answers, ended = [], threading.Event()
    with serving(service) as address, ThreadPoolExecutor(1) as pool:
        asking = pool.submit(_ask_until, ended, f"{address}/v1/search", answers)
        try:
            watcher.poll()
            for name in ("archive", "index", "bundle", "dataset", "search.json"):
                migrate(before.at(name))
            write_scene(tmp_path, "three_20240801", 3)
            before.at("scenes/three_20240801.tif").upload(tmp_path / "three_20240801.tif")
            watcher.poll()
            assert not watcher.poll().changed
            current = read_manifest(before.at("index")).version
            until = time.monotonic() + 30
            while (not answers or answers[-1]["version"] != current) and time.monotonic() < until:
                time.sleep(0.05)
        finally:
            ended.set()
        asking.result()  # no request failed
    old, new = (
        [answer["hits"] for answer in answers if (answer["version"] == current) == late]
        for late in (False, True)
    )
    expected = [hit["tile_key"] for hit in before.facts["hits"]["hits"]]
    assert {tuple(hit["tile_key"] for hit in hits) for hits in old} == {tuple(expected)}
    assert new
    assert all("three_20240801" in {hit["scene"] for hit in hits} for hits in new)
    assert [json.loads(line)["scene"] for line in told.read_text().splitlines()] == [
        "three_20240801"
    ]
    assert len(Archive.open(before.at("archive"))) == read_manifest(before.at("index")).rows == 48


def _ask_until(ended: threading.Event, url: str, answers: list[dict[str, Any]]) -> None:
    """Ask one query again and again; an error ends it."""
    body = json.dumps({"lonlat": [6.78, 43.33], "k": 5}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    while not ended.is_set():
        with urllib.request.urlopen(request, timeout=60) as answer:
            answers.append(json.load(answer))


def test_what_is_written_today_is_read_by_the_release_before(before: Before, tmp_path):
    """Without new features, documents have no field that the release before does not know."""
    old = Archive.open(before.at("archive"))
    Archive.create(str(tmp_path / "archive"), old.spec)
    new = Archive.open(str(tmp_path / "archive"))
    assert _root(new)["skysift"].keys() == _root(old)["skysift"].keys()
    manifest = read_manifest(before.at("index"))
    stored = (before.at("index") / manifest.version / "manifest.json").read()
    assert manifest.to_dict().keys() == unsealed("manifest", stored).keys()


def _root(archive: Archive) -> dict[str, Any]:
    session = archive.repository.readonly_session(snapshot_id=archive.snapshot)
    return dict(zarr.open_group(session.store, mode="r").attrs)


def _later_document(name: str, field: str, later: object) -> Callable[[Before], None]:
    def change(before: Before) -> None:
        place = before.at(name)
        place.write(json.dumps({**json.loads(place.read()), field: later}).encode())

    return change


def _later_manifest(before: Before) -> None:
    manifest = read_manifest(before.at("index"))
    place = before.at("index") / manifest.version / "manifest.json"
    values = unsealed("manifest", place.read())
    place.write(sealed("manifest", {**values, "format": 3, "new": True}))


def _later_archive(before: Before) -> None:
    session = open_repository(before.at("archive")).writable_session("main")
    root = zarr.open_group(session.store, mode="r+")
    root.attrs["skysift"] = {**root.attrs["skysift"], "format": 2, "new": True}
    session.commit("of a later release")


@pytest.mark.parametrize(
    ("change", "read", "name", "stated"),
    [
        (_later_archive, Archive.open, "archive", "2"),
        (_later_manifest, read_manifest, "index", "3"),
        (
            _later_document("bundle/encoder.json", "format", "skysift-encoder/2"),
            load_encoder,
            "bundle",
            "skysift-encoder/2",
        ),
        (
            _later_document("dataset/dataset.json", "format", "skysift-dataset/3"),
            LabelledDataset.open,
            "dataset",
            "skysift-dataset/3",
        ),
        (
            _later_document("search.json", "version", VERSION + 1),
            load_search,
            "search.json",
            str(VERSION + 1),
        ),
    ],
    ids=["archive", "index", "bundle", "dataset", "saved search"],
)
def test_a_later_format_is_refused_in_one_line(before: Before, change, read, name, stated):
    change(before)
    with pytest.raises(SkysiftError) as refused:
        read(before.at(name))
    text = str(refused.value)
    assert f"of format {stated}, which a later Skysift wrote" in text
    assert name in text
    assert "damaged" not in text
    assert "\n" not in text


def test_migrate_names_every_format_and_renews_a_saved_search_once(before: Before):
    names = ("archive", "index", "bundle", "dataset", "search.json")
    kept = before.at("search.json").read()
    planned = [migrate(before.at(name), dry_run=True) for name in names]
    assert [(one.kind, one.format, bool(one.change)) for one in planned] == [
        ("archive", "1", False),
        ("index", "2", False),
        ("bundle", "skysift-encoder/1", False),
        ("dataset", "skysift-dataset/1", False),
        ("saved search", "1", True),
    ]
    assert before.at("search.json").read() == kept
    search = load_search(before.at("search.json"))
    assert [one.changed for one in map(migrate, map(before.at, names))] == [False] * 4 + [True]
    assert load_search(before.at("search.json")) == search
    assert json.loads(before.at("search.json").read())["version"] == VERSION
    assert not migrate(before.at("search.json")).change
