"""Dask over scenes: a scene as a lazy array, and the scheduler that runs the graphs.

Graphs run on this process's threads unless the caller asks for the Ray cluster, whose workers
then run the same tasks through ``ray.util.dask``.
"""

from collections.abc import Iterator
from typing import Any, Literal, cast

import dask.array as da
import numpy as np
from dask.base import compute as dask_compute
from dask.delayed import delayed
from numpy.typing import NDArray

from storage.errors import ConfigError
from storage.raster.pixel_grid import PixelGrid, Window
from storage.raster.reader import SceneReader
from storage.scene import Scene

Scheduler = Literal["threads", "ray", "synchronous"]


def compute(tasks: list[Any], scheduler: Scheduler = "threads") -> list[Any]:
    """Run Dask tasks and return their results in order.

    Parameters
    ----------
    scheduler
        ``"threads"`` of this process, ``"ray"`` for the cluster this process is connected to, or
        ``"synchronous"`` for one task after the other.

    Raises
    ------
    ConfigError
        The scheduler has another name.
    """
    if scheduler == "ray":
        from ray.util.dask import ray_dask_get

        return list(dask_compute(*tasks, scheduler=ray_dask_get))
    if scheduler not in ("threads", "synchronous"):
        raise ConfigError(f"Dask scheduler {scheduler!r}: use threads, ray or synchronous")
    return list(dask_compute(*tasks, scheduler=scheduler))


def blocks_of(extent: Window, block_px: int) -> Iterator[Window]:
    """Cut a window into blocks of at most ``block_px`` on a side, row by row.

    Examples
    --------
    >>> [w.width for w in blocks_of(Window(column=3, row=0, width=5, height=2), 4)]
    [4, 1]
    """
    for top in range(0, extent.height, block_px):
        for left in range(0, extent.width, block_px):
            yield Window(
                column=extent.column + left,
                row=extent.row + top,
                width=min(block_px, extent.width - left),
                height=min(block_px, extent.height - top),
            )


def scene_array(
    scene: Scene, pixels: PixelGrid, *, block_px: int = 1024, overviews: bool = False
) -> da.Array:
    """Return a scene as a lazy array whose blocks are read when they are computed.

    Parameters
    ----------
    pixels
        Grid to read on; another grid than the scene's own means warping.
    overviews
        As for :class:`storage.raster.reader.SceneReader`.

    Returns
    -------
    dask.array.Array
        float32 (bands, height, width) over the scene's extent on ``pixels``; NaN where invalid or
        cloudy.

    Raises
    ------
    SceneError
        The scene cannot be opened; reading a block may raise it too, when computed.
    """
    with SceneReader(scene, pixels, overviews=overviews) as reader:
        extent = reader.extent
    read = delayed(_read_block)
    columns_n = -(-extent.width // block_px)
    lazy = [
        da.from_delayed(
            read(scene, pixels, window, overviews),
            shape=(len(scene.bands), window.height, window.width),
            dtype=np.float32,
        )
        for window in blocks_of(extent, block_px)
    ]
    rows = [lazy[i : i + columns_n] for i in range(0, len(lazy), columns_n)]
    return cast("da.Array", da.block(rows))


def _read_block(
    scene: Scene, pixels: PixelGrid, window: Window, overviews: bool
) -> NDArray[np.float32]:
    with SceneReader(scene, pixels, overviews=overviews) as reader:
        block = reader.read(window)
    return np.where(block.cloud, np.float32(np.nan), block.values)
