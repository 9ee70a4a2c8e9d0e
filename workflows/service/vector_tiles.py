"""Map tiles of boxes with values, in the format of Mapbox Vector Tiles 2.1.

A layer has one polygon for each box and columns of values, so the encoder needs neither a geometry
library nor a schema.
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
_MOVE, _LINE, _CLOSE = (1 << 3) | 1, (3 << 3) | 2, (1 << 3) | 7
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


def encode_boxes(
    name: str, boxes: npt.NDArray[np.int64], columns: Mapping[str, Sequence[Value]]
) -> bytes:
    """Encode a tile with one layer.

    Parameters
    ----------
    name
        The layer's name.
    boxes
        Left, top, right, bottom (n, 4) in units of the tile, y downwards; they may lie beyond it.
    columns
        A text or a number of each box, by the name of the property.
    """
    values: dict[Value, int] = {}
    tags = [
        [_varint(key) + _varint(values.setdefault(value, len(values))) for value in column]
        for key, column in enumerate(columns.values())
    ]
    ring = _varint(_LINE)
    close = _varint(_CLOSE)
    features = []
    for number, (left, top, right, bottom) in enumerate(boxes.tolist()):
        wide, high = _signed(right - left), _signed(bottom - top)
        narrow, zero = _signed(left - right), _signed(0)
        path = (
            _varint(_MOVE) + _signed(left) + _signed(top)
            + ring + wide + zero + zero + high + narrow + zero + close
        )  # fmt: skip
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
