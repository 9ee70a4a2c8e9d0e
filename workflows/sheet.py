"""A contact sheet: many tiles as one PNG, each with its date, key, scene and score."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

from PIL import Image, ImageDraw, ImageFont

from workflows.pictures import TileRenderer, sized

_MARGIN_PX = 12
_LINE_PX = 15
_INK, _PALE, _PAPER = (24, 24, 27), (113, 113, 122), (255, 255, 255)


@dataclass(frozen=True, kw_only=True, slots=True)
class SheetTile:
    """A tile to show: one scene's view of a place; ``score`` None when nothing was searched."""

    scene: str
    tile_key: str
    date: str
    score: float | None = None


def contact_sheet(
    tiles: Sequence[SheetTile],
    renderer: TileRenderer,
    *,
    title: str,
    columns: int = 6,
    side_px: int = 192,
) -> bytes:
    """Draw tiles in their order, row by row.

    Parameters
    ----------
    tiles
        At least one.
    renderer
        Draws them from their scenes.
    title
        Written above.
    columns
        Tiles in a row.
    side_px
        Side of a tile's picture.

    Returns
    -------
    bytes
        A PNG.

    Raises
    ------
    NotFoundError, SceneError
        As :meth:`workflows.pictures.TileRenderer.draw`.
    """
    across = min(columns, len(tiles))
    rows = -(-len(tiles) // across)
    head = 2 * _MARGIN_PX + _LINE_PX
    grids = {tile.tile_key.rsplit("/", 2)[0] for tile in tiles}
    lines = 2 if len(grids) == 1 else 3  # a grid that all share is named once, above
    title += f"  ·  grid {grids.pop()}" if len(grids) == 1 else ""
    cell = (side_px + _MARGIN_PX, side_px + lines * _LINE_PX + _MARGIN_PX)
    size = (across * cell[0] + _MARGIN_PX, rows * cell[1] + head)
    sheet = Image.new("RGB", size, _PAPER)
    pen = ImageDraw.Draw(sheet)
    bold, plain = ImageFont.load_default(14), ImageFont.load_default(12)
    pen.text((_MARGIN_PX, _MARGIN_PX), _fitted(title, size[0] - 2 * _MARGIN_PX, bold), _INK, bold)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, across)
        x, y = _MARGIN_PX + column * cell[0], head + row * cell[1]
        picture = renderer.draw(tile.scene, tile.tile_key)
        sheet.paste(Image.fromarray(sized(picture, side_px)), (x, y))
        for line, (text, ink) in enumerate(_lines(tile)[:lines]):
            at = (x, y + side_px + 2 + line * _LINE_PX)
            pen.text(at, _fitted(text, side_px, plain), ink, plain)
    sink = BytesIO()
    sheet.save(sink, "PNG", optimize=True)
    return sink.getvalue()


def _lines(tile: SheetTile) -> list[tuple[str, tuple[int, int, int]]]:
    """Return what is written below a tile, and in which colour."""
    grid, column, row = tile.tile_key.rsplit("/", 2)
    score = "" if tile.score is None else f"{tile.score:.3f}   "
    return [
        (f"{score}{tile.date}   {column}/{row}", _INK),
        (tile.scene, _PALE),
        (grid, _PALE),
    ]


def _fitted(text: str, width_px: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Shorten a text in its middle, where names differ least, until it fits."""
    kept = text
    while font.getlength(kept) > width_px and len(kept) > 5:
        head = (len(kept) - 2) // 2
        kept = f"{kept[:head].rstrip('…')}…{kept[len(kept) - head :].lstrip('…')}"
    return kept
