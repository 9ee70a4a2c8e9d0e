"""`skysift archive import`: published embeddings into an archive."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from storage.embeddings.layouts import LAYOUT_NAMES, Choice, parse_columns
from storage.progress import event_log
from workflows.commands.archive_options import archive_option
from workflows.commands.common import Run, Verb, events_option, pass_run, reason_lines
from workflows.console import ProgressView
from workflows.exit_codes import EXIT_QUARANTINED

if TYPE_CHECKING:
    from pipeline.importing.spec import ImportPlan, ImportReport, ImportSpec


@click.command(
    "import",
    cls=Verb,
    example="""
    skysift archive import 'clay/*.gpq' --archive work/clay --dry-run
    skysift archive import s3://bucket/embeddings --archive work/clay
    skysift archive import rows.parquet --archive work/own --model own --columns \\
    vector=emb,geometry=geom,date=day""",
)
@click.argument("source", metavar="SOURCE")
@archive_option
@click.option(
    "--layout",
    type=click.Choice(LAYOUT_NAMES),
    metavar="NAME",
    help=f"Layout of the source; recognised by default: {', '.join(LAYOUT_NAMES)}.",
)
@click.option(
    "--columns",
    default="",
    metavar="PART=COLUMN,...",
    help="Columns of a table: vector, geometry (or lon and lat), date, crs, cloud.",
)
@click.option("--model", default="", metavar="NAME", help="Model of the vectors.")
@click.option("--model-version", default="", metavar="TEXT", help="Version of the model.")
@click.option("--date", metavar="DATE", help="Date of all rows, where the source states none.")
@click.option("--crs", default="", metavar="CODE", help="CRS of the geometry, if declared wrongly.")
@click.option("--chip-m", type=float, metavar="METRES", help="Side of chips given by centres.")
@click.option(
    "--tile-px",
    type=int,
    default=32,
    show_default=True,
    metavar="N",
    help="Side of the tiles over which pixel embeddings are averaged.",
)
@click.option(
    "--bbox",
    type=float,
    nargs=4,
    metavar="W S E N",
    help="Only the blocks of a raster that touch this box, in WGS84 degrees.",
)
@click.option(
    "--centre/--no-centre",
    default=True,
    show_default=True,
    help="Subtract the mean vector of the source before vectors are scaled to unit norm.",
)
@click.option("--retry-quarantined", is_flag=True, help="Read quarantined files again.")
@events_option
@click.option("--dry-run", is_flag=True, help="Print the plan, and stop.")
@pass_run
@click.pass_context
def import_(
    ctx: click.Context, run: Run, /, source: str, events: Path | None, dry_run: bool, **options: Any
) -> None:
    """Make an archive of published embeddings, exactly once; no encoder and no pixel is needed.

    SOURCE is a file, folder or glob of GeoParquet or GeoTIFF, or a Zarr group. Files that the
    archive has are skipped, so the same command continues a stopped run and adds new files. Files
    and rows that cannot be used are set aside with their reasons (exit code 3).
    """
    from pipeline.importing.driver import import_embeddings
    from pipeline.importing.plan import plan_import

    plan = plan_import(_spec(run, source, options))
    if dry_run:
        run.show(plan.summary(), _plan_lines(plan))
        return
    with event_log(events) as log, ProgressView() as progress:
        report = import_embeddings(plan, progress=progress, events=log)
    run.show({"archive": str(plan.spec.archive_uri), "report": report}, _lines(plan, report))
    if report.quarantined or report.left_out:
        ctx.exit(EXIT_QUARANTINED)


def _spec(run: Run, source: str, options: dict[str, Any]) -> "ImportSpec":
    from pipeline.importing.spec import ImportSpec

    columns = options["columns"]
    return ImportSpec(
        source=run.location(source),
        archive_uri=run.need("archive.uri"),
        choice=Choice(
            columns=parse_columns(columns) if columns else None,
            layout=options["layout"] or "",
            **{name: options[name] for name in ("date", "crs", "chip_m")},
        ),
        version=options["model_version"],
        **{
            name: options[name]
            for name in ("model", "centre", "tile_px", "bbox", "retry_quarantined")
        },
    )


def _plan_lines(plan: "ImportPlan") -> dict[str, Any]:
    summary = plan.summary()
    centre = f"from {plan.sampled_rows:,} rows" if plan.sampled_rows else "of the archive"
    return {
        "archive": summary["archive"],
        "model": f"{plan.model.title}, {plan.model.dimension} numbers",
        "layout": plan.layout,
        **{f"  {part}": f"column {column}" for part, column in plan.columns.items()},
        "quantization": plan.model.quantization,
        "mean subtracted": centre if plan.model.centre else "none",
        "parts to import": len(plan.todo),
        "parts done before": plan.done,
        **reason_lines("files rejected", summary["parts_rejected"]),
        "rows at most": f"{plan.rows:,}",
        "archive grows by": f"{summary['archive_bytes'] / 1e9:,.3f} GB at most",
    }


def _lines(plan: "ImportPlan", report: "ImportReport") -> dict[str, Any]:
    lines = {
        "archive": str(plan.spec.archive_uri),
        "snapshot": report.snapshot,
        "scenes imported": report.imported,
        "scenes empty": report.empty,
        "parts done before": report.done_before,
        **reason_lines("scenes quarantined", report.quarantined, "skysift archive info --scenes"),
        "rows": f"{report.rows:,}",
        "rows left out": sum(report.left_out.values()),
        **{f"  {reason}": count for reason, count in report.left_out.items()},
        "seconds": round(report.seconds, 1),
    }
    if report.left_out:
        lines["next"] = "`skysift archive info --scenes --json` names rows that were left out"
    return lines
