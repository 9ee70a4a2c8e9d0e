"""Pixel embeddings from GeoTIFF and Zarr: sources, and their vectors in a window.

Numbers become vectors here and nowhere else. A pixel without data in one band has no vector. Arrays
of Zarr are read by the names of their dimensions, whatever their order, and rows of any direction
are turned to run southwards.

References
----------
Geo embeddings convention for Zarr, https://geoembeddings.org. AlphaEarth Foundations, README of the
data set. TESSERA, `docs/zarr_quickstart.rst` of geotessera. OlmoEarth,
`rslp/large_scale_embeddings/README.md`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.storage import FsspecStore

from storage.catalog.files import date_of_name
from storage.dates import as_utc, parse_moment
from storage.embeddings.layouts import Choice, PixelLayout, Quantization, pixel_layout
from storage.errors import CatalogError, NotFoundError, SceneError
from storage.location import Location, named_failures
from storage.raster.geotiff import GEOTIFF_SUFFIXES, crs_name, inspect
from storage.raster.pixel_grid import PixelGrid, Window
from storage.raster.reader import SceneReader
from storage.scene import BandSource, Scene

Float32 = npt.NDArray[np.float32]

_MOST = 127.5
_ARRAY, _SCALES = "embeddings", "scales"
_TIME, _BAND = ("time", "t"), ("band", "bands", "embedding", "feature", "channel")
_Y, _X = ("y", "lat", "latitude"), ("x", "lon", "longitude")
_YEAR = re.compile(r"(?<!\d)(?:19|20)\d{2}(?!\d)")
_UTM_GROUP = re.compile(r"utm(\d{2})$")
_SQUARE = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class Raster:
    """Pixel embeddings of one date on one grid of pixels.

    Attributes
    ----------
    place
        The GeoTIFF, or the Zarr group.
    group, step
        Path of the array's group in a Zarr store, and the index of the date; "" and -1 otherwise.
    layout
        How numbers become vectors.
    dimension
        Length of a vector.
    pixels, extent
        The grid, and the window on it.
    flipped
        Whether rows of a Zarr array run northwards.
    datetime
        UTC.
    revision
        Changes when the file is replaced; for Zarr, when the metadata of the array change.
    """

    place: Location
    group: str = ""
    step: int = -1
    layout: PixelLayout
    dimension: int
    pixels: PixelGrid
    extent: Window
    flipped: bool = False
    datetime: np.datetime64
    revision: str

    @property
    def name(self) -> str:
        """A name for its scenes: file, group and date where they tell."""
        if self.step < 0:
            return self.place.stem
        day = str(self.datetime.astype("datetime64[D]"))
        return "-".join([self.place.stem, *self.group.strip("/").split("/"), day]).replace(
            "--", "-"
        )

    def read(self, window: Window) -> Float32:
        """Return vectors (D, h, w) of a window of the grid; NaN where a pixel has none."""
        if self.step < 0:
            return _geotiff_vectors(self, window)
        return _zarr_vectors(self, window)


def dequantized(
    numbers: npt.NDArray[Any], quantization: Quantization, scales: npt.NDArray[Any] | None = None
) -> Float32:
    """Return the vectors (D, ...) of stored numbers (D, ...).

    Parameters
    ----------
    numbers
        As stored; NaN stays NaN.
    quantization
        See :class:`storage.embeddings.layouts.PixelLayout`.
    scales
        Factor of each pixel (...); one that is not finite means that the pixel holds no data.

    Examples
    --------
    >>> dequantized(np.array([[127, -64]], np.int8), "signed_power").round(3).tolist()
    [[0.9919999837875366, -0.25200000405311584]]
    """
    values = np.asarray(numbers, np.float32)
    if quantization == "signed_power":
        return np.asarray(np.square(values / np.float32(_MOST)) * np.sign(values), np.float32)
    if quantization == "scale":
        if scales is None:
            raise SceneError("its numbers need the array `scales`, which it lacks")
        factors = np.asarray(scales, np.float32)
        return values * np.where(np.isfinite(factors), factors, np.float32(np.nan))
    return values


def is_zarr(place: Location) -> bool:
    """Tell whether a place is a Zarr v3 group."""
    return not place.is_pattern and (place / "zarr.json").exists()


def geotiffs(place: Location) -> list[Location]:
    """Return the GeoTIFFs that a source names."""
    return [file for file in place.list() if file.uri.lower().endswith(GEOTIFF_SUFFIXES)]


def geotiff_raster(place: Location, choice: Choice) -> Raster:
    """Read and check the header of a GeoTIFF of pixel embeddings.

    Raises
    ------
    SceneError
        The file is no GeoTIFF, or its pixels are not square to its CRS.
    CatalogError
        The file has no date.
    """
    info = inspect(place)
    a, b, left, d, e, top = info.transform
    if b or d or abs(abs(a) - abs(e)) > _SQUARE * abs(a) or a < 0:
        raise SceneError(
            f"{place}: pixels are not upright squares (transform {info.transform}); averages of "
            "resampled embeddings would be wrong, so warp it by nearest neighbour first"
        )
    north = top if e < 0 else top + e * info.height
    pixels, extent = _grid(info.crs, a, left, north, (info.height, info.width))
    layout = pixel_layout(str(place), name=choice.layout, bands=info.count, dtype=info.dtype)
    if layout.nodata is None:
        layout = replace(layout, nodata=info.nodata)
    return Raster(
        place=place,
        layout=layout,
        dimension=info.count,
        pixels=pixels,
        extent=extent,
        datetime=_date(place, choice),
        revision=place.revision(),
    )


def zarr_rasters(place: Location, choice: Choice) -> list[Raster]:
    """Return the pixel embeddings of a Zarr group and the groups in it, one raster a date.

    Raises
    ------
    CatalogError
        No group has an array `embeddings`, or an array has no place or no date.
    """
    with named_failures(place):
        root = _group(place)
        groups = [("", root), *((name, child) for name, child in root.members(max_depth=None))]
        found = [
            raster
            for name, group in groups
            if isinstance(group, zarr.Group) and _ARRAY in group
            for raster in _rasters_of(place, name, group, choice)
        ]
    if not found:
        raise CatalogError(f"{place} holds no array {_ARRAY!r}; give a group that holds one")
    return found


def _rasters_of(place: Location, name: str, group: zarr.Group, choice: Choice) -> Iterator[Raster]:
    array = group[_ARRAY]
    assert isinstance(array, zarr.Array)
    where = f"{place}/{name}".rstrip("/")
    axes = _axes(array, where)
    height, width = array.shape[axes["y"]], array.shape[axes["x"]]
    layout = pixel_layout(
        where,
        name=choice.layout or _stated_layout(group, array),
        bands=array.shape[axes["band"]],
        dtype=str(array.dtype),
        scales=_SCALES in group,
    )
    if layout.nodata is None and array.dtype.kind == "f":
        layout = replace(layout, nodata=_number(array.fill_value))
    left, top, size, flipped = _placement(group, array, (height, width), where)
    pixels, extent = _grid(_crs(group, array, name, where), size, left, top, (height, width))
    for step, moment in enumerate(_times(group, array, axes, place, choice)):
        yield Raster(
            place=place,
            group=name,
            step=step,
            layout=layout,
            dimension=array.shape[axes["band"]],
            pixels=pixels,
            extent=extent,
            flipped=flipped,
            datetime=moment,
            revision=(place / f"{name}/{_ARRAY}/zarr.json".lstrip("/")).revision(),
        )


def _number(fill_value: Any) -> float | None:
    return None if fill_value is None else float(fill_value)


def _group(place: Location) -> zarr.Group:
    fs, path = place.filesystem()
    store = path if place.is_local else FsspecStore.from_mapper(fs.get_mapper(path), read_only=True)
    return zarr.open_group(store, mode="r")


def _axes(array: "zarr.Array[Any]", where: str) -> dict[str, int]:
    """Return which dimension of an array is which, by name."""
    names = [str(name or "").lower() for name in (array.metadata.dimension_names or ())]  # type: ignore[union-attr]
    kinds = {"time": _TIME, "band": _BAND, "y": _Y, "x": _X}
    axes = {
        kind: position
        for kind, known in kinds.items()
        for position, name in enumerate(names)
        if name in known
    }
    if missing := [kind for kind in ("band", "y", "x") if kind not in axes]:
        raise CatalogError(
            f"{where}/{_ARRAY} has dimensions {', '.join(names) or 'without names'}, and none is "
            f"{', '.join(missing)}; the convention asks for time, band, y, x"
        )
    return axes


def _stated_layout(group: zarr.Group, array: "zarr.Array[Any]") -> str:
    """Return the layout that the attributes of the convention tell; empty when none."""
    attributes: dict[str, Any] = {**dict(group.attrs), **dict(array.attrs)}
    method = attributes.get("geoemb:quantization")
    stated = str(method.get("method", "") if isinstance(method, Mapping) else method or "")
    model = str(attributes.get("geoemb:model", "")).lower()
    if "signed" in stated:
        return "alphaearth" if "alpha" in model else "olmoearth"
    return "tessera" if "tessera" in model else ""


def _placement(
    group: zarr.Group, array: "zarr.Array[Any]", shape: tuple[int, int], where: str
) -> tuple[float, float, float, bool]:
    """Return left, top, pixel size and whether rows run northwards."""
    attributes: dict[str, Any] = {**dict(group.attrs), **dict(array.attrs)}
    stated = attributes.get("spatial:transform")
    if isinstance(stated, Sequence) and len(stated) >= 6:
        a, b, left, d, e, top = (float(value) for value in stated[:6])
    else:
        xs, ys = (_coordinates(group, names) for names in (_X, _Y))
        if xs is None or ys is None or min(len(xs), len(ys)) < 2:
            raise CatalogError(
                f"{where} states no place: neither spatial:transform nor coordinates x and y"
            )
        a, e = (float(line[-1] - line[0]) / (len(line) - 1) for line in (xs, ys))
        left, top, b, d = float(xs[0]) - a / 2, float(ys[0]) - e / 2, 0.0, 0.0
    if b or d or a <= 0 or abs(abs(a) - abs(e)) > _SQUARE * a:
        raise CatalogError(f"{where}: pixels are not upright squares ({a:g} by {e:g})")
    return left, (top if e < 0 else top + e * shape[0]), a, e > 0


def _coordinates(group: zarr.Group, names: Sequence[str]) -> npt.NDArray[Any] | None:
    name = next((name for name in names if name in group), None)
    return None if name is None else np.asarray(group[name][:], np.float64)  # type: ignore[index]


def _crs(group: zarr.Group, array: "zarr.Array[Any]", name: str, where: str) -> str:
    attributes: dict[str, Any] = {**dict(group.attrs), **dict(array.attrs)}
    for key in ("proj:code", "proj:wkt2", "crs", "crs_wkt"):
        if isinstance(attributes.get(key), str):
            return crs_name(attributes[key])
    if "spatial_ref" in group:
        return crs_name(dict(group["spatial_ref"].attrs).get("crs_wkt"))
    if match := _UTM_GROUP.search(name):  # of TESSERA and OlmoEarth: always the northern zone
        return f"EPSG:326{match[1]}"
    raise CatalogError(f"{where} states no CRS; the convention asks for proj:code")


def _times(
    group: zarr.Group,
    array: "zarr.Array[Any]",
    axes: Mapping[str, int],
    place: Location,
    choice: Choice,
) -> list[np.datetime64]:
    """Return the date of each step; numbers are years, or seconds or days since 1970."""
    if "time" not in axes:
        return [_date(place, choice)]
    if "time" not in group:
        if array.shape[axes["time"]] != 1:
            raise CatalogError(f"{place} has several dates and no array `time` that names them")
        return [_date(place, choice)]
    stored = group["time"]
    assert isinstance(stored, zarr.Array)
    values = np.asarray(stored[:])
    if values.dtype.kind == "M":
        return list(values.astype("datetime64[ms]"))
    unit = str(dict(stored.attrs).get("units", ""))
    if match := re.match(r"(day|hour|second)s? since (\S+)", unit):
        start = np.datetime64(match[2], "ms")
        step = {"day": 86_400_000, "hour": 3_600_000, "second": 1000}[match[1]]
        return [start + np.timedelta64(int(value * step), "ms") for value in values.tolist()]
    if values.dtype.kind in "iu" and ((values >= 1900) & (values <= 2200)).all():
        return [np.datetime64(f"{year}-01-01", "ms") for year in values.tolist()]
    raise CatalogError(
        f"{place}: its times have the unit {unit!r}; years or 'days since' are known"
    )


def _date(place: Location, choice: Choice) -> np.datetime64:
    """Return the date of a file: stated, of its name, or the year of its folder."""
    if choice.date is not None:
        moment = parse_moment(choice.date, "date")
    else:
        try:
            moment = date_of_name(place.stem)
        except CatalogError as error:
            years = _YEAR.findall(place.uri)
            if not years:
                raise CatalogError(
                    f"{place} has neither a date in its name nor a year in its path; give --date"
                ) from error
            moment = parse_moment(f"{years[-1]}-01-01", "year")
    return np.datetime64(as_utc(moment).replace(tzinfo=None), "ms")


def _grid(
    crs: str, size: float, left: float, top: float, shape: tuple[int, int]
) -> tuple[PixelGrid, Window]:
    """Return the grid of pixels with a corner at left and top, and the window of the pixels."""
    anchor = (round(left % size, 9) % size, round(top % size, 9) % size)
    pixels = PixelGrid(crs=crs, resolution=size, anchor=anchor)
    column, row = round((left - anchor[0]) / size), round((anchor[1] - top) / size)
    return pixels, Window(column=column, row=row, width=shape[1], height=shape[0])


def _geotiff_vectors(raster: Raster, window: Window) -> Float32:
    bands = tuple(
        BandSource(name=str(number), href=raster.place, index=number, nodata=raster.layout.nodata)
        for number in range(1, raster.dimension + 1)
    )
    moment: datetime = raster.datetime.astype("datetime64[ms]").astype(datetime)
    scene = Scene(id=raster.name, datetime=as_utc(moment), bands=bands)
    with SceneReader(scene, raster.pixels, resampling="nearest") as reader:
        values = reader.read(window).values
    return _whole(dequantized(values, raster.layout.quantization))


def _zarr_vectors(raster: Raster, window: Window) -> Float32:
    vectors = np.full((raster.dimension, window.height, window.width), np.nan, np.float32)
    shared = window.intersection(raster.extent)
    if shared is None:
        return vectors
    with named_failures(raster.place):
        found = _group(raster.place)
        group = found[raster.group] if raster.group else found
        assert isinstance(group, zarr.Group)
        numbers = _slab(group[_ARRAY], raster, shared)
        scales = _slab(group[_SCALES], raster, shared) if _SCALES in group else None
    values = dequantized(numbers, raster.layout.quantization, None if scales is None else scales[0])
    if raster.layout.nodata is not None:
        values[:, (numbers == raster.layout.nodata).any(axis=0)] = np.nan
    rows, columns = shared.slices_in(window)
    vectors[:, rows, columns] = values
    return _whole(vectors)


def _slab(array: Any, raster: Raster, shared: Window) -> npt.NDArray[Any]:
    """Return a part of an array as (bands, h, w), rows southwards; one band where it has none."""
    if not isinstance(array, zarr.Array):
        raise NotFoundError(f"{raster.place}/{raster.group} lacks an array; write it again")
    names = [str(name or "").lower() for name in (array.metadata.dimension_names or ())]  # type: ignore[union-attr]
    rows, columns = shared.slices_in(raster.extent)
    if raster.flipped:
        height = raster.extent.height
        rows = slice(height - rows.stop, height - rows.start)
    chosen: list[Any] = []
    order: list[str] = []
    for name in names:
        if name in _TIME:
            chosen.append(raster.step)
            continue
        kind = "y" if name in _Y else "x" if name in _X else "band"
        order.append(kind)
        chosen.append({"y": rows, "x": columns, "band": slice(None)}[kind])
    part = np.asarray(array[tuple(chosen)])
    if "band" not in order:
        part, order = part[None], ["band", *order]
    part = part.transpose([order.index(kind) for kind in ("band", "y", "x")])
    return part[:, ::-1] if raster.flipped else part


def _whole(vectors: Float32) -> Float32:
    """Return vectors (D, h, w) with NaN in every band of a pixel that lacks one."""
    vectors[:, ~np.isfinite(vectors).all(axis=0)] = np.nan
    return vectors
