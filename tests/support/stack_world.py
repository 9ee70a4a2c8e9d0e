"""A small series of acquisitions with clouds, nodata and two resolutions, and its own truth."""

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from storage.raster.writer import write_geotiff
from storage.scene import CatalogSpec, MaskMapping

CRS = "EPSG:32633"
LEFT, TOP = 700_000.0, 5_000_000.0
SIZE_PX = 96
MASK = MaskMapping(asset="scl", cloud_values=(8, 9))


@dataclass
class Series:
    """STAC items in a folder, and what each pixel of each must be."""

    folder: Path
    truth: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def catalog(self) -> CatalogSpec:
        return CatalogSpec(source=str(self.folder / "series.json"), mask=MASK)

    def add(
        self,
        name: str,
        moment: str,
        seed: int,
        *,
        column: int = 0,
        crs: str = CRS,
        corner: tuple[float, float] = (LEFT, TOP),
    ) -> None:
        """Write an acquisition that begins some columns east: red and nir 10 m, swir 20 m, SCL."""
        rng = np.random.default_rng(seed)
        numbers = rng.integers(1200, 9000, (2, SIZE_PX, SIZE_PX)).astype(np.uint16)
        numbers[:, rng.random((SIZE_PX, SIZE_PX)) < 0.15] = 0  # nodata
        coarse = rng.integers(1200, 9000, (1, SIZE_PX // 2, SIZE_PX // 2)).astype(np.uint16)
        classes = rng.choice([4, 5, 8, 9], (SIZE_PX, SIZE_PX), p=[0.4, 0.2, 0.3, 0.1])
        x, y = corner[0] + 10.0 * column, corner[1]
        fine_at, coarse_at = (10.0, 0.0, x, 0.0, -10.0, y), (20.0, 0.0, x, 0.0, -20.0, y)
        self._write(f"{name}_10m", numbers, crs, fine_at)
        self._write(f"{name}_20m", coarse, crs, coarse_at)
        self._write(f"{name}_scl", classes.astype(np.uint8)[None], crs, fine_at)
        # Baseline 05.00 takes 1000 off every number, exactly once.
        values = numbers.astype(np.float32) * np.float32(0.0001) + np.float32(-0.1)
        values[:, numbers[0] == 0] = np.nan
        values[:, classes >= 8] = np.nan
        self.truth[name] = values
        self._list(name, moment)

    def _write(
        self, name: str, numbers: np.ndarray, crs: str, transform: tuple[float, ...]
    ) -> None:
        nodata = 0 if numbers.dtype == np.uint16 else None
        write_geotiff(
            str(self.folder / f"{name}.tif"), numbers, crs, transform, nodata=nodata, cog=False
        )

    def _list(self, name: str, moment: str) -> None:
        path = self.folder / "series.json"
        items = json.loads(path.read_text())["features"] if path.exists() else []
        when = datetime.fromisoformat(moment).replace(tzinfo=UTC).isoformat()
        items.append(
            {
                "type": "Feature",
                "stac_version": "1.0.0",
                "id": name,
                "geometry": None,
                "properties": {"datetime": when, "s2:processing_baseline": "05.00"},
                "assets": {
                    "fine": _asset(f"{name}_10m", "B04:red", "B08:nir"),
                    "coarse": _asset(f"{name}_20m", "B11:swir16"),
                    "scl": {"href": f"{name}_scl.tif", "type": "image/tiff"},
                },
                "links": [],
            }
        )
        path.write_text(json.dumps({"type": "FeatureCollection", "features": items}))


def _asset(stem: str, *bands: str) -> dict[str, object]:
    named = [dict(zip(("name", "common_name"), band.split(":"), strict=True)) for band in bands]
    return {
        "href": f"{stem}.tif",
        "type": "image/tiff; application=geotiff",
        "eo:bands": named,
        "raster:bands": [{"scale": 0.0001}],
    }
