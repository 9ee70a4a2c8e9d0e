"""The rows that a search may return: by place, time, cloud, scenes, labels and tiles.

A :class:`Filter` is plain and hashable, so it travels to search actors and keys their caches.
:func:`may_match` prunes a whole shard by its extent; :meth:`storage.index.sidecar.Sidecar.matching`
decides about rows.
"""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from storage.errors import ConfigError
from storage.geometry import Bounds, in_polygon, polygon_wkt, touches
from storage.values import Fraction, check_limits


@dataclass(frozen=True, kw_only=True, slots=True)
class Filter:
    """A conjunction of conditions; an absent condition does not restrict.

    Attributes
    ----------
    bbox
        WGS84 degrees (west, south, east, north); west > east crosses the antimeridian. Rows whose
        own box touches it match.
    polygon
        WKT, GeoJSON text or a GeoJSON mapping in WGS84 degrees, kept as WKT. Rows whose box
        intersects it match.
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

    bbox: Bounds | None = None
    polygon: str | Mapping[str, Any] | None = None
    since: dt.datetime | dt.date | str | None = None
    until: dt.datetime | dt.date | str | None = None
    max_cloud_fraction: Fraction | None = None
    scenes: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    tiles: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        settle = object.__setattr__  # the way to set a field of a frozen value
        if self.bbox is not None:
            settle(self, "bbox", _checked_bbox(self.bbox))
        if self.polygon is not None:
            settle(self, "polygon", polygon_wkt(self.polygon))
        settle(self, "since", _instant("since", self.since, end_of_day=False))
        settle(self, "until", _instant("until", self.until, end_of_day=True))
        since, until = self.interval
        if since is not None and until is not None and since > until:
            raise ConfigError(
                f"filter: since {self.since} is after until {self.until}; swap the two dates"
            )
        check_limits(self, "filter")
        for name in ("scenes", "labels", "tiles"):
            value = getattr(self, name)
            if isinstance(value, str):
                raise ConfigError(f"filter: {name} is the text {value!r}; give a list of names")
            settle(self, name, tuple(value))

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


def may_match(where: Filter, bbox: Bounds, since: str, until: str) -> bool:
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
    return not isinstance(where.polygon, str) or bool(in_polygon(box, where.polygon)[0])


def _checked_bbox(bbox: Sequence[float]) -> Bounds:
    values = tuple(float(value) for value in bbox)
    if len(values) != 4:
        raise ConfigError(f"filter: bbox {bbox} has {len(values)} numbers; give w, s, e, n")
    west, south, east, north = values
    ordered = -180 <= west <= 180 and -180 <= east <= 180 and -90 <= south <= north <= 90
    if not ordered:  # also when a value is NaN
        raise ConfigError(
            f"filter: bbox {values} is not west, south, east, north in WGS84 degrees; "
            "check the order (south <= north; west > east only across the antimeridian)"
        )
    return west, south, east, north


def _instant(
    name: str, value: dt.datetime | dt.date | str | None, *, end_of_day: bool
) -> dt.datetime | None:
    if value is None:
        return None
    try:
        if isinstance(value, str):
            is_date = len(value.strip()) <= len("2024-01-01")
            parsed = dt.datetime.fromisoformat(value.strip())
        else:
            is_date = not isinstance(value, dt.datetime)
            parsed = (
                value if isinstance(value, dt.datetime) else dt.datetime.combine(value, dt.time.min)
            )
    except ValueError as error:
        raise ConfigError(
            f"filter: {name} is {value!r}; give an ISO 8601 date or time, such as 2024-05-31"
        ) from error
    if is_date and end_of_day:
        parsed = parsed.replace(hour=23, minute=59, second=59, microsecond=999_000)
    if parsed.tzinfo is None:
        return parsed.replace(tzinfo=dt.UTC)
    return parsed.astimezone(dt.UTC)


_EVERYTHING = Filter()
