"""The common part of all verbs: a recipe with its overrides, ``--json``, progress, Ray, exit codes.

A verb's function gets a :class:`Run`.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from storage.values import printable
from workflows.console import (
    ProgressView,
    configure_logging,
    format_pairs,
    silence_ray,
    suppress_stderr,
    write_json,
)
from workflows.exit_codes import Interrupted

if TYPE_CHECKING:
    from pipeline.indexing.spec import IndexSpec
    from pipeline.ingest.spec import IngestSpec
    from storage.location import Location
    from storage.scene import CatalogSpec
    from workflows.recipe.load import LoadedRecipe
    from workflows.recipe.schema import Recipe


OVERRIDES = "skysift.overrides"
_COMMON = ("recipe", "set_", "json_", "verbose", "debug")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of a verb: its settings, and the ways to show progress and results.

    ``stdout`` is for results only.
    """

    name: str | None
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
        return load_recipe(self.name, [*map(Override.parse, self.sets), *options])

    @property
    def recipe(self) -> "Recipe":
        """The effective recipe."""
        return self.settings.recipe

    def location(self, uri: str) -> "Location":
        """Return a place that the options of the recipe reach."""
        from storage.location import Location

        return Location(uri, self.recipe.storage)

    def need(self, key: str) -> Any:
        """Return a value of the recipe that this verb cannot do without.

        Raises
        ------
        ConfigError
            Neither the recipe nor the command line gives the value.
        """
        from storage.errors import ConfigError

        value, source = attrgetter(key)(self.recipe), self.settings.source
        if value is None:
            option, _ = self.overrides.get(key, ("", None))
            raise ConfigError(
                f"{key} is not given{f' in {source}' if source else ''}: "
                f"use {f'{option}, ' if option else ''}--set {key}=..., or a recipe that has it"
            )
        return value

    def need_path(self, key: str) -> "Location":
        """Return a place that this verb reads.

        Raises
        ------
        ConfigError
            The place is not given, or is a local path that does not exist.
        """
        from storage.errors import ConfigError
        from workflows.recipe.errors import missing_path

        uri = str(self.need(key))
        if "://" not in uri and not (fixed := _before_pattern(uri)).exists():
            raise ConfigError(f"{self.settings.where(key)}: {key}: {missing_path(fixed)}")
        return self.location(uri)

    def catalog_spec(self) -> "CatalogSpec":
        """Return the source of scenes.

        Raises
        ------
        ConfigError
            No source is given, or a local source does not exist.
        """
        from storage.scene import CatalogSpec
        from workflows.recipe.sections import spec_from

        source = self.need_path("catalog.source")
        return spec_from(CatalogSpec, self.recipe.catalog, source=source)

    def ingest_spec(self) -> "IngestSpec":
        """Return the scenes, encoder, archive and settings of an ingest."""
        from pipeline.ingest.spec import IngestSpec
        from workflows.recipe.sections import spec_from

        return spec_from(
            IngestSpec,
            self.recipe.ingest,
            catalog=self.catalog_spec(),
            encoder_uri=self.need_path("encoder.bundle"),
            archive_uri=self.need("archive.uri"),
            grid=self.recipe.grid,
            rules=self.recipe.tiles,
        )

    def index_spec(self) -> "IndexSpec":
        """Return the settings of an index."""
        from pipeline.indexing.spec import IndexSpec
        from workflows.recipe.sections import spec_from

        return spec_from(IndexSpec, self.recipe.index)

    def progress(self) -> ProgressView:
        """Return a progress sink, to be used as a context manager."""
        return ProgressView()

    @contextmanager
    def ray(self, needed: bool = True) -> Iterator[None]:
        """Be connected to Ray inside the block."""
        from pipeline.runtime.cluster import ray_session

        section = self.recipe.cluster
        with ExitStack() as stack:
            self.silence_ray()
            if needed:
                with nullcontext() if self.debug else suppress_stderr():
                    stack.enter_context(ray_session(section.address, section.cpus))
            yield

    def silence_ray(self) -> None:
        """Keep Ray's own notes off stderr, unless ``--debug`` is given."""
        if not self.debug:
            silence_ray()

    def show(self, data: Any, lines: Sequence[str] | Mapping[str, Any] | None = None) -> None:
        """Write the result to stdout: as JSON with ``--json``, else as lines for people."""
        if self.as_json:
            write_json(data, self.stdout)
            return
        shown = data if lines is None else lines
        text = format_pairs(shown) if isinstance(shown, Mapping) else shown
        self.stdout.writelines(f"{printable(line)}\n" for line in text)


def _before_pattern(path: str) -> Path:
    """Return the folder in which a pattern begins; a path without one as it is."""
    parts = Path(path).parts
    marked = (n for n, part in enumerate(parts) if any(mark in part for mark in "*?["))
    return Path(*parts[: next(marked, len(parts))])


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
        overrides = ctx.meta.get(OVERRIDES, {})
        ctx.obj = Run(name=recipe, sets=sets, overrides=overrides, as_json=as_json, debug=debug)
        # Libraries print on stdout too (Ray its warnings); stdout is for results only.
        try:
            with redirect_stdout(sys.stderr):
                return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Interrupted from error

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verb's own options before those that every verb has."""
        own: list[tuple[str, str]] = []
        common: list[tuple[str, str]] = []
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
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
