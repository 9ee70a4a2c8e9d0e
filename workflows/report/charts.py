"""Small SVG drawings for a page that must open offline: curves, and maps of footprints.

Text and lines only; no script, no external font, no id. Every returned string is safe to place in
HTML, beside other drawings.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from io import StringIO

import numpy as np
from matplotlib import rc_context
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

PALETTE = (
    "#3b76af", "#ef8636", "#519d3e", "#c53a32", "#8d69b8", "#85584e", "#d57dbe", "#7f7f7f",
    "#bcbd3a", "#4fb5c9", "#1b4f72", "#a04000", "#1d6f42", "#7b241c", "#5b2c6f", "#b7950b",
)  # fmt: skip
UNLABELLED = "#c9ced6"
_KM_PER_DEGREE = 111.32
_STEPS = (1, 2, 5, 10)  # between ticks, times a power of ten
_WIDTH_PX, _HEIGHT_PX = 380, 220  # of a chart; a point of matplotlib is a pixel


@dataclass(frozen=True, kw_only=True, slots=True)
class Footprints:
    """Tiles to draw on maps.

    Attributes
    ----------
    corners
        Longitude and latitude of the corners in turn, in WGS84 degrees; float64 (n, 4, 2).
    scene
        Scene of each tile; neighbouring scenes share a panel; str objects (n,).
    class_index
        Index into ``classes`` of the class to colour by, -1 for none; int (n,).
    classes
        Class names.
    colours
        One CSS colour a class; empty takes the palette.
    marks
        Longitude, latitude and text of places to mark.
    """

    corners: NDArray[np.float64]
    scene: NDArray[np.object_]
    class_index: NDArray[np.int64]
    classes: tuple[str, ...]
    colours: tuple[str, ...] = ()
    marks: tuple[tuple[float, float, str], ...] = ()

    def colour(self, index: int) -> str:
        """Return the CSS colour of a class."""
        if index < 0:
            return UNLABELLED
        return (self.colours or PALETTE)[index % len(self.colours or PALETTE)]


@dataclass(frozen=True, kw_only=True, slots=True)
class MapPanel:
    """One map: the drawing, and a caption with its position and size."""

    svg: str
    caption: str


def line_chart(
    name: str,
    x: Sequence[float],
    y: Sequence[float | None],
    *,
    x_label: str,
    colour: str = PALETTE[0],
) -> str:
    """Draw a curve with a dot at each value; None leaves a gap.

    Returns
    -------
    str
        An ``<svg>`` element that scales with its container, named for screen readers.

    Raises
    ------
    ValueError
        The curve has no value.
    """
    values = np.array(y, np.float64)  # None becomes NaN
    if not np.isfinite(values).any():
        raise ValueError("a chart needs at least one finite value")
    figure = Figure(figsize=(_WIDTH_PX / 72, _HEIGHT_PX / 72), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x_label, fontsize=13)
    axes.plot(x, values, color=colour, linewidth=2)
    # Segments of no length with round caps: markers would be references to shapes by id.
    dots = [[(px, py)] * 2 for px, py in zip(x, values.tolist(), strict=True) if math.isfinite(py)]
    axes.add_collection(
        LineCollection(dots, colors=colour, linewidths=5, capstyle="round", zorder=3)
    )
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=_STEPS))
    axes.grid(axis="y", color="#e6eaee", linewidth=1)
    axes.tick_params(length=0, labelsize=13)
    axes.set_frame_on(False)
    figure.draw_without_rendering()  # makes the ticks, so that they can be changed
    for artist in figure.findobj():
        artist.set_clip_on(False)  # a clip path would be a reference by id
    return _inline(figure, name)


def _inline(figure: Figure, name: str) -> str:
    """Return a figure as an element of an HTML page whose style decides on fonts."""
    sink = StringIO()
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with rc_context({"svg.fonttype": "none"}):
        figure.savefig(sink, format="svg", transparent=True, metadata=metadata)
    _, _, body = sink.getvalue().partition("<svg")
    body = re.sub(r"<!--.*?-->|<defs>.*?</defs>", "", body.partition(">")[2], flags=re.DOTALL)
    body = re.sub(r' id="[^"]*"|font[-a-z]*: [^;"]*; ?', "", body)
    head = f'<svg viewBox="0 0 {_WIDTH_PX} {_HEIGHT_PX}" role="img" class="chart">'
    return f"{head}<title>{escape(name)}</title>{body}"


def footprint_maps(footprints: Footprints, most: int = 6) -> list[MapPanel]:
    """Draw the tiles, one panel for each region of neighbouring scenes, the fullest first.

    Parameters
    ----------
    most
        Most panels; further regions are left out.
    """
    regions = _regions(footprints)
    regions.sort(key=len, reverse=True)
    return [_panel(footprints, members) for members in regions[:most]]


def _regions(footprints: Footprints) -> list[NDArray[np.int64]]:
    """Group tiles into regions: scenes closer than about their own size belong together."""
    scenes, member = np.unique(footprints.scene.astype(str), return_inverse=True)
    corners = _unwrapped(footprints.corners)
    boxes = np.stack([_around(corners[member == i]) for i in range(len(scenes))])
    region = np.arange(len(scenes))
    reach = np.maximum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])[:, None]
    wide = boxes + np.hstack([-reach, -reach, reach, reach])
    for i in range(len(scenes)):
        near = (wide[i, 0] < boxes[:, 2]) & (wide[i, 2] > boxes[:, 0])
        near &= (wide[i, 1] < boxes[:, 3]) & (wide[i, 3] > boxes[:, 1])
        joined = np.isin(region, region[near])
        region[joined] = region[i]
    return [np.flatnonzero(region[member] == r) for r in np.unique(region)]


def _unwrapped(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return corners (n, 4, 2) that run on beyond 180 degrees where a tile crosses."""
    lons = np.unwrap(corners[..., 0], period=360, axis=1)
    lons += 360 * (lons.min(axis=1, keepdims=True) < -180)
    return np.stack([lons, corners[..., 1]], axis=2)


def _around(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return west, south, east, north (4,) of corners (n, 4, 2)."""
    return np.concatenate([corners.min((0, 1)), corners.max((0, 1))])


def _panel(footprints: Footprints, members: NDArray[np.int64]) -> MapPanel:
    corners = _unwrapped(footprints.corners[members])
    west, south, east, north = _around(corners).tolist()
    squeeze = math.cos(math.radians((south + north) / 2))  # of a degree of longitude
    km_wide = (east - west) * squeeze * _KM_PER_DEGREE
    km_high = (north - south) * _KM_PER_DEGREE
    unit = 480 / max(km_wide, km_high, 1e-6)  # SVG units a km
    pad, full_h = 14.0, km_high * unit + 50
    scale_x, scale_y = squeeze * _KM_PER_DEGREE * unit, _KM_PER_DEGREE * unit
    drawn = pad + (corners - [west, north]) * [scale_x, -scale_y]
    middles = drawn.mean(axis=1, keepdims=True)
    drawn = middles + (drawn - middles) * np.maximum(1, 1 / np.ptp(drawn, axis=1, keepdims=True))
    caption = (
        f"{_degrees((south + north) / 2, 'NS')} {_degrees((west + east) / 2, 'EW')} · "
        f"{km_wide:,.3g} km by {km_high:,.3g} km · {len(members):,} tiles"
    )
    size = f"{km_wide * unit + 2 * pad:.0f} {full_h:.0f}"
    parts = [f'<svg viewBox="0 0 {size}" role="img" class="map"><title>{caption}</title>']
    class_index = footprints.class_index[members]
    for value in np.unique(class_index):
        path = "".join(
            "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in tile) + "z"
            for tile in drawn[class_index == value].tolist()
        )
        parts.append(f'<path fill="{escape(footprints.colour(int(value)))}" d="{path}"/>')
    for lon, lat, text in footprints.marks:
        lon += 360 * (lon < west)  # the panel runs on beyond 180 degrees
        if west <= lon <= east and south <= lat <= north:
            x, y = pad + (lon - west) * scale_x, pad + (north - lat) * scale_y
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="9" class="mark"/>')
            parts.append(f'<text x="{x:.1f}" y="{y + 4:.1f}" class="mark">{escape(text)}</text>')
    parts.append(_scale_bar(max(km_wide, 1e-6), unit, pad, full_h))
    return MapPanel(svg="".join([*parts, "</svg>"]), caption=caption)


def _scale_bar(km_wide: float, unit: float, pad: float, full_h: float) -> str:
    km = max(
        t for t in MaxNLocator(2, steps=_STEPS).tick_values(0, km_wide / 3) if t <= km_wide / 2
    )
    y = full_h - 14
    return (
        f'<path class="bar" d="M{pad} {y - 4:.1f}v4h{km * unit:.1f}v-4"/>'
        f'<text x="{pad + km * unit + 6:.1f}" y="{y + 2:.1f}">{km:g} km</text>'
    )


def _degrees(value: float, letters: str) -> str:
    value = (value + 180) % 360 - 180 if letters == "EW" else value
    return f"{abs(value):.2f}°{letters[value < 0]}"
