"""Dates and times as people state them: ISO 8601 text, dates and datetimes; UTC inside.

A time without a zone means UTC. A date stands for its whole day: its first moment at the beginning
of a range, 23:59:59.999999 at the end, which archives and STAC APIs round to their own units.
"""

import calendar
import datetime as dt
import re

from storage.errors import ConfigError

Moment = dt.datetime | dt.date | str
_PERIOD = "give a year, month or day, such as 2024, 2024-05 or 2024-05-31, or START/END"


def as_utc(moment: dt.datetime) -> dt.datetime:
    """Return a moment in UTC; without a time zone it means UTC.

    Raises
    ------
    ConfigError
        The moment lies outside the years 1 to 9999 in UTC.

    Examples
    --------
    >>> as_utc(dt.datetime(2024, 5, 1, 12)).isoformat()
    '2024-05-01T12:00:00+00:00'
    """
    if moment.tzinfo is None:
        return moment.replace(tzinfo=dt.UTC)
    try:
        return moment.astimezone(dt.UTC)
    except OverflowError as error:
        raise ConfigError(
            f"{moment.isoformat()} lies outside the years 1 to 9999 in UTC; give another time"
        ) from error


def parse_moment(value: Moment, subject: str, *, end_of_day: bool = False) -> dt.datetime:
    """Return a moment in UTC.

    Parameters
    ----------
    value
        A datetime, a date, or either as ISO 8601 text.
    subject
        Beginning of the message.
    end_of_day
        Take a date as its last moment, not its first.

    Raises
    ------
    ConfigError
        The value is none of these.

    Examples
    --------
    >>> parse_moment("2024-05-31", "until", end_of_day=True).isoformat()
    '2024-05-31T23:59:59.999999+00:00'
    >>> parse_moment("2024-05-31T12:00+02:00", "until", end_of_day=True).isoformat()
    '2024-05-31T10:00:00+00:00'
    """
    if isinstance(value, dt.datetime):
        return as_utc(value)
    try:
        day = value if isinstance(value, dt.date) else dt.date.fromisoformat(value.strip())
    except (ValueError, TypeError, AttributeError):
        try:
            moment = dt.datetime.fromisoformat(str(value).strip())
        except ValueError as error:
            raise ConfigError(
                f"{subject} is {value!r}; give an ISO 8601 date or time, such as 2024-05-31"
            ) from error
        return as_utc(moment)
    return dt.datetime.combine(day, dt.time.max if end_of_day else dt.time.min, dt.UTC)


def parse_range(
    since: Moment | None, until: Moment | None, subject: str
) -> tuple[dt.datetime | None, dt.datetime | None]:
    """Return the moments of a closed time range in UTC; None leaves an end open.

    Raises
    ------
    ConfigError
        An end is not a date or time, or the range ends before its beginning.
    """
    start = None if since is None else parse_moment(since, f"{subject}: since")
    end = None if until is None else parse_moment(until, f"{subject}: until", end_of_day=True)
    if start is not None and end is not None and start > end:
        raise ConfigError(f"{subject}: since {start} is after until {end}; swap the two dates")
    return start, end


def parse_period(text: str, subject: str) -> tuple[dt.datetime | None, dt.datetime | None]:
    """Return the first and the last moment of a period in UTC; None for an open end.

    Parameters
    ----------
    text
        A year, month, day or time, or two of them with a slash between; ``..`` is an open end.
    subject
        Beginning of the message.

    Raises
    ------
    ConfigError
        The text is none of these, or the period ends before its beginning.

    Examples
    --------
    >>> [moment.isoformat() for moment in parse_period("2015", "after")]
    ['2015-01-01T00:00:00+00:00', '2015-12-31T23:59:59.999999+00:00']
    >>> [str(moment)[:10] for moment in parse_period("2024-02/..", "after")]
    ['2024-02-01', 'None']
    """
    first, slash, last = (part.strip() for part in text.partition("/"))
    ends = (first, last) if slash else (first, first)
    since, until = (
        None if end in ("..", "") and slash else _day_of(end, is_last=number == 1)
        for number, end in enumerate(ends)
    )
    given = [end for end in (since, until) if end is not None]
    if not given or not all(map(_is_moment, given)):
        raise ConfigError(f"{subject} is {text!r}; {_PERIOD}")
    return parse_range(since, until, subject)


def _is_moment(text: str) -> bool:
    try:
        dt.datetime.fromisoformat(text)  # a date is a moment too
    except ValueError:
        return False
    return True


def _day_of(text: str, *, is_last: bool) -> str:
    """Return the first or last day of a year or month; other text as it is."""
    match = re.fullmatch(r"(\d{4})(?:-(0[1-9]|1[0-2]))?", text)
    if match is None or int(match[1]) < 1:
        return text
    year, month = int(match[1]), int(match[2] or (12 if is_last else 1))
    day = calendar.monthrange(year, month)[1] if is_last else 1
    return f"{year:04}-{month:02}-{day:02}"
