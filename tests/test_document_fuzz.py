"""Mutated documents at rest: each is read, or refused by a house error."""

import json
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from encoders.bundle import new_encoder, save_bundle
from encoders.spec import EncoderSpec, read_bundle
from pipeline.training.record import resume_or_return, write_record
from pipeline.training.spec import TrainingJob, TrainingResult
from storage.archive.ledger import Ledger, LedgerEntry, Segment, fold_page, page_bytes
from storage.archive.repository import translate_errors
from storage.archive.spec import ArchiveSpec, root_attributes, spec_of
from storage.catalog.stac_write import is_sound, written_items
from storage.dataset import read_info
from storage.formats import located, write_hits
from storage.geometry import footprints
from storage.index.manifest import read_manifest, write_manifest
from storage.index.sidecar import HIT_SCHEMA
from storage.location import Location
from storage.locks import Holder
from tests.support.fuzz import faults_of, mutate_bytes, mutate_document
from tests.support.index_world import manifest_of
from tests.support.training_world import SPEC, write_dataset
from workflows.report.contact_sheet import tiles_of_hits

VERSION = "0001-0123abcd"
ITEM = {
    "type": "Feature",
    "stac_version": "1.1.0",
    "id": "c",
    "geometry": None,
    "bbox": [0.0, 0.0, 1.0, 1.0],
    "properties": {"datetime": "2024-01-01T00:00:00Z", "skysift:fingerprint": "f"},
    "links": [],
    "assets": {"pixels": {"href": "./c.tif", "file:checksum": "1220ab", "file:size": 3}},
}


@dataclass(frozen=True)
class Sample:
    """A document in a folder, how it is read, and how it is written without its digest."""

    file: str
    read: Callable[[Path], object]
    plain: Callable[[bytes], bytes] = bytes


def _without(*names: str) -> Callable[[bytes], bytes]:
    def plain(data: bytes) -> bytes:
        document = json.loads(data)
        return json.dumps({k: v for k, v in document.items() if k not in names}).encode()

    return plain


def _page(folder: Path) -> object:
    with translate_errors(Location(str(folder)), reading="page 0"):
        ledger = fold_page(Ledger(), (folder / "page").read_bytes())
    return (
        len(ledger.segments),
        sorted(ledger.entries),
        [e.rows + 1 for e in ledger.entries.values()],
    )


def _attributes(folder: Path) -> object:
    with translate_errors(Location(str(folder)), reading="the root"):
        return spec_of(json.loads((folder / "attributes").read_bytes()), str(folder))


def _items(folder: Path) -> object:
    items = written_items(str(folder / "items"))
    return [is_sound(item, str(folder / "items")) for item in items.values()]


SAMPLES = {
    "manifest": Sample(f"index/{VERSION}/manifest.json", lambda f: read_manifest(str(f / "index"))),
    "pointer": Sample("index/CURRENT", lambda f: read_manifest(str(f / "index"))),
    "dataset": Sample("set/dataset.json", lambda f: read_info(str(f / "set")), _without("seal")),
    "bundle": Sample("bundle/encoder.json", lambda f: read_bundle(str(f / "bundle"))),
    "weights": Sample("bundle/model.safetensors", lambda f: read_bundle(str(f / "bundle"))),
    "page": Sample("page", _page, lambda data: data.partition(b"\n")[0]),
    "attributes": Sample("attributes", _attributes),
    "record": Sample(
        "run/run.json", lambda f: resume_or_return(_job(f), False), _without("sha256")
    ),
    "item": Sample("items/c.json", _items),
    "geojson": Sample(
        "hits.geojson", lambda f: tiles_of_hits(f / "hits.geojson"), _without("sha256")
    ),
    "csv": Sample("hits.csv", lambda f: tiles_of_hits(f / "hits.csv")),
    "parquet": Sample("hits.parquet", lambda f: tiles_of_hits(f / "hits.parquet")),
    "note": Sample("note", lambda f: str(Holder.read((f / "note").read_bytes()))),
}


def _job(folder: Path) -> TrainingJob:
    return TrainingJob(
        dataset=Location("set"), dataset_digest="d", spec=SPEC, output=Location(str(folder / "run"))
    )


@cache
def originals() -> dict[str, bytes]:
    """Every file of the samples, by its path."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_manifest(Location(str(folder / "index")), manifest_of(VERSION))
        write_dataset(str(folder / "set"), 4)
        encoder = EncoderSpec(
            backbone="tiny-cnn",
            backbone_options={"width": 8},
            bands=("red",),
            band_mean=(0.0,),
            band_std=(1.0,),
            tile_px=16,
            dimension=4,
        )
        save_bundle(new_encoder(encoder), str(folder / "bundle"))
        segment = Segment(ordinal=0, id="s", rows=2, scenes=("a",), digests={"tile": "00"})
        entry = LedgerEntry(
            scene_id="a", state="embedded", fingerprint="v", rows=2, segment_ordinal=0, grid_id="g"
        )
        after = Ledger().after([segment], [entry], {"g": {"tile_px": 64}})
        (folder / "page").write_bytes(page_bytes(Ledger(), after))
        spec = ArchiveSpec(
            encoder_fingerprint="ab",
            encoder_uri="bundle",
            dimension=4,
            bands=("red",),
            tile_px=8,
            classes=("a",),
        )
        (folder / "attributes").write_text(json.dumps(root_attributes(spec)))
        result = TrainingResult(
            bundle_uri="b",
            fingerprint="f",
            best_epoch=1,
            best_metrics={},
            epochs=1,
            history_csv="h",
        )
        write_record(_job(folder), result)
        (folder / "items").mkdir()
        (folder / "items" / "c.json").write_text(json.dumps(ITEM))
        for suffix in ("geojson", "csv", "parquet"):
            write_hits(_hits(), str(folder / f"hits.{suffix}"))
        (folder / "note").write_bytes(Holder.here().to_bytes())
        files = (path for path in folder.rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def _hits() -> pa.Table:
    rows = [
        {
            "query": 0,
            "rank": 1,
            "score": 0.5,
            "row": 1,
            "tile_key": "g/1/2",
            "scene": "a",
            **dict(zip(("west", "south", "east", "north"), (0.0, 0.0, 1.0, 1.0), strict=True)),
            "datetime": 0,
            "cloud_fraction": 0.0,
            "labels": ["x"],
        }
    ]
    first = [("query", pa.int64()), ("rank", pa.int64()), ("score", pa.float32())]
    table = pa.Table.from_pylist(rows, schema=pa.schema([*first, *HIT_SCHEMA]))
    return located(table, footprints(np.array([[0.0, 0.0, 1.0, 1.0]])))


def read_mutated(seed: int) -> None:
    """Read the document of a seed: with its digest, without it, or with a fitting new digest."""
    rng = random.Random(seed)
    sample = SAMPLES[sorted(SAMPLES)[seed % len(SAMPLES)]]
    data = originals()[sample.file]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path, content in originals().items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        if rng.random() < 0.7:
            data = sample.plain(data)
        try:
            document = json.loads(data)
        except ValueError:
            document = None
        if isinstance(document, dict) and rng.random() < 0.7:
            data = json.dumps(mutate_document(document, rng)).encode()
        else:
            data = mutate_bytes(data, rng)
        (folder / sample.file).write_bytes(data)
        sample.read(folder)


def test_the_samples_are_read_as_they_are():
    with tempfile.TemporaryDirectory() as name:
        for path, content in originals().items():
            (Path(name) / path).parent.mkdir(parents=True, exist_ok=True)
            (Path(name) / path).write_bytes(content)
        for sample in SAMPLES.values():
            file = Path(name, sample.file)
            sample.read(Path(name))
            file.write_bytes(sample.plain(file.read_bytes()))
            sample.read(Path(name))


def test_mutated_documents_are_read_or_refused():
    assert faults_of(read_mutated, range(130)) == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_thousand_mutated_documents_are_read_or_refused():
    assert faults_of(read_mutated, range(1000, 3000)) == []
