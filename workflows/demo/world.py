"""A made-up archive on disk: Sentinel-2-like scenes, land cover and the STAC items about them.

Two UTM zones of three neighbouring scenes each, seen on a summer and an autumn day, with clouds,
a cloud mask, nodata wedges and a baseline >= 04.00 offset; one more acquisition is overcast. All
of it follows from a seed. Files appear whole, so a killed build continues where it stopped.
"""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyproj import Transformer

from storage.location import delete, write_bytes
from storage.progress import Progress, ProgressSink, quiet
from storage.raster.writer import write_geotiff
from workflows.demo.landscape import (
    AUTUMN,
    BANDS,
    CLASSES,
    SUMMER,
    WATER,
    Ground,
    Season,
    make_ground,
    noise,
    reflectance,
)

FORMAT = 1
SCALE, OFFSET = 0.0001, -0.1
CLOUD_VALUES = (3, 8, 9)
_BAND_NAMES = {"blue": "B02", "green": "B03", "red": "B04", "nir": "B08"}
_RESOLUTION_M = 10.0
# UTM zone -> easting and northing of the upper left corner, in metres; both near 18 degrees east,
# deliberately off the 640 m lattice of 64 px tiles.
_ORIGIN_M = {33: (709_280.0, 5_399_920.0), 34: (282_760.0, 5_399_920.0)}
_DAYS = {"2024-06-18": SUMMER, "2024-10-21": AUTUMN}
_OVERCAST = ("2024-08-07", SUMMER)


@dataclass(frozen=True, kw_only=True, slots=True)
class WorldSpec:
    """What decides the world: a seed, and the size of its square scenes."""

    seed: int = 7
    scene_px: int = 1024
    scenes_per_zone: int = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """Where a finished world is.

    Attributes
    ----------
    catalog
        STAC item collection that describes the scenes.
    landcover
        CRS, such as ``"EPSG:32633"``, to the land-cover raster of that UTM zone.
    classes
        Pixel value of the land-cover rasters to class name.
    """

    catalog: str
    landcover: Mapping[str, str]
    classes: Mapping[int, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Acquisition:
    zone: int
    site: int
    day: str
    season: Season
    overcast: bool = False

    @property
    def id(self) -> str:
        return f"{self.zone}{'abcdefghij'[self.site]}-{self.day.replace('-', '')}"

    @property
    def crs(self) -> str:
        return f"EPSG:{32600 + self.zone}"


def build_world(
    folder: str | Path, spec: WorldSpec | None = None, progress: ProgressSink = quiet
) -> World:
    """Write the world below a local folder, or complete what is already there.

    A world of another seed or size in the folder is replaced.

    Returns
    -------
    World
        The paths in it are below ``folder``.
    """
    spec = spec or WorldSpec()
    root = Path(folder)
    _claim(root, spec)
    plan = _plan(spec)
    missing = [a for a in plan if not _item_path(root, a).exists()]
    done = len(plan) - len(missing)
    progress(Progress(stage="world", done=done, total=len(plan), unit="scenes"))
    for zone in _ORIGIN_M:
        wanted = [a for a in missing if a.zone == zone]
        landcover = _landcover_path(root, zone)
        if not wanted and landcover.exists():
            continue
        height = spec.scene_px * spec.scenes_per_zone
        ground = make_ground(spec.seed, zone, (height, spec.scene_px))
        if not landcover.exists():
            _write_raster(landcover, ground.classes[None], zone, (0, 0), ("landcover",), 0)
        with ThreadPoolExecutor(2) as pool:
            jobs = [pool.submit(_write_scene, root, spec, ground, a) for a in wanted]
            for job in as_completed(jobs):
                job.result()
                done += 1
                progress(Progress(stage="world", done=done, total=len(plan), unit="scenes"))
    return _finish(root, plan)


def _claim(root: Path, spec: WorldSpec) -> None:
    """Mark the folder as this world's, and clear the remains of another one."""
    mark = root / "world.json"
    wanted = json.dumps({"format": FORMAT, **asdict(spec)}, indent=1)
    if mark.exists() and mark.read_text() == wanted:
        return
    for part in ("world.json", "items.json", "scenes", "landcover"):
        delete(str(root / part))
    write_bytes(str(mark), wanted.encode())


def _plan(spec: WorldSpec) -> list[_Acquisition]:
    """List every acquisition: all sites on both days, and the overcast one."""
    plan = [
        _Acquisition(zone=zone, site=site, day=day, season=season)
        for zone in _ORIGIN_M
        for site in range(spec.scenes_per_zone)
        for day, season in _DAYS.items()
    ]
    day, season = _OVERCAST
    return [*plan, _Acquisition(zone=33, site=0, day=day, season=season, overcast=True)]


def _finish(root: Path, plan: Sequence[_Acquisition]) -> World:
    """Write the item collection once all items are there."""
    catalog = root / "items.json"
    if not catalog.exists():
        items = [json.loads(_item_path(root, a).read_text()) for a in plan]
        for item in items:
            for asset in item["assets"].values():
                asset["href"] = f"./scenes/{item['id']}/{asset['href'].removeprefix('./')}"
        document = {"type": "FeatureCollection", "features": items}
        write_bytes(str(catalog), json.dumps(document, indent=1).encode())
    return World(
        catalog=str(catalog),
        landcover={f"EPSG:{32600 + z}": str(_landcover_path(root, z)) for z in _ORIGIN_M},
        classes=CLASSES,
    )


def _item_path(root: Path, acquisition: _Acquisition) -> Path:
    return root / "scenes" / acquisition.id / "item.json"


def _landcover_path(root: Path, zone: int) -> Path:
    return root / "landcover" / f"epsg{32600 + zone}.tif"


def _write_scene(root: Path, spec: WorldSpec, ground: Ground, acquisition: _Acquisition) -> None:
    """Write one scene's rasters, then its item: the item's presence says that it is complete."""
    size = spec.scene_px
    part = ground.rows(acquisition.site * size, (acquisition.site + 1) * size)
    day = sorted({*_DAYS, _OVERCAST[0]}).index(acquisition.day)
    rng = np.random.default_rng([spec.seed, acquisition.zone, acquisition.site, day])
    image, scl = _acquire(rng, part, acquisition)
    folder = _item_path(root, acquisition).parent
    corner = (acquisition.site * size, 0)
    for band, values in zip(BANDS, image, strict=True):
        _write_raster(folder / f"{band}.tif", values[None], acquisition.zone, corner, (band,), 0)
    _write_raster(folder / "scl.tif", scl[None], acquisition.zone, corner, ("scl",), 0, step=2)
    item = _item(acquisition, size, scl)
    write_bytes(str(folder / "item.json"), json.dumps(item, indent=1).encode())


def _acquire(
    rng: np.random.Generator, ground: Ground, acquisition: _Acquisition
) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """Look at the ground through the air of one day.

    Returns
    -------
    tuple
        Digital numbers, uint16 (4, h, w), 0 where there is no data, and the scene
        classification at half the resolution, uint8 (h/2, w/2).
    """
    image = reflectance(ground, acquisition.season)
    shape = ground.classes.shape
    cover = 1.0 if acquisition.overcast else float(rng.choice([0.0, 0.03, 0.08, 0.18]))
    cloud, shadow = _clouds(rng, shape, cover)
    bright = np.float32(0.62) + 0.08 * noise(rng, shape, 40, rough=True)
    image *= 1 - 0.55 * shadow
    image = image * (1 - cloud) + bright * cloud
    image += rng.standard_normal(image.shape, dtype=np.float32) * np.float32(0.0015)
    numbers = np.clip(np.rint((image - OFFSET) / SCALE), 1, 65535).astype(np.uint16)
    scl = np.where(ground.classes == WATER, 6, 4).astype(np.uint8)
    scl[shadow > 0.3] = 3
    scl[cloud > 0.12] = 8
    scl[cloud > 0.45] = 9
    if rng.random() < 0.6:
        empty = _wedge(rng, shape)
        numbers[:, empty] = 0
        scl[empty] = 0
    return numbers, scl[::2, ::2]


def _clouds(
    rng: np.random.Generator, shape: tuple[int, ...], cover: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Draw the opacity of clouds and of their shadows, float32 (h, w) in [0, 1]."""
    height, width = shape
    if cover == 0:
        return np.zeros((height, width), np.float32), np.zeros((height, width), np.float32)
    field = noise(rng, (height, width), 190, rough=True)
    edge = np.quantile(field, 1 - cover) if cover < 1 else field.min() - 0.5
    cloud = np.clip((field - edge) / 0.45, 0, 1).astype(np.float32)
    shadow = np.roll(cloud, (height // 50, width // 80), (0, 1)) * (1 - cloud)
    return cloud, shadow


def _wedge(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Cut off a corner: the edge of the orbit's swath."""
    height, width = shape
    rows, columns = np.ogrid[:height, :width]
    share = rng.uniform(0.15, 0.4)
    lean = rng.uniform(0.15, 0.35)
    west = rng.random() < 0.5
    across = columns if west else width - 1 - columns
    return np.asarray(
        across + lean * rows < share * width * (1 - rng.uniform(0, 0.3)) - 0.1 * width
    )


def _write_raster(
    path: Path,
    array: NDArray[Any],
    zone: int,
    corner: tuple[int, int],
    descriptions: tuple[str, ...],
    nodata: int,
    step: int = 1,
) -> None:
    """Write a cloud-optimised GeoTIFF whose first pixel is the given one of the zone's ground."""
    x_m, y_m = _ORIGIN_M[zone]
    pixel_m = _RESOLUTION_M * step
    left = x_m + corner[1] * _RESOLUTION_M
    top = y_m - corner[0] * _RESOLUTION_M
    write_geotiff(
        str(path),
        array,
        f"EPSG:{32600 + zone}",
        (pixel_m, 0.0, left, 0.0, -pixel_m, top),
        nodata=nodata,
        descriptions=descriptions,
    )


def _item(acquisition: _Acquisition, size: int, scl: NDArray[np.uint8]) -> dict[str, Any]:
    """Describe a scene as a STAC item in the manner of Earth Search's Sentinel-2 L2A."""
    x_m, y_m = _ORIGIN_M[acquisition.zone]
    top = y_m - acquisition.site * size * _RESOLUTION_M
    side_m = size * _RESOLUTION_M
    to_wgs84 = Transformer.from_crs(acquisition.crs, "EPSG:4326", always_xy=True)
    bounds = (x_m, top - side_m, x_m + side_m, top)
    corners = [(0, 1), (2, 1), (2, 3), (0, 3), (0, 1)]
    ring = [list(to_wgs84.transform(bounds[i], bounds[j])) for i, j in corners]
    seen = scl != 0
    cloudy = np.isin(scl, (8, 9))
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": [
            "https://stac-extensions.github.io/eo/v1.1.0/schema.json",
            "https://stac-extensions.github.io/projection/v1.1.0/schema.json",
            "https://stac-extensions.github.io/raster/v1.1.0/schema.json",
        ],
        "id": acquisition.id,
        "bbox": list(to_wgs84.transform_bounds(*bounds)),
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {
            "datetime": f"{acquisition.day}T10:00:{acquisition.site:02d}Z",
            "platform": "synthetic",
            "instruments": ["made up by skysift demo"],
            "eo:cloud_cover": round(100 * float(cloudy.sum() / max(1, seen.sum())), 2),
            "proj:epsg": 32600 + acquisition.zone,
            "proj:shape": [size, size],
            "proj:transform": [_RESOLUTION_M, 0.0, x_m, 0.0, -_RESOLUTION_M, top],
            "s2:processing_baseline": "05.10",
        },
        "assets": {**{band: _band_asset(band) for band in BANDS}, "scl": _scl_asset()},
        "links": [],
    }


def _band_asset(band: str) -> dict[str, Any]:
    return {
        "href": f"./{band}.tif",
        "type": "image/tiff; application=geotiff; profile=cloud-optimized",
        "roles": ["data", "reflectance"],
        "eo:bands": [{"name": _BAND_NAMES[band], "common_name": band}],
        "raster:bands": [
            {
                "data_type": "uint16",
                "nodata": 0,
                "scale": SCALE,
                "offset": OFFSET,
                "spatial_resolution": _RESOLUTION_M,
            }
        ],
    }


def _scl_asset() -> dict[str, Any]:
    return {
        "href": "./scl.tif",
        "type": "image/tiff; application=geotiff; profile=cloud-optimized",
        "roles": ["data"],
        "raster:bands": [
            {"data_type": "uint8", "nodata": 0, "spatial_resolution": 2 * _RESOLUTION_M}
        ],
    }
