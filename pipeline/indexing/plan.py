"""Plan the index of an archive before it is built: kind, sizes, memory, shards.

Pure: reads numbers, returns a frozen plan that can be printed (`skysift index build --dry-run`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.indexing.spec import IndexSpec
from storage.display import Described
from storage.errors import ConfigError
from storage.index.gpu import CUDA_BYTES
from storage.index.kinds import ESTIMATING, PQ_BITS, Kind
from storage.index.pilot import Estimate
from storage.index.quantizer import TRAINING_ROWS_PER_CENTRE, ShardParameters
from storage.index.shard import ID_BYTES, MASK_BYTES
from storage.index.sidecar import BYTES_PER_ROW

Segments = list[tuple[int, int, tuple[float, float]]]
"""(ordinal, live rows, (lon, lat) of their centre) of segments."""

FLAT_ROWS = 20_000
"""Below this row count an exact scan is as fast as IVF."""
_ROWS_PER_LIST = 39
_FILE_OVERHEAD_BYTES = 8192
_PROCESS_BYTES = 500_000_000 + CUDA_BYTES
_RERANK = {"ivf_sq8": 4, "ivf_rabitq": 16, "ivf_opq": 16, "ivf_pq": 16, "ivf_pq4": 16}


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """The live rows ``start`` to ``stop`` of one segment."""

    ordinal: int
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class IndexPlan(Described):
    """An index to build.

    ``pieces`` holds one tuple for each shard; ``predicted_bytes`` is the memory of all shards when
    loaded, ``disk_bytes`` the additional size on disk, ``builder_bytes`` the peak memory of a
    process that builds a shard. ``recall_ceiling`` is the recall@10 with every list probed, as
    estimated from some of the rows; 1 for lossless kinds. ``contenders`` are the kinds and sizes
    that fit, most exact first; ``estimates`` what a pilot measured of some of them, ``estimate``
    of the chosen one.
    """

    rows: int
    parameters: ShardParameters
    rerank: int
    sample_rows: int
    pieces: tuple[tuple[Piece, ...], ...]
    predicted_bytes: int
    disk_bytes: int
    builder_bytes: int
    contenders: tuple[ShardParameters, ...]
    recall_ceiling: float = 1.0
    estimate: Estimate | None = None
    estimates: tuple[Estimate, ...] = ()

    def facts(self) -> dict[str, Any]:
        """Return rows, kind, shards and sizes."""
        return {
            "rows": self.rows,
            "kind": self.parameters.kind,
            "shards": len(self.pieces),
            "memory when loaded": f"{self.predicted_bytes / 1e6:,.1f} MB",
            "on disk besides": f"{self.disk_bytes / 1e6:,.1f} MB",
            "memory of a builder": f"{self.builder_bytes / 1e6:,.1f} MB",
            "recall@10 at most": self.recall_ceiling,
            "kinds measured": len(self.estimates),
        }


def plan_index(
    spec: IndexSpec,
    dimension: int,
    classes: int,
    segments: Segments,
    chosen: ShardParameters | None = None,
) -> IndexPlan:
    """Choose kind and sizes, and cut the rows into shards.

    Parameters
    ----------
    spec
        The request.
    dimension, classes
        Of the archive.
    segments
        (ordinal, live rows, (lon, lat) of their centre) of every segment with live rows.
    chosen
        Kind and sizes, one of the contenders; by default the most exact of them.

    Raises
    ------
    ConfigError
        There are no rows, or no kind fits the memory or the number of rows.
    """
    rows = sum(count for _, count, _ in segments)
    if rows == 0:
        raise ConfigError("the archive holds no live rows; ingest scenes before building an index")
    largest = max(count for _, count, _ in segments)
    shards, contenders = _sized(spec, rows, dimension, classes, largest)
    parameters = chosen or contenders[0]
    reranks = parameters.lossy and spec.rerank
    most_trained = TRAINING_ROWS_PER_CENTRE * max(parameters.nlist, parameters.codewords)
    return IndexPlan(
        rows=rows,
        parameters=parameters,
        builder_bytes=builder_bytes(parameters, math.ceil(rows / shards), classes, largest),
        rerank=_RERANK[parameters.kind] if reranks else 1,
        sample_rows=min(rows, spec.sample_rows, most_trained),
        pieces=cut_into_shards(segments, shards),
        predicted_bytes=predicted_bytes(parameters, rows, classes, shards, reranks),
        disk_bytes=2 * dimension * rows if reranks else 0,
        contenders=contenders,
    )


def predicted_bytes(
    parameters: ShardParameters, rows: int, classes: int, shards: int, reranks: bool
) -> int:
    """Return the memory of all shards when loaded: codes, ids, columns and each shard's centres.

    Examples
    --------
    >>> p = ShardParameters(kind="ivf_sq8", dimension=128, nlist=1024)
    >>> predicted_bytes(p, 1_000_000, 0, 1, reranks=True) // 10**6
    204
    """
    return rows * row_bytes(parameters, classes, reranks) + shards * _shared_bytes(parameters)


def row_bytes(parameters: ShardParameters, classes: int, reranks: bool) -> int:
    """Return the memory of a row when loaded: code, ids, columns and masks."""
    ids = ID_BYTES if reranks else 2 * ID_BYTES
    return parameters.code_bytes + ids + _columns_bytes(classes) + MASK_BYTES


def builder_bytes(parameters: ShardParameters, rows: int, classes: int, segment_rows: int) -> int:
    """Return the peak memory of a process that builds a shard of ``rows`` rows.

    Lists may double while they grow; the columns are held as read, as sorted and as encoded; the
    memory-mapped vectors count too, although the system may reclaim their pages.
    """
    segment = segment_rows * _columns_bytes(classes)
    return (
        _PROCESS_BYTES + 2 * segment + _shared_bytes(parameters)
        + rows * _builder_row_bytes(parameters, classes)
    )  # fmt: skip


def _builder_row_bytes(parameters: ShardParameters, classes: int) -> int:
    names_and_keys, vectors = 500, 2 * parameters.dimension if parameters.lossy else 0
    lists = 2 * (parameters.code_bytes + ID_BYTES)
    return lists + vectors + 4 * _columns_bytes(classes) + names_and_keys


def _columns_bytes(classes: int) -> int:
    return BYTES_PER_ROW + math.ceil(classes / 8)


def _shared_bytes(p: ShardParameters) -> int:
    """Return the size of a shard without rows: centres, codebook, rotation."""
    centres = p.nlist * (4 * p.dimension + ID_BYTES)
    codebook = 4 * p.codewords * p.dimension if p.product else 0
    rotation = 4 * p.dimension**2 if p.rotated else 0
    return centres + codebook + rotation + _FILE_OVERHEAD_BYTES


def _sized(
    spec: IndexSpec, rows: int, dimension: int, classes: int, segment_rows: int
) -> tuple[int, tuple[ShardParameters, ...]]:
    """Return the number of shards and the contenders, within both limits of memory."""
    shards = spec.shards or math.ceil(rows / spec.rows_per_shard)
    if shards > rows:
        raise ConfigError(f"{shards} shards for {rows} rows; ask for at most {rows}")
    contenders = _contenders(spec, rows, dimension, classes, shards)
    limit = spec.builder_memory_bytes
    if limit is None:
        return shards, contenders
    parameters = max(contenders, key=lambda p: p.code_bytes)
    free = limit - builder_bytes(parameters, 0, classes, segment_rows)
    most = free // _builder_row_bytes(parameters, classes)
    if most < 1 or (spec.shards and most < math.ceil(rows / shards)):
        needed = builder_bytes(parameters, math.ceil(rows / shards), classes, segment_rows)
        raise ConfigError(
            f"building {shards} shards of {rows} rows takes {needed} bytes at a time, more than "
            f"the {limit} allowed; allow more, or leave the number of shards open"
        )
    shards = max(shards, math.ceil(rows / most))
    return shards, _contenders(spec, rows, dimension, classes, shards)


def _contenders(
    spec: IndexSpec, rows: int, dimension: int, classes: int, shards: int
) -> tuple[ShardParameters, ...]:
    """Return the parameters that fit the rows and the memory, most exact first."""
    fit, smallest = [], 0
    for candidate in _candidates(spec, rows, dimension):
        reranks = candidate.lossy and spec.rerank
        smallest = predicted_bytes(candidate, rows, classes, shards, reranks)
        if spec.memory_bytes is None or smallest <= spec.memory_bytes:
            fit.append(candidate)
    if fit:
        return tuple(fit)
    if not smallest:
        raise ConfigError(
            f"index kind {spec.kind} needs more than {rows} rows, or vectors of more than "
            f"{dimension} dimensions; choose flat or auto"
        )
    raise ConfigError(
        f"an index of kind {spec.kind} over {rows} rows of {dimension} dimensions takes at least "
        f"{smallest} bytes, more than the {spec.memory_bytes} allowed; "
        "raise the memory, or choose auto or ivf_opq"
    )


def _candidates(spec: IndexSpec, rows: int, dimension: int) -> list[ShardParameters]:
    """Return the parameters that fit the rows, most exact first."""
    nlist = min(spec.nlist or lists_for(rows), rows)
    kinds: Sequence[Kind] = (spec.kind,) if spec.kind != "auto" else _automatic(spec, rows)
    found = [
        ShardParameters(
            kind=kind,
            dimension=dimension,
            nlist=1 if kind == "flat" else nlist,
            seed=spec.seed,
            **size,
        )
        for kind in kinds
        for size in _code_sizes(kind, dimension, rows)
    ]
    return sorted(found, key=lambda p: (p.lossy + (p.lossy and p.kind != "ivf_sq8"), -p.code_bytes))


def _automatic(spec: IndexSpec, rows: int) -> tuple[Kind, ...]:
    exact: Kind = "flat" if rows <= FLAT_ROWS else "ivf_flat"
    lossy: tuple[Kind, ...] = ("ivf_sq8", "ivf_rabitq", "ivf_opq", "ivf_pq4")
    return (exact, *(kind for kind in lossy if spec.rerank or kind not in ESTIMATING))


def _code_sizes(kind: Kind, dimension: int, rows: int) -> list[dict[str, int]]:
    """Return the settings that decide how many bytes a stored vector has."""
    if kind == "ivf_rabitq":
        return [{"bits": bits} for bits in (4, 3, 2, 1)]
    if kind not in PQ_BITS:
        return [{}]
    if rows < 1 << PQ_BITS[kind]:
        return []
    parts = [m for m in range(dimension // 2, 3, -1) if dimension % m == 0]
    bits = [m * PQ_BITS[kind] for m in parts]
    return [{"pq_bytes": size // 8} for size in bits if size % 8 == 0]


def lists_for(rows: int) -> int:
    """Return about twice the square root of the rows, as a power of two, lists not too empty.

    Examples
    --------
    >>> lists_for(100), lists_for(10_000), lists_for(1_000_000)
    (2, 256, 2048)
    """
    ideal = 2 ** round(math.log2(2 * math.sqrt(rows)))
    return int(max(min(ideal, 2 ** int(math.log2(max(rows / _ROWS_PER_LIST, 1)))), 1))


def cut_into_shards(segments: Segments, shards: int) -> tuple[tuple[Piece, ...], ...]:
    """Lay segments along a space-filling curve and cut the line into equal shards.

    Neighbours share a shard, so a search for a place touches few.

    Examples
    --------
    >>> [[(p.ordinal, p.start, p.stop) for p in shard]
    ...  for shard in cut_into_shards([(0, 6, (0, 0)), (1, 2, (50, 50))], 2)]
    [[(0, 0, 4)], [(0, 4, 6), (1, 0, 2)]]
    """
    line = sorted(segments, key=lambda item: (morton(*item[2]), item[0]))
    ends = np.cumsum([count for _, count, _ in line])
    edges = np.linspace(0, ends[-1], shards + 1).round().astype(int)
    cut: list[tuple[Piece, ...]] = []
    for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        pieces = []
        for (ordinal, count, _), end in zip(line, ends.tolist(), strict=True):
            first = end - count
            start, stop = max(low, first), min(high, end)
            if start < stop:
                pieces.append(Piece(ordinal=ordinal, start=start - first, stop=stop - first))
        cut.append(tuple(pieces))
    return tuple(cut)


def morton(lon: float, lat: float) -> int:
    """Return the place of a point on the Z-order curve over the WGS84 rectangle."""
    across, up = int((lon + 180) / 360 * 65535), int((lat + 90) / 180 * 65535)
    return sum((across >> bit & 1) << 2 * bit | (up >> bit & 1) << 2 * bit + 1 for bit in range(16))
