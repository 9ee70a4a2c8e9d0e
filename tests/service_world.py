"""A small archive with pictures behind it, its index, and a server of both."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import uvicorn
from fastapi import FastAPI

from encoders.bundle import EncoderSpec, pretrained_bundle
from pipeline.indexing import build_index, update_index
from pipeline.ingest import ingest, plan_ingest
from pipeline.ingest_plan import IngestSpec
from storage.catalog import CatalogSpec
from storage.rasters import write_geotiff
from workflows.service.backend import Served

TILE_PX = 32
TILES = 4
EAST_M, NORTH_M = 320 * 1000, 320 * 15000
DAYS = ("20240501", "20240601", "20240701")


def make_world(folder: Path) -> Served:
    """Embed one place on three days; this process has to be connected to Ray."""
    (folder / "scenes").mkdir()
    for seed, date in enumerate(DAYS):
        write_scene(folder / "scenes", date, seed)
    spec = EncoderSpec(
        backbone="tiny-cnn",
        bands=("b1", "b2", "b3"),
        band_mean=(128.0,) * 3,
        band_std=(70.0,) * 3,
        tile_px=TILE_PX,
        dimension=16,
    )
    pretrained_bundle(str(folder / "bundle"), spec)
    ingest(plan_ingest(job(folder)))
    build_index(str(folder / "archive"), str(folder / "index"))
    return Served(
        index_uri=str(folder / "index"),
        catalog=job(folder).catalog,
        max_image_px=1_000_000,
    )


def job(folder: Path) -> IngestSpec:
    return IngestSpec(
        catalog=CatalogSpec(source=str(folder / "scenes" / "*.tif")),
        encoder_uri=str(folder / "bundle"),
        archive_uri=str(folder / "archive"),
    )


def write_scene(folder: Path, date: str, seed: int) -> None:
    """Write 4 x 4 tiles, each of its own colours; only the noise changes from day to day."""
    rng = np.random.default_rng(99)
    colours = rng.integers(20, 220, (3, TILES, TILES)).repeat(TILE_PX, 1).repeat(TILE_PX, 2)
    noise = np.random.default_rng(seed).integers(0, 35, colours.shape)
    write_geotiff(
        str(folder / f"site_{date}.tif"),
        (colours + noise).astype(np.uint8),
        "EPSG:32632",
        (10, 0, EAST_M, 0, -10, NORTH_M),
        nodata=0,
        block_px=128,
        descriptions=("b1", "b2", "b3"),
    )


def add_day(folder: Path, date: str, seed: int) -> None:
    """Embed one more day and let the index follow."""
    write_scene(folder / "scenes", date, seed)
    ingest(plan_ingest(job(folder)))
    update_index(str(folder / "index"))


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """Serve an application on loopback from a thread of this process; give its address."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]})
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{taken.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
