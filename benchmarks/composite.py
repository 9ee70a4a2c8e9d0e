"""Composites: memory against acquisitions and area, time against reading the whole stack.

Every figure of memory is the peak of a fresh process. ``--full`` takes larger scenes.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import rasterio

from benchmarks.measure import Row, in_turns, publish, seconds
from pipeline.composite.driver import make_composites, median_of_days
from pipeline.composite.plan import plan_composites
from pipeline.composite.spec import CompositeSpec
from pipeline.tiles.spec import GridSpec
from storage.catalog.read import read_scenes
from storage.raster.writer import write_geotiff
from storage.scene import BandMapping, CatalogSpec, MaskMapping, SceneQuery

BANDS = ("red", "green", "blue", "nir")
DAYS = 16
BLOCK_BYTES = 32 * 1024 * 1024
CRS, LEFT, TOP = "EPSG:32633", 500_000.0, 5_000_000.0


def make_series(folder: Path, side_px: int) -> None:
    """Write a month of cloudy scenes: four bands of 10 m uint16, and their mask."""
    rng = np.random.default_rng(0)
    transform = (10.0, 0.0, LEFT, 0.0, -10.0, TOP)
    ground = rng.integers(500, 4000, (4, side_px, side_px)).astype(np.uint16)
    for day in range(DAYS):
        moment = datetime(2024, 6, 1, tzinfo=UTC) + timedelta(days=day)
        name = folder / f"scene_{moment:%Y%m%d}"
        cloud = np.kron(rng.random((side_px // 64, side_px // 64)) < 0.4, np.ones((64, 64), bool))
        numbers = np.where(cloud, 9000, ground + rng.integers(0, 300, 1).astype(np.uint16))
        write_geotiff(f"{name}.tif", numbers.astype(np.uint16), CRS, transform, nodata=0, cog=False)
        write_geotiff(f"{name}_mask.tif", cloud.astype(np.uint8)[None], CRS, transform, cog=False)


def spec(folder: Path, days: int) -> CompositeSpec:
    """Return the composite of the first days of a series."""
    last = datetime(2024, 6, days, tzinfo=UTC)
    catalog = CatalogSpec(
        source=str(folder / "*.tif"),
        bands={n: BandMapping(asset=".tif", index=i) for i, n in enumerate(BANDS, start=1)},
        mask=MaskMapping(asset="_mask.tif", cloud_values=(1,)),
        query=SceneQuery(until=last),
    )
    return CompositeSpec(
        catalog=catalog,
        output_uri=str(folder / f"out-{days}"),
        bands=BANDS,
        grid=GridSpec(tile_px=64),
        block_bytes=BLOCK_BYTES,
    )


def run(folder: Path, days: int) -> None:
    """Make the composite of ``days`` days, from its plan on."""
    plan = plan_composites(spec(folder, days))
    assert len(plan.todo) == 1
    assert len(plan.todo[0].placed) == days
    make_composites(plan)
    shutil.rmtree(plan.spec.output_uri)


def whole_stack(folder: Path, days: int) -> None:
    """Read all scenes whole into one array and take numpy's median, as a short script would."""
    listing = read_scenes(spec(folder, days).catalog, BANDS)
    layers = []
    for scene in listing.scenes:
        with (
            rasterio.open(scene.bands[0].href.uri) as dataset,
            rasterio.open(scene.mask.href.uri) as mask,
        ):
            values = dataset.read().astype(np.float32)
            values[:, mask.read(1) == 1] = np.nan
            layers.append(values)
            transform = dataset.transform
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a pixel may never be clear
        median = np.nanmedian(np.stack(layers), axis=0)
    path = str(folder / "whole" / "median.tif")
    write_geotiff(path, median, CRS, tuple(transform)[:6], nodata=np.nan)


def measured(work: str, folder: Path, days: int) -> tuple[float, float]:
    """Return seconds and peak resident MB of one run in a fresh process."""
    words = [sys.executable, "-m", "benchmarks.composite", "--one", work, str(folder), str(days)]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    took_s, peak_mb = json.loads(done.stdout)
    return took_s, peak_mb


def one(work: str, folder: Path, days: int) -> None:
    """Do one run and print its seconds and the peak of this process."""
    took_s = seconds(lambda: {"ours": run, "whole": whole_stack}[work](folder, days))
    status = Path("/proc/self/status").read_text()
    peak_kb = next(int(line.split()[1]) for line in status.splitlines() if "VmHWM" in line)
    sys.stdout.write(json.dumps([took_s, peak_kb / 1000]))


def memory_rows(small: Path, large: Path, sides_px: tuple[int, int]) -> list[Row]:
    """Compare peaks: 16 days with 4, four times the area with one, ours with the whole stack."""
    (_, few), (took, many) = (measured("ours", large, days) for days in (4, DAYS))
    _, narrow = measured("ours", small, DAYS)
    stack_s, stack = measured("whole", large, DAYS)
    size = f"{sides_px[1]} px a side, {len(BANDS)} bands"
    flat = {"unit": "MB", "goal": 1.1, "direction": "at most"}
    bound = f"blocks of {BLOCK_BYTES // 1024**2} MB of the stack a thread"
    return [
        Row(what=f"peak memory, {DAYS} acquisitions ({size})", ours=many, peer=few,
            against="4 acquisitions", ratio=many / few, note=bound, **flat),
        Row(what=f"peak memory, {sides_px[1]} px a side ({DAYS} acquisitions)", ours=many,
            peer=narrow, against=f"{sides_px[0]} px a side", ratio=many / narrow, **flat),
        Row(what=f"peak memory, {DAYS} acquisitions ({size})", ours=many, unit="MB", peer=stack,
            against="the whole stack in memory", ratio=many / stack),
        Row(what=f"time, {DAYS} acquisitions ({size})", ours=took, unit="s", peer=stack_s,
            against="the whole stack with np.nanmedian", ratio=took / stack_s,
            note="plan, read, median and COG with overviews, Python's start not counted"),
    ]  # fmt: skip


def kernel_row() -> Row:
    """Compare the median of one block with numpy's."""
    rng = np.random.default_rng(0)
    block = rng.random((DAYS, len(BANDS), 256, 256), np.float32)
    block[rng.random(block.shape) < 0.4] = np.nan
    own, peer, ratio = in_turns(
        lambda: median_of_days(block), lambda: np.nanmedian(block, axis=0), turns=3
    )
    what = f"median of a block of {DAYS} x {len(BANDS)} x 256 x 256"
    return Row(what=what, ours=own, unit="s", peer=peer, against="np.nanmedian", ratio=ratio)


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--one", nargs=3)
    arguments = parser.parse_args()
    if arguments.one:
        one(arguments.one[0], Path(arguments.one[1]), int(arguments.one[2]))
        return
    sides_px = (2048, 4096) if arguments.full else (1024, 2048)
    with tempfile.TemporaryDirectory(prefix="skysift-") as folder:
        places = [Path(folder) / str(side_px) for side_px in sides_px]
        for place, side_px in zip(places, sides_px, strict=True):
            place.mkdir()
            make_series(place, side_px)
        publish("composite", [*memory_rows(places[0], places[1], sides_px), kernel_row()])


if __name__ == "__main__":
    main()
