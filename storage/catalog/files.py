"""Scenes from plain raster files, grouped and dated by their names."""

import logging
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import PurePosixPath

from storage.catalog.presets import PRESETS, Preset, fitting_preset
from storage.dates import as_utc
from storage.errors import CatalogError, ConfigError
from storage.location import Location
from storage.quarantine import Quarantine
from storage.raster.geotiff import checked_format, format_of, inspect, is_open, raster_revision
from storage.scene import BandSource, Candidate, CatalogSpec, Rejected, Sources

logger = logging.getLogger(__name__)

SIDECAR_SUFFIXES = (".msk", ".aux.xml", ".tfw", ".tifw", ".wld")

_DATE = r"(?<!\d)(?P<date>\d{8}T\d{6}|\d{4}-\d{2}-\d{2}|(?:19|20)\d{6})(?!\d)"
_DATE_FORMATS = {
    4: "%Y",
    6: "%Y%m",
    7: "%Y%j",
    8: "%Y%m%d",
    13: "%Y%j%H%M%S",
    14: "%Y%m%d%H%M%S",
}


def file_candidates(files: Sequence[Location], spec: CatalogSpec) -> Iterator[Candidate | Rejected]:
    """Yield a candidate for every group of files that makes a scene.

    Parameters
    ----------
    files
        Rasters. Those of formats that are not asked for are rejected, a scene at a time, unless
        the scene has files of other formats too; VRTs only where there is no scene of others.
    spec
        Its preset says how the sensor names files; without one, its mappings' ``asset`` say how the
        names of a scene's files end. Further files of a scene are not used.

    Raises
    ------
    ConfigError
        The pattern for the date is wrong.
    """
    preset = PRESETS[spec.preset] if spec.preset else None
    pattern = _date_pattern(spec.datetime_pattern or (preset.date if preset else None))
    usable = [file for file in files if is_open(file)]
    groups, strangers = _products(usable, preset) if preset else _groups(usable, spec)
    closed = [file for file in files if not is_open(file)]
    if groups:  # a VRT shows files that are there already
        closed = [file for file in closed if format_of(file) != "vrt"]
    yield from _closed(closed, groups, spec, preset)
    for file in strangers:
        name = PurePosixPath(file.uri).name
        yield Rejected(
            scene_id=name,
            reason=f"the name {name} is not one of the preset {spec.preset}; rename the file, or "
            "give bands with the endings of the files in place of the preset",
        )
    if preset and preset.mask and not spec.mask:
        _warn_of_masks(groups, preset)
    unsure = []
    for stem, group in groups.items():
        scene_id = PurePosixPath(stem).name
        href = next(iter(group.values()))
        moment = None
        with Quarantine(f"scene {scene_id}") as fault:
            moment = _date(scene_id, href.uri, pattern)
            bbox = inspect(href).bbox if spec.query.area else None
            if preset and preset.may_lack_offset(stem, moment):
                unsure.append(scene_id)
            whole = _with_mask(spec, preset, group) if preset else spec
            entry = _Files(scene_id, group, whole, (preset, stem) if preset else None)
            yield Candidate(id=scene_id, datetime=moment, bbox=bbox, resolve=entry.resolve)
        if fault:
            advice = _or_preset(href.uri) if moment is None and not preset else ""
            yield Rejected(scene_id=scene_id, reason=f"{fault.reason}{advice}")
    if unsure:
        logger.warning(
            "%d scenes, such as %s, state no processing baseline in their path and are taken "
            "without the offset of products from 2022-01-25 on; if theirs is not removed, give "
            "the bands' offset in the recipe",
            len(unsure),
            unsure[0],
        )


def _closed(
    files: Sequence[Location], scenes: Collection[str], spec: CatalogSpec, preset: Preset | None
) -> Iterator[Rejected]:
    """Reject the scenes that lie in files of formats that are not asked for, and in no others."""
    groups, strangers = _products(files, preset) if preset else _groups(files, spec)
    alone = {stem: next(iter(group.values())) for stem, group in groups.items()}
    alone |= {file.uri: file for file in strangers}
    for stem, file in alone.items():
        if stem in scenes or _belongs(stem, scenes):
            continue
        with Quarantine(f"scene {PurePosixPath(stem).name}") as fault:
            checked_format(file)
        advice = "" if preset else _or_preset(file.uri)
        yield Rejected(scene_id=PurePosixPath(stem).name, reason=f"{fault.reason}{advice}")


Groups = dict[str, dict[str | None, Location]]
"""By the path that names a scene: its files by how they end, or by their band in a preset."""


def _groups(files: Sequence[Location], spec: CatalogSpec) -> tuple[Groups, list[Location]]:
    """Group files by their endings; a file beside those of a scene that has another is unused."""
    named = {mapping.asset for mapping in spec.bands.values()}
    named |= {spec.mask.asset} if spec.mask else set()
    endings = sorted((ending for ending in named if ending), key=len, reverse=True)
    groups: Groups = {}
    for file in files:
        name = file.uri
        ending = next((ending for ending in endings if name.endswith(ending)), None)
        stem = name.removesuffix(ending) if ending else name[: name.rindex(".")]
        groups.setdefault(stem, {})[ending] = file
    scenes = {stem for stem, group in groups.items() if set(group) != {None}}
    unused = [stem for stem in groups.keys() - scenes if _belongs(stem, scenes)]
    for stem in unused:
        del groups[stem]
    return groups, []


def _belongs(stem: str, scenes: Collection[str]) -> bool:
    """Tell whether a path continues that of a scene after its last letter or digit."""
    ends = (match.start() for match in re.finditer(r"[^A-Za-z0-9]", stem))
    return any(stem[:end] in scenes for end in ends)


def _products(files: Sequence[Location], preset: Preset) -> tuple[Groups, list[Location]]:
    """Group files by product, of each band the finest, and return those of no product too."""
    groups: Groups = {}
    finest: dict[tuple[str, str], int] = {}
    strangers = []
    for file in files:
        if preset.unused and preset.unused.search(file.uri):
            continue
        parts = preset.parse(file.uri)
        if parts is None:
            strangers.append(file)
            continue
        group, key = groups.setdefault(parts.stem, {}), (parts.stem, parts.band)
        if parts.band not in group or parts.resolution_m < finest[key]:
            group[parts.band], finest[key] = file, parts.resolution_m
    return groups, [file for file in strangers if not _belongs(file.uri, groups)]


def _warn_of_masks(groups: Groups, preset: Preset) -> None:
    assert preset.mask is not None
    bare = [stem for stem, group in groups.items() if preset.mask.asset not in group]
    if bare:
        logger.warning(
            "%d of %d scenes, such as %s, have no file of the cloud mask %s: their clouds stay",
            len(bare),
            len(groups),
            PurePosixPath(bare[0]).name,
            preset.mask.asset,
        )


def _with_mask(spec: CatalogSpec, preset: Preset, group: Collection[str | None]) -> CatalogSpec:
    """Return the spec with the mask of a preset where the scene has it and the spec has none."""
    mask = preset.mask
    has_mask = mask is not None and mask.asset in group
    return replace(spec, mask=spec.mask or (mask if has_mask else None))


class _Files:
    """The files of one scene; :meth:`resolve` finds bands in them."""

    def __init__(
        self,
        scene_id: str,
        files: Mapping[str | None, Location],
        spec: CatalogSpec,
        product: tuple[Preset, str] | None,
    ) -> None:
        self._id, self._files, self._spec = scene_id, files, spec
        self._product = product

    def resolve(self, bands: Sequence[str]) -> Sources:
        found = tuple(self._band(name) for name in bands)
        mask = self._spec.mask
        source = mask.source(self._file(mask.asset, "the cloud mask")) if mask else None
        files = {band.href for band in found} | ({source.href} if source else set())
        revision = " ".join(raster_revision(file) for file in sorted(files, key=str))
        return Sources(bands=found, mask=source, revision=revision)

    def _band(self, name: str) -> BandSource:
        mapping = self._spec.bands.get(name)
        if mapping is None and self._product:
            preset, stem = self._product
            mapping = preset.mapping(name, stem)
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
            f"map it to its number in the recipe's bands{_or_preset(href.uri)}"
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


def _or_preset(path: str) -> str:
    """Return the advice to take a preset, for a file that is named as the products of one."""
    fitting = fitting_preset(path)
    return f", or give the preset {fitting} (--scenes-preset)" if fitting else ""
