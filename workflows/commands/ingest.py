"""`skysift ingest`: scenes into an archive."""

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.ingest.spec import IngestPlan, IngestSpec
from pipeline.runtime.cluster import joins_cluster
from storage.location import Location
from storage.progress import event_log
from workflows.commands.common import (
    Run,
    Verb,
    catalog_options,
    events_option,
    pass_run,
    reason_lines,
    recipe_option,
)
from workflows.console import ProgressView
from workflows.exit_codes import EXIT_QUARANTINED

if TYPE_CHECKING:
    from pipeline.ingest.cost import IngestCost


@click.command(
    "ingest",
    cls=Verb,
    example="""
    skysift ingest -r naip-series --dry-run
    skysift ingest --scenes 's3://bucket/*.tif' --encoder work/bundle --archive work/archive""",
)
@catalog_options
@recipe_option("--encoder", "encoder.bundle")
@recipe_option("--archive", "archive.uri")
@recipe_option("--labels", "ingest.labels_uri")
@recipe_option("--retry-quarantined", "ingest.retry_quarantined")
@events_option
@click.option("--dry-run", is_flag=True, help="Print the plan and its costs, and stop.")
@pass_run
@click.pass_context
def ingest(ctx: click.Context, run: Run, events: Path | None, dry_run: bool) -> None:
    """Tile and embed scenes into an archive, exactly once.

    Scenes that the archive has are skipped, so the same command continues a stopped run and adds
    new scenes. A scene that cannot be read is set aside with its reason (exit code 3).
    """
    from pipeline.ingest.cost import SAMPLE_SCENES
    from pipeline.ingest.driver import ingest as carry_out

    spec = run.ingest_spec()
    if dry_run:
        plan, cost = _planned(run, spec)
        run.show({**plan.summary(), **cost.summary()}, _plan_lines(plan, cost))
        cost.require_room()
        return
    with event_log(events) as log, ThreadPoolExecutor(1) as pool:
        planning = pool.submit(_planned, run, spec, SAMPLE_SCENES)
        local = _fits_locally(run, spec, planning)
        with nullcontext() if local else run.ray():  # starts while the thread plans
            plan, cost = planning.result()
            cost.require_room()
            if not local:
                run.silence_ray()  # again: the plan imported more of it
            with ProgressView() as progress:
                report = carry_out(plan, local=local, progress=progress, events=log)
    lines = {
        "archive": str(spec.archive_uri),
        "snapshot": report.snapshot,
        "scenes embedded": report.embedded,
        "scenes empty": report.empty,
        "scenes done before": report.done_before,
        **reason_lines("scenes quarantined", report.quarantined, "skysift archive info --scenes"),
        "tiles": report.rows,
        "seconds": round(report.seconds, 1),
    }
    run.show({"archive": spec.archive_uri, "report": report}, lines)
    if report.quarantined:
        ctx.exit(EXIT_QUARANTINED)


def _planned(
    run: Run, spec: IngestSpec, sample_scenes: int | None = None
) -> "tuple[IngestPlan, IngestCost]":
    from pipeline.ingest.cost import estimate_cost
    from pipeline.ingest.driver import plan_ingest

    plan = plan_ingest(spec)
    with ProgressView() as progress:
        cost = estimate_cost(
            plan,
            sample_scenes=sample_scenes,
            cpus=run.recipe.cluster.cpus,
            on_cluster=joins_cluster(run.recipe.cluster.address),
            progress=progress,
        )
    return plan, cost


def _fits_locally(
    run: Run, spec: IngestSpec, planning: "Future[tuple[IngestPlan, IngestCost]]"
) -> bool:
    """Tell whether a run is so small that it does without Ray; waits for local plans only."""
    from pipeline.ingest.driver import LOCAL_TILES

    source = Location.of(spec.catalog.source)
    if not source.is_local or joins_cluster(run.recipe.cluster.address):
        return False
    _, cost = planning.result()
    return cost.tiles <= LOCAL_TILES


def _plan_lines(plan: IngestPlan, cost: "IngestCost") -> dict[str, Any]:
    """Return plan and costs for people: sizes in GB, and why scenes are left out."""
    machine = cost.machine_bytes
    of_machine = "" if machine is None else f" of {machine / 1e9:,.1f} GB"
    free = "" if cost.free_bytes is None else f" of {cost.free_bytes / 1e9:,.2f} GB free"
    size = plan.grid.resolution
    pixel = "native resolution" if size == "native" else f"{size:g} CRS units a pixel"
    return {
        "archive": str(plan.spec.archive_uri),
        "encoder": plan.archive.encoder_fingerprint[:16],
        "bands": ", ".join(plan.archive.bands),
        "tiles of": f"{plan.archive.tile_px} px",
        "grid": f"crs {plan.grid.crs}, {pixel}",
        "scenes to embed": len(plan.todo),
        "scenes embedded again": len(plan.reprocessed),
        "scenes done before": plan.done,
        **reason_lines("scenes rejected", {item.scene_id: item.reason for item in plan.rejected}),
        **reason_lines("scenes unreadable", cost.unreadable),
        "tiles at most": f"{cost.tiles:,}",
        "to read": f"{cost.read_bytes / 1e9:,.3f} GB",
        "archive grows by": f"{cost.archive_bytes / 1e9:,.3f} GB at most{free}",
        "memory": f"about {cost.memory_bytes / 1e9:,.1f} GB{of_machine}",
    }
