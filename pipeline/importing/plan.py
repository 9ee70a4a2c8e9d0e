"""The plan of an import: files and their layouts, compared with the ledger of the archive."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

import numpy as np

from pipeline.importing.pixels import RasterHeader, is_raster, raster_headers
from pipeline.importing.places import Float64, PlacedRows, placed_chips
from pipeline.importing.spec import (
    ImportPlan,
    ImportSpec,
    Source,
    Unusable,
    as_before,
    stated_rules,
)
from pipeline.ingest.driver import existing_archive
from storage.archive.ledger import LedgerEntry
from storage.archive.reader import Archive
from storage.archive.spec import ArchiveSpec, PublishedModel
from storage.embeddings.table import (
    PART_ROWS,
    TABLE_SUFFIXES,
    Table,
    part_count,
    read_header,
    read_rows,
    sample_vectors,
)
from storage.errors import (
    ConfigError,
    EmptyCatalogError,
    EncoderMismatchError,
    NotFoundError,
)
from storage.location import Location
from storage.quarantine import Quarantine
from storage.scene import Rejected
from storage.values import json_digest

_HEADERS_AT_ONCE = 8
_SAMPLED_FILES = 16
_FIRST_ROWS = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class TablePart:
    """Consecutive rows of a table."""

    scene_id: str
    fingerprint: str
    table: Table
    start: int
    stop: int
    chip_m: float | None

    @property
    def rows(self) -> int:
        """Rows at most."""
        return self.stop - self.start

    def read(self) -> PlacedRows:
        """Read the vectors as published, with their tiles."""
        return placed_chips(read_rows(self.table, self.start, self.stop), self.chip_m)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Candidate:
    """A readable file: its model without a centre, its parts and a sample of its vectors."""

    place: Location
    name: str
    model: PublishedModel
    layout: str
    columns: Mapping[str, str]
    fingerprint: str
    parts: Callable[[str], Sequence[Source]]
    sample: Callable[[int], Float64]
    tile_px: Callable[[], int]
    rows: int


def plan_import(spec: ImportSpec) -> ImportPlan:
    """Read the headers of a source and compare them with the archive's ledger.

    Raises
    ------
    NotFoundError
        The source does not exist.
    EmptyCatalogError
        The source holds no table and no raster.
    ConfigError
        No layout fits any of its files, or the model has no name.
    EncoderMismatchError
        The archive holds vectors of another model or of an encoder.
    """
    existing = existing_archive(spec.archive_uri)
    if existing is not None:
        spec = as_before(spec, existing.spec)
    found, unusable = _candidates(spec)
    known = _known_model(existing, spec)
    if known is None and not found:
        raise _none_usable(spec, unusable)
    # Files with rows first: a table without any need not state the length of its vectors.
    found.sort(key=lambda candidate: not candidate.rows)
    model = known or found[0].model
    same, others = _of_model(model, found, spec)
    unusable += others
    sampled = 0
    if known is None and spec.centre:
        vectors = _sample(same, spec.sample_rows)
        sampled = len(vectors)
        model = replace(model, centre=_mean(vectors))
    entries: Mapping[str, LedgerEntry] = {} if existing is None else existing.ledger.entries
    names = _names([*same, *unusable], entries)
    parts = [part for name, c in zip(names, same, strict=False) for part in c.parts(name)]
    rejected = [
        Rejected(scene_id=name, reason=file.reason)
        for name, file in zip(names[len(same) :], unusable, strict=True)
    ]
    _require_distinct([part.scene_id for part in parts] + names[len(same) :], spec)
    todo = tuple(part for part in parts if _is_pending(part, entries, spec))
    return ImportPlan(
        spec=spec,
        archive=_new_archive(spec, model, same[0]) if existing is None else existing.spec,
        model=model,
        layout=same[0].layout if same else "",
        columns=same[0].columns if same else {},
        existing=existing,
        todo=todo,
        rejected=tuple(item for item in rejected if not _is_recorded(item, entries)),
        done=len(parts) - len(todo),
        parts={part.scene_id: part.fingerprint for part in parts}
        | {item.scene_id: "" for item in rejected},
        sampled_rows=sampled,
    )


def _of_model(
    model: PublishedModel, found: Sequence[_Candidate], spec: ImportSpec
) -> tuple[list[_Candidate], list[Unusable]]:
    """Return the files of a model, and the others with the reason; files without rows fit all."""

    def fits(candidate: _Candidate) -> bool:
        return candidate.model.is_same_model(model) or not candidate.rows

    same = list(filter(fits, found))
    if found and not same:
        raise EncoderMismatchError(
            f"archive {spec.archive_uri} holds vectors of {_described(model)}, and {spec.source} "
            f"of {_described(found[0].model)}; name another archive"
        )
    others = [
        Unusable(
            place=candidate.place,
            name=candidate.name,
            reason=f"it holds vectors of {_described(candidate.model)}, not of {_described(model)}",
        )
        for candidate in itertools.filterfalse(fits, found)
    ]
    return same, others


def _new_archive(spec: ImportSpec, model: PublishedModel, first: _Candidate) -> ArchiveSpec:
    return ArchiveSpec(
        encoder_fingerprint=model.fingerprint,
        encoder_uri="",
        dimension=model.dimension,
        bands=(),
        tile_px=first.tile_px(),
        rules=stated_rules(spec),
        published=model,
    )


def _candidates(spec: ImportSpec) -> tuple[list[_Candidate], list[Unusable]]:
    """Return the readable files of a source, and the others with their reasons."""
    source = Location.of(spec.source)
    if is_raster(source):
        headers = raster_headers(source, spec)
        return _divided(
            h if isinstance(h, Unusable) else _raster_candidate(h, spec) for h in headers
        )
    if not source.is_pattern and not source.exists():
        raise NotFoundError(f"{source} does not exist; check the path, the bucket and the key")
    files = [file for file in source.list() if file.uri.lower().endswith(TABLE_SUFFIXES)]
    if not files:
        raise EmptyCatalogError(
            f"{source} holds no embeddings: no {', '.join(TABLE_SUFFIXES)} file, no GeoTIFF and no "
            "Zarr group"
        )
    with ThreadPoolExecutor(_HEADERS_AT_ONCE) as pool:
        return _divided(pool.map(lambda file: _tried(file, spec), files))


def _divided(
    results: Iterable[_Candidate | Unusable],
) -> tuple[list[_Candidate], list[Unusable]]:
    found: list[_Candidate] = []
    unusable: list[Unusable] = []
    for result in results:
        if isinstance(result, Unusable):
            unusable.append(result)
        else:
            found.append(result)
    return found, unusable


def _none_usable(spec: ImportSpec, unusable: Sequence[Unusable]) -> ConfigError:
    """Return the error of a source of which an archive cannot be made."""
    first, count = unusable[0].reason, len(unusable)
    many = f"{spec.source}: none of {count} files can be used; the first: {first}"
    return ConfigError(first if count == 1 else many)


def _tried(file: Location, spec: ImportSpec) -> _Candidate | Unusable:
    with Quarantine(str(file)) as fault:
        return _table_candidate(read_header(file, spec.choice), spec)
    return Unusable(place=file, name=file.stem, reason=fault.reason)


def _table_candidate(table: Table, spec: ImportSpec) -> _Candidate:
    model = _model(spec, table.model, table.version, max(table.dimension, 1), "none")
    chip_m = spec.choice.chip_m or table.layout.chip_m
    how = [table.layout.name, table.layout.columns.named, table.crs, str(table.date), chip_m]
    fingerprint = json_digest([table.place.stem, table.place.revision(), how])[:16]

    def parts(name: str) -> list[Source]:
        return [
            TablePart(
                scene_id=name if number == 0 else f"{name}.{number}",
                fingerprint=fingerprint,
                table=table,
                start=number * PART_ROWS,
                stop=min((number + 1) * PART_ROWS, table.rows),
                chip_m=chip_m,
            )
            for number in range(part_count(table.rows))
        ]

    return _Candidate(
        place=table.place,
        name=table.place.stem,
        model=model,
        layout=table.layout.name,
        columns=table.layout.columns.named,
        fingerprint=fingerprint,
        parts=parts,
        sample=lambda rows: sample_vectors(table, rows).astype(np.float64),
        tile_px=lambda: _chip_px(table, chip_m) or spec.tile_px,
        rows=table.rows,
    )


def _chip_px(table: Table, chip_m: float | None) -> int:
    """Return the pixels along a side of a table's first chips; 0 where none can be placed."""
    placed = PlacedRows(groups=())
    with Quarantine(str(table.place)):
        placed = placed_chips(read_rows(table, 0, min(table.rows, _FIRST_ROWS)), chip_m)
    return placed.groups[0].grid.tile_px if placed.groups else 0


def _raster_candidate(header: RasterHeader, spec: ImportSpec) -> _Candidate:
    layout = header.layout
    return _Candidate(
        place=header.place,
        name=header.raster.name,
        model=_model(spec, layout.model, layout.version, header.dimension, layout.quantization),
        layout=layout.name,
        columns={},
        fingerprint=header.fingerprint,
        parts=header.parts,
        sample=header.sample,
        tile_px=lambda: spec.tile_px,
        rows=header.tiles,
    )


def _model(
    spec: ImportSpec, name: str, version: str, dimension: int, quantization: str
) -> PublishedModel:
    if not (spec.model or name):
        raise ConfigError(
            f"nothing in {spec.source} names the model of its vectors; name it, so that vectors of "
            "two models are never mixed: --model NAME"
        )
    return PublishedModel(
        name=spec.model or name,
        version=spec.version or ("" if spec.model else version),
        dimension=dimension,
        quantization=quantization,
    )


def _known_model(existing: Archive | None, spec: ImportSpec) -> PublishedModel | None:
    """Return the model of an archive that exists, and refuse vectors that cannot join it."""
    if existing is None:
        return None
    if existing.spec.published is None:
        raise EncoderMismatchError(
            f"archive {existing.uri} holds vectors of encoder "
            f"{existing.spec.encoder_fingerprint[:16]}, which imported embeddings cannot join; "
            "name another archive"
        )
    if existing.spec.published.centre and not spec.centre:
        raise ConfigError(
            f"archive {existing.uri} subtracts a mean from its vectors; import without "
            "--no-centre, or name another archive"
        )
    return existing.spec.published


def _described(model: PublishedModel) -> str:
    return f"{model.title} ({model.dimension} numbers, quantization {model.quantization})"


def _sample(candidates: Sequence[_Candidate], rows: int) -> Float64:
    """Return vectors of files that are spread evenly over the source."""
    full = [candidate for candidate in candidates if candidate.rows]
    spread = np.linspace(0, max(len(full) - 1, 0), min(_SAMPLED_FILES, len(full))).astype(int)
    parts = [full[index].sample(max(rows // len(spread), 1)) for index in spread.tolist()]
    return np.concatenate(parts) if parts else np.empty((0, 0))


def _mean(vectors: Float64) -> tuple[float, ...]:
    if len(vectors) < 2:  # one vector would become its own mean, and nothing
        return ()
    return tuple(float(f"{value:.7g}") for value in vectors.mean(axis=0).tolist())


def _names(files: Sequence[_Candidate | Unusable], entries: Mapping[str, LedgerEntry]) -> list[str]:
    """Return the ids of files: their names, after as many folders as tell them from all others.

    A file that the ledger has under a name with fewer folders keeps that.
    """
    possible = [_possible_names(file) for file in files]
    counts = Counter(name for names in possible for name in names)
    taken: set[str] = set()
    found = []
    for file, names in zip(files, possible, strict=True):
        mark = file.fingerprint if isinstance(file, _Candidate) else ""
        kept = (n for n in names if n in entries and entries[n].fingerprint == mark)
        own = (n for n in names if counts[n] == 1)
        name = next((n for n in (*kept, *own) if n not in taken), names[-1])
        taken.add(name)
        found.append(name)
    return found


def _possible_names(file: _Candidate | Unusable) -> list[str]:
    """Return the name of a file alone, after its folder, after two folders, and so on.

    A tilde is kept for further scenes of a part (:func:`part_ids`).
    """
    names = [file.name]
    for folder in reversed(PurePosixPath(file.place.absolute.uri).parent.parts[1:]):
        names.append(f"{folder}-{names[-1]}")
    return [name.replace("~", "-") for name in names]


def _require_distinct(ids: Sequence[str], spec: ImportSpec) -> None:
    """Refuse a source in which two parts would have one id: one would replace the other."""
    twice = [name for name, count in Counter(ids).items() if count > 1]
    if twice:
        raise ConfigError(
            f"{spec.source}: {len(twice)} ids stand for several files or parts ({twice[0]!r}); "
            "rename these files"
        )


def _is_pending(part: Source, entries: Mapping[str, LedgerEntry], spec: ImportSpec) -> bool:
    entry = entries.get(part.scene_id)
    if entry is None or entry.fingerprint != part.fingerprint:
        return True
    return entry.state == "quarantined" and spec.retry_quarantined


def _is_recorded(item: Rejected, entries: Mapping[str, LedgerEntry]) -> bool:
    entry = entries.get(item.scene_id)
    return entry is not None and (entry.state, entry.reason) == ("quarantined", item.reason)


def part_ids(plan: ImportPlan, recorded: Iterable[str]) -> dict[str, str]:
    """Return the fingerprints of all scenes of a source, by id, as a ledger should have them.

    The rows of a part that lie on further grids, or on one tile at several dates, are scenes of
    their own in the ledger, named for the part.
    """
    further = {
        name: plan.parts[name.partition("~")[0]]
        for name in recorded
        if "~" in name and name.partition("~")[0] in plan.parts
    }
    return {**further, **plan.parts}
