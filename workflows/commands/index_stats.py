"""`skysift index stats`: the figures of the running search actors of an index."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from pipeline.runtime.cluster import joins_cluster
from storage.location import Location
from workflows.commands.common import Run, Verb, pass_run, recipe_option
from workflows.console import format_table

if TYPE_CHECKING:
    from pipeline.search.actor import NodeState

_ACTOR = ("actor", "node", "rows", "queries", "per s", "p50 ms", "p95 ms", "p99 ms")
_SHARD = ("shard", "actor", "rows", "queries", "lists probed", "rows compared")


@click.command("stats", cls=Verb, example="skysift index stats --index work/index")
@recipe_option("--index", "index.uri")
@click.option("--version", metavar="VERSION", help="Which version; the current one by default.")
@pass_run
def stats(run: Run, version: str | None) -> None:
    """Show latency, rate and work of the search actors that run for an index.

    Rates are of the last minute, percentiles of the last 4,096 messages, the rest since the actor
    started. The same figures are on the metrics port of each Ray node, for Prometheus.
    """
    from storage.index.manifest import read_manifest

    location = run.need_path("index.uri").absolute
    manifest = read_manifest(location, version)
    nodes = actors_of(run, location, [manifest.version])[manifest.version]
    answer: dict[str, Any] = {
        "index": location.uri,
        "version": manifest.version,
        "rows": manifest.rows,
        "actors": {n: s if isinstance(s, str) else asdict(s) for n, s in nodes.items()},
    }
    head = f"version {manifest.version}: {manifest.rows:,} rows in {len(manifest.shards)} shards"
    run.show(
        answer,
        [head, *_tables(nodes)] if nodes else [head, "no search actor runs for it in this cluster"],
    )


def actors_of(
    run: Run, location: Location, versions: Sequence[str]
) -> dict[str, dict[str, "NodeState | str"]]:
    """Return the running search actors of versions of an index; none without a cluster."""
    from pipeline.search.fleet import running_nodes

    if not joins_cluster(run.recipe.cluster.address):
        return {version: {} for version in versions}
    with run.ray():
        return {version: running_nodes(location, version) for version in versions}


def _tables(nodes: dict[str, "NodeState | str"]) -> list[str]:
    from pipeline.search.stats import ShardWork

    actors: list[list[Any]] = []
    shards: list[list[Any]] = []
    silent = []
    for name, node in nodes.items():
        if isinstance(node, str):
            silent.append(f"actor {name} does not answer: {node}")
            continue
        meter = node.meter
        figures = (meter.queries_per_s, meter.p50_ms, meter.p95_ms, meter.p99_ms)
        held = sum(node.rows.values())
        rounded = [round(figure, 2) for figure in figures]
        actors.append([name, node.node_id[:8], held, meter.queries, *rounded])
        for shard, rows in node.rows.items():
            work = meter.shards.get(shard, ShardWork())
            shards.append([shard, name, rows, work.queries, work.probes, work.rows_scanned])
    return [*format_table(_ACTOR, actors), *format_table(_SHARD, sorted(shards)), *silent]
