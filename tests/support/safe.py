"""A Sentinel-2 product in the folders and names of SAFE, in JPEG 2000."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import Affine

PRODUCT = "S2A_MSIL2A_20220706T085611_N0400_R007_T33NZA_20220706T131203.SAFE"
SCENE = "T33NZA_20220706T085611"
GRANULE = "GRANULE/L2A_T33NZA_A036757_20220706T090626"
FILES = {
    10: ("AOT", "B02", "B03", "B04", "B08", "TCI", "WVP"),
    20: ("B02", "B03", "B04", "B05", "B06", "B07", "B11", "B12", "B8A", "SCL", "TCI"),
    60: ("B01", "B02", "B09", "SCL"),
}
QUALITY = ("MSK_CLASSI_B00", "MSK_DETFOO_B02", "MSK_QUALIT_B8A", "MSK_CLDPRB_20m", "T33NZA_PVI")
_CORNER = (809_760.0, 199_920.0)


def safe_product(
    root: Path,
    pixels: Mapping[tuple[str, int], np.ndarray] | None = None,
    side_px: int = 60,
    corner: tuple[float, float] = _CORNER,
) -> Path:
    """Write a product and return its folder.

    Parameters
    ----------
    pixels
        (h, w) by band and resolution in metres, in place of noise: real pixels.
    side_px
        Side of the files of 10 m.
    corner
        Their upper left corner, x and y in EPSG:32633.
    """
    product = root / PRODUCT
    random = np.random.default_rng(5)
    for resolution, bands in FILES.items():
        for band in bands:
            array = (pixels or {}).get((band, resolution))
            if array is None:
                array = random.integers(1, 12, (side_px * 10 // resolution,) * 2)
            folder = product / GRANULE / f"IMG_DATA/R{resolution}m"
            write_jp2(folder / f"{SCENE}_{band}_{resolution}m.jp2", array, resolution, corner)
    for name in QUALITY:
        write_jp2(product / GRANULE / f"QI_DATA/{name}.jp2", np.ones((60, 60)), 10)
    (product / "MTD_MSIL2A.xml").write_text("<n1:Level-2A_User_Product/>")
    return product


def write_jp2(
    path: Path, array: np.ndarray, resolution_m: int, corner: tuple[float, float] = _CORNER
) -> None:
    """Write numbers (h, w) or (bands, h, w) of 16 bits without loss."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = array.reshape((-1, *array.shape[-2:])).astype(np.uint16)
    with rasterio.open(
        path,
        "w",
        driver="JP2OpenJPEG",
        QUALITY=100,
        REVERSIBLE="YES",
        dtype="uint16",
        count=len(array),
        height=array.shape[1],
        width=array.shape[2],
        crs="EPSG:32633",
        transform=Affine(resolution_m, 0, corner[0], 0, -resolution_m, corner[1]),
    ) as target:
        target.write(array)
