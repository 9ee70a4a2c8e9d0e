"""The live rows of an archive as one GeoParquet file that readers need not read whole.

Rows lie along a Hilbert curve of their places and row groups are small, so that a reader that asks
for a box skips the others. The footer ``emb`` says which encoder the vectors are of.

References
----------
The key ``emb`` is that of Earth Index's files of embeddings, version 0.0.1.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from storage.archive.reader import Archive, Columns
from storage.formats import located, write_geoparquet
from storage.geometry import EDGES, centres, hilbert
from storage.location import Location

_TIME = pa.timestamp("ms", tz="UTC")
_GROUP_ROWS = 8192
EXPORTED = (
    *("scene", "grid", "tile", "tile_key", "datetime"),
    *("valid_fraction", "cloud_fraction", "bbox"),
)


def to_geoparquet(archive: Archive, uri: str | Location) -> int:
    """Write all live rows as one GeoParquet file; return their number.

    Its columns are ``row``, scene, tile key, UTC datetime, fractions, ``labels`` (lists of class
    names) when there are any, ``embedding`` (D float32, a list of fixed size), ``bbox`` and the
    footprint as ``geometry``.

    Notes
    -----
    Vectors wait in a temporary file of 2 D bytes a row. Peak memory is a few copies of one segment
    and some 300 bytes a row.
    """
    labels = ("labels",) if archive.spec.classes else ()
    names = (*EXPORTED, *labels)
    with tempfile.TemporaryDirectory(prefix="skysift-export-") as folder:
        rows, vectors = _gathered(archive, names, Path(folder) / "vectors")
        order = np.lexsort((rows["row"], hilbert(centres(rows["bbox"]))))
        groups = [order[start : start + _GROUP_ROWS] for start in range(0, len(order), _GROUP_ROWS)]
        tables = (
            _table(archive, {name: column[group] for name, column in rows.items()}, vectors[group])
            for group in groups or [order]
        )
        return write_geoparquet(tables, uri, {"emb": _about(archive, rows["datetime"])})


def _gathered(
    archive: Archive, names: tuple[str, ...], file: Path
) -> tuple[Columns, npt.NDArray[np.float16]]:
    """Return columns of all live rows, and their vectors (n, D) in a file."""
    parts, count, width = [archive.read([], (*names, "row"))], 0, archive.spec.dimension
    with file.open("wb") as stream:
        for segment in archive.segments:
            part = archive.read_segment(segment.ordinal, (*names, "embedding"))
            stream.write(np.ascontiguousarray(part.pop("embedding"), dtype="<f2").data)
            count += len(part["row"])
            parts.append(part)
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    if not count:
        return columns, np.empty((0, width), np.float16)
    return columns, np.memmap(file, dtype="<f2", mode="r", shape=(count, width))


def _about(archive: Archive, times: npt.NDArray[np.datetime64]) -> dict[str, Any]:
    """Return the model and the period of the vectors, as the key ``emb`` states them."""
    spec = archive.spec
    period = {}
    if len(times):
        first, last = (f"{np.datetime_as_string(t, unit='s')}Z" for t in (times.min(), times.max()))
        period = {"datetime": first, "start_datetime": first, "end_datetime": last}
    return {
        "version": "0.0.1",
        "model": {"id": spec.encoder_fingerprint, **_model(archive)},
        **period,
        "datasets": [{"name": "Skysift archive", "source": archive.location.absolute.uri}],
        "embedding": {"dim": spec.dimension, "quantization": "float16, unit norm"},
    }


def _model(archive: Archive) -> dict[str, Any]:
    """Return the name, the version and other facts of the model of the vectors."""
    spec = archive.spec
    if spec.published:
        return {"name": spec.published.name, "version": spec.published.version}
    return {
        "name": "Skysift encoder",
        "version": spec.encoder_fingerprint[:16],
        "source": archive.encoder.absolute.uri,
        "config": {"bands": list(spec.bands), "tile_px": spec.tile_px},
    }


def _table(archive: Archive, columns: Columns, vectors: npt.NDArray[np.float16]) -> pa.Table:
    """Return rows and their vectors (n, D) as an Arrow table."""
    classes, width = archive.spec.classes, archive.spec.dimension
    flat = pa.array(vectors.astype(np.float32).reshape(-1))
    data: dict[str, Any] = {
        "row": columns["row"],
        "scene": pa.array(columns["scene"].tolist(), pa.string()),
        "tile_key": pa.array(columns["tile_key"].tolist(), pa.string()),
        "datetime": pa.array(columns["datetime"].astype("datetime64[ms]"), _TIME),
        "valid_fraction": columns["valid_fraction"],
        "cloud_fraction": columns["cloud_fraction"],
    }
    if classes:
        names = np.array(classes, dtype=object)
        labels = [names[flags.astype(bool)].tolist() for flags in columns["labels"]]
        data["labels"] = pa.array(labels, pa.list_(pa.string()))
    data["embedding"] = pa.FixedSizeListArray.from_arrays(flat, width)
    edges = dict(zip(EDGES, columns["bbox"].T, strict=True))
    return located(pa.table(data | edges), archive.footprints(columns))
