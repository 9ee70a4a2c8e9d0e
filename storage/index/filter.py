"""The rows that a search may return: by place, time, cloud, scenes, labels and tiles.

A :class:`Filter` is plain and hashable, so it travels to search actors and keys their caches.
:func:`may_match` prunes a whole shard by its extent; :meth:`storage.index.sidecar.Sidecar.matching`
decides about rows.
"""

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from storage.dates import Moment, parse_range
from storage.geometry import BBox, check_bbox, intersects_polygon, polygon_wkt, touches
from storage.values import Fraction, as_spec, check_limits, check_names


@dataclass(frozen=True, kw_only=True, slots=True)
class Filter:
    """A conjunction of conditions; an absent condition does not restrict.

    Attributes
    ----------
    bbox
        WGS84 degrees (west, south, east, north); west > east crosses the antimeridian. Rows whose
        own box touches it match.
    polygon
        In WGS84 degrees, in any form of :func:`storage.geometry.polygon_wkt`, and kept as WKT. Rows
        whose box intersects it match.
    since
        Earliest time: a datetime (naive means UTC), a date or ISO 8601 text, kept as aware UTC
        datetime.
    until
        Latest time; as ``since``, and a plain date includes that day.
    max_cloud_fraction
        Largest cloud fraction, in [0, 1].
    scenes
        Scene ids: a row of any of the scenes matches.
    tiles
        Tile keys: a row of any of the tiles matches.
    labels
        Class names: a row that carries all of them matches.

    Raises
    ------
    ConfigError
        A box, polygon, date or fraction is invalid.
    """

    bbox: BBox | None = None
    polygon: str | Mapping[str, Any] | None = None
    since: Moment | None = None
    until: Moment | None = None
    max_cloud_fraction: Fraction | None = None
    scenes: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    tiles: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        settle = object.__setattr__  # the way to set a field of a frozen value
        if self.bbox is not None:
            settle(self, "bbox", check_bbox(self.bbox, "filter"))
        if self.polygon is not None:
            settle(self, "polygon", polygon_wkt(self.polygon))
        since, until = parse_range(self.since, self.until, "filter")
        settle(self, "since", since)
        settle(self, "until", until)
        check_limits(self, "filter")
        for name in ("scenes", "labels", "tiles"):
            settle(self, name, check_names(getattr(self, name), f"filter: {name}"))

    @classmethod
    def of(cls, value: "Filter | Mapping[str, Any] | None") -> "Filter":
        """Return a filter that is given as itself, as a mapping of its fields, or not at all.

        Raises
        ------
        ConfigError
            The value is something else, or a condition does not exist or is invalid.
        """
        if value is None or isinstance(value, cls):
            return value or _EVERYTHING
        return as_spec(cls, value, "filter")

    def __bool__(self) -> bool:
        return self != _EVERYTHING

    @property
    def interval(self) -> tuple[np.datetime64 | None, np.datetime64 | None]:
        """The closed time range as UTC datetime64[ms]."""
        start, end = (
            np.datetime64(value.replace(tzinfo=None), "ms")
            if isinstance(value, dt.datetime)
            else None
            for value in (self.since, self.until)
        )
        return start, end


def may_match(where: Filter, bbox: BBox, since: str, until: str) -> bool:
    """Tell whether rows inside an extent can match; False is certain, True is not.

    Parameters
    ----------
    where
        The filter.
    bbox
        WGS84 box around all rows.
    since, until
        ISO 8601 UTC times of the oldest and newest row.

    Examples
    --------
    >>> may_match(Filter(bbox=(0, 0, 1, 1)), (5, 5, 6, 6), "2020-01-01", "2021-01-01")
    False
    """
    box = np.array([bbox], dtype=np.float64)
    start, end = where.interval
    if start is not None and start > np.datetime64(until, "ms"):
        return False
    if end is not None and end < np.datetime64(since, "ms"):
        return False
    if where.bbox is not None and not touches(box, where.bbox)[0]:
        return False
    return not isinstance(where.polygon, str) or bool(intersects_polygon(box, where.polygon)[0])


_EVERYTHING = Filter()
