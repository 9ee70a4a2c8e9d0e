"""Read Mapbox vector tiles, as far as the map's layers go: one ring a feature."""

import struct
from collections.abc import Iterator
from itertools import pairwise
from typing import Any


def read_tile(tile: bytes) -> dict[str, list[dict[str, Any]]]:
    """Return the features of each layer: their properties and the ``box`` around their ring."""
    return dict(map(_layer, _contents(tile, 3)))


def _layer(layer: bytes) -> tuple[str, list[dict[str, Any]]]:
    fields = list(_fields(layer))
    assert ("version", 2) in [("version", value) for number, value in fields if number == 15]
    (name,) = _contents(layer, 1)
    keys = [key.decode() for key in _contents(layer, 3)]
    values = [_value(value) for value in _contents(layer, 4)]
    features = []
    for feature in _contents(layer, 2):
        (tags,), (path,) = _contents(feature, 2), _contents(feature, 4)
        numbers = list(_varints(tags))
        named = {
            keys[key]: values[value] for key, value in zip(numbers[::2], numbers[1::2], strict=True)
        }
        features.append({**named, "box": _box(list(_varints(path)))})
    return name.decode(), features


def _box(path: list[int]) -> list[int]:
    assert (path[0], path[3] & 7, path[-1]) == (9, 2, 15)  # move to one, line to the others, close
    x = y = 0
    corners = []
    steps = [(n >> 1) ^ -(n & 1) for n in [*path[1:3], *path[4:-1]]]
    for dx, dy in zip(steps[::2], steps[1::2], strict=True):
        x, y = x + dx, y + dy
        corners.append((x, y))
    assert len(corners) == (path[3] >> 3) + 1
    turns = sum(a * d - b * c for (a, b), (c, d) in pairwise([*corners, corners[0]]))
    assert turns > 0  # an outer ring: clockwise on the screen
    xs, ys = zip(*corners, strict=True)
    return [min(xs), min(ys), max(xs), max(ys)]


def _value(content: bytes) -> Any:
    ((number, value),) = _fields(content)
    return value.decode() if number == 1 else struct.unpack("<d", value)[0]


def _contents(message: bytes, wanted: int) -> list[bytes]:
    return [content for number, content in _fields(message) if number == wanted]


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield tag >> 3, value
        else:
            size, at = (8, at) if kind == 1 else _varint(message, at)
            yield tag >> 3, message[at : at + size]
            at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _varints(message: bytes) -> Iterator[int]:
    at = 0
    while at < len(message):
        value, at = _varint(message, at)
        yield value
