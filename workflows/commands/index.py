"""`skysift index`: build, update and verify search indexes."""

from typing import TYPE_CHECKING, Any

import click

from workflows.commands.common import Run, Verb, pass_run, recipe_option
from workflows.commands.index_stats import stats
from workflows.failures import EXIT_FAILED

if TYPE_CHECKING:
    from storage.manifest import IndexManifest

_INDEX = recipe_option("--index", "index.uri", "Folder of the index.", metavar="URI")


@click.group()
def index() -> None:
    """Build, update and verify search indexes."""


index.add_command(stats)


@index.command(
    "build",
    cls=Verb,
    example="""
    skysift index build --archive work/archive --index work/index
    skysift index build -r world.yaml --memory 4GB --recall 0.95""",
)
@recipe_option("--archive", "archive.uri", "Archive to index.", metavar="URI")
@_INDEX
@recipe_option(
    "--kind",
    "index.kind",
    "How vectors are stored; auto is the most exact that fits the memory.",
    type=click.Choice(["auto", "flat", "ivf_flat", "ivf_sq8", "ivf_pq"]),
)
@recipe_option("--shards", "index.shards", "Number of shards.", type=int, metavar="N")
@recipe_option("--memory", "index.memory_bytes", "Most memory of all shards.", metavar="SIZE")
@recipe_option("--recall", "index.recall", "Recall@10 to reach.", type=float, metavar="FRACTION")
@click.option("--dry-run", is_flag=True, help="Print what would be built, and stop.")
@pass_run
def build(run: Run, dry_run: bool) -> None:
    """Index the newest snapshot of an archive; nothing is done when that is there."""
    from pipeline.indexing import build_index, plan_build
    from workflows.build import index_spec

    archive = run.need_path("archive.uri", "--archive")
    target = run.need("index.uri", "--index")
    spec = index_spec(run.settings)
    if dry_run:
        plan = plan_build(archive, spec, run.storage)
        lines = {
            "rows": plan.rows,
            "kind": plan.parameters.kind,
            "lists": plan.parameters.nlist,
            "shards": len(plan.pieces),
            "memory when loaded": _size(plan.predicted_bytes),
            "on disk besides": _size(plan.disk_bytes),
            "rows to train on": plan.sample_rows,
        }
        run.show(plan, lines)
        return
    with run.ray(), run.progress() as progress:
        manifest = build_index(archive, target, spec, options=run.storage, progress=progress)
    _show(run, target, manifest)


@index.command("update", cls=Verb, example="skysift index update --index work/index")
@_INDEX
@pass_run
def update(run: Run) -> None:
    """Add an archive's new rows to its index and hide those that are gone."""
    from pipeline.indexing import update_index

    target = run.need_path("index.uri", "--index")
    with run.ray(), run.progress() as progress:
        manifest = update_index(target, options=run.storage, progress=progress)
    _show(run, target, manifest)


@index.command("verify", cls=Verb, example="skysift index verify --index work/index")
@_INDEX
@pass_run
@click.pass_context
def verify(ctx: click.Context, run: Run) -> None:
    """Compare every file of an index with its manifest (exit code 1 when one differs)."""
    from pipeline.indexing import verify_index

    target = run.need_path("index.uri", "--index")
    with run.progress() as progress:
        report = verify_index(target, options=run.storage, progress=progress)
    sound = f"version {report.version}: {report.files} files, {_size(report.size_bytes)}: sound"
    run.show(report, report.problems or [sound])
    if not report.ok:
        ctx.exit(EXIT_FAILED)


def _show(run: Run, target: str, manifest: "IndexManifest") -> None:
    facts: dict[str, Any] = {
        "index": target,
        "version": manifest.version,
        "archive": manifest.archive_uri,
        "snapshot": manifest.snapshot,
        "rows": manifest.rows,
        "kind": manifest.parameters.kind,
        "shards": len(manifest.shards),
        "memory predicted": _size(manifest.predicted_bytes),
        "memory measured": _size(manifest.measured_bytes),
        "lists probed": f"{manifest.nprobe} of {manifest.parameters.nlist}",
        "recall@10 measured": manifest.recall.get(str(manifest.nprobe)),
        "drift": manifest.drift,
        "advice": manifest.advice or None,
    }
    run.show({"index": target, **manifest.to_dict()}, facts)


def _size(count: int) -> str:
    value = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:,.0f} {unit}" if unit == "bytes" else f"{value:,.1f} {unit}"
        value /= 1000
    return f"{value:,.1f} TB"
