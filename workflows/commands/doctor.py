"""`skysift doctor`: whether this machine, and what a recipe names, can run Skysift."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from storage.errors import ConfigError
from storage.location import Location
from workflows.commands.common import Run, Verb, pass_run
from workflows.exit_codes import EXIT_FAILED
from workflows.two_parts import training_spec

if TYPE_CHECKING:
    from workflows.doctor.cluster import Cluster
    from workflows.doctor.findings import Finding, Probe

_PLACES = (
    *("catalog.source", "dataset.source", "dataset.landcover.href", "dataset.marks", "dataset.uri"),
    *("training.output", "encoder.bundle", "archive.uri", "index.uri"),
)
_SIGNS = {"ok": "ok    ", "note": "note  ", "broken": "BROKEN"}


@click.command(
    "doctor",
    cls=Verb,
    example="""
    skysift doctor
    skysift doctor -r world.yaml --json
    skysift doctor --no-ray --gpus 1""",
)
@click.option("--no-ray", is_flag=True, help="Do not start or join Ray.")
@click.option(
    "--gpus",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="GPUs that this machine has to have.",
)
@click.pass_context
@pass_run
def doctor(run: Run, ctx: click.Context, /, no_ray: bool, gpus: int) -> None:
    """Check this machine and what a recipe names; say what to repair, and how.

    This machine: versions, GDAL, FAISS, GPU, disks, memory. A recipe: its cluster (address,
    token, each node's releases, GPUs, disk and clock), its dashboard, its object store (endpoint,
    clock, credentials, buckets), its folders, its index (recall), its training and its service
    (port, tokens).

    Changes nothing. The checks run side by side, each within seconds. Exits with 1 when something
    is broken.
    """
    from workflows.doctor.findings import run_probes

    findings = run_probes(list(_probes(run, no_ray, gpus)))
    broken = sum(finding.verdict == "broken" for finding in findings)
    summary = f"{broken} broken" if broken else "nothing is broken"
    lines = [line for finding in findings for line in _lines(finding)]
    run.show({"broken": broken, "findings": findings}, [*lines, summary])
    if broken:
        ctx.exit(EXIT_FAILED)


def _lines(finding: "Finding") -> Iterator[str]:
    yield f"{_SIGNS[finding.verdict]}  {finding.what}: {finding.found}"
    if finding.advice:
        yield f"        -> {finding.advice}"


def _probes(run: Run, no_ray: bool, gpus: int) -> Iterator["Probe"]:
    from workflows.doctor.cluster import cluster_probes
    from workflows.doctor.index import index_probe
    from workflows.doctor.machine import disk_probe, machine_probes
    from workflows.doctor.places import place_probes

    places = dict(_places(run))
    yield from machine_probes(gpus)
    yield disk_probe(list(_folders(places)))
    yield from place_probes(places)
    if run.recipe.index.uri is not None:
        yield index_probe(Location.of(run.recipe.index.uri))
        yield from _of_service(run)
    if not no_ray:
        yield from cluster_probes(_cluster(run))


def _places(run: Run) -> Iterator[tuple[str, Location]]:
    """Yield the files that the recipe names; the address of a STAC API is not a file."""
    for key in _PLACES:
        place = attrgetter(key)(run.recipe)
        if place is not None and not place.is_web and "*" not in place.uri:
            yield key, place


def _folders(places: dict[str, Location]) -> Iterator[tuple[str, Path]]:
    """Yield what each folder is for, and the folder: Ray's, the temporary one, those of places."""
    from pipeline.runtime.cluster import private_root
    from workflows.doctor.machine import RAY_FILES
    from workflows.doctor.places import INPUTS

    with suppress(ConfigError):  # of SKYSIFT_RAY_DIR; the probe of Ray names it
        yield RAY_FILES, private_root()
    yield "temporary files", Path(tempfile.gettempdir())
    for key, place in places.items():
        if place.is_local and key not in INPUTS:
            yield key, place.path


def _of_service(run: Run) -> "list[Probe]":
    from workflows.doctor.findings import Finding, Probe
    from workflows.doctor.service import service_probes
    from workflows.service.settings import from_recipe

    others = [f"{name}={uri}" for name, uri in run.recipe.service.indexes.items()]
    try:  # named one by one, an index need not exist yet
        configs, spec = from_recipe(run, [str(run.recipe.index.uri), *others])
    except ConfigError as error:
        finding = Finding("service", "broken", str(error), "correct the recipe's service section")
        return [Probe("service", lambda: [finding])]
    return service_probes(spec, list(configs), _states(run, "service"))


def _states(run: Run, *key: str) -> bool:
    """Whether the recipe, or an option, states a key or one below it."""
    return any(path[: len(key)] == key for path in run.settings.origins)


def _cluster(run: Run) -> "Cluster":
    from workflows.doctor.cluster import Cluster

    section, training = run.recipe.cluster, run.recipe.training
    address = section.address or os.environ.get("RAY_ADDRESS")
    stated = _states(run, "cluster", "dashboard")
    return Cluster(
        address=address,
        cpus=section.cpus,
        dashboard=section.dashboard if stated else None,
        training=training_spec(training) if training.output is not None else None,
    )
