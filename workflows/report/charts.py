"""Small SVG drawings for a page that must open offline: curves, and maps of footprints.

Text and lines only; no script, no external font. Everything returned is safe to place in HTML.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from storage.geometry import unwrapped

PALETTE = (
    "#3b76af", "#ef8636", "#519d3e", "#c53a32", "#8d69b8", "#85584e", "#d57dbe", "#7f7f7f",
    "#bcbd3a", "#4fb5c9", "#1b4f72", "#a04000", "#1d6f42", "#7b241c", "#5b2c6f", "#b7950b",
)  # fmt: skip
UNLABELLED = "#c9ced6"
_KM_PER_DEGREE = 111.32


@dataclass(frozen=True, kw_only=True, slots=True)
class Footprints:
    """Tiles to draw on maps.

    Attributes
    ----------
    bbox
        West, south, east, north in WGS84 degrees; float64 (n, 4).
    scene
        Scene of each tile, which decides what is drawn in one panel; str objects (n,).
    class_index
        Index into ``classes`` of the class to colour by, -1 for none; int (n,).
    classes
        Class names.
    colours
        One CSS colour a class; empty takes the palette.
    marks
        Longitude, latitude and text of places to mark.
    """

    bbox: NDArray[np.float64]
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
    """One map: the drawing and a line that says where it is."""

    svg: str
    caption: str


def nice_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Return round numbers from at or below ``low`` to at or above ``high``.

    Examples
    --------
    >>> nice_ticks(0.07, 0.93)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    span = max(high - low, 1e-9)
    power = 10.0 ** math.floor(math.log10(span / about))
    step = next(m * power for m in (1, 2, 5, 10) if m * power * about >= span * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def line_chart(
    x: Sequence[float],
    series: Mapping[str, Sequence[float | None]],
    *,
    x_label: str,
    colours: Sequence[str] = PALETTE,
) -> str:
    """Draw one or more curves over a common x; None leaves a gap.

    Returns
    -------
    str
        An ``<svg>`` element that scales with its container.

    Raises
    ------
    ValueError
        No curve has a value.
    """
    width, height, left, right, top, bottom = 380, 220, 46, 10, 12, 42
    values = [v for curve in series.values() for v in curve if v is not None and math.isfinite(v)]
    if not values:
        raise ValueError("a chart needs at least one finite value")
    ticks = nice_ticks(min(values), max(values))
    span_x = max(max(x) - min(x), 1e-9)
    span_y = max(ticks[-1] - ticks[0], 1e-9)

    def place(at: float, value: float) -> tuple[float, float]:
        return (
            left + (at - min(x)) / span_x * (width - left - right),
            top + (ticks[-1] - value) / span_y * (height - top - bottom),
        )

    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" class="chart">']
    for tick in ticks:
        y = place(min(x), tick)[1]
        parts.append(f'<line x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" class="end">{tick:g}</text>')
    parts.extend(
        f'<text x="{place(at, ticks[0])[0]:.1f}" y="{height - 20}" class="mid">{at:g}</text>'
        for at in _x_ticks(x)
    )
    parts.append(
        f'<text x="{(left + width - right) / 2}" y="{height - 4}" class="mid">'
        f"{escape(x_label)}</text>"
    )
    for (name, curve), colour in zip(series.items(), colours, strict=False):
        points = [
            place(at, v)
            for at, v in zip(x, curve, strict=True)
            if v is not None and math.isfinite(v)
        ]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
        parts.append(f'<polyline points="{path}" stroke="{colour}"><title>{escape(name)}</title>')
        parts.append("</polyline>")
        parts.extend(
            f'<circle cx="{px:.1f}" cy="{py:.1f}" r="2.6" fill="{colour}"/>' for px, py in points
        )
    return "".join([*parts, "</svg>"])


def _x_ticks(x: Sequence[float]) -> list[float]:
    inside = [t for t in nice_ticks(min(x), max(x), 5) if min(x) <= t <= max(x)]
    return [t for t in inside if t == round(t)] or list(x[:1])


def footprint_maps(footprints: Footprints, most: int = 6) -> list[MapPanel]:
    """Draw the tiles, one panel for each region of neighbouring scenes, the fullest first.

    Parameters
    ----------
    most
        Panels to draw at most; the rest of the regions is left out.
    """
    regions = _regions(footprints)
    regions.sort(key=len, reverse=True)
    return [_panel(footprints, members) for members in regions[:most]]


def _regions(footprints: Footprints) -> list[NDArray[np.int64]]:
    """Group tiles into regions: scenes closer than about their own size belong together."""
    scenes, member = np.unique(footprints.scene.astype(str), return_inverse=True)
    bbox = unwrapped(footprints.bbox)
    boxes = np.stack([_around(bbox[member == i]) for i in range(len(scenes))])
    region = np.arange(len(scenes))
    reach = np.maximum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])[:, None]
    wide = boxes + np.hstack([-reach, -reach, reach, reach])
    for i in range(len(scenes)):
        near = (wide[i, 0] < boxes[:, 2]) & (wide[i, 2] > boxes[:, 0])
        near &= (wide[i, 1] < boxes[:, 3]) & (wide[i, 3] > boxes[:, 1])
        joined = np.isin(region, region[near])
        region[joined] = region[i]
    return [np.flatnonzero(region[member] == r) for r in np.unique(region)]


def _around(bbox: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([bbox[:, :2].min(0), bbox[:, 2:].max(0)])


def _panel(footprints: Footprints, members: NDArray[np.int64]) -> MapPanel:
    bbox = unwrapped(footprints.bbox[members])
    west, south, east, north = _around(bbox).tolist()
    squeeze = math.cos(math.radians((south + north) / 2))
    km_wide = (east - west) * squeeze * _KM_PER_DEGREE
    km_high = (north - south) * _KM_PER_DEGREE
    unit = 480 / max(km_wide, km_high, 1e-6)  # SVG units a km
    pad, width, height = 14.0, km_wide * unit, km_high * unit
    scale = np.array([squeeze, 1.0]) * _KM_PER_DEGREE * unit
    x0 = pad + (bbox[:, 0] - west) * scale[0]
    y0 = pad + (north - bbox[:, 3]) * scale[1]
    wide = np.maximum((bbox[:, 2] - bbox[:, 0]) * scale[0], 1)
    high = np.maximum((bbox[:, 3] - bbox[:, 1]) * scale[1], 1)
    full_w, full_h = width + 2 * pad, height + 2 * pad + 22
    parts = [f'<svg viewBox="0 0 {full_w:.0f} {full_h:.0f}" role="img" class="map">']
    index = footprints.class_index[members]
    for value in np.unique(index):
        path = "".join(
            f"M{x:.1f} {y:.1f}h{w:.1f}v{h:.1f}h{-w:.1f}z"
            for x, y, w, h in zip(
                x0[index == value],
                y0[index == value],
                wide[index == value],
                high[index == value],
                strict=True,
            )
        )
        parts.append(f'<path fill="{escape(footprints.colour(int(value)))}" d="{path}"/>')
    for lon, lat, text in footprints.marks:
        lon += 360 * (lon < west)  # the panel runs on beyond 180 degrees
        if west <= lon <= east and south <= lat <= north:
            at = pad + (lon - west) * scale[0], pad + (north - lat) * scale[1]
            parts.append(f'<circle cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="9" class="mark"/>')
            parts.append(
                f'<text x="{at[0]:.1f}" y="{at[1] + 4:.1f}" class="mark">{escape(text)}</text>'
            )
    parts.append(_scale_bar(max(km_wide, 1e-6), unit, pad, full_h))
    caption = (
        f"{_degrees((south + north) / 2, 'NS')} {_degrees((west + east) / 2, 'EW')} · "
        f"{km_wide:,.3g} km by {km_high:,.3g} km · {len(members):,} tiles"
    )
    return MapPanel(svg="".join([*parts, "</svg>"]), caption=caption)


def _scale_bar(km_wide: float, unit: float, pad: float, full_h: float) -> str:
    km = max(t for t in nice_ticks(0, km_wide / 3, 2) if t <= km_wide / 2)
    y = full_h - 14
    return (
        f'<path class="bar" d="M{pad} {y - 4:.1f}v4h{km * unit:.1f}v-4"/>'
        f'<text x="{pad + km * unit + 6:.1f}" y="{y + 2:.1f}">{km:g} km</text>'
    )


def _degrees(value: float, letters: str) -> str:
    value = (value + 180) % 360 - 180 if letters == "EW" else value
    return f"{abs(value):.2f}°{letters[value < 0]}"
