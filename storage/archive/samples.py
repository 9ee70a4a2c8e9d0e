"""Uniform samples of an archive's rows: every live row has the same chance, whatever its segment.

Taking the first rows, or equal numbers of every segment, would favour the scenes that came first.
"""

import numpy as np
import numpy.typing as npt

from storage.archive.reader import Archive

Int64 = npt.NDArray[np.int64]


def uniform_rows(archive: Archive, count: int, seed: int = 0) -> Int64:
    """Return the ids of rows drawn uniformly, without replacement, from all live rows.

    Parameters
    ----------
    count
        Number of rows to draw, at most all.
    seed
        Decides which; the same seed and snapshot give the same rows.

    Returns
    -------
    ndarray
        Row ids, int64 (n,), ascending.
    """
    total = len(archive)
    chosen = np.sort(
        np.random.default_rng(seed).choice(total, size=min(count, total), replace=False)
    )
    sizes = np.zeros(len(archive.segments), dtype=np.int64)
    for entry in archive.ledger.entries.values():
        if entry.rows and entry.segment_ordinal is not None:
            sizes[entry.segment_ordinal] += entry.rows
    ends = np.cumsum(sizes)
    owners = np.searchsorted(ends, chosen, side="right")  # only their rows are looked up
    parts = [
        archive.live_rows(ordinal)[chosen[owners == ordinal] - (ends[ordinal] - sizes[ordinal])]
        for ordinal in np.unique(owners).tolist()
    ]
    return np.concatenate([np.empty(0, np.int64), *parts])


def live_rows(archive: Archive) -> Int64:
    """Return the ids of all live rows, int64 (n,), in the order of ``archive.to_dask()``."""
    parts = [archive.live_rows(segment.ordinal) for segment in archive.segments]
    return np.concatenate([np.empty(0, np.int64), *parts])
