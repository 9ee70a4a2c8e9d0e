"""`skysift index list|info|verify|rollback|gc`: care of the versions of an index."""

import datetime as dt

import click

from workflows.commands.common import Run, Verb, pass_run
from workflows.commands.index_stats import actors_of
from workflows.commands.options import Duration, recipe_option
from workflows.console import format_pairs, format_table
from workflows.exit_codes import EXIT_FAILED

INDEX = recipe_option("--index", "index.uri")


@click.command("list", cls=Verb, example="skysift index list --index work/index")
@INDEX
@pass_run
def list_(run: Run) -> None:
    """List the versions of an index, oldest first; * is the current one."""
    from pipeline.indexing.maintenance import index_versions

    found = index_versions(_uri(run), run.storage)
    head = ("", "version", "written (UTC)", "kind", "rows", "shards", "size", "recall@10", "drift")
    rows = [
        (
            "*" if one.current else "",
            one.version,
            f"{one.written:%Y-%m-%d %H:%M}",
            one.kind,
            one.rows,
            one.shards,
            size(one.size_bytes),
            one.recall,
            round(one.drift, 2),
        )
        for one in found
    ]
    run.show(found, format_table(head, rows, width=100))


@click.command("info", cls=Verb, example="skysift index info --index work/index")
@INDEX
@click.option("--version", metavar="VERSION", help="Version to look at; the current one.")
@pass_run
def info(run: Run, version: str | None) -> None:
    """Say how an index stands: memory, recall by lists probed, drift, and each shard."""
    from storage.index.manifest import read_manifest

    uri = _uri(run)
    manifest = read_manifest(uri, version, run.storage)
    facts = {
        "version": manifest.version,
        "rows": manifest.rows,
        "dead rows": sum(shard.dead_rows for shard in manifest.shards),
        "memory": size(manifest.measured_bytes),
        "memory allowed": size(budget) if (budget := manifest.spec["memory_bytes"]) else "any",
        "bytes per row": round(manifest.measured_bytes / manifest.rows, 1),
        "lists": f"{manifest.parameters.nlist}, {manifest.empty_lists} empty",
        "imbalance": f"{manifest.list_imbalance:.2f} ({manifest.trained_imbalance:.2f} when built)",
        "rows added since": manifest.grown_rows,
        "drift": round(manifest.drift, 2),
        "advice": manifest.advice or None,
    }
    probed = [(int(nprobe), value) for nprobe, value in manifest.recall.items()]
    shards = [
        (one.name, one.rows, one.dead_rows, size(one.memory_bytes), one.since[:10], one.until[:10])
        for one in manifest.shards
    ]
    lines = [
        *format_pairs(facts),
        "",
        *format_table(("lists probed", "recall@10"), sorted(probed)),
        "",
        *format_table(("shard", "rows", "dead", "memory", "since", "until"), shards),
    ]
    run.show({"index": uri, **manifest.to_dict()}, lines)


@click.command("verify", cls=Verb, example="skysift index verify --index work/index")
@INDEX
@click.option("--version", metavar="VERSION", help="Version to verify; the current one.")
@pass_run
@click.pass_context
def verify(ctx: click.Context, run: Run, version: str | None) -> None:
    """Compare every file of an index with its manifest (exit code 1 when one differs)."""
    from pipeline.indexing.maintenance import verify_index

    with run.progress() as progress:
        report = verify_index(_uri(run), version, options=run.storage, progress=progress)
    sound = f"version {report.version}: {report.files} files, {size(report.size_bytes)}: sound"
    run.show(report, report.problems or [sound])
    if not report.ok:
        ctx.exit(EXIT_FAILED)


@click.command("rollback", cls=Verb, example="skysift index rollback --index work/index")
@INDEX
@click.option("--to", metavar="VERSION", help="Version to make current; the one before.")
@pass_run
def rollback(run: Run, to: str | None) -> None:
    """Make another version current, once all of its files are verified.

    Searches that are running go on with the version they opened; new ones open this one.
    """
    from pipeline.indexing.maintenance import rollback_index

    with run.progress() as progress:
        manifest = rollback_index(_uri(run), to, options=run.storage, progress=progress)
    facts = {"current version": manifest.version, "rows": manifest.rows}
    run.show(facts | {"snapshot": manifest.snapshot})


@click.command(
    "gc",
    cls=Verb,
    example="""
    skysift index gc --index work/index --dry-run
    skysift index gc --index work/index --keep 3 --older-than 7d""",
)
@INDEX
@click.option(
    "--keep",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    metavar="N",
    help="How many of the newest versions stay, whatever their age.",
)
@click.option(
    "--older-than",
    type=Duration(),
    default="1d",
    show_default=True,
    metavar="SPAN",
    help="How long ago a version must have been replaced: as long as a search may run.",
)
@click.option("--dry-run", is_flag=True, help="Say what would go, and stop.")
@pass_run
def gc(run: Run, keep: int, older_than: dt.timedelta, dry_run: bool) -> None:
    """Delete the versions that nobody needs, and what unfinished builds left.

    The current version stays, and so does each whose search actors run in the cluster. A search in
    another place keeps the version it opened in memory: --older-than is the time it is given.
    """
    from pipeline.indexing.maintenance import collect_garbage
    from storage.index.manifest import list_versions
    from storage.location import absolute_uri

    uri = absolute_uri(_uri(run))
    running = actors_of(run, uri, list_versions(uri, run.storage))
    done = collect_garbage(
        uri,
        keep,
        older_than,
        in_use=[version for version, actors in running.items() if actors],
        dry_run=dry_run,
        options=run.storage,
    )
    verb = "would go" if dry_run else "gone"
    facts = {f"versions {verb}": ", ".join(done.versions) or "none"}
    run.show(done, facts | {f"files {verb}": len(done.files)})


def size(count: int) -> str:
    """Return a number of bytes as a person reads it."""
    value = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:,.0f} {unit}" if unit == "bytes" else f"{value:,.1f} {unit}"
        value /= 1000
    return f"{value:,.1f} TB"


def _uri(run: Run) -> str:
    return str(run.need_path("index.uri", "--index"))
