"""`skysift composite`: cloud-free composites of a series, as scenes."""

from typing import TYPE_CHECKING, Any

import click

from workflows.commands.common import CommaList, Run, Verb, catalog_options, pass_run, recipe_option
from workflows.exit_codes import EXIT_QUARANTINED

if TYPE_CHECKING:
    from pipeline.composite.plan import CompositePlan, CompositeReport


@click.command(
    "composite",
    cls=Verb,
    example="""
    skysift composite --scenes items.json --bands red,green,blue --period season --out work/seasons
    skysift composite -r series.yaml --crs EPSG:32648 --resolution 10 --dry-run
    skysift ingest --scenes work/seasons --encoder work/bundle --archive work/archive""",
)
@catalog_options
@recipe_option("--bands", "composite.bands", type=CommaList(str), multiple=False, metavar="A,B,...")
@recipe_option("--period", "composite.period")
@recipe_option("--crs", "grid.crs")
@recipe_option("--resolution", "grid.resolution")
@recipe_option("--name", "composite.name")
@recipe_option("--out", "composite.output_uri")
@click.option("--dry-run", is_flag=True, help="Print the plan, and stop.")
@pass_run
@click.pass_context
def composite(ctx: click.Context, run: Run, dry_run: bool) -> None:
    """Make the median of the clear pixels of each month, season or year.

    Each composite is a Cloud Optimized GeoTIFF with a STAC item that names its period and its
    sources; `skysift ingest` takes the folder as a catalog. The recipe's `catalog.mask` defines
    clouds. Scenes of several CRS or pixel sizes make composites on each grid, or on that of --crs
    and --resolution. With --bbox, composites end at the box. The same command makes only composites
    that are new or have other sources. Exit code 3 when something could not be read.
    """
    if dry_run:
        plan = run.plan_composites()
        run.show(plan.summary(), _plan_lines(plan))
        return
    report = run.make_composites()
    run.show(report, _report_lines(report))
    if report.failed or report.left_out:
        ctx.exit(EXIT_QUARANTINED)


def _plan_lines(plan: "CompositePlan") -> dict[str, Any]:
    pixels = plan.summary()["pixels"]
    return {
        "folder": str(plan.spec.output_uri),
        "grids": "; ".join(f"{grid.crs}, {grid.resolution:g} per pixel" for grid in plan.grids),
        "composites to make": len(plan.todo),
        **{f"  {item.id}": f"of {len(item.placed)} scenes" for item in plan.todo},
        "composites unchanged": len(plan.unchanged),
        "to write": f"{pixels * len(plan.spec.bands) * 4 / 1e9:,.3f} GB at most",
        "scenes without cloud mask": plan.unmasked,
        "scenes left out": len(plan.left_out),
        **{f"  {scene}": reason for scene, reason in plan.left_out.items()},
    }


def _report_lines(report: "CompositeReport") -> dict[str, Any]:
    return {
        "folder": report.output,
        "composites made": len(report.made),
        "composites unchanged": len(report.unchanged),
        "composites failed": len(report.failed),
        **{f"  {name}": reason for name, reason in report.failed.items()},
        "scenes left out": len(report.left_out),
        **{f"  {scene}": reason for scene, reason in report.left_out.items()},
    }
