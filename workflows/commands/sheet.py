"""`skysift archive sheet`: images of tiles on one page."""

from typing import TYPE_CHECKING

import click

from storage.errors import NotFoundError
from workflows.commands.archive_options import archive_option, snapshot_option
from workflows.commands.common import Run, Verb, catalog_options, pass_run

if TYPE_CHECKING:
    from storage.archive.reader import Archive
    from workflows.report.contact_sheet import SheetTile


@click.command(
    "sheet",
    cls=Verb,
    example="""
    skysift archive sheet --archive work/archive --out sheet.png
    skysift archive sheet -r naip-series --hits hits.geojson --out hits.png
    skysift archive sheet -r naip-series --tile epsg26914-5-64/1520/-16278 --out place.png""",
)
@archive_option
@snapshot_option
@catalog_options
@click.option("--tile", "tiles", multiple=True, metavar="KEY", help="This tile; again for more.")
@click.option("--of-scene", multiple=True, metavar="ID", help="Tiles of this scene.")
@click.option(
    "--hits",
    metavar="URI",
    help="File that search wrote: by --out, or its --json.",
)
@click.option("--count", type=click.IntRange(1, 1000), default=24, show_default=True,
              help="Tiles at most: a random sample, or the best hits.")  # fmt: skip
@click.option("--seed", default=0, show_default=True, help="Seed of the random sample.")
@click.option("--columns", type=click.IntRange(1, 50), default=6, show_default=True,
              help="Tiles in a row.")  # fmt: skip
@click.option("--side", type=click.IntRange(32, 1024), default=192, show_default=True,
              help="Pixels on a side of each tile.")  # fmt: skip
@click.option("--preset", metavar="NAME",
              help="Bands to show, such as true, false or radar.")  # fmt: skip
@click.option("--gamma", type=click.FloatRange(0.2, 5), default=1.0, show_default=True,
              help="Above 1 brightens dark places.")  # fmt: skip
@click.option("--out", default="sheet.png", show_default=True, metavar="URI", help="PNG to write.")
@pass_run
def sheet(
    run: Run,
    tiles: tuple[str, ...],
    of_scene: tuple[str, ...],
    hits: str | None,
    count: int,
    seed: int,
    columns: int,
    side: int,
    preset: str | None,
    gamma: float,
    out: str,
) -> None:
    """Draw tiles as a contact sheet: image, score, date, place and scene of each.

    Without --tile, --of-scene and --hits, draws a random sample of the whole archive. The images
    come from the files that the archive remembers, or from those of a catalog that is given.
    """
    from workflows.report.by_place import tile_renderer
    from workflows.report.contact_sheet import contact_sheet

    if sum(map(bool, (tiles, of_scene, hits))) > 1:
        raise click.UsageError("give at most one of --tile, --of-scene and --hits")
    archive = run.open_archive()
    chosen, source = _chosen(run, archive, tiles, of_scene, hits, count, seed)
    title = f"{len(chosen):,} of {source}  ·  {archive.uri}  ·  snapshot {archive.snapshot}"
    renderer = tile_renderer(archive, run.pictured_scenes(archive), preset, gamma)
    page = contact_sheet(chosen, renderer, title=title, columns=columns, side_px=side)
    run.location(out).write(page)
    run.show({"file": out, "tiles": len(chosen)})


def _chosen(
    run: Run,
    archive: "Archive",
    tiles: tuple[str, ...],
    of_scene: tuple[str, ...],
    hits: str | None,
    count: int,
    seed: int,
) -> tuple[list["SheetTile"], str]:
    """Return the tiles to draw, and a description of the set they are from."""
    import numpy as np

    from storage.archive.samples import uniform_rows
    from workflows.report.contact_sheet import rows_where, tiles_of_hits, tiles_of_rows

    if hits:
        tiles_found = tiles_of_hits(run.location(hits))
        if not tiles_found:
            raise NotFoundError(f"{hits} holds no hit; give the output of a search with hits")
        return tiles_found[:count], f"{len(tiles_found):,} hits"
    if not len(archive):
        raise NotFoundError(f"archive {archive.uri} holds no tiles; ingest some first")
    if tiles or of_scene:
        rows = rows_where(archive, "tile_key" if tiles else "scene", tiles or of_scene)
        drawn = np.sort(np.random.default_rng(seed).permutation(len(rows))[:count])
        return tiles_of_rows(archive, rows[drawn]), f"{len(rows):,} tiles"
    return tiles_of_rows(archive, uniform_rows(archive, count, seed)), f"{len(archive):,} tiles"
