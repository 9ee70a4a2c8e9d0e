"""Scenes from plain GeoTIFF files, grouped and dated by their names."""

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import PurePosixPath

from storage.dates import as_utc
from storage.errors import CatalogError, ConfigError
from storage.location import Location
from storage.quarantine import Quarantine
from storage.raster.geotiff import inspect
from storage.scene import BandSource, Candidate, CatalogSpec, Rejected, Sources

GEOTIFF_SUFFIXES = (".tif", ".tiff")
SIDECAR_SUFFIXES = (".msk", ".aux.xml", ".tfw", ".tifw", ".wld")

_DATE = r"(?<!\d)(?P<date>\d{8}T\d{6}|\d{4}-\d{2}-\d{2}|(?:19|20)\d{6})(?!\d)"
_DATE_FORMATS = {4: "%Y", 6: "%Y%m", 7: "%Y%j", 8: "%Y%m%d", 14: "%Y%m%d%H%M%S"}


def file_candidates(files: Sequence[Location], spec: CatalogSpec) -> Iterator[Candidate | Rejected]:
    """Yield a candidate for every group of files that makes a scene.

    Parameters
    ----------
    files
        GeoTIFFs.
    spec
        Its mappings' ``asset`` say how the names of a scene's files end.

    Raises
    ------
    ConfigError
        The pattern for the date is wrong.
    """
    pattern = _date_pattern(spec.datetime_pattern)
    for stem, group in _groups(files, spec).items():
        scene_id = PurePosixPath(stem).name
        href = next(iter(group.values()))
        with Quarantine(f"scene {scene_id}") as fault:
            moment = _date(scene_id, href.uri, pattern)
            bbox = inspect(href).bbox if spec.query.area else None
            entry = _Files(scene_id, group, spec)
            yield Candidate(id=scene_id, datetime=moment, bbox=bbox, resolve=entry.resolve)
        if fault:
            yield Rejected(scene_id=scene_id, reason=fault.reason)


def _groups(files: Sequence[Location], spec: CatalogSpec) -> dict[str, dict[str | None, Location]]:
    """Return, by the path that a scene's files begin with, its files by how they end."""
    named = {mapping.asset for mapping in spec.bands.values()}
    named |= {spec.mask.asset} if spec.mask else set()
    endings = sorted((ending for ending in named if ending), key=len, reverse=True)
    groups: dict[str, dict[str | None, Location]] = {}
    for file in files:
        name = file.uri
        ending = next((ending for ending in endings if name.endswith(ending)), None)
        stem = name.removesuffix(ending) if ending else name[: name.rindex(".")]
        groups.setdefault(stem, {})[ending] = file
    return groups


class _Files:
    """The files of one scene; :meth:`resolve` finds bands in them."""

    def __init__(
        self, scene_id: str, files: Mapping[str | None, Location], spec: CatalogSpec
    ) -> None:
        self._id, self._files, self._spec = scene_id, files, spec

    def resolve(self, bands: Sequence[str]) -> Sources:
        found = tuple(self._band(name) for name in bands)
        mask = self._spec.mask
        source = mask.source(self._file(mask.asset, "the cloud mask")) if mask else None
        files = {band.href for band in found} | ({source.href} if source else set())
        revision = " ".join(file.revision() for file in sorted(files, key=str))
        return Sources(bands=found, mask=source, revision=revision)

    def _band(self, name: str) -> BandSource:
        mapping = self._spec.bands.get(name)
        if mapping is None:
            href, index = self._by_description(name)
            return BandSource(name=name, href=href, index=index)
        return BandSource(
            name=name,
            href=self._file(mapping.asset, f"band {name!r}"),
            index=mapping.index,
            scale=mapping.scale,
            offset=mapping.offset,
            nodata=mapping.nodata,
        )

    def _file(self, ending: str | None, subject: str) -> Location:
        if ending in self._files:
            return self._files[ending]
        have = ", ".join(PurePosixPath(file.uri).name for file in self._files.values())
        missing = f"file ending in {ending!r}" if ending else "file without one of the endings"
        raise CatalogError(f"scene {self._id} has no {missing} for {subject}; it has {have}")

    def _by_description(self, name: str) -> tuple[Location, int]:
        have: list[str] = []
        for href in self._files.values():
            descriptions = inspect(href).descriptions
            if name in descriptions:
                return href, descriptions.index(name) + 1
            named = ", ".join(text or "unnamed" for text in descriptions)
            have.append(f"{PurePosixPath(href.uri).name} has {len(descriptions)} ({named})")
        raise CatalogError(
            f"scene {self._id} has no band described as {name!r}: {'; '.join(have)}; "
            "map it to its number in the recipe's bands"
        )


def date_of_name(name: str) -> datetime:
    """Return the first date in the name of a file, such as 20090818 or 2009-08-18.

    Raises
    ------
    CatalogError
        There is none.
    """
    return _date(name, name, _date_pattern(None))


def _date_pattern(pattern: str | None) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern or _DATE)
    except re.error as error:
        raise ConfigError(f"datetime_pattern {pattern!r} is not a pattern: {error}") from error
    if "date" not in compiled.groupindex:
        raise ConfigError(
            f"datetime_pattern {pattern!r} has no group 'date'; write for example "
            r"_(?P<date>\d{8})_"
        )
    return compiled


def _date(scene_id: str, href: str, pattern: re.Pattern[str]) -> datetime:
    """Return the time in a scene's id, or else in its path (of a pattern given by the user)."""
    texts = [scene_id] if pattern.pattern == _DATE else [scene_id, href]
    for match in (match for text in texts for match in pattern.finditer(text)):
        text = match["date"] or ""
        digits = re.sub(r"\D", "", text)
        try:
            moment = (
                datetime.strptime(digits, _DATE_FORMATS[len(digits)])
                if len(digits) in _DATE_FORMATS
                else datetime.fromisoformat(text)
            )
        except ValueError:
            continue
        return as_utc(moment)
    raise CatalogError(
        f"scene {scene_id} has no date in its name; give a datetime_pattern with a group 'date', "
        r"for example _(?P<date>\d{4})"
    )
