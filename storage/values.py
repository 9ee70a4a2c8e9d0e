"""Kinds of numbers in specifications, checks of values against annotations, and printable text.

A specification states a limit once, in the annotation of a field. :func:`check_limits` refuses a
value outside its limit in every specification; recipes, the command line and the reference pages
read the same annotations. :func:`check_types` is for values that come from JSON documents at rest.
"""

import difflib
import hashlib
import json
import operator
import os
import reprlib
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le

from storage.errors import ConfigError, SkysiftError

T = TypeVar("T")

Count = Annotated[int, Ge(1)]
Natural = Annotated[int, Ge(0)]
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Fraction = Annotated[float, Ge(0), Le(1)]
PositiveFraction = Annotated[float, Gt(0), Le(1)]
Percent = Annotated[float, Ge(0), Le(100)]

_LIMITS = {
    Gt: ("gt", operator.gt, "more than"),
    Ge: ("ge", operator.ge, "at least"),
    Le: ("le", operator.le, "at most"),
}


def check_limits(spec: object, subject: str) -> None:
    """Check the numbers of a specification against the limits of its annotations.

    Parameters
    ----------
    spec
        An instance of a dataclass whose fields are annotated with the types above.
    subject
        Name of the specification at the beginning of the message.

    Raises
    ------
    ConfigError
        A number is outside its limits.
    """
    kind: Any = type(spec)
    for name, limits in _limited_fields(kind).items():
        value = getattr(spec, name)
        values = value if isinstance(value, tuple) else (value,)
        # None, or a word such as `native`, has no limits.
        numbers = [item for item in values if isinstance(item, (int, float))]
        if not all(_LIMITS[type(x)][1](n, _number(x)) for n in numbers for x in limits):
            raise ConfigError(f"{subject}: {name} is {value}; give {_words(limits)}")


def printable(text: str) -> str:
    r"""Return text with control characters, bidirectional marks and unpaired surrogates escaped.

    Ids and reasons come from catalogs of others. Printed as they are they could move the cursor,
    feign lines or not be written at all. Text that is printable stays as it is.

    Examples
    --------
    >>> print(printable("Zürich\x1b[2J\ud800"))
    Zürich\x1b[2J\ud800
    """
    if text.isprintable():
        return text
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text
    )


def json_digest(values: Any) -> str:
    """Return the SHA-256 (hexadecimal) of JSON values; the order of keys does not count.

    Examples
    --------
    >>> json_digest({"a": 1, "b": (2,)}) == json_digest({"b": [2], "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def refuse_later(holder: str, stated: object, newest: int | str) -> None:
    """Check that a document at rest is of no later format than this Skysift reads.

    Parameters
    ----------
    holder
        Name of the document, for people.
    stated
        The format in it; a format of another kind, or none, is left to the caller.
    newest
        The newest format that is read, such as ``2`` or ``"skysift-dataset/2"``.

    Raises
    ------
    SkysiftError
        A later Skysift wrote the document.

    Examples
    --------
    >>> refuse_later("d", "skysift-dataset/1", "skysift-dataset/2")
    """
    kind, _, known = str(newest).rpartition("/")
    found, _, number = str(stated).rpartition("/")
    if found == kind and number.isdecimal() and int(number) > int(known):
        raise SkysiftError(
            f"{holder} is of format {stated}, which a later Skysift wrote; this one reads formats "
            f"up to {newest}: install that release (docs/upgrades.md)"
        )


def is_running(pid: int) -> bool:
    """Tell whether a process of this machine runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True  # of another user, or no number that a process has here
    return True


def as_spec(kind: type[T], value: object, subject: str) -> T:
    """Return a specification that is given as itself, or as a mapping of its fields.

    Parameters
    ----------
    kind
        The dataclass.
    value
        An instance, or a mapping of the names of its fields to values.
    subject
        Beginning of messages.

    Raises
    ------
    ConfigError
        The value is something else, lacks a required field, or names a field that there is not.

    Examples
    --------
    >>> from storage.index.filter import Filter
    >>> as_spec(Filter, {"max_cloud_fraction": 0.1}, "filter").max_cloud_fraction
    0.1
    """
    if isinstance(value, kind):
        return value
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"{subject} is {reprlib.repr(value)}; give a {kind.__name__} or a mapping of its fields"
        )
    known = {part.name: part for part in fields(kind)}  # type: ignore[arg-type]
    for name in value:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1)
            hint = f"did you mean {near[0]!r}" if near else f"it has {', '.join(known)}"
            raise ConfigError(f"{subject}: {kind.__name__} has no field {name!r}; {hint}")
    for name, part in known.items():
        needed = part.default is MISSING and part.default_factory is MISSING
        if needed and name not in value:
            raise ConfigError(f"{subject}: {kind.__name__} needs {name}; give it a value")
    return kind(**value)


def check_names(names: Iterable[str], subject: str) -> tuple[str, ...]:
    """Return names as a tuple.

    Raises
    ------
    ConfigError
        The names are one text, which would be taken letter by letter.
    """
    if isinstance(names, str):
        raise ConfigError(f"{subject} is the text {names!r}; give a list of names")
    return tuple(names)


def check_types(instance: object) -> None:
    """Check that every field of a dataclass holds a value of its annotated type.

    Raises
    ------
    TypeError
        A value has another type.
    """
    for name, hint in get_type_hints(type(instance)).items():
        if not _fits(value := getattr(instance, name), hint):
            raise TypeError(
                f"{name} is {value!r:.60}, which is no {getattr(hint, '__name__', hint)}"
            )


def _fits(value: Any, hint: Any) -> bool:
    args = get_args(hint)
    match get_origin(hint):
        case kind if kind in (Union, UnionType):
            return any(_fits(value, arg) for arg in args)
        case kind if kind is Literal:
            return value in args
        case kind if kind is tuple:
            hints = args[:1] * len(value) if isinstance(value, tuple) and ... in args else args
            return (
                isinstance(value, tuple)
                and len(value) == len(hints)
                and all(map(_fits, value, hints))
            )
        case kind if kind in (Mapping, dict):
            return isinstance(value, dict) and all(
                _fits(key, args[0]) and _fits(item, args[1]) for key, item in value.items()
            )
    if hint in (int, float):
        return type(value) in (int, hint)
    if is_dataclass(hint) and type(value) is hint:
        check_types(value)
    return hint is Any or isinstance(value, hint)


@cache
def _limited_fields(kind: type[Any]) -> dict[str, list[Any]]:
    hints = get_type_hints(kind, include_extras=True)
    return {name: found for name, hint in hints.items() if (found := limits_in(hint))}


def limits_in(annotation: Any) -> list[Any]:
    """Return the limits within an annotation.

    Examples
    --------
    >>> limits_in(Fraction | None)
    [Ge(ge=0), Le(le=1)]
    """
    if isinstance(annotation, tuple(_LIMITS)):
        return [annotation]
    return [limit for part in get_args(annotation) for limit in limits_in(part)]


def _words(limits: list[Any]) -> str:
    if len(limits) == 1:
        return f"{_LIMITS[type(limits[0])][2]} {_number(limits[0])}"
    low, high = limits
    return f"a value in {'(' if isinstance(low, Gt) else '['}{_number(low)}, {_number(high)}]"


def _number(limit: Any) -> Any:
    return getattr(limit, _LIMITS[type(limit)][0])


def alike(name: str) -> str:
    """Return a key that names share which differ in case, blanks or the form of letters only.

    Examples
    --------
    >>> alike(" Open  Water") == alike("open water")
    True
    """
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())
