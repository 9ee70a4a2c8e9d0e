"""`skysift index build|update|compact`; maintenance of versions is in index_care."""

from typing import TYPE_CHECKING, Any

import click

from storage.location import Location
from workflows.commands.common import Run, Verb, pass_run, recipe_option
from workflows.commands.index_care import INDEX, gc, info, list_, rollback, size, verify
from workflows.commands.index_stats import stats

if TYPE_CHECKING:
    from pipeline.indexing.plan import IndexPlan
    from pipeline.indexing.spec import IndexSpec
    from storage.index.manifest import IndexManifest
    from storage.index.pilot import Estimate
    from storage.index.quantizer import ShardParameters


@click.group()
def index() -> None:
    """Build, grow and maintain search indexes."""


@index.command(
    "build",
    cls=Verb,
    example="""
    skysift index build --archive work/archive --index work/index
    skysift index build -r world.yaml --memory 4GB --recall 0.95
    skysift index build --archive work/new-archive --index work/index --other-archive""",
)
@recipe_option("--archive", "archive.uri")
@INDEX
@recipe_option("--kind", "index.kind")
@recipe_option("--shards", "index.shards")
@recipe_option("--memory", "index.memory_bytes")
@recipe_option("--builder-memory", "index.builder_memory_bytes")
@recipe_option("--mapped/--read", "index.mapped")
@recipe_option("--recall", "index.recall")
@click.option(
    "--other-archive",
    is_flag=True,
    help="The index may be of another archive; its searches change over to this one.",
)
@click.option("--dry-run", is_flag=True, help="Print the plan, and stop.")
@pass_run
def build(run: Run, other_archive: bool, dry_run: bool) -> None:
    """Index the newest snapshot of an archive; nothing is done when that is there."""
    if dry_run:
        plan = run.plan_index()
        run.show(plan, _prediction(plan, run.index_spec()))
        return
    _show(run, run.build_index(other_archive=other_archive))


@index.command("update", cls=Verb, example="skysift index update --index work/index")
@INDEX
@pass_run
def update(run: Run) -> None:
    """Add an archive's new rows to its index and hide those that are gone."""
    _show(run, run.update_index())


@index.command("compact", cls=Verb, example="skysift index compact --index work/index")
@INDEX
@pass_run
def compact(run: Run) -> None:
    """Merge the small shards that updates left and drop deleted rows; answers stay the same."""
    _show(run, run.compact_index())


for command in (list_, info, stats, verify, rollback, gc):
    index.add_command(command)


def _prediction(plan: "IndexPlan", spec: "IndexSpec") -> dict[str, Any]:
    p, estimate = plan.parameters, plan.estimate
    asked = 1.0 if p.kind == "flat" else spec.recall
    expected = estimate.recall if estimate else asked
    return {
        "rows": plan.rows,
        "kind": f"{p.kind} ({_reason(plan, spec)})",
        "bytes per row": round(plan.predicted_bytes / plan.rows, 1),
        "of which the vector": p.code_bytes,
        "lists": p.nlist,
        "shards": len(plan.pieces),
        "memory when loaded": size(plan.predicted_bytes),
        "on disk besides": size(plan.disk_bytes),
        "recall@10 expected": f"{expected:.3f}, {plan.recall_ceiling:.3f} with every list probed",
        "rescored per result": plan.rerank,
        "rows to train on": plan.sample_rows,
        "memory of a builder": size(plan.builder_bytes),
        **({"kinds measured": "recall@10, what it takes, CPU time"} if plan.estimates else {}),
        **{f"  {_name(e.parameters)}": _figures(e, plan.rows) for e in plan.estimates},
    }


def _reason(plan: "IndexPlan", spec: "IndexSpec") -> str:
    if spec.kind != "auto":
        return "as asked for"
    if not plan.estimates:
        return "the most exact that fits"
    if plan.estimate and plan.estimate.recall < spec.recall:
        return "the highest recall of the kinds that fit"
    return "the fastest of the kinds that fit and reach the recall"


def _name(p: "ShardParameters") -> str:
    """Return a kind with the size of its codes."""
    return f"{p.kind}, {p.code_bytes} bytes"


def _figures(estimate: "Estimate", rows: int) -> str:
    return (
        f"{estimate.recall:.3f}: {estimate.nprobe} lists, {estimate.rerank} rescored, "
        f"{estimate.query_us(rows):.0f} µs a query, {estimate.build_s:.0f} s to build"
    )


def _show(run: Run, manifest: "IndexManifest") -> None:
    from pipeline.indexing.maintenance import recall_in_words

    target = Location.of(run.need("index.uri"))
    facts: dict[str, Any] = {
        "index": target.uri,
        "version": manifest.version,
        "archive": manifest.archive_uri,
        "snapshot": manifest.snapshot,
        "rows": manifest.rows,
        "kind": manifest.parameters.kind,
        "shards": len(manifest.shards),
        "memory predicted": size(manifest.predicted_bytes),
        "memory measured": size(manifest.measured_bytes),
        "bytes per row measured": round(manifest.measured_bytes / manifest.rows, 1),
        "lists probed": f"{manifest.nprobe} of {manifest.parameters.nlist}",
        "recall@10 measured": recall_in_words(manifest),
        "drift": manifest.drift,
        "advice": manifest.advice or None,
    }
    run.show({"index": target.uri, **manifest.to_dict()}, facts)
