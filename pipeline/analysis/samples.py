"""Uniform samples of an archive's rows: every live row has the same chance, whatever its segment.

Taking the first rows, or as many of every segment, would favour the scenes that came first.
"""

import numpy as np
import numpy.typing as npt

from storage.archive.reader import Archive

Int64 = npt.NDArray[np.int64]


def sample_positions(counts: npt.ArrayLike, sample: int, seed: int) -> list[Int64]:
    """Draw rows uniformly, without replacement, over segments of given row counts.

    Returns
    -------
    list
        The positions drawn in each segment, ascending.
    """
    edges = np.concatenate([[0], np.cumsum(np.asarray(counts, dtype=np.int64))])
    drawn = np.random.default_rng(seed).choice(int(edges[-1]), size=sample, replace=False)
    drawn.sort()
    places = np.searchsorted(drawn, edges)
    return [
        drawn[start:stop] - first
        for start, stop, first in zip(places[:-1], places[1:], edges[:-1], strict=True)
    ]


def uniform_rows(archive: Archive, count: int, seed: int = 0) -> Int64:
    """Return the ids of rows drawn uniformly, without replacement, from all live rows.

    Parameters
    ----------
    count
        How many, at most all.
    seed
        Decides which; the same seed and snapshot give the same rows.

    Returns
    -------
    ndarray
        Row ids, int64 (n,), ascending.

    Notes
    -----
    Only the drawn rows are read afterwards, by :meth:`storage.archive.reader.Archive.read`.
    """
    live = [archive.live_rows(segment.ordinal) for segment in archive.segments]
    counts = [len(rows) for rows in live]
    places = sample_positions(counts, min(count, sum(counts)), seed)
    return _joined([rows[positions] for rows, positions in zip(live, places, strict=True)])


def live_rows(archive: Archive) -> Int64:
    """Return the ids of all live rows, int64 (n,), in the order of ``archive.to_dask()``."""
    return _joined([archive.live_rows(segment.ordinal) for segment in archive.segments])


def _joined(parts: list[Int64]) -> Int64:
    return np.concatenate([np.empty(0, np.int64), *parts])
