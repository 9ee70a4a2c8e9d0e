"""`skysift watch`: keep an archive and its index up to date with a source."""

import datetime as dt
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from workflows.commands.common import Run, Verb, pass_run
from workflows.commands.options import Duration, catalog_options, events_option, recipe_option
from workflows.console import format_pairs, plain_value
from workflows.exit_codes import EXIT_QUARANTINED, one_line

if TYPE_CHECKING:
    from storage.errors import SkysiftError
    from workflows.watch import PollReport, WatchJob


@click.command(
    "watch",
    cls=Verb,
    example="""
    skysift watch -r naip-series --interval 1h
    skysift watch -r naip-series --once
    skysift watch --scenes incoming --encoder work/bundle --archive work/archive""",
)
@catalog_options
@recipe_option("--encoder", "encoder.bundle")
@recipe_option("--archive", "archive.uri")
@recipe_option("--index", "index.uri")
@click.option(
    "--interval",
    type=Duration(),
    default="15m",
    show_default=True,
    metavar="SPAN",
    help="From the beginning of one poll to that of the next.",
)
@events_option
@click.option("--once", is_flag=True, help="Poll once and stop, as for cron.")
@pass_run
@click.pass_context
def watch(
    ctx: click.Context, run: Run, interval: dt.timedelta, events: Path | None, once: bool
) -> None:
    """Embed what is new in a source, update the index, and do so again and again.

    Stopped in any way, the same command goes on where it was. One instance at a time works on an
    archive; a second one fails at once. Without --once, a source that is out of reach is reported
    and polled again, and --json writes one line a poll. With it, scenes that were set aside give
    exit code 3. A source that holds nothing yet, or nothing for the query, is no failure; one that
    held scenes and is empty now is.
    """
    from storage.progress import event_log
    from workflows.watch import poll, sole_watcher
    from workflows.watch import watch as keep_watching

    job = _job(run)
    with event_log(events) as log, run.progress() as progress:
        if not once:
            keep_watching(
                job,
                interval.total_seconds(),
                report=lambda outcome: _tell(run, outcome),
                session=run.ray,
                options=run.storage,
                progress=progress,
                events=log,
            )
        with sole_watcher(job.ingest.archive_uri):
            done = poll(job, session=run.ray, options=run.storage, progress=progress, events=log)
    run.show(done, _lines(done))
    if done.quarantined:
        ctx.exit(EXIT_QUARANTINED)


def _job(run: Run) -> "WatchJob":
    from encoders.spec import read_bundle
    from pipeline.runtime.cluster import joins_cluster
    from workflows.watch import WatchJob

    bundle = run.need_path("encoder.bundle", "--encoder")
    return WatchJob(
        ingest=run.ingest_spec(read_bundle(bundle, run.storage).spec.tile_px),
        index_uri=str(index) if (index := run.recipe.index.uri) else None,
        index=run.index_spec(),
        on_cluster=joins_cluster(run.recipe.cluster.address),
    )


def _tell(run: Run, outcome: "PollReport | SkysiftError") -> None:
    """Write what a poll did at once; without --json, only when there is something to say."""
    from workflows.watch import PollReport

    if run.as_json:
        failed = {"error": one_line(str(outcome))}
        document = outcome if isinstance(outcome, PollReport) else failed
        click.echo(json.dumps(plain_value(document)))
    elif isinstance(outcome, PollReport) and outcome.changed:
        click.echo("\n".join([*_lines(outcome), ""]))


def _lines(done: "PollReport") -> list[str]:
    states = [one.state for one in done.arrivals]
    facts = {
        "polled (UTC)": f"{done.started_at:%Y-%m-%d %H:%M:%S}",
        **({"source": done.nothing} if done.nothing else {}),
        "scenes new or changed": len(done.arrivals),
        **{
            f"  {one.scene_id}": one.reason
            or f"{one.rows:,} tiles{', replaces an older version' if one.replaced else ''}"
            for one in done.arrivals
        },
        "quarantined": states.count("quarantined"),
        "scenes known": done.scenes_known,
        "snapshot": done.snapshot,
        "index version": done.index_version,
        "seconds": round(done.seconds, 1),
    }
    return format_pairs(facts)
