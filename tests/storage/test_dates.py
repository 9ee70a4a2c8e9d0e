"""A date means the same in a query, a filter and a search of an API."""

import datetime as dt

import numpy as np
import pytest

from storage.dates import parse_moment, parse_range
from storage.errors import ConfigError
from storage.index.filter import Filter
from storage.scene import SceneQuery

DAY = dt.datetime(2024, 5, 31, tzinfo=dt.UTC)
LAST = DAY + dt.timedelta(days=1, microseconds=-1)


@pytest.mark.parametrize(
    ("value", "start", "end"),
    [
        ("2024-05-31", DAY, LAST),
        (" 20240531 ", DAY, LAST),
        (dt.date(2024, 5, 31), DAY, LAST),
        ("2024-05-31T00:00", DAY, DAY),
        ("2024-05-31T02:00:00+02:00", DAY, DAY),
        ("2024-05-31T00:00:00Z", DAY, DAY),
        (dt.datetime(2024, 5, 31), DAY, DAY),
        (dt.datetime(2024, 5, 31, 2, tzinfo=dt.timezone(dt.timedelta(hours=2))), DAY, DAY),
    ],
)
def test_only_a_date_stands_for_its_whole_day(
    value: dt.date | str, start: dt.datetime, end: dt.datetime
) -> None:
    assert parse_moment(value, "x") == start
    assert parse_moment(value, "x", end_of_day=True) == end
    assert parse_range(value, value, "x") == (start, end)
    assert Filter(until=value).until == SceneQuery(until=value).until == end


@pytest.mark.parametrize("value", ["soon", "", "2024-13-01", 7, None])
def test_other_values_are_named(value: object) -> None:
    with pytest.raises(ConfigError, match=r"^query: date is .*such as 2024-05-31"):
        parse_moment(value, "query: date")  # type: ignore[arg-type]


def test_the_last_moment_of_a_day_is_the_last_that_an_archive_holds() -> None:
    assert Filter(until="2024-05-31").interval[1] == np.datetime64("2024-05-31T23:59:59.999")


def test_a_range_that_ends_before_it_begins_is_refused() -> None:
    assert parse_range("2024-05-31", "2024-05-31", "x") == (DAY, LAST)
    assert parse_range(None, None, "x") == (None, None)
    with pytest.raises(ConfigError, match=r"x: since 2024-05-31 .* swap the two dates"):
        parse_range("2024-05-31", "2024-05-30", "x")


@pytest.mark.parametrize("text", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
def test_a_moment_outside_the_years_of_utc_is_refused(text: str) -> None:
    for value in (text, dt.datetime.fromisoformat(text)):
        with pytest.raises(ConfigError, match="outside the years 1 to 9999"):
            parse_moment(value, "until")
