"""Mean, standard deviation and percentiles of every band over many scenes, in one Dask pass.

An encoder normalises with these. Mean and deviation are exact (merged in double precision);
percentiles come from a histogram over the upper half of the float32 bit pattern, which needs no
range beforehand and has a known relative error.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import dask.array as da
import numpy as np
from dask.delayed import delayed
from numpy.typing import NDArray

from pipeline.runtime.dask import Scheduler, compute, scene_array
from pipeline.tiles.grid import pixels_for_scene
from pipeline.tiles.spec import GridSpec
from storage.errors import SceneError
from storage.location import Location
from storage.progress import Progress, ProgressSink, ignore
from storage.quarantine import Quarantine
from storage.scene import Scene

PERCENTILES = (2, 50, 98)
_BINS = 1 << 16


@dataclass(frozen=True, kw_only=True, slots=True)
class BandStatistics:
    """Statistics of each band over the valid, cloud-free pixels of some scenes.

    Attributes
    ----------
    bands
        Band names; every other tuple follows their order.
    mean, std
        Exact mean and population standard deviation, in the bands' scaled units.
    minimum, maximum
        Exact extremes.
    percentiles
        Percentile, such as 2, to one value a band. Each is within ``percentile_error`` of exact.
    percentile_error
        Largest distance of a percentile from the exact one, as a share of its magnitude.
    valid_pixels
        Pixels behind the figures, in the band that has the fewest.
    scenes
        Number of scenes behind the figures.
    skipped
        Scene id to reason, for scenes that could not be read.
    """

    bands: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    minimum: tuple[float, ...]
    maximum: tuple[float, ...]
    percentiles: Mapping[int, tuple[float, ...]]
    percentile_error: float
    valid_pixels: int
    scenes: int
    skipped: Mapping[str, str]

    def to_json(self, uri: str | Location) -> None:
        """Write the statistics as a JSON file."""
        Location.of(uri).write(json.dumps(asdict(self), indent=1).encode())

    @classmethod
    def from_json(cls, uri: str | Location) -> "BandStatistics":
        """Read statistics that :meth:`to_json` wrote."""
        stored: dict[str, Any] = json.loads(Location.of(uri).read())
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()
        }
        values["percentiles"] = {int(k): tuple(v) for k, v in stored["percentiles"].items()}
        return cls(**values)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Moments:
    """Moments of a part of the pixels; each array has a row or entry for each band."""

    count: NDArray[np.int64]
    mean: NDArray[np.float64]
    squares: NDArray[np.float64]  # sum of squared distances from the mean
    minimum: NDArray[np.float64]
    maximum: NDArray[np.float64]
    histogram: NDArray[np.int64]


def band_statistics(
    scenes: Sequence[Scene],
    *,
    resolution: float | None = None,
    block_px: int = 1024,
    scenes_per_graph: int = 16,
    scheduler: Scheduler = "threads",
    progress: ProgressSink = ignore,
) -> BandStatistics:
    """Compute band statistics over the valid, cloud-free pixels of scenes.

    Parameters
    ----------
    scenes
        Scenes with the same bands in the same order, each in any CRS.
    resolution
        Pixel size in CRS units; None reads every pixel as stored. A coarser one reads overviews,
        is much cheaper over a large archive, and smooths: ``std`` then describes that resolution.
    scenes_per_graph
        Scenes computed at a time; bounds the graph and paces the progress reports.

    Raises
    ------
    SceneError
        There is no scene, or none that has a usable pixel.

    Notes
    -----
    Peak memory is about ``block_px ** 2 * 12 * bands`` bytes for each concurrent task.
    """
    grid = GridSpec(resolution="native" if resolution is None else resolution)
    found: list[_Moments] = []
    skipped: dict[str, str] = {}
    for start in range(0, len(scenes), scenes_per_graph):
        batch = scenes[start : start + scenes_per_graph]
        graphs: dict[str, Any] = {}
        for scene in batch:
            with Quarantine(f"scene {scene.id}") as fault:
                pixels = pixels_for_scene(scene, grid)
                array = scene_array(
                    scene,
                    pixels,
                    block_px=block_px,
                    overviews=resolution is not None,
                )
                graphs[scene.id] = _scene_moments(array)
            if fault:
                skipped[scene.id] = fault.reason
        found.extend(_run(graphs, scheduler, skipped))
        progress(
            Progress(stage="statistics", done=start + len(batch), total=len(scenes), unit="scenes")
        )
    return _summary(scenes, found, skipped)


def _run(graphs: dict[str, Any], scheduler: Scheduler, skipped: dict[str, str]) -> list[_Moments]:
    """Compute a batch together; if a scene fails, scene by scene, noting those that fail."""
    with Quarantine("statistics"):
        return compute(list(graphs.values()), scheduler)
    results: list[_Moments] = []
    for scene_id, graph in graphs.items():
        with Quarantine(f"scene {scene_id}") as fault:
            results.extend(compute([graph], scheduler))
        if fault:
            skipped[scene_id] = fault.reason
    return results


def _scene_moments(array: da.Array) -> Any:
    parts = [delayed(_measure)(block) for block in array.to_delayed().ravel()]
    return delayed(_merge)(parts)


def _measure(values: NDArray[np.float32]) -> _Moments:
    """Measure one block, float32 (bands, h, w) with NaN where a pixel does not count."""
    bands = len(values)
    count = np.zeros(bands, np.int64)
    mean, squares = np.zeros(bands), np.zeros(bands)
    minimum, maximum = np.full(bands, np.inf), np.full(bands, -np.inf)
    histogram = np.zeros((bands, _BINS), np.int64)
    for band, image in enumerate(values):
        good = image[np.isfinite(image)]
        if not good.size:
            continue
        count[band] = good.size
        mean[band] = good.mean(dtype=np.float64)
        squares[band] = np.square(good - mean[band], dtype=np.float64).sum()
        minimum[band], maximum[band] = good.min(), good.max()
        histogram[band] = np.bincount(_bin_of(good), minlength=_BINS)
    return _Moments(
        count=count,
        mean=mean,
        squares=squares,
        minimum=minimum,
        maximum=maximum,
        histogram=histogram,
    )


def _merge(parts: Iterable[_Moments]) -> _Moments:
    """Join parts; exact up to double rounding, whatever their order and sizes."""
    every = list(parts)
    counts = np.stack([p.count for p in every])
    means = np.stack([p.mean for p in every])
    count = counts.sum(0)
    mean = (counts * means).sum(0) / np.maximum(count, 1)
    between = (counts * (means - mean) ** 2).sum(0)
    return _Moments(
        count=count,
        mean=mean,
        squares=np.sum([p.squares for p in every], axis=0) + between,
        minimum=np.min([p.minimum for p in every], axis=0),
        maximum=np.max([p.maximum for p in every], axis=0),
        histogram=np.sum([p.histogram for p in every], axis=0),
    )


def _bin_of(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Return bin numbers that never fall when values rise."""
    bits = values.astype(np.float32).view(np.uint32)
    ordered = np.where(bits >> 31 == 1, ~bits, bits | np.uint32(0x80000000))
    return ordered >> np.uint32(16)


def _bin_edge(number: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the smallest value of a bin."""
    ordered = (number.astype(np.uint64) << np.uint64(16)).astype(np.uint32)
    negative = ordered >> 31 == 0
    bits = np.where(negative, ~ordered, ordered & np.uint32(0x7FFFFFFF))
    return bits.astype(np.uint32).view(np.float32).astype(np.float64)


def _percentile(moments: _Moments, band: int, percent: float) -> float:
    """Interpolate a percentile within its bin."""
    histogram = moments.histogram[band]
    cumulative = np.cumsum(histogram)
    target = percent / 100 * (cumulative[-1] - 1)
    number = int(np.searchsorted(cumulative, target, side="right"))
    low, high = _bin_edge(np.array([number, min(number + 1, _BINS - 1)]))
    within = (target - (cumulative[number] - histogram[number]) + 0.5) / histogram[number]
    value = low + (high - low) * min(max(within, 0.0), 1.0)
    return float(np.clip(value, moments.minimum[band], moments.maximum[band]))


def _summary(
    scenes: Sequence[Scene], found: list[_Moments], skipped: dict[str, str]
) -> BandStatistics:
    total = _merge(found) if found else None
    if total is None or not total.count.min():
        reasons = "; ".join(f"{key}: {reason}" for key, reason in list(skipped.items())[:3])
        raise SceneError(
            f"no usable pixel in {len(scenes)} scenes ({reasons or 'all nodata or cloud'}); "
            "check the catalog, the band mapping and the cloud mask"
        )
    names = scenes[0].band_names
    return BandStatistics(
        bands=names,
        mean=tuple(total.mean.tolist()),
        std=tuple(math.sqrt(s / n) for s, n in zip(total.squares, total.count, strict=True)),
        minimum=tuple(total.minimum.tolist()),
        maximum=tuple(total.maximum.tolist()),
        percentiles={
            percent: tuple(_percentile(total, band, percent) for band in range(len(names)))
            for percent in PERCENTILES
        },
        percentile_error=2.0**-7,
        valid_pixels=int(total.count.min()),
        scenes=len(found),
        skipped=skipped,
    )
