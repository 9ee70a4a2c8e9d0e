"""Open and check one GeoTIFF, and read its header.

Only the GTiff driver is used to read, so a catalog cannot make GDAL open a VRT, a network service
or another format. Where `catalog.drivers` asks for them, files named as JPEG 2000 and VRT are read
too, each by the one driver of its name, and VRT only as :mod:`storage.raster.vrt` rewrites them.
:mod:`storage.raster.writer` writes GeoTIFFs, :mod:`storage.raster.layer` and
:mod:`storage.raster.reader` put rasters on a grid.
"""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import rasterio
from rasterio._env import code_map
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.errors import CRSError, NotGeoreferencedWarning, RasterioError
from rasterio.session import Session
from rasterio.transform import Affine
from rasterio.warp import transform as reproject_points

from storage.errors import ConfigError, GridError, SceneError
from storage.geometry import BBox, around_points
from storage.location import REQUEST_PAYER, Driver, Location
from storage.raster.jpeg2000 import check_whole
from storage.raster.vrt import read_vrt

# A block without data takes 16 bytes in a sparse file, and a large block of one value some hundred.
_CLAIM_BYTES, _CLAIM_RATIO = 2**30, 100_000
_EARTH_RADIUS_M = 6_371_008.8
_PIXEL_M = (1e-3, 1e6)  # of a drone's picture, of a map of the world
# rasterio takes every message of GDAL for UTF-8; a message that quotes a damaged file may be none.
_FAULTS = (RasterioError, CPLE_BaseError, UnicodeDecodeError)
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


_NAMES = {"tif": "GeoTIFF", "jp2": "JPEG 2000", "vrt": "VRT"}
_GDAL_DRIVERS = {"tif": "GTiff", "jp2": "JP2OpenJPEG", "vrt": "VRT"}
_FURTHER: dict[str, Driver] = {".jp2": "jp2", ".j2k": "jp2", ".vrt": "vrt"}
GEOTIFF_SUFFIXES = (".tif", ".tiff")
RASTER_SUFFIXES = (*GEOTIFF_SUFFIXES, *_FURTHER)


@dataclass(frozen=True, kw_only=True, slots=True)
class RasterInfo:
    """Header of a GeoTIFF.

    ``crs`` is ``EPSG:n`` where there is a code, else WKT; ``transform`` is (a, b, c, d, e, f):
    x = a * column + b * row + c, y = d * column + e * row + f; ``descriptions`` are the names of
    the bands, empty where the file gives none.
    """

    crs: str
    transform: tuple[float, float, float, float, float, float]
    width: int
    height: int
    count: int
    dtype: str
    nodata: float | None
    descriptions: tuple[str, ...]

    @property
    def pixel_size(self) -> tuple[float, float]:
        """Size of a pixel along columns and rows, in CRS units."""
        a, b, _, d, e, _ = self.transform
        return math.hypot(a, d), math.hypot(b, e)

    @property
    def bbox(self) -> BBox:
        """West, south, east, north in WGS84 degrees; west > east across the antimeridian."""
        xs, ys = perimeter(Affine(*self.transform), self.width, self.height)
        lons, lats = reproject(CRS.from_user_input(self.crs), CRS.from_epsg(4326), xs, ys)
        west, south, east, north = around_points(lons[None], lats[None])[0].tolist()
        return west, south, east, north


def gdal_report() -> tuple[str, frozenset[str]]:
    """Return the release of GDAL, and the names of the drivers that it has."""
    with rasterio.Env() as environment_:
        return rasterio.__gdal_version__, frozenset(environment_.drivers())


def crs_name(crs: Any) -> str:
    """Return ``EPSG:n`` of a CRS where it has a code, else its WKT.

    Raises
    ------
    ConfigError
        It is not a coordinate reference system.
    """
    try:
        with rasterio.Env():
            parsed = CRS.from_user_input(crs)
            code = parsed.to_epsg()
    except CRSError as error:
        raise ConfigError(f"{crs!r} is not a CRS; give a code such as EPSG:32648") from error
    return f"EPSG:{code}" if code else str(parsed.to_wkt())


def format_of(place: Location) -> str:
    """Return the format that the name of a raster states: ``tif`` when none of the others."""
    path = urlsplit(place.uri).path if place.is_web else place.uri
    return next((form for end, form in _FURTHER.items() if path.lower().endswith(end)), "tif")


def is_open(place: Location) -> bool:
    """Tell whether a raster is of a format that GDAL may open there, by its name."""
    return format_of(place) in ("tif", *place.drivers)


def checked_format(place: Location) -> str:
    """Return the format by which GDAL opens a raster.

    Raises
    ------
    SceneError
        The format has to be asked for, and is not.

    Examples
    --------
    >>> checked_format(Location("B02.jp2", drivers=("jp2",)))
    'jp2'
    """
    form = format_of(place)
    if is_open(place):
        return form
    drivers = ", ".join(sorted({form, *place.drivers}))
    raise SceneError(
        f"{place} is {_NAMES[form]}, which is read only where the recipe asks for it; "
        f"set catalog.drivers=[{drivers}], or convert it to GeoTIFF"
    )


def raster_revision(place: Location) -> str:
    """Return a text that changes when a raster, or a file that a VRT shows, is replaced."""
    shown = read_vrt(place).sources if format_of(place) == "vrt" and is_open(place) else ()
    return " ".join(file.revision() for file in (place, *shown))


def inspect(href: str | Location) -> RasterInfo:
    """Read and check the header of a GeoTIFF.

    Raises
    ------
    SceneError
        The file is not a GeoTIFF, is truncated, has no pixels, no CRS or no usable transform.
    """
    place = Location.of(href)
    with environment(place), opened(place) as dataset:
        return raster_info(dataset)


def resolution_in(info: RasterInfo, crs: str) -> float:
    """Return the pixel size, in units of ``crs``, that keeps a raster's detail there.

    Raises
    ------
    GridError
        The middle of the raster has no place in ``crs``.
    """
    if info.crs == crs:
        return min(info.pixel_size)
    columns = np.array([0.0, 1.0, 0.0]) + info.width / 2
    rows = np.array([0.0, 0.0, 1.0]) + info.height / 2
    x, y = _at(Affine(*info.transform), columns, rows)
    x, y = reproject(CRS.from_user_input(info.crs), CRS.from_user_input(crs), x, y)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise GridError(f"a raster in {info.crs} lies outside the area of {crs}; choose another")
    area = (x[1] - x[0]) * (y[2] - y[0]) - (x[2] - x[0]) * (y[1] - y[0])
    return math.sqrt(abs(area))


class _Credentials(Session):  # type: ignore[misc]
    """Keys of the object store, given to GDAL as they are; rasterio would want boto3 for it."""

    def __init__(self, keys: dict[str, str]) -> None:
        self.credentials = keys

    def get_credential_options(self) -> dict[str, str]:
        return dict(self.credentials)


def environment(place: Location, sidecars: bool = False) -> rasterio.Env:
    """Return the context in which GDAL reaches a file; enter it around every access.

    Credentials are resolved once, when the context is made; it may be entered again and again.
    Files beside a GeoTIFF count when it is local, when its options say so, or with ``sidecars``.
    """
    options = place.options.resolved()
    is_remote = place.uri.startswith(("s3://", "http://", "https://"))
    settings: dict[str, Any] = {
        # TRUE looks for every sidecar by its name, which is cheaper than to list large folders.
        "GDAL_DISABLE_READDIR_ON_OPEN": "TRUE"
        if sidecars or options.sidecars or not is_remote
        else "EMPTY_DIR",
        "GDAL_NUM_THREADS": "1",
        "GDAL_CACHEMAX": 128 * 1024 * 1024,  # rasterio hands a number over as bytes
        "GDAL_HTTP_MAX_RETRY": "4",
        "GDAL_HTTP_RETRY_DELAY": "0.5",
        "GDAL_HTTP_TIMEOUT": "60",
        "VSI_CACHE": "TRUE",
        "VSI_CACHE_SIZE": str(16 * 1024 * 1024),
        # Long-lived workers must see the new content of an overwritten object.
        "CPL_VSIL_CURL_NON_CACHED": "/vsis3/:/vsicurl/",
    }
    if options.endpoint_url:
        endpoint = urlsplit(options.endpoint_url)
        settings["AWS_S3_ENDPOINT"] = endpoint.netloc
        settings["AWS_HTTPS"] = "YES" if endpoint.scheme == "https" else "NO"
        settings["AWS_VIRTUAL_HOSTING"] = "FALSE"
    if options.region:
        settings["AWS_REGION"] = options.region
    if options.anonymous:
        settings["AWS_NO_SIGN_REQUEST"] = "YES"
    secrets = {
        "AWS_ACCESS_KEY_ID": options.access_key_id,
        "AWS_SECRET_ACCESS_KEY": options.secret_access_key,
        "AWS_SESSION_TOKEN": options.session_token,
    }
    keys = {name: value for name, value in secrets.items() if value}
    # rasterio's logging callback prints a traceback for a message that is not UTF-8. The callback
    # reads the messages of numbers that are in its table; errors have their texts all the same.
    for number in code_map.keys() - {0}:  # 0 is GDAL's own debugging
        code_map.pop(number, None)  # another thread may be here too
    return rasterio.Env(session=_Credentials(keys) if keys else None, **settings)


@contextmanager
def opened(
    href: Location, georeferenced: bool = True, overview: int | None = None
) -> Iterator[Any]:
    """Open a GeoTIFF that is whole, or one of its overviews, inside :func:`environment`."""
    if href.uri.removeprefix("file://").startswith("/vsi"):
        raise SceneError(f"{href} is a GDAL virtual path; give a file or an s3:// URI")
    form = checked_format(href)
    path, files = href.gdal_path, [href]
    if href.is_local:
        if not href.path.is_file():
            raise SceneError(f"{href} does not exist; check the path")
        _check_sidecars(href.path)
    if form == "vrt":
        vrt = read_vrt(href)
        path, files = vrt.xml, list(vrt.sources)
        for source in files:
            with opened(source, georeferenced=False):
                pass  # GDAL would open a source by whatever driver its bytes suit
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            level = {} if overview is None else {"overview_level": overview}
            dataset = rasterio.open(path, driver=_GDAL_DRIVERS[form], **level)
    except (*_FAULTS, OSError) as error:
        reason = cause(error)
        paid = f"; where the requester pays, set {REQUEST_PAYER}=requester"
        raise SceneError(
            f"{href} cannot be opened as {_NAMES[form]}: {reason}; check the file and the access"
            f"{paid if 'Denied' in reason or '403' in reason else ''}"
        ) from error
    with dataset, named_faults(href):
        if href.is_local and overview is None:  # an overview may be in a file of its own
            if form == "jp2":
                check_whole(href.path)
            _check_length(dataset, href, sum(file.size_bytes() for file in files))
        _check(dataset, href, georeferenced)
        yield dataset


@contextmanager
def named_faults(href: Location, where: str = "") -> Iterator[None]:
    """Turn the errors of GDAL about an open file into one that names the file.

    GDAL reads a header piece by piece, so a look at the masks or colours of a file may fail.
    """
    try:
        yield
    except _FAULTS as error:
        raise SceneError(
            f"{href} cannot be read{where}: {cause(error)}; it may be truncated or damaged, "
            "copy it again"
        ) from error


def _check(dataset: Any, href: Location, georeferenced: bool) -> None:
    # GDAL has complex types of integers too, which numpy does not know.
    if any(dtype.startswith("complex") for dtype in dataset.dtypes):
        raise SceneError(f"{href} holds complex numbers; convert it to amplitude first")
    if not georeferenced:
        return
    t = dataset.transform
    usable = all(map(math.isfinite, t)) and not t.is_identity and t.a * t.e - t.b * t.d != 0
    if dataset.crs is None or not usable:
        raise SceneError(f"{href} {_without_place(dataset, href)}")
    fault = placement_fault(dataset.crs, t, dataset.width, dataset.height)
    if fault:
        raise SceneError(f"{href} {fault}, for example with gdal_edit")


def _without_place(dataset: Any, href: Location) -> str:
    """Say what a GeoTIFF without CRS or transform has instead, and the next step."""
    if dataset.gcps[0]:
        return (
            "is georeferenced by ground control points only, not by a transform; "
            "warp it first, for example with gdalwarp"
        )
    if dataset.rpcs is not None:
        return (
            "is placed by rational polynomial coefficients (RPC) only, not by a transform; "
            "orthorectify it first, for example with gdalwarp -rpc"
        )
    if dataset.crs is not None:
        return "has a CRS but no usable transform; georeference it first"
    if not dataset.transform.is_identity:
        return "has a transform but no CRS; assign the right one, for example with gdal_edit"
    beside = "" if href.is_local else "; a world file or .aux.xml beside it needs storage.sidecars"
    return f"has no CRS; assign the right one, for example with gdal_edit{beside}"


def _check_sidecars(path: Path) -> None:
    """Refuse files beside a GeoTIFF that GDAL would open with another driver than GTiff."""
    for suffix in (".msk", ".MSK", ".ovr", ".OVR"):
        beside = path.with_name(path.name + suffix)
        if beside.is_file():
            with beside.open("rb") as stream:
                if not stream.read(4).startswith(_TIFF_MAGIC):
                    raise SceneError(f"{beside} is not a TIFF, so {path} is not read; remove it")
            _check_sidecars(beside)
    metadata = path.with_name(f"{path.name}.aux.xml")
    if metadata.is_file() and b"OVERVIEW_FILE" in metadata.read_bytes():
        raise SceneError(f"{metadata} names a file of overviews; remove that entry")


def _check_length(dataset: Any, href: Location, size_bytes: int) -> None:
    """Refuse a file that ends before its last block, or that cannot hold what it claims."""
    claimed_bytes = dataset.width * dataset.height * dataset.count
    if claimed_bytes > max(_CLAIM_BYTES, size_bytes * _CLAIM_RATIO):
        raise SceneError(
            f"{href} claims {dataset.width:,} x {dataset.height:,} px of {dataset.count} band(s) "
            f"in {size_bytes:,} bytes, so that nearly all blocks are missing; make it again"
        )
    rows, columns = dataset.block_shapes[-1]
    last = f"{(dataset.width - 1) // columns}_{(dataset.height - 1) // rows}"
    tags = (
        dataset.get_tag_item(f"BLOCK_{field}_{last}", "TIFF", bidx=dataset.count)
        for field in ("OFFSET", "SIZE")
    )
    end = sum(int(tag) for tag in tags if tag)
    if end > size_bytes:
        raise SceneError(
            f"{href} is truncated: its last block ends at byte {end}, the file has {size_bytes}; "
            "copy it again"
        )


def raster_info(dataset: Any) -> RasterInfo:
    """Return the header of an open GeoTIFF."""
    t = dataset.transform
    return RasterInfo(
        crs=crs_name(dataset.crs),
        transform=(t.a, t.b, t.c, t.d, t.e, t.f),
        width=dataset.width,
        height=dataset.height,
        count=dataset.count,
        dtype=dataset.dtypes[0],
        nodata=dataset.nodata,
        descriptions=tuple(name or "" for name in dataset.descriptions),
    )


def cause(error: BaseException) -> str:
    """Return the first line of the innermost reason; rasterio's own often only points to it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().partition("\n")[0] or type(error).__name__


def alpha_index(dataset: Any) -> int:
    """Return the number of the alpha band, 0 without one."""
    interpretations = list(dataset.colorinterp)
    alpha = ColorInterp.alpha
    return interpretations.index(alpha) + 1 if alpha in interpretations else 0


def perimeter(transform: Affine, width: int, height: int) -> tuple[Any, Any]:
    """Return x and y of points along the edges of a raster, 21 to a side."""
    steps = np.linspace(0.0, 1.0, 21)
    low, high = np.zeros_like(steps), np.ones_like(steps)
    columns = np.concatenate([steps, high, steps, low]) * width
    rows = np.concatenate([low, steps, high, steps]) * height
    return _at(transform, columns, rows)


def _at(t: Affine, columns: Any, rows: Any) -> tuple[Any, Any]:
    return t.a * columns + t.b * rows + t.c, t.d * columns + t.e * rows + t.f


def reproject(source: CRS, target: CRS, xs: Any, ys: Any) -> tuple[Any, Any]:
    """Return x and y of points in another CRS; not finite where it has no such place."""
    with rasterio.Env():
        try:
            x, y = reproject_points(source, target, xs, ys)
        except (RasterioError, CPLE_BaseError):
            if len(xs) == 1:
                return np.array([np.inf]), np.array([np.inf])
            # One point without a place fails the call for all.
            points = [
                reproject(source, target, xs[i : i + 1], ys[i : i + 1]) for i in range(len(xs))
            ]
            x, y = (np.concatenate(part) for part in zip(*points, strict=True))
    return np.asarray(x), np.asarray(y)


@lru_cache(1024)
def placement_fault(crs: CRS, transform: Affine, width: int, height: int) -> str:
    """Return why a raster lies nowhere on the Earth; empty when it lies somewhere.

    Degrees have to be degrees, other coordinates have to be those of a map projection in which the
    raster lies. Pixels beyond the edge of the projected world are allowed, as in the outermost
    tiles of a sinusoidal grid, but not a raster of nothing else.
    """
    if not (crs.is_geographic or crs.is_projected):
        return (
            f"has the CRS {_short_name(crs)}, whose coordinates are no places on a map (heights, "
            "geocentric or local axes); assign the CRS of its pixels"
        )
    unit = crs.units_factor[1]  # radians or metres
    side = math.sqrt(abs(transform.determinant))
    side_m = side * unit * (_EARTH_RADIUS_M if crs.is_geographic else 1.0)
    columns, rows = np.meshgrid(np.linspace(0, width, 5), np.linspace(0, height, 5))
    xs, ys = _at(transform, columns.ravel(), rows.ravel())
    in_range = _PIXEL_M[0] <= side_m <= _PIXEL_M[1]
    if crs.is_geographic:
        slack = max(abs(transform.a), abs(transform.b), abs(transform.d), abs(transform.e)) * unit
        in_range &= bool(np.abs(ys).max() * unit <= math.pi / 2 + slack)
        in_range &= bool(np.abs(xs).max() * unit <= 2 * math.pi + slack)
    if in_range and _is_on_earth(crs, xs, ys, side):
        return ""
    return (
        f"cannot be where it says: pixels of {side_m:.3g} m, x from {xs.min():.10g} to "
        f"{xs.max():.10g} and y from {ys.min():.10g} to {ys.max():.10g} in {_short_name(crs)}; "
        "correct its CRS or its transform"
    )


def _short_name(crs: CRS) -> str:
    name = crs_name(crs)
    return name if name.startswith("EPSG:") else name.partition(",")[0]


def _is_on_earth(crs: CRS, xs: Any, ys: Any, side: float) -> bool:
    """Tell whether one of some points is a place, within a pixel, or that place a turn further."""
    degrees = CRS.from_epsg(4326)
    lons, lats = reproject(crs, degrees, xs, ys)
    known = np.isfinite(lons) & np.isfinite(lats)
    if crs.is_geographic or not known.any():
        return bool(known.any())
    xs, ys, lons, lats = (values[known] for values in (xs, ys, lons, lats))
    # Beyond the edge of a projection the way there and back ends somewhere else.
    x, y = reproject(degrees, crs, lons, lats)
    near = side + 1e-6 * (np.abs(xs) + np.abs(ys))
    far, same_row = np.abs(x - xs), np.abs(y - ys) <= near
    if (same_row & (far <= near)).any():
        return True
    # A projection of the whole world repeats eastwards: files go on beyond the antimeridian.
    east, _ = reproject(degrees, crs, lons + 1e-3, lats)
    return bool((same_row & (far <= near + np.abs(east - x) * 360e3)).any())
