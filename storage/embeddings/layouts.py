"""Layouts of published embeddings: which column or array holds which part.

A layout is a few declared names. :func:`table_layout` recognises a table by its columns; any other
table is read with a mapping of columns. Facts come from the files and cards of the products.

References
----------
Clay, Earth Index, Major TOM, EarthEmbeddings, TerraMind and AlphaEarth: the products' own files,
cards and loaders (TorchGeo, `torchgeo/datasets`). GeoParquet 1.1, https://geoparquet.org.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import PurePosixPath
from typing import Literal, get_args

from storage.dates import Moment
from storage.errors import ConfigError
from storage.values import Positive, check_limits

Quantization = Literal["none", "signed_power", "scale"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """Names of a table's columns; an empty name means that there is no such column.

    Parameters
    ----------
    vector
        A list of numbers; lists of lists are averaged over all axes but the last.
    geometry
        WKB or WKT of the chip, or of its centre.
    lon, lat
        The chip's centre in WGS84 degrees, where there is no geometry.
    date
        A date, a time, or text that begins with a date.
    crs
        CRS in which the chip is a square, such as ``EPSG:32633``.
    cloud
        Share of the chip under clouds, in percent.
    """

    vector: str = ""
    geometry: str = ""
    lon: str = ""
    lat: str = ""
    date: str = ""
    crs: str = ""
    cloud: str = ""

    @property
    def named(self) -> dict[str, str]:
        """The parts that have a column."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """What a person states about a source, in place of what its files say.

    Parameters
    ----------
    layout
        Name of the layout; empty to recognise it.
    columns
        Columns, which go before those of the layout.
    date
        Date of the rows of tables that state none.
    crs
        CRS of the geometry, in place of what the table declares.
    chip_m
        Side of a chip in metres, where the geometry is its centre.
    """

    layout: str = ""
    columns: Columns | None = None
    date: Moment | None = None
    crs: str = ""
    chip_m: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TableLayout:
    """Layout of a table, and the model that made its vectors.

    Parameters
    ----------
    name
        Of the layout, for ``--layout``.
    model, version
        Of the model; the table's own footer (``emb``) goes before.
    columns
        Where the parts of a row are.
    marks
        Columns that together tell the layout from others; empty: never recognised.
    dimension
        Length of its vectors; 0 when any.
    chip_m
        Side of a chip in metres, where the geometry is the chip's centre only.
    """

    name: str
    model: str
    columns: Columns
    version: str = ""
    marks: frozenset[str] = frozenset()
    dimension: int = 0
    chip_m: Positive | None = None

    def __post_init__(self) -> None:
        check_limits(self, "layout")


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelLayout:
    """Layout of a raster of pixel embeddings: its model, and how numbers become vectors.

    Parameters
    ----------
    name
        Of the layout, for ``--layout``.
    model, version
        Of the model.
    quantization
        ``signed_power``: ``(v / 127.5)**2 * sign(v)``; ``scale``: ``v`` times the array
        ``scales`` of its pixel; ``none``: the numbers are the vectors.
    nodata
        Number that marks a pixel without data in all bands; None for what the file states.
    """

    name: str
    model: str
    version: str = ""
    quantization: Quantization = "none"
    nodata: float | None = None

    def __post_init__(self) -> None:
        if self.quantization not in get_args(Quantization):
            raise ConfigError(
                f"quantization {self.quantization!r} is unknown; give one of "
                f"{', '.join(get_args(Quantization))}"
            )


_WKB = {"geometry": "geometry"}
TABLES = (
    TableLayout(
        name="clay-v0",
        model="Clay",
        version="v0",
        columns=Columns(vector="embeddings", date="date", **_WKB),
        marks=frozenset({"source_url", "date", "embeddings", "geometry"}),
        dimension=768,
    ),
    TableLayout(
        name="clay-v1.5-s2",
        model="Clay",
        version="v1.5",
        columns=Columns(vector="embedding", date="datetime", **_WKB),
        marks=frozenset({"chips_id", "datetime", "embedding", "geometry"}),
        dimension=1024,
    ),
    TableLayout(
        name="major-tom",
        model="Major TOM",
        columns=Columns(vector="embedding", date="timestamp", crs="utm_crs", **_WKB),
        marks=frozenset({"unique_id", "embedding", "timestamp", "geometry", "utm_crs"}),
    ),
    TableLayout(
        name="earth-embeddings",
        model="EarthEmbeddings",
        columns=Columns(vector="embedding", date="timestamp", lon="centre_lon", lat="centre_lat"),
        marks=frozenset({"embedding", "timestamp", "centre_lon", "centre_lat"}),
        chip_m=3840.0,
    ),
    TableLayout(
        name="terramind",
        model="TerraMind",
        columns=Columns(vector="embedding", **_WKB),
        marks=frozenset({"ID", "embedding", "geometry"}),
    ),
    TableLayout(
        name="earth-index",
        model="Earth Index",
        version="v2",
        columns=Columns(vector="embedding", **_WKB),
        marks=frozenset({"id", "embedding", "geometry"}),
        dimension=384,
        chip_m=320.0,
    ),
    TableLayout(
        name="skysift",
        model="",  # the footer has it
        columns=Columns(vector="embedding", date="datetime", **_WKB),
        marks=frozenset({"tile_key", "datetime", "embedding", "geometry"}),
    ),
    TableLayout(
        name="clay-v1.5-naip",
        model="Clay",
        version="v1.5",
        columns=Columns(vector="embeddings", **_WKB),
        marks=frozenset({"embeddings", "geometry"}),
        dimension=1024,
    ),
)
"""Tables of chips; of several whose marks a table has, the first."""
PIXELS = (
    PixelLayout(name="alphaearth", model="AlphaEarth", quantization="signed_power", nodata=-128),
    PixelLayout(name="olmoearth", model="OlmoEarth", quantization="signed_power", nodata=-128),
    PixelLayout(name="tessera", model="TESSERA", quantization="scale"),
    PixelLayout(name="pixels", model=""),
)
"""Rasters of pixels; the last is that of rasters whose numbers are the vectors."""
_TABLES = {layout.name: layout for layout in TABLES}
_PIXELS = {layout.name: layout for layout in PIXELS}
LAYOUT_NAMES = (*_TABLES, *_PIXELS)
_UTM_OF_MGRS = re.compile(r"(?<![0-9A-Z])(\d{1,2})([C-HJ-NP-X])[A-HJ-NP-Z]{2}(?![0-9A-Z])")
_ALPHAEARTH_BANDS = 64


def parse_columns(text: str) -> Columns:
    """Return the mapping that a person wrote.

    Raises
    ------
    ConfigError
        A part is not ``name=column``, or has an unknown name.

    Examples
    --------
    >>> parse_columns("vector=emb, lon=x, lat=y").named
    {'vector': 'emb', 'lon': 'x', 'lat': 'y'}
    """
    known = [field.name for field in fields(Columns)]
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    for name, equals, column in pairs:
        if name.strip() not in known or not equals or not column.strip():
            raise ConfigError(
                f"columns: {name + equals + column!r} is not NAME=COLUMN with one of the names "
                f"{', '.join(known)}; write for example vector=embedding,geometry=geometry"
            )
    return Columns(**{name.strip(): column.strip() for name, _, column in pairs})


def table_layout(
    have: Collection[str],
    where: str,
    *,
    name: str = "",
    columns: Columns | None = None,
    dimension: int = 0,
) -> TableLayout:
    """Return the layout of a table.

    Parameters
    ----------
    have
        Names of its columns.
    where
        The table, for messages.
    name
        The layout, where a person names it.
    columns
        Columns that a person maps; each goes before that of the layout.
    dimension
        Length of its vectors as its schema states it; 0 when unknown.

    Raises
    ------
    ConfigError
        No layout fits the columns, or a column that it needs is missing.
    """
    if name and name not in _TABLES:
        raise ConfigError(
            f"layout {name!r} is not one of a table; {where} needs one of {', '.join(_TABLES)}, "
            "or columns=..."
        )
    alike = [layout for layout in TABLES if layout.marks <= set(have)]
    fits = (layout for layout in alike if dimension in (0, layout.dimension or dimension))
    found = _TABLES[name] if name else next(fits, None)
    if found is None and alike and columns is None:
        raise ConfigError(
            f"{where} has the columns of layout {alike[0].name}, but vectors of {dimension} "
            f"numbers, not {alike[0].dimension}; say what it holds: --model NAME --columns ..."
        )
    if found is None or (columns is not None and not name):
        found = TableLayout(name="custom", model="", columns=found.columns if found else Columns())
    if columns is not None:
        found = replace(found, columns=_joined(found.columns, columns))
    _check_columns(found, have, where)
    return found


def _joined(stated: Columns, own: Columns) -> Columns:
    """Return columns, a person's own first; a place in one form replaces that in the other."""
    named: Mapping[str, str] = stated.named
    if own.lon or own.lat:
        named = {part: column for part, column in named.items() if part != "geometry"}
    if own.geometry:
        named = {part: column for part, column in named.items() if part not in ("lon", "lat")}
    return Columns(**{**named, **own.named})


def _check_columns(layout: TableLayout, have: Collection[str], where: str) -> None:
    columns = layout.columns
    shown = ", ".join(have)
    remedy = "map them, for example --columns vector=embedding,geometry=geometry,date=datetime"
    if not columns.vector or not (columns.geometry or (columns.lon and columns.lat)):
        raise ConfigError(f"{where} has no known layout (columns {shown}); {remedy}")
    missing = [column for column in columns.named.values() if column not in have]
    if missing:
        raise ConfigError(
            f"{where} has no column {', '.join(missing)} for layout {layout.name} (columns "
            f"{shown}); {remedy}"
        )


def pixel_layout(
    where: str, *, name: str = "", bands: int = 0, dtype: str = "", scales: bool = False
) -> PixelLayout:
    """Return the layout of a raster of pixel embeddings.

    Integers are refused where no layout says how they become vectors: taken as they are, int8
    numbers look plausible and are wrong.

    Raises
    ------
    ConfigError
        The layout is not one of a raster, or the numbers are integers of an unknown layout.
    """
    if name and name not in _PIXELS:
        raise ConfigError(
            f"layout {name!r} is not one of a raster; {where} needs one of {', '.join(_PIXELS)}"
        )
    if name:
        return _PIXELS[name]
    if scales:
        return _PIXELS["tessera"]
    if dtype == "int8" and bands == _ALPHAEARTH_BANDS:
        return _PIXELS["alphaearth"]
    if not dtype.startswith("float"):
        raise ConfigError(
            f"{where} holds {bands} bands of {dtype}, and nothing says how they become vectors; "
            f"name the layout: --layout {' or '.join(_PIXELS)}"
        )
    return _PIXELS["pixels"]


def crs_of_mgrs(name: str) -> str:
    """Return the UTM zone of the MGRS tile that a file is named for; empty when there is none.

    Examples
    --------
    >>> crs_of_mgrs("clay_03WVN_20220610"), crs_of_mgrs("21MNT_2023-01-01"), crs_of_mgrs("rows")
    ('EPSG:32603', 'EPSG:32721', '')
    """
    match = _UTM_OF_MGRS.search(PurePosixPath(name).name)
    if not match or not 1 <= int(match[1]) <= 60:
        return ""
    return f"EPSG:32{'6' if match[2] >= 'N' else '7'}{int(match[1]):02d}"
