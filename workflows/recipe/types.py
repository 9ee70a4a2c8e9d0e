"""The kinds of values in a recipe: numbers within limits, sizes, dates, boxes."""

import re
from datetime import UTC, date, datetime, time
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, Strict

_BYTE_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BYTE_UNITS |= {f"{unit}i": 1024**power for power, unit in enumerate("kmgt", start=1)}


def parse_bytes(value: Any) -> Any:
    """Read a size such as ``"16GB"`` or ``"512MiB"`` as a number of bytes.

    Examples
    --------
    >>> parse_bytes("16GB"), parse_bytes("1KiB"), parse_bytes(5)
    (16000000000, 1024, 5)
    """
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*([0-9.]+)\s*([kmgt]?i?)b?\s*", value.lower())
    if not match or match.group(2) not in _BYTE_UNITS:
        raise ValueError("a size such as 16GB or 512MiB")
    return int(float(match.group(1)) * _BYTE_UNITS[match.group(2)])


def _to_utc(value: Any) -> Any:
    """Take a date as its first moment; a time without a zone is UTC."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError as error:
            raise ValueError("a date or time such as 2024-05-31 or 2024-05-31T10:00Z") from error
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime.combine(value, time(), UTC)
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    return value


def _to_end_in_utc(value: Any) -> Any:
    """Take a date as its last moment, otherwise as :func:`_to_utc` does."""
    whole_day = (isinstance(value, str) and len(value.strip()) <= len("2024-05-31")) or (
        isinstance(value, date) and not isinstance(value, datetime)
    )
    moment = _to_utc(value)
    return datetime.combine(moment.date(), time.max, UTC) if whole_day else moment


def _ordered_box(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    west, south, east, north = box
    if not (-180 <= west <= 180 and -180 <= east <= 180 and -90 <= south < north <= 90):
        raise ValueError("west, south, east, north in degrees with south < north")
    return box


Whole = Annotated[int, Strict()]
Count = Annotated[int, Strict(), Field(gt=0)]
Natural = Annotated[int, Strict(), Field(ge=0)]
Number = Annotated[float, Strict()]
Positive = Annotated[float, Strict(), Field(gt=0)]
Fraction = Annotated[float, Strict(), Field(ge=0, le=1)]
Flag = Annotated[bool, Strict()]
Bytes = Annotated[int, BeforeValidator(parse_bytes), Field(gt=0)]
Moment = Annotated[datetime, BeforeValidator(_to_utc)]
Until = Annotated[datetime, BeforeValidator(_to_end_in_utc)]
Box = Annotated[tuple[Number, Number, Number, Number], AfterValidator(_ordered_box)]
