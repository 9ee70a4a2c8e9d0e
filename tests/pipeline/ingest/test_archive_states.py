"""The archive against a dict: ingests, deletions, rollbacks and garbage collection in any order."""

import datetime as dt
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from encoders.spec import EncoderSpec
from pipeline.ingest.commit import Committer
from pipeline.ingest.driver import _is_pending
from pipeline.ingest.kernels import SceneRows
from pipeline.ingest.spec import IngestPlan, IngestSpec, PlannedEncoder
from pipeline.tiles.grid import TileGrid
from pipeline.tiles.spec import GridSpec
from storage.archive.audit import verify
from storage.archive.maintenance import collect_garbage, create_tag, delete_scenes, rollback
from storage.archive.reader import Archive
from storage.archive.spec import ArchiveSpec
from storage.errors import NotFoundError
from storage.scene import BandSource, CatalogSpec, Scene

DIMENSION = 4
GRID = TileGrid(crs="EPSG:32632", resolution=10.0, tile_px=32)
ENCODER = PlannedEncoder(
    spec=EncoderSpec(
        backbone="none", bands=("red",), band_mean=(0,), band_std=(1,), tile_px=32, dimension=8
    ),
    fingerprint="ab" * 32,
    version="",
)
SCENES = ("a", "b", "c", "d")
TORN = 5  # the version of a scene that cannot be read; any other has that many rows
WHEN = dt.datetime(2024, 5, 1, tzinfo=dt.UTC)

Rows = dict[tuple[str, str], bytes]


@dataclass
class Known:
    """What the ledger must say of a scene."""

    state: str
    fingerprint: str
    rows: Rows = field(default_factory=dict)


def scene_of(name: str, version: int) -> Scene:
    band = BandSource(name="red", href=f"{name}.tif")
    return Scene(id=name, datetime=WHEN, bands=(band,), revision=str(version))


def rows_of(index: int, name: str, version: int) -> SceneRows:
    """What reading and embedding one version of a scene gives: always the same."""
    count = 0 if version == TORN else version
    random = np.random.default_rng([ord(name), version])
    vectors = random.normal(size=(count, DIMENSION)).astype(np.float32)
    tiles = np.stack([np.arange(count), np.full(count, ord(name))], axis=1).astype(np.int32)
    note = {"reason": "torn"} if version == TORN else {}
    return SceneRows(
        index=index,
        note={
            **note,
            "grid_id": GRID.id,
            "grid": GRID.to_dict(),
            "counts": {"skipped_nodata": 1, "skipped_cloud": 0},
        },
        columns={
            "embedding": vectors / np.linalg.norm(vectors, axis=1, keepdims=True),
            "tile": tiles,
            "window": np.zeros((count, 4), np.int32),
            "bbox": np.tile(np.array([10.0, 50.0, 10.1, 50.1]), (count, 1)),
            "valid_fraction": np.ones(count, np.float32),
            "cloud_fraction": np.zeros(count, np.float32),
        },
    )


def truth_of(name: str, version: int) -> Known:
    rows = rows_of(0, name, version).columns
    keys = GRID.keys(rows["tile"])
    vectors = rows["embedding"].astype(np.float16)
    found = {(name, key): vector.tobytes() for key, vector in zip(keys, vectors, strict=True)}
    state = "quarantined" if version == TORN else "embedded" if version else "empty"
    return Known(state, scene_of(name, version).fingerprint, found)


def live_rows(archive: Archive) -> Rows:
    found: Rows = {}
    for segment in archive.segments:
        rows = archive.read_segment(segment.ordinal, ["scene", "tile_key", "embedding"])
        for scene, key, vector in zip(
            rows["scene"], rows["tile_key"], rows["embedding"], strict=True
        ):
            assert (scene, key) not in found, "a row is there twice"
            found[scene, key] = vector.tobytes()
    return found


@dataclass
class Pending:
    """An ingest that has embedded its scenes and not committed them yet."""

    committer: Committer
    promised: dict[str, Known]
    before: dict[str, Known]


class ArchiveStates(RuleBasedStateMachine):
    """``ledger`` is what the newest snapshot must hold, ``past`` what every older one must."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(prefix="skysift-")
        self.uri = str(Path(self.folder.name) / "archive")
        self.catalog: dict[str, int] = {}
        self.ledger: dict[str, Known] = {}
        self.past: dict[str, dict[str, Known]] = {}
        self.tags: dict[str, str] = {}
        self.tags_made = 0
        self.pending: list[Pending] = []
        self.spec = ArchiveSpec(
            encoder_fingerprint="ab" * 32,
            encoder_uri="bundle",
            dimension=DIMENSION,
            bands=("red",),
            tile_px=32,
        )
        Archive.create(self.uri, self.spec)
        self._remember()

    def teardown(self) -> None:
        assert verify(Archive.open(self.uri)) == []
        self.folder.cleanup()

    def _remember(self) -> None:
        self.past[Archive.open(self.uri).snapshot] = {**self.ledger}

    def _plan(self, segment_rows: int, retry: bool = False) -> IngestPlan:
        spec = IngestSpec(
            catalog=CatalogSpec(source="catalog"),
            encoder_uri="bundle",
            archive_uri=self.uri,
            retry_quarantined=retry,
            segment_rows=segment_rows,
            commit_interval_s=3600,
        )
        entries = Archive.open(self.uri).ledger.entries
        scenes = [scene_of(*one) for one in self.catalog.items()]
        todo = tuple(scene for scene in scenes if _is_pending(scene, entries, spec))
        return IngestPlan(
            spec=spec, archive=self.spec, grid=GridSpec(tile_px=32), encoder=ENCODER, todo=todo,
            rejected=(), reprocessed=(), done=0,
        )  # fmt: skip

    def _embed(self, plan: IngestPlan) -> Pending:
        committer = Committer(plan, Archive.open(self.uri))
        for index, scene in enumerate(plan.todo):
            committer.add(rows_of(index, scene.id, self.catalog[scene.id]))
        promised = {scene.id: truth_of(scene.id, self.catalog[scene.id]) for scene in plan.todo}
        return Pending(committer, promised, {**self.ledger})

    @rule(name=st.sampled_from(SCENES), version=st.integers(0, TORN))
    def publish(self, name: str, version: int) -> None:
        self.catalog[name] = version

    @rule(segment_rows=st.sampled_from([1, 5, 100]), retry=st.booleans())
    def ingest(self, segment_rows: int, retry: bool) -> None:
        plan = self._plan(segment_rows, retry)
        wanted = {
            name
            for name, version in self.catalog.items()
            if (known := self.ledger.get(name)) is None
            or known.fingerprint != scene_of(name, version).fingerprint
            or (retry and known.state == "quarantined")
        }
        assert {scene.id for scene in plan.todo} == wanted
        done = self._embed(plan)
        done.committer.commit()
        self.ledger |= done.promised
        self._remember()

    @rule(segment_rows=st.sampled_from([1, 100]))
    def ingest_and_die(self, segment_rows: int) -> None:
        self._embed(self._plan(segment_rows))

    @precondition(lambda self: len(self.pending) < 2)
    @rule(segment_rows=st.sampled_from([1, 5, 100]))
    def begin_an_ingest(self, segment_rows: int) -> None:
        self.pending.append(self._embed(self._plan(segment_rows)))

    @precondition(lambda self: self.pending)
    @rule()
    def finish_an_ingest_that_began_earlier(self) -> None:
        """Its scenes are there; what others settled meanwhile may stand instead."""
        done = self.pending.pop(0)
        done.committer.commit()
        said = {one.scene_id: one for one in Archive.open(self.uri).scenes()}
        for name, promised in done.promised.items():
            settled_meanwhile = self.ledger.get(name) != done.before.get(name)
            kept = settled_meanwhile and said[name].fingerprint != promised.fingerprint
            kept |= settled_meanwhile and self.ledger.get(name, promised).state == "deleted" and (
                said[name].state == "deleted"
            )  # fmt: skip
            if not kept:
                self.ledger[name] = promised
        self._remember()

    @precondition(lambda self: self.ledger)
    @rule(data=st.data(), again=st.booleans())
    def delete(self, data: st.DataObject, again: bool) -> None:
        names = data.draw(st.lists(st.sampled_from(sorted(self.ledger)), min_size=1, unique=True))
        delete_scenes(self.uri, names, again=again)
        for name in names:
            fingerprint = "" if again else self.ledger[name].fingerprint
            self.ledger[name] = Known("deleted", fingerprint)
        self._remember()

    @rule()
    def tag(self) -> None:
        self.tags_made += 1
        name = f"tag-{self.tags_made}"
        self.tags[name] = create_tag(self.uri, name)

    @rule(data=st.data())
    def roll_back(self, data: st.DataObject) -> None:
        to = data.draw(st.sampled_from([*self.past, *self.tags]))
        rollback(self.uri, to)
        self.ledger = {**self.past[self.tags.get(to, to)]}

    @precondition(lambda self: not self.pending)
    @rule()
    def collect(self) -> None:
        """Two days later: every snapshot goes but the newest and the tagged ones."""
        later = dt.datetime.now(dt.UTC) + dt.timedelta(days=2)
        collect_garbage(self.uri, dt.timedelta(days=1), now=later)
        kept = {Archive.open(self.uri).snapshot, *self.tags.values()}
        for snapshot in [one for one in self.past if one not in kept]:
            del self.past[snapshot]
            with pytest.raises(NotFoundError):
                Archive.open(self.uri, snapshot)

    @rule(data=st.data())
    def look_back(self, data: st.DataObject) -> None:
        snapshot = data.draw(st.sampled_from(list(self.past)))
        self._check(Archive.open(self.uri, snapshot), self.past[snapshot])

    @invariant()
    def the_newest_snapshot_is_the_dict(self) -> None:
        self._check(Archive.open(self.uri), self.ledger)

    def _check(self, archive: Archive, ledger: dict[str, Known]) -> None:
        said = {one.scene_id: (one.state, one.fingerprint) for one in archive.scenes()}
        assert said == {name: (one.state, one.fingerprint) for name, one in ledger.items()}
        expected: Rows = {}
        for one in ledger.values():
            expected |= one.rows
        assert live_rows(archive) == expected
        assert len(archive) == len(expected)


ROUGHLY = settings(deadline=None, suppress_health_check=list(HealthCheck))
TestArchiveStates = ArchiveStates.TestCase
TestArchiveStates.settings = settings(ROUGHLY, max_examples=12, stateful_step_count=16)


@pytest.mark.slow
@pytest.mark.timeout(1800)
class TestArchiveStatesAtLength(ArchiveStates.TestCase):
    settings = settings(ROUGHLY, max_examples=150, stateful_step_count=40)
