"""`skysift watch`: keep an archive and its index up to date with a source."""

import datetime as dt
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.runtime.cluster import joins_cluster
from storage.errors import SkysiftError
from storage.location import Location
from storage.progress import event_log
from workflows.commands.common import (
    Duration,
    Run,
    Verb,
    catalog_options,
    events_option,
    pass_run,
    recipe_option,
)
from workflows.console import ProgressView, format_pairs, plain_value
from workflows.exit_codes import EXIT_DELIVERED, EXIT_QUARANTINED, one_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.importing.spec import ImportSpec
    from pipeline.search.standing import StandingQuery
    from workflows.watch import PollReport, WatchJob

_OF_SCENES = {"--scenes", "--scenes-preset", "--encoder"}
_OF_SCENES |= {"--since", "--until", "--polygon", "--max-cloud"}
"""Options that say nothing about published embeddings."""


@click.command(
    "watch",
    cls=Verb,
    example="""
    skysift watch -r naip-series --interval 1h
    skysift watch -r naip-series --once
    skysift watch --scenes incoming --encoder work/bundle --archive work/archive
    skysift watch --embeddings clay --archive work/clay --index work/clay-index --once
    skysift watch -r naip-series --once --saved searches/lake.json --deliver work/hits.jsonl""",
)
@catalog_options
@recipe_option("--encoder", "encoder.bundle")
@click.option("--embeddings", metavar="SOURCE",
              help="Follow published embeddings, as for `skysift archive import`.")  # fmt: skip
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
@click.option("--saved", multiple=True, metavar="FILE",
              help="Report hits of this saved search in new scenes; again for more.")  # fmt: skip
@click.option("--deliver", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Append the events of --saved to a file, one JSON object a line.")  # fmt: skip
@click.option("--webhook", metavar="URL", help="POST the events of --saved to this address.")
@click.option("--webhook-host", multiple=True, metavar="HOST",
              help="Host of --webhook that may be private; again for more.")  # fmt: skip
@click.option("--once", is_flag=True, help="Poll once and stop, as for cron.")
@pass_run
@click.pass_context
def watch(
    ctx: click.Context,
    run: Run,
    /,
    interval: dt.timedelta,
    events: Path | None,
    once: bool,
    embeddings: str | None,
    **standing: Any,
) -> None:
    """Embed the new scenes of a source, update the index, and do so again and again.

    With --embeddings, new and changed files of published embeddings are imported instead, as the
    first import of the archive was.

    After any stop, the same command continues. One instance at a time works on an archive; a
    second instance fails at once. Without --once, an unreachable source is reported and polled
    again, and --json writes one line a poll. With --once, quarantined scenes give exit code 3. A
    source without scenes, or without scenes for the query, is not a failure; a source that held
    scenes and is empty now is a failure.

    Each --saved search with a least score is a standing query: hits in scenes that come after the
    first poll are reported once, an event for each scene. With --once, exit code 4 says that there
    were events. SKYSIFT_WEBHOOK_SECRET in the environment signs the events of --webhook.
    """
    from workflows.watch import Watcher

    job = _job(run, embeddings, standing)
    with event_log(events) as log, ProgressView() as progress:
        watcher = Watcher(job, session=run.ray, progress=progress, events=log)
        if not once:
            watcher.watch(interval.total_seconds(), report=lambda outcome: _write(run, outcome))
        report = watcher.once()
    run.show(report, _lines(report))
    if report.delivered or report.quarantined:
        ctx.exit(EXIT_DELIVERED if report.delivered else EXIT_QUARANTINED)


def _job(run: Run, embeddings: str | None, options: dict[str, Any]) -> "WatchJob":
    from workflows.watch import WatchJob

    return WatchJob(
        ingest=run.ingest_spec() if embeddings is None else _import_spec(run, embeddings),
        index_uri=run.recipe.index.uri,
        index=run.index_spec(),
        on_cluster=joins_cluster(run.recipe.cluster.address),
        standing=tuple(_standing(run, **options)),
    )


def _import_spec(run: Run, source: str) -> "ImportSpec":
    """Return the import of a source; the archive remembers how its first import read it."""
    from pipeline.importing.spec import ImportSpec

    given = [option for option, value in run.overrides.values() if value is not None]
    if wrong := [option for option in given if option in _OF_SCENES]:
        raise click.UsageError(f"--embeddings is a source of its own; leave out {', '.join(wrong)}")
    return ImportSpec(
        source=run.location(source),
        archive_uri=run.need("archive.uri"),
        bbox=run.recipe.catalog.query.bbox,
    )


def _standing(
    run: Run,
    saved: tuple[str, ...],
    deliver: Path | None,
    webhook: str | None,
    webhook_host: tuple[str, ...],
) -> "Iterator[StandingQuery]":
    """Yield the standing queries; their states are beside the index."""
    from pipeline.search.saved import load_search
    from pipeline.search.standing import StandingQuery
    from storage.webhook import Webhook

    if not saved:
        if deliver or webhook:
            raise click.UsageError("--deliver and --webhook need a search; name it with --saved")
        return
    secret = os.environ.get("SKYSIFT_WEBHOOK_SECRET", "")
    receiver = Webhook(webhook, secret, webhook_host) if webhook else None
    index = Location.of(run.need("index.uri"))
    folder = index.at(f"{index.uri.rstrip('/')}.standing")
    for name in saved:
        yield StandingQuery(load_search(run.location(name)), folder, deliver, receiver)


def _write(run: Run, outcome: "PollReport | SkysiftError") -> None:
    """Write the report of a poll at once; without --json, only when something changed."""
    from workflows.watch import PollReport

    if run.as_json:
        failed = {"error": one_line(str(outcome))}
        document = outcome if isinstance(outcome, PollReport) else failed
        click.echo(json.dumps(plain_value(document)), file=run.stdout)
    elif isinstance(outcome, PollReport) and outcome.changed:
        run.show(None, [*_lines(outcome), ""])


def _lines(report: "PollReport") -> list[str]:
    facts = {
        "polled (UTC)": f"{report.started_at:%Y-%m-%d %H:%M:%S}",
        **({"source": report.nothing} if report.nothing else {}),
        "scenes new or changed": len(report.arrivals),
        **{
            f"  {scene.scene_id}": scene.reason
            or f"{scene.rows:,} tiles{', replaces an older version' if scene.replaced else ''}"
            for scene in report.arrivals
        },
        "quarantined": len(report.quarantined),
        **({"events delivered": len(report.delivered)} if report.delivered else {}),
        **{
            f"  {event['search']}, {event['scene']}": f"{len(event['hits']):,} hits"
            for event in report.delivered
        },
        "scenes known": report.scenes_known,
        "snapshot": report.snapshot,
        "index version": report.index_version,
        "seconds": round(report.seconds, 1),
    }
    return format_pairs(facts)
