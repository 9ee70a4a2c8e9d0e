"""Scenes, encoders and peers for :mod:`benchmarks.ingest`; what a seed draws is always the same."""

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from unittest.mock import patch

import numpy as np
import rasterio
import torch

from encoders.bundle import load_encoder, new_encoder, save_bundle
from encoders.spec import EncoderSpec
from pipeline.ingest.driver import ingest, plan_ingest
from pipeline.ingest.kernels import Batch, SceneCollector, SceneRows
from pipeline.ingest.spec import IngestSpec
from pipeline.tiles.spec import GridSpec
from storage.location import Location, StorageOptions
from storage.raster.writer import write_geotiff
from storage.scene import CatalogSpec

CRS, CORNER = "EPSG:32632", (320_000.0, 4_800_000.0)
BANDS = ("b1", "b2", "b3", "b4")
BLOCK_PX = 256
_RESNET_18 = {"layer_type": "basic", "depths": [2] * 4, "hidden_sizes": [64, 128, 256, 512]}


def write_scenes(
    folder: Path, count: int, width: int, height: int, bands: int = 4, size_m: float = 10.0
) -> list[str]:
    """Write scenes of uint16 reflectances, tiled and deflated: smooth ground with sensor noise."""
    rng = np.random.default_rng(count)
    ground = rng.normal(1500, 400, (bands, -(-height // 16), -(-width // 16)))
    ground = np.kron(ground, np.ones((1, 16, 16)))[:, :height, :width]
    names = []
    for number in range(count):
        noise = rng.normal(0, 50, ground.shape)
        path = folder / f"scene{number:04d}_202405{number % 28 + 1:02d}.tif"
        write_geotiff(
            str(path),
            (ground + noise).clip(1, 10_000).astype(np.uint16),
            CRS,
            (size_m, 0, CORNER[0], 0, -size_m, CORNER[1]),
            nodata=0,
            descriptions=[f"b{index + 1}" for index in range(bands)],
            cog=False,
            block_px=BLOCK_PX,
        )
        names.append(str(path))
    return names


def write_bundle(folder: Path, tile_px: int, width: int | None) -> str:
    """Write a tiny-cnn of a width for four bands, or a ResNet-18."""
    spec = EncoderSpec(
        backbone="tiny-cnn" if width else "resnet",
        backbone_options={"width": width} if width else {"config": _RESNET_18},
        bands=BANDS,
        band_mean=(1500.0,) * 4,
        band_std=(400.0,) * 4,
        tile_px=tile_px,
        dimension=128,
    )
    save_bundle(new_encoder(spec), str(folder))
    return str(folder)


def job(scenes: str | Location, bundle: str, archive: Path, tile_px: int) -> IngestSpec:
    """Return what to embed with what into where."""
    return IngestSpec(
        catalog=CatalogSpec(source=scenes),
        encoder_uri=bundle,
        archive_uri=str(archive),
        grid=GridSpec(tile_px=tile_px),
    )


def one_thread() -> None:
    """Let this process encode with one thread: there is a process for every core."""
    torch.set_num_threads(1)


def plain_loop(
    names: Sequence[str], tile_px: int, bundle: str | None = None, batch_tiles: int = 16
) -> tuple[int, float]:
    """Read tiles as one would by hand: strips with rasterio, batches as float32, NaN for nodata.

    Each batch is encoded when a bundle is given.

    Returns
    -------
    tuple
        Tiles read and seconds taken.
    """
    encoder = load_encoder(bundle) if bundle else None
    tiles, started = 0, time.perf_counter()
    with rasterio.Env(GDAL_NUM_THREADS=1, GDAL_CACHEMAX=128 * 1024 * 1024):
        for name in names:
            with rasterio.open(name) as source:
                shape = (batch_tiles, source.count, tile_px, tile_px)
                for row in range(0, source.height, tile_px):
                    strip = source.read(window=((row, row + tile_px), (0, source.width)))
                    for column in range(0, source.width, tile_px):
                        place = tiles % batch_tiles
                        if place == 0:
                            batch = np.empty(shape, np.float32)
                        tile = strip[:, :, column : column + tile_px]
                        batch[place] = tile
                        if not tile.all():
                            batch[place][tile == source.nodata] = np.nan
                        tiles += 1
                        if encoder is not None and place == batch_tiles - 1:
                            encoder(batch)
    return tiles, time.perf_counter() - started


def encode_for(bundle: str, seconds: float) -> tuple[int, float]:
    """Encode batches of noise that are in memory already; return tiles and seconds taken."""
    encoder = load_encoder(bundle)
    shape = (16, len(encoder.bands), encoder.tile_px, encoder.tile_px)
    pixels = np.random.default_rng(0).normal(1500, 400, shape).astype(np.float32)
    encoder(pixels)
    tiles, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        encoder(pixels)
        tiles += len(pixels)
    return tiles, time.perf_counter() - started


def steady_rate(spec: IngestSpec) -> float:
    """Return tiles/s of an ingest between the first and the last fifth of its tiles."""
    seen: list[tuple[float, int]] = [(time.perf_counter(), 0)]

    class Counting(SceneCollector):
        def add(self, batch: Batch) -> Iterator[SceneRows]:
            tiles = int((batch["status"] == 0).sum())
            seen.append((time.perf_counter(), seen[-1][1] + tiles))
            return super().add(batch)

    with patch("pipeline.ingest.driver.SceneCollector", Counting):
        ingest(plan_ingest(spec))
    last = seen[-1][1]
    middle = [(when, tiles) for when, tiles in seen if 0.2 * last <= tiles <= 0.8 * last]
    return (middle[-1][1] - middle[0][1]) / (middle[-1][0] - middle[0][0])


@contextmanager
def watched_memory(interval_s: float = 0.2) -> Iterator[dict[str, int]]:
    """Sample the private memory of this process and its descendants, in bytes (Linux).

    Yields
    ------
    dict
        By kind of process (its name, without Ray's number), the largest that one of them had.
    """
    peaks: dict[str, int] = {}
    stop = threading.Event()

    def sample() -> None:
        while not stop.wait(interval_s):
            for pid in _family(os.getpid()):
                with suppress(OSError, IndexError, ValueError):
                    command = Path(f"/proc/{pid}/cmdline").read_text().partition("\0")[0]
                    name = "driver" if pid == os.getpid() else Path(command).name.partition("(")[0]
                    if name.startswith("python"):
                        continue  # Ray names its processes once they are up
                    resident, shared = Path(f"/proc/{pid}/statm").read_text().split()[1:3]
                    private = (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")
                    peaks[name] = max(peaks.get(name, 0), private)

    watcher = threading.Thread(target=sample, daemon=True)
    watcher.start()
    try:
        yield peaks
    finally:
        stop.set()
        watcher.join()


def _family(root: int) -> list[int]:
    """Return a process and its descendants."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            text = entry.read_text()
            parents[int(entry.parent.name)] = int(text[text.rindex(")") + 2 :].split()[1])
    family = [root]
    for pid in family:
        family += [child for child, parent in parents.items() if parent == pid]
    return family


def options_for(endpoint: str) -> StorageOptions:
    """Return how to reach an S3 server on loopback."""
    return StorageOptions(
        endpoint_url=endpoint,
        region="eu-central-1",
        access_key_id="testing",
        secret_access_key="testing",
    )
