"""The common part of all verbs: a recipe with its overrides, ``--json``, progress, Ray, exit codes.

A verb's function gets a :class:`Run`. Options that override recipe keys are not passed to the
function; the recipe of its run has their values.
"""

import datetime as dt
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from types import UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    TextIO,
    TypeVar,
    Union,
    get_args,
    get_origin,
)

import click
from annotated_types import Le

from storage.areas import is_area_file
from storage.geometry import polygon_wkt
from storage.location import Location
from storage.values import limits_in, printable
from workflows.console import configure_logging, format_pairs, write_json
from workflows.exit_codes import Interrupted
from workflows.recipe.schema import key_at
from workflows.stages import Stages

if TYPE_CHECKING:
    from workflows.recipe.load import LoadedRecipe

F = TypeVar("F", bound=Callable[..., Any])
_OVERRIDES = "skysift.overrides"
_REASONS_SHOWN = 10
_AREA = "Area that a scene must touch: WKT, GeoJSON or a file."
_COMMON = ("recipe", "set_", "json_", "verbose", "debug")


@dataclass(frozen=True, kw_only=True)
class Run(Stages):
    """One run of a verb: the stages of its recipe, and the way to show results.

    ``stdout`` is for results only.
    """

    recipe_name: str | None
    sets: Sequence[str]
    overrides: Mapping[str, tuple[str, Any]]
    as_json: bool
    debug: bool = False
    stdout: TextIO = field(default_factory=lambda: sys.stdout)

    @cached_property
    def settings(self) -> "LoadedRecipe":
        """The recipe, then ``--set``, then the options of the verb."""
        from workflows.recipe.load import Override, load_recipe

        options = [
            Override(path=tuple(key.split(".")), value=value, origin=option)
            for key, (option, value) in self.overrides.items()
            if value is not None
        ]
        return load_recipe(self.recipe_name, [*map(Override.parse, self.sets), *options])

    def way_to_give(self, key: str) -> str:
        """Return the options that give a value."""
        option, _ = self.overrides.get(key, ("", None))
        return f"use {f'{option}, ' if option else ''}--set {key}=..., or a recipe that has it"

    def is_given(self, key: str) -> bool:
        """Whether an option of the verb gives a value of the recipe."""
        return self.overrides.get(key, ("", None))[1] is not None

    def show(self, data: Any, lines: Sequence[str] | Mapping[str, Any] | None = None) -> None:
        """Write the result to stdout: as JSON with ``--json``, else as lines for people."""
        if self.as_json:
            write_json(data, self.stdout)
            return
        shown = data if lines is None else lines
        text = format_pairs(shown) if isinstance(shown, Mapping) else shown
        self.stdout.writelines(f"{printable(line)}\n" for line in text)


def reason_lines(title: str, reasons: Mapping[str, str], all_by: str = "--json") -> dict[str, Any]:
    """Return how many scenes there are and why, for people: the first few by name."""
    shown = dict(islice(reasons.items(), _REASONS_SHOWN))
    lines: dict[str, Any] = {title: len(reasons), **{f"  {k}": v for k, v in shown.items()}}
    if len(reasons) > len(shown):
        lines["  ..."] = f"and {len(reasons) - len(shown):,} more; {all_by} names all"
    return lines


class Verb(click.Command):
    """A command with the common options, a run, and an example in its help.

    Parameters
    ----------
    example
        Command lines, one a line, that a person can copy.
    """

    def __init__(self, *args: Any, example: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.example = example
        self.params.extend(_common_options())

    def invoke(self, ctx: click.Context) -> Any:
        """Set up logging and the run, then run the verb."""
        recipe, sets, as_json, verbose, debug = (
            ctx.params.pop(name) for name in ("recipe", "set_", "json_", "verbose", "debug")
        )
        configure_logging(verbose=verbose, debug=debug)
        overrides = ctx.meta.get(_OVERRIDES, {})
        ctx.obj = Run(
            recipe_name=recipe, sets=sets, overrides=overrides, as_json=as_json, debug=debug
        )
        # Libraries print on stdout too (Ray its warnings); stdout is for results only.
        try:
            with redirect_stdout(sys.stderr):
                return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Interrupted from error

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verb's own options before those that every verb has; usage names arguments."""
        own: list[tuple[str, str]] = []
        common: list[tuple[str, str]] = []
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                (common if parameter.name in (*_COMMON, "help") else own).append(record)
        for title, records in (("Options", own), ("Options of every command", common)):
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Show the example as it is."""
        if self.example:
            with formatter.section("Example"):
                for line in self.example.strip().splitlines():
                    formatter.write(f"{'':>{formatter.current_indent}}{line.strip()}\n")


def _common_options() -> list[click.Option]:
    return [
        click.Option(
            ["--recipe", "-r"],
            envvar="SKYSIFT_RECIPE",
            metavar="FILE|NAME",
            help="Recipe file, or the name of one that comes with Skysift.",
        ),
        click.Option(
            ["--set", "-s", "set_"],
            multiple=True,
            metavar="KEY=VALUE",
            help="Override a recipe key, for example grid.tile_px=96 (a YAML value).",
        ),
        click.Option(["--json", "json_"], is_flag=True, help="Write the result as JSON on stdout."),
        click.Option(["--verbose", "-v"], is_flag=True, help="Log progress notes on stderr."),
        click.Option(["--debug"], is_flag=True, help="Log everything; show tracebacks."),
    ]


pass_run = click.make_pass_decorator(Run)


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
        ctx.meta.setdefault(_OVERRIDES, {})[key] = (flag.split()[-1].partition("/")[0], given)

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


def option_group(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Return a decorator that adds options in their order."""

    def add(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return add


class Area(click.ParamType[str]):
    """WKT, GeoJSON, or the name of a file of an area; becomes text."""

    name = "area"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Read the text of an option, or its file."""
        text = str(value).strip()
        option = param.opts[0] if param else "area"
        return polygon_wkt(Path(text), option) if is_area_file(text) else text


# Which scenes are meant.
_QUERY = "catalog.query"
catalog_options = option_group(
    recipe_option("--scenes", "catalog.source"),
    recipe_option("--scenes-preset", "catalog.preset"),
    recipe_option("--since", f"{_QUERY}.since"),
    recipe_option("--until", f"{_QUERY}.until"),
    recipe_option("--bbox", f"{_QUERY}.bbox", "Box that a scene must touch, in WGS84 degrees."),
    recipe_option("--polygon", f"{_QUERY}.polygon", _AREA, type=Area(), metavar="AREA"),
    recipe_option("--max-cloud", f"{_QUERY}.max_cloud_cover_percent"),
)
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
