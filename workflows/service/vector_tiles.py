"""Map tiles of polygons with values, in the format of Mapbox Vector Tiles 2.1.

A layer has one polygon for each place or square and columns of values, so the encoder needs neither
a geometry library nor a schema.
"""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Value = str | float

EXTENT = 4096
"""Units of a tile's side."""
_MOVE, _LINE, _CLOSE = (1 << 3) | 1, 2, (1 << 3) | 7
_POLYGON = 3
_MOST_LATITUDE = math.degrees(math.atan(math.sinh(math.pi)))


def mercator(boxes: Floats) -> Floats:
    """Return WGS84 boxes (n, 4) west, south, east, north as left, top, right, bottom in [0, 1].

    The unit square is the world of Web Mercator, with its origin in the north-west. The right side
    of a box across the antimeridian lies beyond 1.

    Examples
    --------
    >>> mercator(np.array([[-90.0, 0, 180, 80]])).round(3).tolist()
    [[0.25, 0.112, 1.0, 0.5]]
    """
    west, south, east, north = boxes.T
    latitude = np.clip(np.stack([north, south]), -_MOST_LATITUDE, _MOST_LATITUDE)
    top, bottom = 0.5 - np.arcsinh(np.tan(np.radians(latitude))) / (2 * np.pi)
    right = np.where(east < west, east + 360, east)
    return np.stack([(west + 180) / 360, top, (right + 180) / 360, bottom], axis=1)


def mercator_points(points: Floats) -> Floats:
    """Return longitudes and latitudes (..., 2) as x and y in the unit square of :func:`mercator`.

    Examples
    --------
    >>> mercator_points(np.array([[-90.0, 0]])).tolist()
    [[0.25, 0.5]]
    """
    latitude = np.clip(points[..., 1], -_MOST_LATITUDE, _MOST_LATITUDE)
    y = 0.5 - np.arcsinh(np.tan(np.radians(latitude))) / (2 * np.pi)
    return np.stack([(points[..., 0] + 180) / 360, y], axis=-1)


def box_rings(boxes: npt.NDArray[np.int64]) -> list[list[list[int]]]:
    """Return boxes (n, 4) left, top, right, bottom as rings, clockwise on the screen."""
    left, top, right, bottom = boxes.T
    xs, ys = np.stack([left, right, right, left], 1), np.stack([top, top, bottom, bottom], 1)
    rings: list[list[list[int]]] = np.stack([xs, ys], axis=2).tolist()
    return rings


def encode_rings(
    name: str, rings: Sequence[Sequence[Sequence[int]]], columns: Mapping[str, Sequence[Value]]
) -> bytes:
    """Encode a tile with one layer.

    Parameters
    ----------
    name
        The layer's name.
    rings
        The points x, y of each polygon in units of the tile, y downwards, clockwise on the screen,
        the first not repeated; at least three, which may lie a little beyond the tile.
    columns
        A text or a number of each polygon, by the name of the property.
    """
    values: dict[Value, int] = {}
    tags = [
        [_varint(key) + _varint(values.setdefault(value, len(values))) for value in column]
        for key, column in enumerate(columns.values())
    ]
    move, close = _varint(_MOVE), _varint(_CLOSE)
    features = []
    for number, ring in enumerate(rings):
        (x, y), *_ = ring
        path = move + _signed(x) + _signed(y) + _varint((len(ring) - 1) << 3 | _LINE)
        for right, down in ring[1:]:
            path += _signed(right - x) + _signed(down - y)
            x, y = right, down
        path += close
        tag = b"".join([column[number] for column in tags])
        features.append(_field(2, _field(2, tag) + _number(3, _POLYGON) + _field(4, path)))
    layer = b"".join(
        [
            _number(15, 2),
            _field(1, name.encode()),
            *features,
            *(_field(3, key.encode()) for key in columns),
            *(_field(4, _value(value)) for value in values),
            _number(5, EXTENT),
        ]
    )
    return _field(3, layer)


def _value(value: Value) -> bytes:
    if isinstance(value, str):
        return _field(1, value.encode())
    return _varint((3 << 3) | 1) + np.float64(value).tobytes()


def _field(number: int, content: bytes) -> bytes:
    return _varint((number << 3) | 2) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _signed(value: int) -> bytes:
    return _varint((value << 1) ^ (value >> 63))


@lru_cache(2**16)
def _varint(value: int) -> bytes:
    """Encode a number below 2**64, seven bits a byte, the lowest first."""
    parts = []
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])
