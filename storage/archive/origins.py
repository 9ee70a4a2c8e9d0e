"""Origins: the files that the scenes of a segment were read from, kept beside its rows.

An origin is a :class:`~storage.scene.Scene`: addresses of the bands and the mask, scale, offset and
nodata. With origins an archive alone is enough to draw its tiles. Signatures of addresses are
secrets that soon end; they and the options of the object store are left out, and a reader takes
those of the archive. :mod:`storage.archive.writer` stores origins, :mod:`storage.archive.reader`
reads them; :mod:`storage.catalog.read` makes scenes from catalogs.
"""

import datetime as dt
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from storage.location import Location
from storage.scene import BandSource, MaskSource, Scene

ORIGINS = "origins"
"""Name of the array of bytes in the group of a segment."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """A remembered scene, and the catalog that it came from.

    ``signed`` is True where the catalog's addresses had signatures: without these, the files cannot
    be opened.
    """

    scene: Scene
    catalog: str = ""
    signed: bool = False


def origins_to_bytes(origins: Iterable[Origin]) -> bytes:
    """Encode origins as JSON, followed by a line with its SHA-256."""
    records = [_record(origin) for origin in origins]
    body = json.dumps(records, default=dt.datetime.isoformat, separators=(",", ":")).encode()
    return b"%s\n%s" % (body, hashlib.sha256(body).hexdigest().encode())


def origins_from_bytes(data: bytes, archive: Location) -> dict[str, Origin]:
    """Return the origins by scene id; the options of the archive reach their files.

    Raises
    ------
    ValueError, KeyError, TypeError
        The bytes are damaged.
    """
    body, _, seal = data.partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != seal:
        raise ValueError("its digest differs")
    origins = (_origin(record, archive) for record in json.loads(body))
    return {origin.scene.id: origin for origin in origins}


def _record(origin: Origin) -> dict[str, Any]:
    scene = origin.scene
    hrefs = scene.hrefs
    return _stated(
        {
            **{part.name: getattr(scene, part.name) for part in fields(scene)},
            "document": str(Location(scene.document)),
            "bands": [
                _stated({**asdict(band), "href": str(band.href.absolute)}) for band in scene.bands
            ],
            "mask": scene.mask and {**asdict(scene.mask), "href": str(scene.mask.href.absolute)},
            "catalog": origin.catalog,
            "signed": origin.signed or any(str(href) != href.uri for href in hrefs),
            "sidecars": any(href.options.sidecars for href in hrefs),
            "drivers": sorted({driver for href in hrefs for driver in href.drivers}),
        }
    )


def _stated(record: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out empty fields: an archive may hold millions of scenes."""
    # An offset of 0 is stated, and equal to False.
    return {n: v for n, v in record.items() if v or (v == 0 and v is not False)}


def _origin(record: dict[str, Any], archive: Location) -> Origin:
    catalog, signed = record.pop("catalog", ""), record.pop("signed", False)
    place = archive.with_sidecars() if record.pop("sidecars", False) else archive
    place = place.with_drivers(record.pop("drivers", ()))
    bands = tuple(
        BandSource(**{**band, "href": place.at(band["href"])}) for band in record["bands"]
    )
    mask = record.get("mask")
    end = record.get("end")
    values = {
        **record,
        "datetime": dt.datetime.fromisoformat(record["datetime"]),
        "end": end and dt.datetime.fromisoformat(end),
        "bands": bands,
        "mask": mask
        and MaskSource(
            href=place.at(mask["href"]),
            index=mask["index"],
            cloud_values=tuple(mask["cloud_values"]),
            cloud_bits=tuple(mask["cloud_bits"]),
        ),
        "bbox": tuple(record["bbox"]) if "bbox" in record else None,
        "sources": tuple(record.get("sources", ())),
    }
    return Origin(scene=Scene(**values), catalog=catalog, signed=signed)
