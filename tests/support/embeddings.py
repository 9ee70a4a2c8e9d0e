"""Published embeddings in the exact layouts of their products, made of known chips."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyproj
import rasterio
import shapely
import zarr
from rasterio.transform import Affine

from storage.raster.writer import write_geotiff

CLAY_FILE = "clay_32TPT_20220610_20220610_v001.gpq"
ORIGIN = (600_005.0, 5_100_025.0)
"""Left and top of the first chip in EPSG:32632."""
PICTURE_PX = 256
"""Pixels of a scene along a chip of 5,120 m."""


@dataclass(frozen=True)
class Chips:
    """Square chips of a row in EPSG:32632: vectors (n, D), corners in degrees, dates."""

    vectors: np.ndarray
    polygons: np.ndarray
    days: np.ndarray
    side_m: float

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def centres(self) -> np.ndarray:
        """Longitudes and latitudes (n, 2) of the middles, projected from the middle in metres."""
        x = ORIGIN[0] + self.side_m * (np.arange(len(self)) + 0.5)
        y = np.full(len(self), ORIGIN[1] - self.side_m / 2)
        return np.stack(_degrees(x, y), axis=1)

    def part(self, chosen: Any) -> "Chips":
        """Return some of the chips."""
        return replace(
            self,
            vectors=self.vectors[chosen],
            polygons=self.polygons[chosen],
            days=self.days[chosen],
        )


def make_chips(
    count: int, dimension: int, side_m: float = 5120.0, day: str = "2022-06-10", seed: int = 0
) -> Chips:
    """Return chips side by side; vectors share a mean, as those of real models do."""
    rng = np.random.default_rng(seed)
    mean = rng.normal(size=dimension)
    vectors = (mean + 0.3 * rng.normal(size=(count, dimension))).astype(np.float32)
    left = ORIGIN[0] + side_m * np.arange(count)
    corners = np.array([(0, 0), (1, 0), (1, -1), (0, -1), (0, 0)]) * side_m
    x = left[:, None] + corners[:, 0]
    y = ORIGIN[1] + np.broadcast_to(corners[:, 1], x.shape)
    lons, lats = _degrees(x, y)
    polygons = shapely.polygons(np.stack([lons, lats], axis=-1))
    return Chips(vectors, polygons, np.full(count, np.datetime64(day, "D")), side_m)


def write_picture(folder: Path, name: str, seed: int, chips: int, empty: int = 0) -> np.ndarray:
    """Write a scene over the first chips, 256 pixels along each; return uint8 (3, h, w).

    The first ``empty`` columns have no data.
    """
    pixels = np.random.default_rng(seed).integers(
        1, 255, (3, PICTURE_PX, PICTURE_PX * chips), np.uint8
    )
    pixels[..., :empty] = 0
    metres = 5120 / PICTURE_PX
    write_geotiff(
        str(folder / f"{name}.tif"),
        pixels,
        "EPSG:32632",
        (metres, 0, ORIGIN[0], 0, -metres, ORIGIN[1]),
        nodata=0,
        descriptions=("red", "green", "blue"),
    )
    return pixels


def _degrees(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    to_degrees = pyproj.Transformer.from_crs("EPSG:32632", "EPSG:4326", always_xy=True)
    return to_degrees.transform(x, y)


def lists(vectors: Sequence[Any], kind: pa.DataType | None = None) -> pa.Array:
    """Return vectors as an Arrow array of lists; None where one is missing."""
    rows = [None if vector is None else list(map(float, vector)) for vector in vectors]
    return pa.array(rows, kind or pa.list_(pa.float32()))


def wkb(shapes: Any) -> pa.Array:
    """Return geometries as WKB; None where one is missing."""
    return pa.array([shape if shape is None else shapely.to_wkb(shape) for shape in shapes])


def geo(crs: Any = "absent") -> dict[str, str]:
    """Return GeoParquet's footer; without a CRS it means longitude and latitude."""
    column: dict[str, Any] = {"encoding": "WKB", "geometry_types": []}
    if crs != "absent":
        column["crs"] = pyproj.CRS(crs).to_json_dict()
    document = {"version": "1.0.0", "primary_column": "geometry", "columns": {"geometry": column}}
    return {"geo": json.dumps(document)}


def write(path: Path, columns: dict[str, Any], metadata: dict[str, str] | None = None) -> Path:
    """Write a table; a small row group, so that several are there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns).replace_schema_metadata(metadata)
    pq.write_table(table, path, compression="zstd", row_group_size=7)
    return path


def clay_v0(folder: Path, chips: Chips, name: str = CLAY_FILE) -> Path:
    """Write Clay v0's layout: a plural column, dates as days, OGC:CRS84."""
    columns = {
        "index": pa.array(np.arange(len(chips))),
        "source_url": pa.array([f"s3://tiles/{n}.tif" for n in range(len(chips))]),
        "date": pa.array(chips.days),
        "embeddings": lists(chips.vectors),
        "geometry": wkb(chips.polygons),
    }
    return write(folder / name, columns, geo("OGC:CRS84"))


def clay_naip(folder: Path, chips: Chips) -> Path:
    """Write Clay v1.5's layout of NAIP: no id and no date, which is in the name of the file."""
    columns = {"embeddings": lists(chips.vectors), "geometry": wkb(chips.polygons)}
    return write(folder / "m_4007201_ne_18_060_20220610.parquet", columns, geo())


def clay_s2(folder: Path, chips: Chips) -> Path:
    """Write Clay v1.5's layout of Sentinel-2, with the times in a column."""
    columns = {
        "chips_id": pa.array([f"chip{n}" for n in range(len(chips))]),
        "datetime": pa.array(chips.days.astype("datetime64[us]"), pa.timestamp("us", tz="UTC")),
        "embedding": lists(chips.vectors),
        "geometry": wkb(chips.polygons),
    }
    return write(folder / "data_0a1b_222_0_0.parquet", columns, geo())


def earth_index(folder: Path, chips: Chips) -> Path:
    """Write Earth Index's layout: fixed-size lists, centres, the model in the footer `emb`."""
    points = shapely.points(chips.centres)
    fixed = pa.list_(pa.float32(), chips.vectors.shape[1])
    columns = {
        "id": pa.array([f"id{n}" for n in range(len(chips))]),
        "embedding": lists(chips.vectors, fixed),
        "geometry": wkb(points),
    }
    model = {"id": "dinov2_vits14_softcon", "version": "2.0.0", "name": "SoftCon"}
    footer = {"version": "0.0.1", "model": model, "embedding": {"dim": chips.vectors.shape[1]}}
    name = "32TPT_2022-06-10_2023-06-10.parquet"
    return write(folder / name, columns, geo("EPSG:4326") | {"emb": json.dumps(footer)})


def major_tom(folder: Path, chips: Chips) -> Path:
    """Write Major TOM's layout: text times, the UTM zone in a column, vectors of shape (1, D)."""
    count = len(chips)
    nested = pa.list_(pa.list_(pa.float32()))
    columns = {
        "unique_id": pa.array([f"u{n}" for n in range(count)]),
        "embedding": pa.array([[list(map(float, v))] for v in chips.vectors], nested),
        "timestamp": pa.array([f"{day}T10:15:31" for day in chips.days.astype(str)]),
        "product_id": pa.array([f"S2A_{n}" for n in range(count)]),
        "grid_cell": pa.array([f"512U_{n}L" for n in range(count)]),
        "geometry": wkb(chips.polygons),
        "centre_lat": pa.array(chips.centres[:, 1]),
        "centre_lon": pa.array(chips.centres[:, 0]),
        "utm_crs": pa.array(["EPSG:32632"] * count),
    }
    return write(folder / "part_00001-00050.parquet", columns, geo())


def earth_embeddings(folder: Path, chips: Chips) -> Path:
    """Write EarthEmbeddings' layout: plain Parquet, centres in two columns, float16."""
    columns = {
        "embedding": lists(chips.vectors.astype(np.float16), pa.list_(pa.float32())).cast(
            pa.list_(pa.float16())
        ),
        "centre_lon": pa.array(chips.centres[:, 0]),
        "centre_lat": pa.array(chips.centres[:, 1]),
        "timestamp": pa.array(chips.days.astype(str)),
    }
    return write(folder / "DINOv2_grid_sample_center_384x384_244k.parquet", columns)


def terramind(folder: Path, chips: Chips, patches: int = 4) -> Path:
    """Write TerraMind's layout: vectors of patches, whose mean are the chips' vectors."""
    away = np.random.default_rng(5).normal(size=(len(chips), patches, chips.vectors.shape[1]))
    away -= away.mean(axis=1, keepdims=True)
    nested = (chips.vectors[:, None] + away).reshape(len(chips), 2, patches // 2, -1)
    kind = pa.list_(pa.list_(pa.list_(pa.float32())))
    columns = {
        "ID": pa.array([f"p{n}" for n in range(len(chips))]),
        "geometry": wkb(chips.polygons),
        "embedding": pa.array(nested.astype(np.float32).tolist(), kind),
    }
    return write(folder / "S2A_MSIL2A_20220610T101559.parquet", columns, geo("OGC:CRS84"))


def signed_power(vectors: np.ndarray) -> np.ndarray:
    """Return vectors as AlphaEarth stores them: int8 whose square, with its sign, is the number."""
    roots = np.sign(vectors) * np.sqrt(np.abs(vectors)) * 127.5
    return np.clip(np.rint(roots), -127, 127).astype(np.int8)


def write_alphaearth(folder: Path, stored: np.ndarray) -> Path:
    """Write int8 (64, h, w), rows southwards, as a bottom-up GeoTIFF below its year."""
    path = folder / "2024" / "32N" / "x086-0000000000-0000008192.tiff"
    path.parent.mkdir(parents=True)
    bands, height, width = stored.shape
    options = {"crs": "EPSG:32632", "nodata": -128, "compress": "deflate"}
    upwards = Affine(10, 0, 600_000, 0, 10, 5_100_000 - 10 * height)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=width,
        height=height,
        count=bands,
        dtype="int8",
        transform=upwards,
        **options,
    ) as file:
        file.write(stored[:, ::-1])
    return path


def write_zarr(
    place: str,
    stored: np.ndarray,
    *,
    scales: np.ndarray | None = None,
    attributes: dict[str, Any],
    years: Sequence[int],
    dims: Sequence[str] = ("time", "band", "y", "x"),
) -> None:
    """Write stored numbers (time, band, y, x) as a group `utm32`, dimensions in some order."""
    root = zarr.open_group(place, mode="w")
    root.attrs.update(attributes)
    group = root.create_group("utm32")
    group.attrs.update(
        {
            **attributes,
            "proj:code": "EPSG:32632",
            "spatial:transform": [10, 0, 600_000, 0, -10, 5_100_000],
        }
    )
    order = [("time", "band", "y", "x").index(name) for name in dims]
    turned = stored.transpose(order)
    array = group.create_array(
        "embeddings",
        shape=turned.shape,
        dtype=turned.dtype,
        chunks=tuple(max(size // 2, 1) for size in turned.shape),
        dimension_names=list(dims),
    )
    array[...] = turned
    time = group.create_array("time", shape=(len(years),), dtype="int32", dimension_names=["time"])
    time[...] = np.array(years, np.int32)
    if scales is not None:
        factors = group.create_array(
            "scales", shape=scales.shape, dtype="float32", dimension_names=["time", "y", "x"]
        )
        factors[...] = scales
