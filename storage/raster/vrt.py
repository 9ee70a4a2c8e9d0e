"""Virtual rasters (VRT), rewritten so that GDAL opens no more than the files beside them.

A VRT names files, addresses and programs in many ways, and GDAL follows each. So GDAL never sees a
VRT of a catalog: it is parsed here, every element has to be one of a short list, every source has
to lie in the folder of the VRT or below and be of a format that :mod:`storage.raster.geotiff` opens
there, and GDAL gets a new VRT of these parts alone.

References
----------
https://gdal.org/en/stable/drivers/raster/vrt.html, and the section on VRT of
https://gdal.org/en/stable/user/security.html
"""

import re
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

from storage.catalog.url_policy import is_within
from storage.errors import SceneError
from storage.location import Location

_MOST_BYTES, _MOST_SOURCES = 16 * 1024 * 1024, 10_000
_SOURCE = "SourceFilename"
_CRS = re.compile(r"EPSG:\d+|[A-Z]\w*\[.*\]", re.DOTALL)
"""GDAL takes names of files and addresses for a CRS too."""
_KEPT = frozenset(
    {
        *("VRTDataset", "SRS", "GeoTransform", "VRTRasterBand", "MaskBand", "BlockXSize"),
        *("BlockYSize", "NoDataValue", "HideNoDataValue", "ColorInterp", "ColorTable", "Entry"),
        *("Description", "Offset", "Scale", "OverviewList", "SimpleSource", "ComplexSource"),
        *(_SOURCE, "SourceBand", "SourceProperties", "SrcRect", "DstRect", "NODATA", "UseMaskBand"),
        *("ScaleOffset", "ScaleRatio", "LUT"),
    }
)
_DESCRIBING = frozenset({"Metadata", "CategoryNames", "Histograms", "UnitType", "GCPList"})
"""Elements that change no pixel; they are left out, for they may name files too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Vrt:
    """A checked VRT: text for GDAL with absolute names of files, and these files, each once."""

    xml: str
    sources: tuple[Location, ...]


def read_vrt(place: Location) -> Vrt:
    """Read a VRT and return what GDAL may open of it.

    The sources have the formats of ``place`` without VRT: a VRT within a VRT is refused. Their
    existence and content are left to the reader that opens them.

    Raises
    ------
    SceneError
        The file is no VRT, uses more than mosaics and stacks of files, or names a file outside its
        folder.
    NotFoundError
        The file does not exist.
    """
    root = _parsed(place)
    folder = place.absolute.uri.rpartition("/")[0]
    sources: dict[Location, None] = {}
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in _DESCRIBING:
                parent.remove(child)
    for element in root.iter():
        if element.tag not in _KEPT or "subClass" in element.attrib:
            kind = element.get("subClass") or element.tag
            raise SceneError(
                f"{place} uses {kind}, which is not read from a VRT: only mosaics and stacks of "
                "files are; write the raster as GeoTIFF, for example with gdal_translate"
            )
    for element in root.iter("SRS"):
        if not _CRS.fullmatch((element.text or "").strip()):
            raise SceneError(f"{place} has a CRS that is neither a code nor WKT; assign one")
    for element in root.iter(_SOURCE):
        source = _source(place, folder, (element.text or "").strip())
        element.text = source.gdal_path
        element.attrib = {"relativeToVRT": "0"}
        sources[source] = None
    if not sources or len(sources) > _MOST_SOURCES:
        raise SceneError(
            f"{place} is a VRT of {len(sources):,} files; from 1 to {_MOST_SOURCES:,} are read, so "
            "write parts of it as GeoTIFF"
        )
    return Vrt(xml=ET.tostring(root, encoding="unicode"), sources=tuple(sources))


def _parsed(place: Location) -> ET.Element:
    size_bytes = place.size_bytes()
    if size_bytes > _MOST_BYTES:
        raise SceneError(f"{place} has {size_bytes:,} bytes, a VRT at most {_MOST_BYTES:,}")
    try:
        text = place.read().decode()
        # Entities may grow without end or name files; a VRT has none.
        root = None if "<!DOCTYPE" in text.upper() else ET.fromstring(text)
    except (UnicodeDecodeError, ET.ParseError, ValueError) as error:
        raise SceneError(f"{place} cannot be opened as VRT: {error}; write it again") from error
    if root is None or root.tag != "VRTDataset":
        raise SceneError(f"{place} cannot be opened as VRT: it is other XML; write it again")
    return root


def _source(place: Location, folder: str, name: str) -> Location:
    """Return the place of a source; relative names are relative to the VRT, whatever it says."""
    base = place.absolute.with_drivers(driver for driver in place.drivers if driver != "vrt")
    if name.startswith("/vsis3/"):
        name = f"s3://{name.removeprefix('/vsis3/')}"
    source = base.resolve(name) if name else base
    if not name or name.startswith("/vsi") or not is_within(source.uri, folder):
        raise SceneError(
            f"{place} names the file {name!r}, which is not in the folder of the VRT or below; "
            "write the VRT into the folder that holds its files"
        )
    # What the check has followed is opened: no link that is made later.
    return source.at(str(Path(source.path).resolve())) if source.is_local else source
