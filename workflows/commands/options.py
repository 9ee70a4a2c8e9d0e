"""Options of verbs: those that override recipe keys, and kinds of values that several verbs read.

Options that override recipe keys are not passed to the function of a verb; the recipe of its
:class:`workflows.commands.common.Run` has their values.
"""

import datetime as dt
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import click
from annotated_types import Le

from storage.location import Location
from storage.values import limits_in
from workflows.commands.common import OVERRIDES
from workflows.recipe.schema import key_at

F = TypeVar("F", bound=Callable[..., Any])


def recipe_option(
    flag: str, key: str, text: str | None = None, **attributes: Any
) -> Callable[[F], F]:
    """Add an option that overrides a recipe key; type, default and help are those of the key.

    Parameters
    ----------
    flag
        The option, such as ``--archive``; two separated by ``/`` make a switch.
    key
        The dotted recipe key.
    text
        Help, where the meaning of the key says too much or too little for the verb.
    attributes
        Passed on to click, in place of what follows from the key.
    """

    def override(ctx: click.Context, parameter: click.Parameter, value: Any) -> None:
        given = (list(value) or None) if isinstance(value, tuple) else value
        ctx.meta.setdefault(OVERRIDES, {})[key] = (flag.split()[-1].partition("/")[0], given)

    known = key_at(key)
    meaning = re.split(r"[.;:] |\.$", known.meaning.replace("``", ""))[0]
    is_shown = known.default and isinstance(known.default, (int, float, str))
    return click.option(
        *flag.split(" "),
        help=(text or f"{meaning}.") + (f" [default: {known.default}]" if is_shown else ""),
        callback=override,
        expose_value=False,
        **{"default": None, **_click_type(key, known.annotation), **attributes},
    )


def _click_type(key: str, annotation: Any) -> dict[str, Any]:
    """Return how click reads the values of a recipe key."""
    kinds = set(_alternatives(annotation))
    choices = [kind for kind in _alternatives(annotation) if isinstance(kind, str)]
    if bool in kinds:
        return {"is_flag": True}
    if key.endswith("_bytes"):
        return {"metavar": "SIZE"}
    if float in kinds:
        limits = limits_in(annotation)
        metavar = "FRACTION" if Le(1) in limits else "PERCENT" if Le(100) in limits else "NUMBER"
        return {"type": float, "metavar": metavar}
    if int in kinds:
        return {"type": int, "metavar": "N"}
    if choices:
        return {"type": click.Choice(choices)}
    if any(get_origin(kind) is tuple and Ellipsis in get_args(kind) for kind in kinds):
        return {"multiple": True, "metavar": "NAME"}
    if any(get_origin(kind) is tuple for kind in kinds):
        return {"type": float, "nargs": 4, "metavar": "W S E N"}
    named = {Location: "URI", dt.datetime: "DATE"}
    return {"metavar": next((named[kind] for kind in kinds & named.keys()), "TEXT")}


def _alternatives(annotation: Any) -> Iterator[Any]:
    """Yield the types of a union, without their limits, and the values of its literals."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        yield from arguments
    elif origin is Annotated:
        yield from _alternatives(arguments[0])
    elif origin in (Union, UnionType):
        for part in arguments:
            yield from _alternatives(part)
    else:
        yield annotation


def catalog_options(function: F) -> F:
    """Add the options that say which scenes are meant."""
    query = "catalog.query"
    options: list[Callable[[F], F]] = [
        recipe_option("--scenes", "catalog.source"),
        recipe_option("--since", f"{query}.since"),
        recipe_option("--until", f"{query}.until"),
        recipe_option("--bbox", f"{query}.bbox", "Box that a scene must touch, in WGS84 degrees."),
        recipe_option("--polygon", f"{query}.polygon", "WKT or GeoJSON that a scene must touch."),
        recipe_option("--max-cloud", f"{query}.max_cloud_cover_percent"),
    ]
    for option in reversed(options):
        function = option(function)
    return function


events_option = click.option(
    "--events",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Append events to a file, one JSON object a line.",
)


class CommaList(click.ParamType[tuple[Any, ...]]):
    """Values with commas between them."""

    name = "list"

    def __init__(self, kind: Callable[[str], object]) -> None:
        self._kind = kind

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[Any, ...]:
        """Read the text of an option."""
        try:
            return tuple(self._kind(part.strip()) for part in str(value).split(",") if part.strip())
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers such as 3,2,1", param, ctx)


_UNITS = {"d": "days", "h": "hours", "m": "minutes", "s": "seconds"}


class Duration(click.ParamType[dt.timedelta]):
    """A number and its unit; becomes a :class:`datetime.timedelta` above zero."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dt.timedelta:
        """Read the text of an option."""
        if isinstance(value, dt.timedelta):
            return value
        match = re.fullmatch(r"(\d{1,6}(?:\.\d+)?)([dhms])", str(value).strip().lower())
        if not match or not float(match[1]):
            self.fail(f"{value!r} is not a span of time; write for example 30d, 12h, 15m or 90s")
        return dt.timedelta(**{_UNITS[match[2]]: float(match[1])})
