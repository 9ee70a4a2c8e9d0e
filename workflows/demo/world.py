"""A synthetic archive on disk: Sentinel-2-like scenes, land cover and their STAC items.

Two UTM zones of three neighbouring scenes each, seen on a summer and an autumn day, with clouds,
a cloud mask, nodata wedges and a baseline >= 04.00 offset; one more acquisition is overcast.
Everything follows from a seed. Files appear whole, so a killed build continues where it stopped.
"""

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pyproj import Transformer

from storage.location import Location
from storage.progress import Progress, ProgressSink, ignore
from storage.raster.writer import write_geotiff
from workflows.demo.landscape import (
    AUTUMN,
    BANDS,
    SUMMER,
    WATER,
    Ground,
    make_ground,
    noise,
    reflectance,
)

FORMAT = 2
SCALE, OFFSET = 0.0001, -0.1
CLOUD_VALUES = (3, 8, 9)
_BAND_NAMES = {"blue": "B02", "green": "B03", "red": "B04", "nir": "B08"}
_RESOLUTION_M = 10.0
# UTM zone -> easting and northing of the upper left corner, in metres; both near 18 degrees east,
# deliberately off the 640 m lattice of 64 px tiles.
_ORIGIN_M = {33: (709_280.0, 5_399_920.0), 34: (282_760.0, 5_399_920.0)}
_DAYS = {"2024-06-18": SUMMER, "2024-08-07": SUMMER, "2024-10-21": AUTUMN}
_OVERCAST = "2024-08-07"  # one scene only


@dataclass(frozen=True, kw_only=True, slots=True)
class WorldSpec:
    """The seed of the world and the size of its square scenes."""

    seed: int = 7
    scene_px: int = 1024
    scenes_per_zone: int = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """A finished world: the STAC item collection of its scenes, and its land cover.

    ``landcover`` maps a CRS, such as ``"EPSG:32633"``, to a raster of the values of ``CLASSES``.
    """

    catalog: str
    landcover: Mapping[str, str]


class _Acquisition(NamedTuple):
    zone: int
    site: int
    day: str

    @property
    def id(self) -> str:
        return f"{self.zone}{'abcdefghij'[self.site]}-{self.day.replace('-', '')}"

    def item_path(self, root: Path) -> Path:
        return root / "scenes" / self.id / "item.json"


def build_world(
    folder: str | Path, spec: WorldSpec | None = None, progress: ProgressSink = ignore
) -> World:
    """Write the world below a local folder, complete it, or replace one of another seed or size."""
    spec, root = spec or WorldSpec(), Path(folder)
    _claim(root, spec)
    acquisitions = [
        _Acquisition(zone, site, day)
        for zone in _ORIGIN_M
        for site in range(spec.scenes_per_zone)
        for day in _DAYS
        if day != _OVERCAST or (zone, site) == (33, 0)
    ]
    missing = [a for a in acquisitions if not a.item_path(root).exists()]
    done, total = len(acquisitions) - len(missing), len(acquisitions)
    landcover = {zone: root / "landcover" / f"epsg{32600 + zone}.tif" for zone in _ORIGIN_M}
    progress(Progress(stage="world", done=done, total=total, unit="scenes"))
    for zone, raster in landcover.items():
        in_zone = [a for a in missing if a.zone == zone]
        if not in_zone and raster.exists():
            continue
        ground = make_ground(spec.seed, zone, (spec.scene_px * spec.scenes_per_zone, spec.scene_px))
        if not raster.exists():
            _write_raster(raster, ground.classes, zone)
        with ThreadPoolExecutor(2) as pool:
            jobs = [pool.submit(_write_scene, root, spec, ground, a) for a in in_zone]
            for done, job in enumerate(as_completed(jobs), done + 1):  # noqa: B020
                job.result()
                progress(Progress(stage="world", done=done, total=total, unit="scenes"))
    catalog = root / "items.json"
    if not catalog.exists():
        items = [json.loads(a.item_path(root).read_text()) for a in acquisitions]
        for item in items:
            for asset in item["assets"].values():
                asset["href"] = f"./scenes/{item['id']}/{asset['href'].removeprefix('./')}"
        _write_json(catalog, {"type": "FeatureCollection", "features": items})
    rasters = {f"EPSG:{32600 + zone}": str(raster) for zone, raster in landcover.items()}
    return World(catalog=str(catalog), landcover=rasters)


def _claim(root: Path, spec: WorldSpec) -> None:
    """Mark the folder as this world's, and delete the files of another one."""
    mark = root / "world.json"
    settings = {field.name: getattr(spec, field.name) for field in fields(WorldSpec)}
    settings["format"] = FORMAT
    if not mark.exists() or json.loads(mark.read_text()) != settings:
        for part in ("world.json", "items.json", "scenes", "landcover"):
            Location(str(root / part)).delete()
        _write_json(mark, settings)


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    Location(str(path)).write(json.dumps(values, indent=1).encode())


def _write_scene(root: Path, spec: WorldSpec, ground: Ground, acquisition: _Acquisition) -> None:
    """Write the rasters of a scene, then its item, whose presence marks the scene as complete."""
    zone, site, day = acquisition
    top_px, path = site * spec.scene_px, acquisition.item_path(root)
    rng = np.random.default_rng([spec.seed, zone, site, list(_DAYS).index(day)])
    image, scl = _acquire(rng, ground[top_px : top_px + spec.scene_px], day)
    for band, values in zip(BANDS, image, strict=True):
        _write_raster(path.with_name(f"{band}.tif"), values, zone, top_px)
    _write_raster(path.with_name("scl.tif"), scl, zone, top_px, step=2)
    _write_json(path, _item(acquisition, spec.scene_px, scl))


def _acquire(
    rng: np.random.Generator, ground: Ground, day: str
) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """Return the numbers of a day, uint16 (4, h, w), 0 for no data, and its SCL at half resolution.

    SCL is Sentinel-2's scene classification; uint8 (h/2, w/2).
    """
    image = reflectance(ground, _DAYS[day])
    height, width = shape = (len(ground.classes), ground.classes.shape[1])
    cover = 1.0 if day == _OVERCAST else float(rng.choice([0.0, 0.03, 0.08, 0.18]))
    field = noise(rng, shape, 190, rough=True)
    edge = np.quantile(field, 1 - cover) if cover < 1 else field.min() - 0.5
    cloud = np.clip((field - edge) / 0.45, 0, 1).astype(np.float32)
    shadow = np.roll(cloud, (height // 50, width // 80), (0, 1)) * (1 - cloud)
    bright = np.float32(0.62) + 0.08 * noise(rng, shape, 40, rough=True)
    image = image * (1 - 0.55 * shadow) * (1 - cloud) + bright * cloud
    image += rng.standard_normal(image.shape, dtype=np.float32) * np.float32(0.0015)
    numbers = np.clip(np.rint((image - OFFSET) / SCALE), 1, 65535).astype(np.uint16)
    scl = np.where(ground.classes == WATER, 6, 4).astype(np.uint8)
    for value, pixels in ((3, shadow > 0.3), (8, cloud > 0.12), (9, cloud > 0.45)):
        scl[pixels] = value
    if rng.random() < 0.6:  # the edge of the orbit's swath cuts off a corner
        rows, columns = np.ogrid[:height, :width]
        outside = columns + rng.uniform(0.15, 0.35) * rows < rng.uniform(0.0, 0.3) * width
        numbers[:, outside], scl[outside] = 0, 0
    return numbers, scl[::2, ::2]


def _write_raster(
    path: Path, values: NDArray[Any], zone: int, top_px: int = 0, step: int = 1
) -> None:
    """Write a band of a zone's ground, from row ``top_px`` on, as a cloud-optimised GeoTIFF."""
    x_m, y_m = _ORIGIN_M[zone]
    pixel_m = _RESOLUTION_M * step
    write_geotiff(
        str(path),
        values[None],
        f"EPSG:{32600 + zone}",
        (pixel_m, 0.0, x_m, 0.0, -pixel_m, y_m - top_px * _RESOLUTION_M),
        nodata=0,
        descriptions=(path.stem,),
    )


def _item(acquisition: _Acquisition, size: int, scl: NDArray[np.uint8]) -> dict[str, Any]:
    """Describe a scene as a STAC item in the manner of Earth Search's Sentinel-2 L2A."""
    x_m, y_m = _ORIGIN_M[acquisition.zone]
    top = y_m - acquisition.site * size * _RESOLUTION_M
    bounds = (x_m, top - size * _RESOLUTION_M, x_m + size * _RESOLUTION_M, top)
    epsg = 32600 + acquisition.zone
    to_wgs84 = Transformer.from_crs(epsg, "EPSG:4326", always_xy=True)
    corners = [(0, 1), (2, 1), (2, 3), (0, 3), (0, 1)]
    ring = [list(to_wgs84.transform(bounds[i], bounds[j])) for i, j in corners]
    cloudy = np.isin(scl, (8, 9)).sum() / max(1, (scl != 0).sum())
    extension = "https://stac-extensions.github.io/{}/v1.1.0/schema.json"
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": [extension.format(name) for name in ("eo", "projection", "raster")],
        "id": acquisition.id,
        "bbox": list(to_wgs84.transform_bounds(*bounds)),
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {
            "datetime": f"{acquisition.day}T10:00:{acquisition.site:02d}Z",
            "platform": "synthetic",
            "eo:cloud_cover": round(100 * float(cloudy), 2),
            "proj:epsg": epsg,
            "proj:shape": [size, size],
            "proj:transform": [_RESOLUTION_M, 0.0, x_m, 0.0, -_RESOLUTION_M, top],
            "s2:processing_baseline": "05.10",
        },
        "assets": {name: _asset(name) for name in (*BANDS, "scl")},
        "links": [],
    }


def _asset(name: str) -> dict[str, Any]:
    asset: dict[str, Any] = {
        "href": f"./{name}.tif",
        "type": "image/tiff; application=geotiff; profile=cloud-optimized",
        "roles": ["data"],
    }
    raster = {"data_type": "uint8", "nodata": 0, "spatial_resolution": 2 * _RESOLUTION_M}
    if name in _BAND_NAMES:
        asset["eo:bands"] = [{"name": _BAND_NAMES[name], "common_name": name}]
        raster |= {"data_type": "uint16", "scale": SCALE, "offset": OFFSET}
        raster["spatial_resolution"] = _RESOLUTION_M
    return {**asset, "raster:bands": [raster]}
