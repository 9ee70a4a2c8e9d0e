"""How scenes are cut into tiles, as plain values."""

from dataclasses import dataclass
from typing import Literal, get_args

from storage.errors import ConfigError
from storage.values import Count, Fraction, Positive, check_limits

Edge = Literal["pad", "shift", "drop"]


@dataclass(frozen=True, kw_only=True, slots=True)
class GridSpec:
    """The grid of a run; ``native`` takes the CRS or the resolution of the scene.

    Parameters
    ----------
    crs
        A code such as ``EPSG:32648``, or ``native``.
    resolution
        CRS units per pixel, or ``native``.
    tile_px
        Side of a tile, in pixels; None for the tile size of the encoder.
    stride_px
        Distance between two tiles, at most ``tile_px``; None for ``tile_px`` (no overlap).
    anchor
        The CRS coordinates where column and row 0 begin.
    """

    crs: str = "native"
    resolution: Positive | Literal["native"] = "native"
    tile_px: Count | None = None
    stride_px: Count | None = None
    anchor: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class TileRules:
    """Which tiles are worth an embedding.

    Parameters
    ----------
    edge
        ``pad`` keeps tiles that reach beyond the scene, with invalid pixels outside it; ``drop``
        keeps only tiles wholly within the scene; ``shift`` adds to these, for the remaining strips
        along the edges, tiles moved inwards to the edge, which overlap their neighbours.
    min_valid_fraction
        Least share of a tile's pixels that hold data; a tile without any is never kept.
    max_cloud_fraction
        Largest share of a tile's valid pixels that the mask calls cloud or shadow.
    """

    edge: Edge = "pad"
    min_valid_fraction: Fraction = 0.5
    max_cloud_fraction: Fraction = 1.0

    def __post_init__(self) -> None:
        if self.edge not in get_args(Edge):
            raise ConfigError(f"tile rule edge is {self.edge!r}; give 'pad', 'shift' or 'drop'")
        check_limits(self, "tile rules")
