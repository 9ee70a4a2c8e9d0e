"""Months, seasons and years, in UTC: the periods that composites and drift are made of."""

from datetime import UTC, datetime, timedelta
from typing import Literal

PeriodKind = Literal["month", "season", "year"]

PERIODS = {"month": 1, "season": 3, "year": 12}
"""How many months each kind has."""
_SEASONS = ("DJF", "MAM", "JJA", "SON")


def period_of(moment: datetime, kind: PeriodKind) -> tuple[str, datetime, datetime]:
    """Return label, first and last second of the period that holds a moment, in UTC.

    Examples
    --------
    >>> label, start, end = period_of(datetime(2024, 12, 5, tzinfo=UTC), "season")
    >>> label, start.isoformat(), end.isoformat()
    ('2025-DJF', '2024-12-01T00:00:00+00:00', '2025-02-28T23:59:59+00:00')
    >>> period_of(datetime(2024, 2, 5, tzinfo=UTC), "month")[0]
    '2024-02'
    """
    when = moment.astimezone(UTC)
    months = when.year * 12 + when.month - 1
    lead = 1 if kind == "season" else 0  # December begins the winter of the next year
    first = (months + lead) // PERIODS[kind] * PERIODS[kind]
    labels = {
        "month": f"{first // 12}-{first % 12 + 1:02}",
        "season": f"{first // 12}-{_SEASONS[first % 12 // 3]}",
        "year": f"{first // 12}",
    }
    start, after = (_month(n - lead) for n in (first, first + PERIODS[kind]))
    return labels[kind], start, after - timedelta(seconds=1)


def _month(count: int) -> datetime:
    return datetime(count // 12, count % 12 + 1, 1, tzinfo=UTC)
