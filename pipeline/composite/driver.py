"""Cloud-free composites: the median of a month, season or year, pixel by pixel, as a new scene.

A composite is a Cloud Optimized GeoTIFF and a STAC item beside it, which names its period and
its sources. So it is a scene like any other: `ingest` tiles and embeds it, `watch` notices new
ones, a report draws it. :mod:`pipeline.composite.plan` finds the composites to make,
:mod:`pipeline.composite.stack` stacks the acquisitions; this module reduces the stack with Dask,
block by block.
"""

from collections.abc import Sequence

import dask.array as da
import numpy as np
from numpy.typing import NDArray

from pipeline.composite.plan import Composite, CompositePlan, CompositeReport
from pipeline.composite.stack import Placed, scene_stack
from pipeline.runtime.dask import Scheduler, blocks_of, compute
from storage.catalog.stac_write import composite_document, write_collection, write_item
from storage.errors import SceneError
from storage.location import Location
from storage.locks import exclusive_lock
from storage.progress import Progress, ProgressSink, ignore
from storage.quarantine import required
from storage.raster.geotiff import inspect
from storage.raster.pixel_grid import Window
from storage.raster.writer import GeotiffWriter

_PIECE_BLOCKS = 4


def make_composites(
    plan: CompositePlan,
    *,
    scheduler: Scheduler = "threads",
    progress: ProgressSink = ignore,
) -> CompositeReport:
    """Make and write the composites of a plan; each appears when it is whole.

    A composite whose sources cannot be read is reported with its reason and the others go on;
    the same call tries it again. Only one process at a time may write to a folder.

    Parameters
    ----------
    scheduler
        Runs the Dask graphs; see :func:`pipeline.runtime.dask.compute`.

    Notes
    -----
    Peak memory is about ``1.5 * block_bytes`` for each concurrent task and 16 blocks of the result,
    whatever the number of acquisitions; writing the finished file adds some with its area (467 MB
    at 1,536 px of a side became 550 MB at 3,072 px).
    """
    made: list[str] = []
    failed: dict[str, str] = {}
    with exclusive_lock(plan.spec.output_uri, "composites", beside="composites"):
        for number, composite in enumerate(plan.todo):
            progress(_state(number, plan, composite.id))
            try:
                _make(composite, plan, scheduler)
            except SceneError as error:
                failed[composite.id] = str(error)
            else:
                made.append(composite.id)
        if made or plan.unchanged:
            progress(_state(len(plan.todo), plan))
            title = f"Cloud-free composites: the median of each {plan.spec.period}"
            write_collection(plan.spec.output_uri, plan.spec.name, title)
    return CompositeReport(
        output=str(plan.spec.output_uri),
        made=tuple(made),
        unchanged=plan.unchanged,
        failed=failed,
        left_out=plan.left_out,
    )


def _state(done: int, plan: CompositePlan, note: str = "") -> Progress:
    total = len(plan.todo)
    return Progress(stage="composites", done=done, total=total, unit="composites", note=note)


def _make(composite: Composite, plan: CompositePlan, scheduler: Scheduler) -> None:
    """Write one composite, then the item that makes it known."""
    spec, extent = plan.spec, composite.extent
    file = Location.of(spec.output_uri) / f"{composite.id}.tif"
    with GeotiffWriter(
        file,
        (len(spec.bands), extent.height, extent.width),
        "float32",
        composite.pixels.crs,
        composite.pixels.affine(extent.column, extent.row),
        nodata=np.nan,
        descriptions=spec.bands,
    ) as target:
        for piece in blocks_of(extent, _PIECE_BLOCKS * composite.block_px):
            placed = [scene for scene in composite.placed if scene.extent.intersection(piece)]
            if placed:
                values = _median(composite, placed, piece, scheduler)
                target.write(values, piece.row - extent.row, piece.column - extent.column)
    document = composite_document(
        composite.id,
        (composite.start, composite.end),
        inspect(file),
        {source.scene.id: source.scene.document for source in composite.placed},
        composite.fingerprint,
        target.sha256,
        file.size_bytes(),
    )
    write_item(document, spec.output_uri)


def _median(
    composite: Composite,
    placed: Sequence[Placed],
    piece: Window,
    scheduler: Scheduler,
) -> NDArray[np.float32]:
    """Return the median of some scenes over a piece of a composite."""
    with required(f"composite {composite.id}"):
        stack = scene_stack(placed, composite.pixels, piece, block_px=composite.block_px)
        median = da.map_blocks(median_of_days, stack, dtype=np.float32, drop_axis=0)
        [values] = compute([median], scheduler)
    return np.asarray(values)


def median_of_days(stack: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the median over the first axis, NaN left out.

    Equal to :func:`numpy.nanmedian` bit for bit, in a fraction of its time and memory: NaN sort
    last, so the middle of the others follows from their number.

    Parameters
    ----------
    stack
        float32 (days, bands, h, w).

    Returns
    -------
    ndarray
        float32 (bands, h, w), NaN where no day has a value.

    Examples
    --------
    >>> days = np.array([[[[3.0, np.nan]]], [[[1.0, 5.0]]]], np.float32)
    >>> median_of_days(days)
    array([[[2., 5.]]], dtype=float32)
    """
    median = np.empty(stack.shape[1:], np.float32)
    for band, values in enumerate(np.moveaxis(stack, 1, 0)):
        ordered = np.sort(values, axis=0)
        count = np.count_nonzero(~np.isnan(values), axis=0)[None]
        low = np.take_along_axis(ordered, np.maximum(count - 1, 0) // 2, axis=0)
        high = np.take_along_axis(ordered, np.minimum(count // 2, len(values) - 1), axis=0)
        median[band] = ((low + high) / np.float32(2))[0]
    return median
