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

from encoders.bundle import Encoder, load_encoder, new_encoder, save_bundle
from encoders.spec import EncoderSpec
from pipeline.indexing.driver import build_index, update_index
from pipeline.tiles.grid import grid_for_scene
from pipeline.tiles.read import read_tiles
from pipeline.tiles.spec import GridSpec, TileRules
from storage.archive.ledger import LedgerEntry
from storage.archive.origins import Origin
from storage.archive.reader import Archive
from storage.archive.spec import ArchiveSpec
from storage.archive.writer import ArchiveWriter, SegmentRows, write_segment
from storage.catalog.read import read_scenes
from storage.location import Location
from storage.raster.writer import write_geotiff
from storage.scene import CatalogSpec
from workflows.service.settings import BackendConfig

TILE_PX = 32
TILES = 4
EAST_M, NORTH_M = 320 * 1000, 320 * 15000
DAYS = ("20240501", "20240601", "20240701")


def encoder_spec(**fields: object) -> EncoderSpec:
    """The encoder of the scenes; ``fields`` replace its own."""
    known = {
        "backbone": "tiny-cnn",
        "bands": ("b1", "b2", "b3"),
        "band_mean": (128.0,) * 3,
        "band_std": (70.0,) * 3,
        "tile_px": TILE_PX,
        "dimension": 16,
    }
    return EncoderSpec(**{**known, **fields})


def make_world(place: Path | Location, encoder: Encoder | None = None) -> BackendConfig:
    """Embed one place on three days; this process has to be connected to Ray."""
    folder = Location.of(place)
    encoder = encoder or new_encoder(encoder_spec())
    spec = encoder.spec
    bundle, archive = folder / "bundle", folder / "archive"
    fingerprint = save_bundle(encoder, bundle)
    Archive.create(
        archive,
        ArchiveSpec(
            encoder_fingerprint=fingerprint,
            encoder_uri=bundle.uri,
            dimension=spec.dimension,
            bands=spec.bands,
            tile_px=TILE_PX,
            parts=spec.parts,
        ),
    )
    if folder.is_local:
        (folder / "scenes").path.mkdir()
    for seed, date in enumerate(DAYS):
        write_scene(folder / "scenes", date, seed)
    embed(folder)
    build_index(archive, folder / "index")
    return BackendConfig(
        index_uri=folder / "index",
        catalog=CatalogSpec(source=folder / "scenes" / "*.tif"),
        max_image_px=1_000_000,
    )


def embed(folder: Location) -> None:
    """Commit the scenes that the archive lacks, in this process: what ingest does on Ray."""
    uri = folder / "archive"
    writer, archive = ArchiveWriter(uri), Archive.open(uri)
    encoder = load_encoder(archive.encoder)
    catalog = CatalogSpec(source=folder / "scenes" / "*.tif")
    receipts, entries, grids = [], [], {}
    for scene in read_scenes(catalog, encoder.bands).scenes:
        if scene.id in archive.ledger.entries:
            continue
        grid = grid_for_scene(scene, GridSpec(tile_px=TILE_PX))
        grids[grid.id] = grid.to_dict()
        (part,) = read_tiles(scene, grid, TileRules())
        columns = {
            "embedding": encoder(part.pixels),
            "scene_index": np.zeros(len(part), np.int32),
            "tile": part.tiles,
            "window": part.window,
            "bbox": part.bbox,
            "datetime": np.full(len(part), scene.datetime.replace(tzinfo=None), "datetime64[ms]"),
            "valid_fraction": part.valid_fraction,
            "cloud_fraction": part.cloud_fraction,
        }
        segment = SegmentRows(
            id=scene.id,
            scenes=(scene.id,),
            grids=(grid.id,),
            columns=columns,
            origins=(Origin(scene=scene, catalog=str(catalog.source)),),
        )
        receipts.append(write_segment(writer.fork, segment, archive.spec))
        entries.append(
            LedgerEntry(
                scene_id=scene.id,
                state="embedded",
                fingerprint=scene.fingerprint,
                datetime=scene.datetime,
                rows=len(part),
                grid_id=grid.id,
            )
        )
    writer.commit(receipts, entries, grids, "embed")


def write_scene(folder: Location, date: str, seed: int) -> None:
    """Write 4 x 4 tiles, each of its own colours; only the noise changes from day to day."""
    rng = np.random.default_rng(99)
    colours = rng.integers(20, 220, (3, TILES, TILES)).repeat(TILE_PX, 1).repeat(TILE_PX, 2)
    noise = np.random.default_rng(seed).integers(0, 35, colours.shape)
    write_geotiff(
        folder / f"site_{date}.tif",
        (colours + noise).astype(np.uint8),
        "EPSG:32632",
        (10, 0, EAST_M, 0, -10, NORTH_M),
        nodata=0,
        block_px=128,
        descriptions=("b1", "b2", "b3"),
    )


def add_day(place: Path, date: str, seed: int) -> None:
    """Embed one more day and let the index follow."""
    folder = Location.of(place)
    write_scene(folder / "scenes", date, seed)
    embed(folder)
    update_index(folder / "index")


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
