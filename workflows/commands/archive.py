"""`skysift archive`: look at, check, export and maintain archives."""

import datetime as dt
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from workflows.commands.archive_import import import_
from workflows.commands.archive_options import (
    archive_option,
    snapshot_option,
)
from workflows.commands.common import Duration, Run, Verb, catalog_options, pass_run
from workflows.commands.drift import drift
from workflows.commands.sheet import sheet
from workflows.console import format_pairs, format_table
from workflows.exit_codes import EXIT_FAILED

if TYPE_CHECKING:
    from storage.archive.reader import Archive


@click.group()
def archive() -> None:
    """Look at, check, export and maintain archives."""


@archive.command("info", cls=Verb, example="skysift archive info --archive work/archive")
@archive_option
@snapshot_option
@click.option("--scenes", is_flag=True, help="List the state of every scene.")
@pass_run
def info(run: Run, scenes: bool) -> None:
    """Show the content of an archive and its origin."""
    opened = run.open_archive()
    entries = opened.scenes()
    states = Counter(entry.state for entry in entries)
    spec = opened.spec
    facts: dict[str, Any] = {
        "archive": opened.uri,
        "snapshot": opened.snapshot,
        "rows": len(opened),
        "segments": len(opened.segments),
        "dimension": spec.dimension,
        "bands": ", ".join(spec.bands) or None,
        "tile_px": spec.tile_px,
        "model": spec.published and spec.published.title,
        "encoder": spec.encoder_fingerprint,
        "classes": ", ".join(spec.classes) or None,
        "grids": ", ".join(opened.ledger.grids) or None,
        **{
            f"scenes {state}": states[state]
            for state in ("embedded", "empty", "quarantined", "deleted")
        },
    }
    lines = format_pairs(facts)
    data: dict[str, Any] = {**facts, "bands": spec.bands, "classes": spec.classes}
    data["grids"] = opened.ledger.grids
    if scenes:
        data["scenes"] = entries
        rows = [[e.scene_id, e.state, e.rows, e.reason] for e in entries]
        lines += ["", *format_table(["scene", "state", "rows", "reason"], rows)]
    run.show(data, lines)


@archive.command("audit", cls=Verb, example="skysift archive audit -r naip-series")
@archive_option
@catalog_options
@pass_run
@click.pass_context
def audit(ctx: click.Context, run: Run) -> None:
    """Check that every scene of a catalog is accounted for (exit code 1 when not).

    For an archive of imported embeddings, --scenes is the source of the embeddings.
    """
    from storage.archive.audit import audit as compare

    opened = run.open_archive()
    listed = _listed_parts(run, opened) if opened.spec.published else _listed_scenes(run, opened)
    found = compare(opened, listed)
    again = "skysift archive import" if opened.spec.published else "skysift ingest"
    lines = format_pairs(
        {
            "scenes of the catalog": len(listed),
            "embedded": found.embedded,
            "empty": found.empty,
            "quarantined": len(found.quarantined),
            "missing": ", ".join(found.missing) or "none",
            "changed since": ", ".join(found.changed) or "none",
            "no longer listed": ", ".join(found.unlisted) or "none",
            "accounted for": "all" if found.complete else f"NOT ALL: run `{again}` again",
        }
    )
    run.show({"complete": found.complete, **asdict(found)}, lines)
    if not found.complete:
        ctx.exit(EXIT_FAILED)


def _listed_scenes(run: Run, opened: "Archive") -> list[tuple[str, str]]:
    """Return id and fingerprint of every scene of the catalog."""
    from storage.catalog.read import read_scenes

    listing = read_scenes(run.catalog_spec(), opened.spec.bands)
    recorded = {entry.scene_id: entry.fingerprint for entry in opened.scenes()}
    listed = [(scene.id, scene.known_as(recorded.get(scene.id, ""))) for scene in listing.scenes]
    return listed + [(item.scene_id, "") for item in listing.rejected]


def _listed_parts(run: Run, opened: "Archive") -> list[tuple[str, str]]:
    """Return id and fingerprint of every scene of a source of embeddings."""
    from pipeline.importing.plan import part_ids, plan_import
    from pipeline.importing.spec import import_spec

    plan = plan_import(import_spec(opened.spec, run.need_path("catalog.source"), opened.location))
    return list(part_ids(plan, opened.ledger.entries).items())


@archive.command("verify", cls=Verb, example="skysift archive verify --archive work/archive")
@archive_option
@snapshot_option
@click.option(
    "--mend",
    is_flag=True,
    help="Hide the scenes of damaged segments in the newest snapshot, so that the next ingest "
    "embeds these scenes again, and add digests to segments without.",
)
@pass_run
@click.pass_context
def verify(ctx: click.Context, run: Run, mend: bool) -> None:
    """Compare every row with its digest and check it (exit code 1 when something is wrong)."""
    from storage.archive.audit import unsealed_segments
    from storage.archive.audit import verify as check

    if mend:
        _mend(run)
        return
    opened = run.open_archive()
    faults = check(opened)
    unsealed = [segment.id for segment in unsealed_segments(opened)]
    lines = faults or [f"{len(opened):,} rows in {len(opened.segments):,} segments: sound"]
    if unsealed:
        lines = [
            *lines,
            f"segments without digests: {', '.join(unsealed)}; an older Skysift wrote them, and "
            "their content cannot be proven: `skysift archive verify --mend` adds digests",
        ]
    data = {"rows": len(opened), "faults": faults, "segments_without_digests": unsealed}
    run.show(data, lines)
    if faults:
        ctx.exit(EXIT_FAILED)


def _mend(run: Run) -> None:
    from storage.archive.maintenance import mend

    done = mend(run.need_path("archive.uri"))
    lines = {
        "scenes to embed again": ", ".join(done.scenes) or "none",
        "segments that got digests": done.sealed,
        "snapshot": done.snapshot,
    }
    after = "run `skysift ingest`, then `skysift index update`" if done.scenes else None
    run.show(done, {**lines, "next": after})


@archive.command(
    "remember",
    cls=Verb,
    example="""
    skysift archive remember -r naip-series
    skysift archive remember --archive work/archive --scenes /data/moved/scenes/*.tif""",
)
@archive_option
@catalog_options
@pass_run
def remember(run: Run) -> None:
    """Note where the files of an archive's scenes are, so that pictures need no catalog.

    Ingest does so itself. This is for archives of an earlier Skysift, and for files that were
    moved. No row changes, and indexes stay as they are.
    """
    from storage.archive.maintenance import remember as note
    from storage.catalog.read import read_scenes

    spec, opened = run.catalog_spec(), run.open_archive()
    scenes = read_scenes(spec, opened.spec.bands).scenes
    done = note(opened.location, spec.source, scenes)
    lines = {
        "scenes with files": len(done.scenes),
        "not in this catalog": ", ".join(done.missing) or "none",
        "other files than embedded": ", ".join(done.changed) or "none",
        "snapshot": done.snapshot,
    }
    run.show(done, lines)


@archive.command(
    "export",
    cls=Verb,
    example="""
    skysift archive export --archive work/archive --out rows.parquet
    skysift archive export --archive work/archive --format stac --out archive.json""",
)
@archive_option
@snapshot_option
@click.option(
    "--format",
    "kind",
    type=click.Choice(["geoparquet", "stac"]),
    default="geoparquet",
    show_default=True,
    help="All rows as GeoParquet, or one STAC item that describes the archive.",
)
@click.option("--out", required=True, metavar="URI", help="File to write.")
@pass_run
def export(run: Run, kind: str, out: str) -> None:
    """Write an archive for other programs.

    GeoParquet holds every row: footprint, time, scene, labels and vector. The STAC item (of the
    embeddings extension) says where, when and by which encoder, and links to the archive itself.
    """
    opened = run.open_archive()
    if kind == "stac":
        from storage.archive.stac import write_archive_item

        item = write_archive_item(opened, run.location(out))
        run.show({"file": out, "item": item["id"], "rows": len(opened)})
        return
    from storage.archive.export import to_geoparquet

    run.show({"file": out, "rows": to_geoparquet(opened, run.location(out))})


@archive.command("snapshots", cls=Verb, example="skysift archive snapshots --archive work/archive")
@archive_option
@pass_run
def snapshots(run: Run) -> None:
    """List the commits of an archive, the newest first, and their tags."""
    from storage.archive.maintenance import list_snapshots

    found = list_snapshots(run.need_path("archive.uri"))
    rows = [
        [s.id, f"{s.written_at:%Y-%m-%d %H:%M:%S}", ", ".join(s.tags), s.message] for s in found
    ]
    run.show(found, format_table(["snapshot", "written (UTC)", "tags", "what"], rows))


@archive.command(
    "delete-scene",
    cls=Verb,
    example="""
    skysift archive delete-scene S2A_20240501 --archive work/archive --reason 'licence ended'
    skysift archive delete-scene S2A_20240501 --archive work/archive --again""",
)
@click.argument("scene_ids", metavar="SCENE...", nargs=-1, required=True)
@archive_option
@click.option("--reason", default="deleted", help="Why; kept in the ledger.", metavar="TEXT")
@click.option("--again", is_flag=True, help="Let the next ingest embed them again.")
@pass_run
def delete_scene(run: Run, scene_ids: tuple[str, ...], reason: str, again: bool) -> None:
    """Hide all rows of scenes; older snapshots still show them.

    An ingest leaves deleted scenes out until their pixels change, or embeds them again after
    --again. Update the index to hide their rows there too.
    """
    from storage.archive.maintenance import delete_scenes

    done = delete_scenes(run.need_path("archive.uri"), scene_ids, reason=reason, again=again)
    lines = {"scenes deleted": len(done.scenes), "rows hidden": done.rows}
    run.show(done, {**lines, "snapshot": done.snapshot})


@archive.command(
    "tag",
    cls=Verb,
    example="""
    skysift archive tag release-1 --archive work/archive
    skysift archive tag release-1 --archive work/archive --delete""",
)
@click.argument("name")
@archive_option
@snapshot_option
@click.option("--delete", is_flag=True, help="Remove the tag; its name cannot be used again.")
@pass_run
def tag(run: Run, name: str, delete: bool) -> None:
    """Name a snapshot, the newest by default; tagged snapshots are never collected."""
    from storage.archive.maintenance import create_tag, delete_tag, resolve_snapshot

    uri, wanted = run.need_path("archive.uri"), run.recipe.archive.snapshot
    if delete:
        delete_tag(uri, name)
        run.show({"tag": name, "deleted": True})
        return
    snapshot = wanted and resolve_snapshot(uri, wanted)
    run.show({"tag": name, "snapshot": create_tag(uri, name, snapshot)})


@archive.command(
    "rollback", cls=Verb, example="skysift archive rollback release-1 --archive work/archive"
)
@click.argument("snapshot", metavar="SNAPSHOT|TAG")
@archive_option
@pass_run
def rollback(run: Run, snapshot: str) -> None:
    """Make an earlier state the newest one again; let no ingest run meanwhile.

    Rolling back to the previous snapshot, which is printed, undoes it. Build indexes again.
    """
    from storage.archive.maintenance import rollback as go_back

    done = go_back(run.need_path("archive.uri"), snapshot)
    lines = {"newest snapshot": done.snapshot, "previous, to undo this": done.previous}
    run.show(done, {**lines, "next": "build the indexes of this archive again"})


@archive.command(
    "gc",
    cls=Verb,
    example="""
    skysift archive gc --archive work/archive --dry-run
    skysift archive gc --archive work/archive --older-than 90d""",
)
@archive_option
@click.option(
    "--older-than",
    type=Duration(),
    default="30d",
    show_default=True,
    metavar="SPAN",
    help="Age from which snapshots without a tag go; at least 1h.",
)
@click.option("--dry-run", is_flag=True, help="Print what would be deleted, and stop.")
@pass_run
def gc(run: Run, older_than: dt.timedelta, dry_run: bool) -> None:
    """Delete old snapshots and free the space that only they used.

    The newest state and tagged snapshots stay. Update indexes first: a search of one that pins
    a forgotten snapshot cannot read its vectors.
    """
    from storage.archive.maintenance import collect_garbage

    done = collect_garbage(run.need_path("archive.uri"), older_than, dry_run=dry_run)
    verb = "would go" if dry_run else "gone"
    lines = {f"snapshots {verb}": len(done.expired), f"bytes {verb}": f"{done.freed_bytes:,}"}
    run.show(done, lines)


archive.add_command(import_)
archive.add_command(sheet)
archive.add_command(drift)
