"""How the products of known sensors name their files: product, band, date, scale and cloud mask.

A preset says so for a folder of rasters without STAC. A file's band is a part of its name; the
files whose names are the same without that part are one scene.

References
----------
What each number can be looked up in: Sentinel-2 Products Specification Document
(S2-PDGS-TAS-DI-PSD), names, offset and classes of SCL; Landsat Level 2 Science Product Guides of
Collection 2 (USGS LSDS-1618 for 4 to 7, LSDS-1619 for 8 and 9), scale, offset, fill and QA_PIXEL;
HLS Product User Guide v2.0 (NASA), bands, scale, fill and Fmask; NAIP file names and band order
(USDA FSA); Sentinel-1 Product Specification (S1-RS-MDA-52-7441) and the names of ASF's RTC
products.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from storage.errors import CatalogError
from storage.scene import BandMapping, MaskMapping

SENTINEL_2_BANDS = {
    "coastal": "B01",
    "blue": "B02",
    "green": "B03",
    "red": "B04",
    "rededge1": "B05",
    "rededge2": "B06",
    "rededge3": "B07",
    "nir": "B08",
    "nir08": "B8A",
    "nir09": "B09",
    "cirrus": "B10",
    "swir16": "B11",
    "swir22": "B12",
}
"""The file of each band of Sentinel-2 Level-1C, by STAC's common names."""
_OLI = {
    "coastal": "SR_B1",
    "blue": "SR_B2",
    "green": "SR_B3",
    "red": "SR_B4",
    "nir": "SR_B5",
    "nir08": "SR_B5",
    "swir16": "SR_B6",
    "swir22": "SR_B7",
}
_TM = {
    "blue": "SR_B1",
    "green": "SR_B2",
    "red": "SR_B3",
    "nir": "SR_B4",
    "nir08": "SR_B4",
    "swir16": "SR_B5",
    "swir22": "SR_B7",
}
_HLS_VISIBLE = {"coastal": "B01", "blue": "B02", "green": "B03", "red": "B04"}
_HLS_L30 = {
    **_HLS_VISIBLE,
    "nir": "B05",
    "nir08": "B05",
    "swir16": "B06",
    "swir22": "B07",
    "cirrus": "B09",
}
_HLS_S30 = {
    **_HLS_VISIBLE,
    "rededge1": "B05",
    "rededge2": "B06",
    "rededge3": "B07",
    "nir": "B8A",
    "nir08": "B8A",
    "nir_broad": "B08",
    "nir09": "B09",
    "cirrus": "B10",
    "swir16": "B11",
    "swir22": "B12",
}
_S2_BASELINE = re.compile(r"S2[A-D]_MSI\w*?_N(\d{2})\d{2}_")
_S2_OFFSET = -0.1
_S2_OFFSET_FROM = datetime(2022, 1, 25, tzinfo=UTC)
_WHOLE = "image"


@dataclass(frozen=True, kw_only=True, slots=True)
class FileName:
    """The parts of a file's path: its scene, its band, and the pixel size in its name in metres."""

    stem: str
    band: str
    resolution_m: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """The names and numbers of a sensor's products.

    Parameters
    ----------
    pattern
        Matches the end of a path; group ``band`` (``safe`` in names of SAFE, which have further
        parts after it), and optionally ``before`` and ``after`` (what of the match belongs to the
        product) and ``resolution``.
    bands
        For products whose stem matches the expression: common names of bands to those in files.
    numbers
        Common names to numbers of bands in the file, where one file holds all bands.
    mask
        The cloud mask, where a scene has its file; ``asset`` is the band in the file's name.
    date
        Expression with a group ``date``.
    unused
        Matches files of a product that are none of its bands although their names may end so.
    baseline
        Finds the processing baseline, where products of some baselines have an offset.
    scale, offset, nodata
        See :class:`~storage.scene.BandMapping`.
    """

    pattern: re.Pattern[str]
    bands: Mapping[str, Mapping[str, str]]
    numbers: Mapping[str, int] = field(default_factory=dict)
    mask: MaskMapping | None = None
    date: str
    unused: re.Pattern[str] | None = None
    baseline: re.Pattern[str] | None = None
    scale: float | None = None
    offset: float | None = None
    nodata: float | None = None

    def parse(self, path: str) -> FileName | None:
        """Return the parts of a path; None for a file that is none of the sensor's products."""
        match = self.pattern.search(path)
        if match is None:
            return None
        parts = match.groupdict()
        stem = path[: match.start()] + (parts.get("before") or "") + (parts.get("after") or "")
        stem = re.sub(r"/R\d\dm/", "/", stem)  # the folders of a SAFE product's resolutions
        band = (parts.get("band") or parts.get("safe") or _WHOLE).upper()
        return FileName(
            stem=stem.rstrip("/"), band=band, resolution_m=int(parts.get("resolution") or 0)
        )

    def mapping(self, name: str, stem: str) -> BandMapping:
        """Return where a scene's band is: by its common name, or by the name in the files.

        Raises
        ------
        CatalogError
            Products of this kind have no such band.
        """
        known = next((b for kind, b in self.bands.items() if re.search(kind, stem)), {})
        file_names = {**known, **{band: band for band in known.values()}}
        if name not in file_names and name not in self.numbers:
            have = ", ".join(self.numbers or (f"{key} ({band})" for key, band in known.items()))
            raise CatalogError(
                f"band {name!r} is none of the preset's: it has {have}; "
                "use one of these names, or map the band in the recipe's bands"
            )
        return BandMapping(
            asset=file_names.get(name, _WHOLE.upper()),
            index=self.numbers.get(name, 1),
            scale=self.scale,
            offset=self._offset(stem),
            nodata=self.nodata,
        )

    def _offset(self, stem: str) -> float | None:
        """Return the offset; Sentinel-2 has one from processing baseline 04.00 on."""
        baselines = self.baseline.findall(stem) if self.baseline else []
        return _S2_OFFSET if baselines and int(baselines[-1]) >= 4 else self.offset

    def may_lack_offset(self, stem: str, moment: datetime) -> bool:
        """Tell whether a product may have an offset that its path does not state."""
        if self.baseline is None or moment < _S2_OFFSET_FROM:
            return False
        return self.baseline.search(stem) is None


PRESETS: Mapping[str, Preset] = {
    "landsat-c2": Preset(
        pattern=re.compile(
            r"(?P<before>L[COTEM]0\d_L2S[PR]_\d{6}_\d{8}_\d{8}_02_(?:T1|T2|RT))"
            r"_(?P<band>\w+?)\.\w+$"
        ),
        bands={r"L[CO]0[89]_\w+$": _OLI, r"L[TE]0\d_\w+$": _TM},
        mask=MaskMapping(asset="QA_PIXEL", cloud_bits=(1, 2, 3, 4)),
        date=r"_L2S[PR]_\d{6}_(?P<date>\d{8})_",
        scale=2.75e-5,
        offset=-0.2,
        nodata=0,
    ),
    "naip": Preset(
        pattern=re.compile(r"(?P<before>m_\d{7}_[ns][ew]_\d+_\w+?_\d{8}\w*)\.\w+$"),
        bands={},
        numbers={"red": 1, "green": 2, "blue": 3, "nir": 4},
        date=r"m_\d{7}_[ns][ew]_\d+_\w+?_(?P<date>\d{8})(?!\d)",
    ),
    "hls": Preset(
        pattern=re.compile(
            r"(?P<before>HLS\.[LS]30\.T\w{5}\.\d{7}T\d{6}\.v\d\.\d)\.(?P<band>\w+)\.\w+$"
        ),
        bands={r"HLS\.L30": _HLS_L30, r"HLS\.S30": _HLS_S30},
        mask=MaskMapping(asset="FMASK", cloud_bits=(1, 2, 3)),
        date=r"\.(?P<date>\d{7}T\d{6})\.",
        scale=1e-4,
        nodata=-9999,
    ),
    "sentinel-2": Preset(
        pattern=re.compile(
            r"[_./-]?(?<![A-Z0-9])(?P<band>B0[1-9]|B1[0-2]|B8A|SCL|AOT|WVP|TCI|CLD|SNW)"
            r"(?:_(?P<resolution>[126]0)m)?\.\w+$",
            re.IGNORECASE,
        ),
        bands={"": SENTINEL_2_BANDS},
        mask=MaskMapping(asset="SCL", cloud_values=(3, 8, 9, 10)),
        unused=re.compile(r"/(QI_DATA|AUX_DATA|HTML|rep_info)/|_PVI\.\w+$"),
        baseline=_S2_BASELINE,
        date=r"(?<!\d)(?P<date>\d{8}T\d{6}|\d{4}-\d{2}-\d{2}|20\d{6})(?!\d)",
        scale=1e-4,
        nodata=0,
    ),
    "sentinel-1": Preset(
        pattern=re.compile(
            r"(?:(?P<before>s1[a-d]-\w\w-(?:grd|slc)\w?-)(?P<safe>vv|vh|hh|hv)-"
            r"(?P<after>\d{8}t\d{6}-\d{8}t\d{6}-\w+-\w+)-\d{3}"
            r"|(?:(?<=[/])iw-|[_./-])(?P<band>vv|vh|hh|hv)(?:\.rtc)?)\.\w+$",
            re.IGNORECASE,
        ),
        bands={"": {name: name.upper() for name in ("vv", "vh", "hh", "hv")}},
        date=r"(?<!\d)(?P<date>\d{8}[Tt]\d{6}|\d{4}-\d{2}-\d{2}|20\d{6})(?!\d)",
    ),
}
"""By name; those whose file names say more come first."""


def fitting_preset(path: str) -> str | None:
    """Return the preset whose products have such a name; None for none.

    Examples
    --------
    >>> fitting_preset("cogs/T48QUE_20200223T032739_B04_10m.tif"), fitting_preset("mosaic.tif")
    ('sentinel-2', None)
    """
    return next((name for name, preset in PRESETS.items() if preset.parse(path)), None)
