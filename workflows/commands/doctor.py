"""`skysift doctor`: whether this machine can run Skysift."""

from collections.abc import Iterator
from operator import attrgetter

import click

from storage.location import Location
from workflows.commands.common import Run, Verb, pass_run
from workflows.exit_codes import EXIT_FAILED

_PLACES = ("catalog.source", "encoder.bundle", "archive.uri", "index.uri")


@click.command(
    "doctor",
    cls=Verb,
    example="""
    skysift doctor
    skysift doctor -r world.yaml --json""",
)
@click.option("--no-ray", is_flag=True, help="Do not start or join Ray.")
@click.pass_context
@pass_run
def doctor(run: Run, ctx: click.Context, /, no_ray: bool) -> None:
    """Check versions, GDAL, GPU, disk, Ray and the places of a recipe; say what to fix.

    Changes nothing. Exits with 1 when something is broken.
    """
    from workflows.doctor import Finding, machine_findings, place_finding, ray_finding

    findings = [*machine_findings(), *(place_finding(*place) for place in _places(run))]
    if not no_ray:
        findings.append(ray_finding(lambda: _join(run)))
    broken = [finding for finding in findings if finding.verdict == "broken"]

    def line(finding: Finding) -> str:
        sign = {"ok": "ok    ", "note": "note  ", "broken": "BROKEN"}[finding.verdict]
        advice = f"\n        -> {finding.advice}" if finding.advice else ""
        return f"{sign}  {finding.what}: {finding.found}{advice}"

    summary = f"{len(broken)} broken" if broken else "nothing is broken"
    run.show(
        {"broken": len(broken), "findings": findings},
        [*map(line, findings), summary],
    )
    if broken:
        ctx.exit(EXIT_FAILED)


def _places(run: Run) -> Iterator[tuple[str, Location]]:
    """Yield the files that the recipe names; the address of a STAC API is not a file."""
    for key in _PLACES:
        place = attrgetter(key)(run.recipe)
        if place is not None and not place.is_web and "*" not in place.uri:
            yield key, place


def _join(run: Run) -> None:
    with run.ray():
        pass
