"""`skysift report`: an archive and its searches as one HTML page."""

import click

from storage.location import Location
from workflows.commands.common import Run, Verb, catalog_options, pass_run, recipe_option


@click.command("report", cls=Verb, example="skysift report -r naip-series --out report.html")
@recipe_option("--index", "index.uri")
@catalog_options
@recipe_option("--training", "training.output")
@click.option(
    "--out", default="report.html", show_default=True, metavar="URI", help="Page to write."
)
@click.option("--queries", default=6, show_default=True, help="Number of query tiles.")
@click.option("--seed", default=0, show_default=True, help="Seed that draws the query tiles.")
@pass_run
def report(run: Run, out: str, queries: int, seed: int) -> None:
    """Draw the content of an archive and hits of its index as one self-contained HTML page."""
    from pipeline.search.searcher import Searcher
    from workflows.report.archive import ReportSpec, archive_report
    from workflows.report.by_place import tile_renderer
    from workflows.report.html import write_report

    searcher = Searcher.local(run.need_path("index.uri"))
    archive, manifest = searcher.archive, searcher.manifest
    output = run.recipe.training.output
    training = Location.of(output) if output else None
    if training and not (training / "history.csv").exists():
        training = None
    data = archive_report(
        searcher,
        tile_renderer(archive, run.pictured_scenes(archive)),
        ReportSpec(
            title=run.recipe.name or "Skysift",
            summary=run.recipe.description or f"The archive at {manifest.archive_uri}.",
            queries=queries,
            seed=seed,
        ),
        training_uri=training,
    )
    write_report(data, run.location(out))
    run.show({"report": out, "rows": manifest.rows, "queries": len(data.answers)})
