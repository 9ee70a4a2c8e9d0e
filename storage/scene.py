"""Scenes: the files of bands and cloud mask, and the way from their numbers to values.

Plain frozen values without I/O, so that a plan can be printed, hashed and sent to a worker.
:mod:`storage.catalog.read` makes them, :mod:`storage.raster.reader` reads them.
"""

import datetime as dt
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any, Literal

from storage.dates import Moment, as_utc, parse_range
from storage.errors import CatalogError, ConfigError
from storage.geometry import BBox, check_bbox, polygon_bounds, polygon_wkt
from storage.location import Driver, Location
from storage.signatures import without_signatures
from storage.values import (
    Count,
    Percent,
    as_spec,
    check_limits,
    check_names,
    json_digest,
    printable,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class BandSource:
    """One band of a scene: band ``index`` (from 1) of the GeoTIFF at ``href``.

    ``href`` carries the options that reach the file; a plain URI becomes a Location.

    A value is ``number * scale + offset``. ``scale``, ``offset`` and ``nodata`` are those of the
    catalog; None leaves them to the file (its own tags, nodata value, mask or alpha band).
    A ``nodata`` of NaN means that no number marks a gap, whatever the file states. A mask and an
    alpha band of the file count beside any ``nodata``.
    An ``offset_of_counts`` is that of Sentinel-2, which no document states: files of bytes or reals
    do not have that offset.
    """

    name: str
    href: Location
    index: int = 1
    scale: float | None = None
    offset: float | None = None
    nodata: float | None = None
    offset_of_counts: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "href", Location.of(self.href))


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskSource:
    """The cloud mask: pixels of band ``index`` that mean cloud or cloud shadow.

    A pixel is cloud when its number is one of ``cloud_values`` (classes, such as Sentinel-2 SCL)
    or has one of the bits ``cloud_bits`` set (bit fields, such as Landsat QA_PIXEL).
    """

    href: Location
    index: int = 1
    cloud_values: tuple[int, ...] = ()
    cloud_bits: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "href", Location.of(self.href))


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """One acquisition: an id, a time, and its bands in the order an encoder wants them.

    Parameters
    ----------
    id
        Unique in its catalog; free of path separators and control characters.
    datetime
        When it was acquired; always with a time zone.
    bands
        At least one.
    cloud_cover_percent
        Cloud cover as the catalog states it, 0 to 100.
    bbox
        West, south, east, north in WGS84 degrees; west > east across the antimeridian.
    revision
        Text that differs between versions of a scene (time of update, checksum, size).
    end
        Last moment of a composite, whose ``datetime`` is its first; None for one acquisition.
    sources
        Ids of the scenes that a composite was made from.
    document
        URI of its STAC document; empty for plain files.
    """

    id: str
    datetime: datetime
    bands: tuple[BandSource, ...]
    mask: MaskSource | None = None
    collection: str | None = None
    cloud_cover_percent: float | None = None
    bbox: BBox | None = None
    revision: str = ""
    end: dt.datetime | None = None
    sources: tuple[str, ...] = ()
    document: str = ""

    def __post_init__(self) -> None:
        if self.datetime.tzinfo is None:
            raise CatalogError(f"scene {self.id}: its datetime has no time zone; give UTC")
        if not self.bands:
            raise CatalogError(f"scene {self.id} has no bands; name at least one")
        object.__setattr__(self, "datetime", as_utc(self.datetime))

    @property
    def band_names(self) -> tuple[str, ...]:
        """Names of the bands, in order."""
        return tuple(band.name for band in self.bands)

    @property
    def hrefs(self) -> tuple[Location, ...]:
        """The distinct files of the bands and the mask."""
        masks = () if self.mask is None else (self.mask,)
        return tuple(dict.fromkeys(source.href for source in (*self.bands, *masks)))

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change when anything that decides the pixels changes.

        Signatures of addresses, storage options and the working directory decide none.
        """
        return self._fingerprint(lambda href: str(href.absolute))

    def known_as(self, fingerprint: str) -> str:
        """Return the scene's fingerprint as a ledger of before may have it.

        Ledgers once named files relative to the working directory, where a catalog was so named.
        """
        now = self.fingerprint
        if fingerprint in ("", now):
            return now
        before = self._fingerprint(lambda h: os.path.relpath(h.path) if h.is_local else str(h))
        return before if before == fingerprint else now

    def _fingerprint(self, named: Callable[[Location], str]) -> str:
        def plain(source: BandSource | MaskSource) -> dict[str, Any]:
            fields = {**asdict(source), "href": named(source.href)}
            fields.pop("offset_of_counts", None)  # the offset itself is there
            return fields

        parts = {
            "bands": [plain(band) for band in self.bands],
            "mask": plain(self.mask) if self.mask else None,
            "datetime": self.datetime.isoformat(),
            "revision": self.revision,
        }
        return json_digest(parts)[:16]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rejected:
    """A catalog entry that cannot become a scene, and why, in one line; both made printable."""

    scene_id: str
    reason: str

    def __post_init__(self) -> None:
        for name in ("scene_id", "reason"):
            text = printable(without_signatures(getattr(self, name)))
            object.__setattr__(self, name, text)


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneList:
    """Content of a catalog: scenes in its order, and the entries that cannot be used."""

    scenes: tuple[Scene, ...]
    rejected: tuple[Rejected, ...] = ()

    @property
    def distinct_rejected(self) -> list[Rejected]:
        """The rejected entries, a duplicate named apart from the scene that has the id."""
        accepted = {scene.id for scene in self.scenes}
        return [
            replace(item, scene_id=f"{item.scene_id} (duplicate)")
            if item.scene_id in accepted
            else item
            for item in self.rejected
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneQuery:
    """Conditions on the scenes of a catalog; None and empty mean no condition.

    Parameters
    ----------
    bbox
        West, south, east, north in WGS84 degrees that a scene must touch.
    polygon
        In WGS84 degrees, that a scene's geometry (its box where the catalog has none) must touch;
        in any form of :func:`storage.geometry.polygon_wkt`, and kept as WKT.
    since
        Earliest time of a scene: a datetime (naive means UTC), a date, or ISO 8601 text.
    until
        Latest time of a scene; as ``since``, and a plain date includes that day.
    max_cloud_cover_percent
        Largest cloud cover; scenes that do not state theirs pass.
    collections
        Ids of STAC collections.
    """

    bbox: BBox | None = None
    polygon: str | Mapping[str, Any] | None = None
    since: Moment | None = None
    until: Moment | None = None
    max_cloud_cover_percent: Percent | None = None
    collections: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        set_field = object.__setattr__  # the way to set a field of a frozen value
        subject = "catalog query"
        if self.bbox is not None:
            set_field(self, "bbox", check_bbox(self.bbox, subject))
        if self.polygon is not None:
            set_field(self, "polygon", polygon_wkt(self.polygon, subject))
        since, until = parse_range(self.since, self.until, subject)
        set_field(self, "since", since)
        set_field(self, "until", until)
        check_limits(self, subject)
        set_field(self, "collections", check_names(self.collections, f"{subject}: collections"))

    @property
    def area(self) -> BBox | None:
        """The box around all places that match; None for everywhere."""
        if self.bbox is not None or self.polygon is None:
            return self.bbox
        return polygon_bounds(str(self.polygon))

    @property
    def interval(self) -> tuple[datetime | None, datetime | None]:
        """The closed time range, in UTC."""
        since, until = (
            moment if isinstance(moment, datetime) else None for moment in (self.since, self.until)
        )
        return since, until


@dataclass(frozen=True, kw_only=True, slots=True)
class BandMapping:
    """Place of a band in a catalog's entries.

    Parameters
    ----------
    asset
        Key of a STAC asset. For plain files: how the name of the band's file ends, for example
        ``_20m.tif`` or ``/B02.tif``; the part before it names the scene. None: the item's only data
        asset, or the file itself.
    index
        Number of the band in that file, from 1.
    scale
        Factor from stored numbers to values, in place of that of the item or the file.
    offset
        Summand after the factor, in place of that of the item or the file.
    nodata
        Number that means "missing", in place of that of the item or the file; NaN for none.
    """

    asset: str | None = None
    index: Count = 1
    scale: float | None = None
    offset: float | None = None
    nodata: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskMapping:
    """Place of the cloud mask in a catalog's entries, and its values that mean cloud.

    Attributes
    ----------
    asset
        Key of the mask's STAC asset. For plain files: how the name of the mask's file ends.
    index
        Number of the mask's band in that file, from 1.
    cloud_values
        Pixel values that mean cloud or shadow.
    cloud_bits
        Bits, from 0, any of which set means cloud or shadow.
    """

    asset: str | None = None
    index: Count = 1
    cloud_values: tuple[int, ...] = ()
    cloud_bits: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not all(0 <= bit < 64 for bit in self.cloud_bits):
            raise ConfigError(
                f"cloud_bits are {list(self.cloud_bits)}; give numbers from 0 to 63, not masks"
            )

    def source(self, href: Location) -> MaskSource:
        """Return the mask in a file."""
        return MaskSource(
            href=href,
            index=self.index,
            cloud_values=self.cloud_values,
            cloud_bits=self.cloud_bits,
        )


PresetName = Literal["sentinel-2", "landsat-c2", "naip", "hls", "sentinel-1"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogSpec:
    """A source of scenes and how to understand it.

    Parameters
    ----------
    source
        STAC item, item collection, catalog, collection or API, STAC GeoParquet, GeoTIFF, folder or
        glob; with ``drivers`` also a file of theirs.
    preset
        The sensor whose products the plain files are. Their names then give scenes, bands (by
        common names such as red, or by those in the names, such as B04), date, cloud mask and
        scale; ``bands`` and ``mask`` replace these, with the band in a file's name as ``asset``.
    bands
        Mapping of the encoder's band names. A name that is not in it is looked up: in STAC by band
        name, asset key, common name or file name; in plain files by band description.
    mask
        The cloud mask; None for none.
    datetime_pattern
        For plain files: a regular expression with a group ``date`` for the scene's id or path.
        Without it, the first date such as 20090818 or 2009-08-18 counts.
    drivers
        Formats beside GeoTIFF that GDAL may open: jp2 (JPEG 2000, as in SAFE folders) and vrt
        (virtual rasters, whose files have to lie in the folder of the VRT or below).
    allow
        Folders, such as s3://bucket/prefix, below which the assets of STAC items have to lie; empty
        allows all on S3 and disks. Assets at web addresses need one, such as https://host/data.
    query
        Conditions on the scenes.
    """

    source: str | Location
    preset: PresetName | None = None
    bands: Mapping[str, BandMapping] = field(default_factory=dict)
    mask: MaskMapping | None = None
    datetime_pattern: str | None = None
    drivers: tuple[Driver, ...] = ()
    allow: tuple[str, ...] = ()
    query: SceneQuery = SceneQuery()

    def __post_init__(self) -> None:
        settle = object.__setattr__
        bands = {
            name: as_spec(BandMapping, band, f"catalog: band {name}")
            for name, band in self.bands.items()
        }
        settle(self, "bands", bands)
        if self.mask is not None:
            settle(self, "mask", as_spec(MaskMapping, self.mask, "catalog: mask"))
        settle(self, "query", as_spec(SceneQuery, self.query, "catalog: query"))

    @classmethod
    def of(cls, value: object) -> "CatalogSpec":
        """Return a catalog that is given as itself, as its source, or as a mapping of its fields.

        Raises
        ------
        ConfigError
            The value is something else, or a field does not exist or is invalid.
        """
        if isinstance(value, (str, os.PathLike, Location)):
            return cls(source=Location.of(value))
        return as_spec(cls, value, "catalog")


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A catalog entry before its bands are looked up."""

    id: str
    datetime: datetime
    bbox: BBox | None
    geometry: Mapping[str, Any] | None = None
    collection: str | None = None
    cloud_cover_percent: float | None = None
    resolve: Callable[[Sequence[str]], "Sources"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sources:
    """Fields of a scene that :attr:`Candidate.resolve` finds; see :class:`Scene`."""

    bands: tuple[BandSource, ...]
    mask: MaskSource | None
    revision: str
    end: datetime | None = None
    sources: tuple[str, ...] = ()
    document: str = ""
