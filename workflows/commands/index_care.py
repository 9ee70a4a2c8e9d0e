"""`skysift index list|info|verify|rollback|gc`: maintenance of the versions of an index."""

import datetime as dt

import click

from workflows.commands.common import Duration, Run, Verb, pass_run, recipe_option
from workflows.commands.index_stats import actors_of
from workflows.console import ProgressView, format_pairs, format_table
from workflows.exit_codes import EXIT_FAILED

INDEX = recipe_option("--index", "index.uri")


@click.command("list", cls=Verb, example="skysift index list --index work/index")
@INDEX
@pass_run
def list_(run: Run) -> None:
    """List the versions of an index, oldest first; * is the current one."""
    from pipeline.indexing.maintenance import index_versions

    versions = index_versions(run.need_path("index.uri"))
    head = ("", "version", "written (UTC)", "kind", "rows", "shards", "size", "recall@10", "drift")
    rows = [
        (
            "*" if version.current else "",
            version.version,
            f"{version.written:%Y-%m-%d %H:%M}",
            version.kind,
            version.rows,
            version.shards,
            size(version.size_bytes),
            version.recall,
            round(version.drift, 2),
        )
        for version in versions
    ]
    run.show(versions, format_table(head, rows, width=100))


@click.command("info", cls=Verb, example="skysift index info --index work/index")
@INDEX
@click.option("--version", metavar="VERSION", help="Version to look at; the current one.")
@pass_run
def info(run: Run, version: str | None) -> None:
    """Show the state of an index: memory, recall by lists probed, drift, and each shard."""
    from pipeline.indexing.maintenance import recall_in_words
    from storage.index.manifest import read_manifest

    location = run.need_path("index.uri")
    manifest = read_manifest(location, version)
    facts = {
        "version": manifest.version,
        "rows": manifest.rows,
        "deleted rows": sum(shard.dead_rows for shard in manifest.shards),
        "memory": size(manifest.measured_bytes),
        "memory allowed": size(budget) if (budget := manifest.spec["memory_bytes"]) else "any",
        "bytes per row": round(manifest.measured_bytes / manifest.rows, 1),
        "lists": f"{manifest.parameters.nlist}, {manifest.empty_lists} empty",
        "imbalance": f"{manifest.list_imbalance:.2f} ({manifest.trained_imbalance:.2f} when built)",
        "recall@10": recall_in_words(manifest),
        "rows added since": manifest.grown_rows,
        "drift": round(manifest.drift, 2),
        "advice": manifest.advice or None,
    }
    blends = manifest.recall_by_blend
    probed = [
        (int(nprobe), value, *(found[nprobe] for found in blends.values()))
        for nprobe, value in manifest.recall.items()
    ]
    shards = [
        (s.name, s.rows, s.dead_rows, size(s.memory_bytes), s.since[:10], s.until[:10])
        for s in manifest.shards
    ]
    lines = [
        *format_pairs(facts),
        "",
        *format_table(
            ("lists probed", "recall@10", *(f"blend {blend}" for blend in blends)), sorted(probed)
        ),
        "",
        *format_table(("shard", "rows", "deleted", "memory", "since", "until"), shards),
    ]
    run.show({"index": location.uri, **manifest.to_dict()}, lines)


@click.command("verify", cls=Verb, example="skysift index verify --index work/index")
@INDEX
@click.option("--version", metavar="VERSION", help="Version to verify; the current one.")
@pass_run
@click.pass_context
def verify(ctx: click.Context, run: Run, version: str | None) -> None:
    """Compare every file of an index with its manifest (exit code 1 when one differs)."""
    from pipeline.indexing.maintenance import verify_index

    with ProgressView() as progress:
        report = verify_index(run.need_path("index.uri"), version, progress=progress)
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

    with ProgressView() as progress:
        manifest = rollback_index(run.need_path("index.uri"), to, progress=progress)
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
@click.option("--dry-run", is_flag=True, help="Print what would be deleted, and stop.")
@pass_run
def gc(run: Run, keep: int, older_than: dt.timedelta, dry_run: bool) -> None:
    """Delete unneeded versions and the files of unfinished builds.

    The current version stays, and so does each version whose search actors run in the cluster.
    Other searches keep the version that they opened in memory: --older-than is their time limit.
    """
    from pipeline.indexing.maintenance import collect_garbage
    from storage.index.manifest import list_versions

    location = run.need_path("index.uri").absolute
    running = actors_of(run, location, list_versions(location))
    done = collect_garbage(
        location,
        keep,
        older_than,
        in_use=[version for version, actors in running.items() if actors],
        dry_run=dry_run,
    )
    verb = "would go" if dry_run else "gone"
    facts = {f"versions {verb}": ", ".join(done.versions) or "none"}
    run.show(done, facts | {f"files {verb}": len(done.files)})


def size(count: int) -> str:
    """Return a number of bytes for people, in kB, MB, GB or TB."""
    value = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:,.0f} {unit}" if unit == "bytes" else f"{value:,.1f} {unit}"
        value /= 1000
    return f"{value:,.1f} TB"
