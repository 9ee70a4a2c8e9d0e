"""The shell commands of the README and the guides run as printed, in order, in a prepared folder.

A block that cannot run in a test has the line ``<!-- not run: reason -->`` above it, and
:data:`NOT_RUN` lists how many a page has. ``test_tutorial`` runs the tutorial.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pyproj import Transformer

from encoders.bundle import new_encoder, save_bundle
from encoders.spec import EncoderSpec
from storage.raster.writer import write_geotiff
from tests.support.object_store import MotoS3
from tests.support.paths import REPOSITORY

INGEST = "skysift ingest --scenes catalog.json --encoder work/bundle --archive work/archive"
INDEX = "skysift index build --archive work/archive --index work/index"
PAGES = {
    "README.md": (),
    "docs/howto/geospatial.md": (INGEST,),
    "docs/howto/analyst.md": (INGEST, INDEX),
    "docs/howto/platform.md": (),
    "docs/change.md": (INGEST, INDEX),
}
"""Pages, and the commands of a run that a page takes for granted."""
NOT_RUN = {
    "README.md": 1,
    "docs/howto/geospatial.md": 0,
    "docs/howto/analyst.md": 1,
    "docs/howto/platform.md": 2,
    "docs/change.md": 0,
}
LON, LAT = 103.75, 17.92
DAYS = ("20240223", "20240524", "20240822")
SIDE_PX, BANDS = 448, ("red", "green", "blue")

# Workers of Ray have the environment of the process that starts it, credentials included.
IN_ORDER = """
import json, sys
from pipeline.runtime.cluster import ray_session
from tests.support.command_line import run
with ray_session(cpus=2):
    for words in json.load(sys.stdin):
        done = run(*words)
        if done.code:
            sys.exit(f"skysift {' '.join(words)}: {done.code}\\n{done.out}{done.err}")
"""

_BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>[^>]+) -->\n)?```(?:sh|console|bash)\n(?P<lines>.*?)```",
    re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """Commands of a page, and why they are not run; empty for those that are."""

    commands: tuple[str, ...]
    reason: str


def blocks_of(page: str) -> list[Block]:
    found = []
    for match in _BLOCK.finditer((REPOSITORY / page).read_text()):
        lines = match["lines"].replace("\\\n", " ").splitlines()
        commands = tuple(line.strip() for line in lines if line.strip())
        found.append(Block(commands, match["reason"] or ""))
    return found


@pytest.fixture
def folder(tmp_path: Path, moto_s3: MotoS3, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the pages have before their first command: scenes on disk and S3, and a bundle."""
    east, north = Transformer.from_crs(4326, 32648, always_xy=True).transform(LON, LAT)
    transform = (10, 0, east - 1600, 0, -10, north + 1600)
    random, items = np.random.default_rng(3), []
    for day in DAYS:
        pixels = random.integers(1, 255, (3, SIDE_PX, SIDE_PX), dtype=np.uint8)
        path = tmp_path / f"scene_{day}.tif"
        write_geotiff(str(path), pixels, "EPSG:32648", transform, descriptions=BANDS)
        moto_s3.location(f"scenes/{path.name}").upload(path)
        moto_s3.location(path.name).upload(path)  # beside the catalog there
        items.append(item(path.name, day))
        for band in ("B02", "B03", "B04"):
            name = f"work/cogs/T48QUE_{day}T032739_{band}_10m.tif"
            counts = pixels[:1].astype(np.uint16)
            write_geotiff(str(tmp_path / name), counts, "EPSG:32648", transform)
    (tmp_path / "catalog.json").write_text(
        json.dumps({"type": "FeatureCollection", "features": items})
    )
    spec = EncoderSpec(
        backbone="tiny-cnn",
        bands=BANDS,
        band_mean=(128.0,) * 3,
        band_std=(70.0,) * 3,
        tile_px=64,
        dimension=16,
    )
    save_bundle(new_encoder(spec, seed=1), str(tmp_path / "work/bundle"))
    moto_s3.location("catalog.json").upload(tmp_path / "catalog.json")
    for path in (tmp_path / "work/bundle").iterdir():
        moto_s3.location(f"bundle/{path.name}").upload(path)
    Image.fromarray(random.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(
        tmp_path / "field.png"
    )
    for name, value in {
        "AWS_ENDPOINT_URL": moto_s3.options.endpoint_url,
        "AWS_REGION": moto_s3.options.region,
        "AWS_ACCESS_KEY_ID": moto_s3.options.access_key_id,
        "AWS_SECRET_ACCESS_KEY": moto_s3.options.secret_access_key,
    }.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def item(name: str, day: str) -> dict[str, object]:
    box = [LON - 0.02, LAT - 0.02, LON + 0.02, LAT + 0.02]
    bands = [{"name": band, "common_name": band} for band in BANDS]
    asset = {"href": name, "type": "image/tiff", "roles": ["data"], "eo:bands": bands}
    ring = [[box[0], box[1]], [box[2], box[1]], [box[2], box[3]], [box[0], box[1]]]
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": day,
        "bbox": box,
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"datetime": f"{day[:4]}-{day[4:6]}-{day[6:]}T03:00:00Z"},
        "links": [],
        "assets": {"pixels": asset},
    }


@pytest.mark.parametrize("page", PAGES)
def test_every_block_runs_as_printed(page: str, folder: Path, moto_s3: MotoS3):
    blocks = blocks_of(page)
    assert blocks
    printed = [line for block in blocks if not block.reason for line in block.commands]
    commands = []
    for command in (*PAGES[page], *printed):
        program, *words = shlex.split(command.replace("s3://bucket/", f"{moto_s3.uri()}/"))
        assert program == "skysift", command
        commands.append(words)
    done = subprocess.run(
        [sys.executable, "-c", IN_ORDER],
        input=json.dumps(commands),
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{page}: {done.stderr}"


def test_blocks_that_do_not_run_are_few_and_say_why():
    found = {page: sum(bool(block.reason) for block in blocks_of(page)) for page in PAGES}
    assert found == NOT_RUN
