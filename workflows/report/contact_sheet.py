"""A contact sheet: many tiles as one PNG, each with its date, key, scene and score."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

from storage.archive.reader import Archive
from storage.errors import ConfigError, NotFoundError
from storage.formats import check_features, read_csv_hits
from storage.location import Location
from workflows.report.rendering import TileRenderer, sized

_NEEDED = ("scene", "tile_key", "datetime", "score")
_EARLIER = ("before_scene", "before_datetime")
_MARGIN_PX = 12
_LINE_PX = 15
_INK, _PALE, _PAPER = (24, 24, 27), (113, 113, 122), (255, 255, 255)


@dataclass(frozen=True, kw_only=True, slots=True)
class SheetTile:
    """A tile of one scene to show; ``score`` is None when it is not a hit of a search."""

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
        Text above the tiles.
    columns
        Tiles in a row.
    side_px
        Side of the image of a tile.

    Returns
    -------
    bytes
        A PNG.

    Raises
    ------
    NotFoundError, SceneError
        As :meth:`workflows.report.rendering.TileRenderer.draw`.
    """
    across = min(columns, len(tiles))
    rows = -(-len(tiles) // across)
    head = 2 * _MARGIN_PX + _LINE_PX
    grids = {tile.tile_key.rsplit("/", 2)[0] for tile in tiles}
    lines = 2 if len(grids) == 1 else 3  # a grid that all tiles share is named in the title
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
        image = renderer.draw_or_blank(tile.scene, tile.tile_key)
        sheet.paste(Image.fromarray(sized(image, side_px)), (x, y))
        for line, (text, ink) in enumerate(_lines(tile)[:lines]):
            corner = (x, y + side_px + 2 + line * _LINE_PX)
            pen.text(corner, _fitted(text, side_px, plain), ink, plain)
    sink = BytesIO()
    sheet.save(sink, "PNG", optimize=True)
    return sink.getvalue()


def _lines(tile: SheetTile) -> list[tuple[str, tuple[int, int, int]]]:
    """Return the lines of text below a tile, each with its colour."""
    grid, column, row = tile.tile_key.rsplit("/", 2)
    score = "" if tile.score is None else f"{tile.score:.3f}   "
    return [
        (f"{score}{tile.date}   {column}/{row}", _INK),
        (tile.scene, _PALE),
        (grid, _PALE),
    ]


def _fitted(text: str, width_px: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Shorten a text in its middle, where names differ least, until it fits."""
    while font.getlength(text) > width_px and len(text) > 5:
        head = (len(text) - 2) // 2
        text = f"{text[:head].rstrip('…')}…{text[len(text) - head :].lstrip('…')}"
    return text


def tiles_of_rows(archive: Archive, rows: ArrayLike) -> list[SheetTile]:
    """Return the tiles of rows (n,) in their order.

    Raises
    ------
    NotFoundError
        A row is not live.
    """
    found = archive.read(rows, ["scene", "tile_key", "datetime"])
    days = found["datetime"].astype("datetime64[D]").astype(str)
    return [
        SheetTile(scene=str(scene), tile_key=str(key), date=str(day))
        for scene, key, day in zip(found["scene"], found["tile_key"], days, strict=True)
    ]


def tiles_of_table(hits: pa.Table) -> list[SheetTile]:
    """Return the tiles of a table of hits in their order."""
    return [tile for record in hits.to_pylist() for tile in _tiles(record)]


def rows_where(archive: Archive, column: str, values: Sequence[str]) -> NDArray[np.int64]:
    """Return the ids of the live rows whose ``column`` (scene or tile key) is among the values.

    Raises
    ------
    NotFoundError
        A value has no live row.
    """
    chosen, missing = set(values), set(values)
    parts = [np.empty(0, np.int64)]
    for segment in archive.segments:
        if column == "scene" and not chosen & set(segment.scenes):
            continue
        rows = archive.read_segment(segment.ordinal, [column])
        matches = np.array([value in chosen for value in rows[column]], bool)
        missing -= set(rows[column][matches])
        parts.append(rows["row"][matches])
    if missing:
        raise NotFoundError(
            f"archive {archive.uri} has no live row of {column.replace('_', ' ')} "
            f"{', '.join(sorted(missing))}; `skysift archive info --scenes` lists its scenes"
        )
    return np.concatenate(parts)


_MALFORMED = (KeyError, ValueError, TypeError, AttributeError, OSError, pa.ArrowException)


def tiles_of_hits(uri: str | Location) -> list[SheetTile]:
    """Read the hits that `skysift search` wrote with --out, or printed with --json.

    A place of `skysift change` gives two tiles, the earlier one first.

    Raises
    ------
    ConfigError
        The file holds no hits.
    """
    try:
        return [tile for record in _records(Location.of(uri)) for tile in _tiles(record)]
    except _MALFORMED as error:
        raise ConfigError(
            f"{uri} holds no hits ({type(error).__name__}: {error}); give the "
            "output of `skysift search` with --out, or with --json, and repeat the search where "
            "the file is damaged"
        ) from error


def _records(file: Location) -> Iterable[Mapping[str, Any]]:
    kind, data = PurePosixPath(file.uri).suffix.lower(), file.read()
    if kind == ".parquet":
        held = pq.read_schema(BytesIO(data)).names
        columns = [*_NEEDED, *(name for name in _EARLIER if name in held)]
        table = pq.read_table(BytesIO(data), columns=columns, page_checksum_verification=True)
        return list(table.to_pylist())
    if kind == ".csv":
        return read_csv_hits(data)
    document = json.loads(data)
    if document.get("type") == "FeatureCollection":
        check_features(document)
        return [feature["properties"] for feature in document["features"]]
    return list(document["changes" if "changes" in document else "hits"])


def _tiles(record: Mapping[str, Any]) -> list[SheetTile]:
    later = SheetTile(
        scene=str(record["scene"]),
        tile_key=str(record["tile_key"]),
        date=str(record["datetime"])[:10],
        score=float(record["score"]),
    )
    if "before_scene" not in record:
        return [later]
    scene, date = (str(record[name]) for name in _EARLIER)
    return [SheetTile(scene=scene, tile_key=later.tile_key, date=date[:10]), later]
