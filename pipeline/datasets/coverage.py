"""Which rows to label next: those that stand for the most rows that no labelled row is like.

Labels of what is there, and scores of a model, are not looked at: only the features count.

Shapes: N candidates, M covered rows, D dimension.

References
----------
Nemhauser et al., An analysis of approximations for maximizing submodular set functions,
Mathematical Programming 14 (1978). Minoux, Accelerated greedy algorithms for maximizing submodular
set functions (1978).
"""

import heapq

import numpy as np
from numpy.typing import NDArray

from storage.progress import Progress, ProgressSink, ignore

Floats = NDArray[np.float32]
Int64 = NDArray[np.int64]

_CHUNK = 1024


def covering_rows(
    vectors_ND: Floats, covered_MD: Floats, count: int, *, progress: ProgressSink = ignore
) -> Int64:
    """Return the candidates that cover all candidates best, the most useful first.

    A candidate is covered as well as the nearest labelled or chosen row is like it: by the cosine,
    0 for an angle of 90° and more. Each choice adds most to the sum of these (facility location).
    The sum is at least 1 - 1/e of the best that as many rows can reach.

    Parameters
    ----------
    vectors_ND
        Unit vectors of the candidates.
    covered_MD
        Unit vectors of the rows that are labelled already; M may be 0.
    count
        Rows to choose, at most N.

    Returns
    -------
    ndarray
        Positions, int64 (n,); of equal candidates the first.

    Notes
    -----
    Memory beside the vectors is ``4096 N`` bytes. Time is O(N (N + M) D): 3 s for 20,000 rows of
    128 dimensions on two cores. Gains only shrink, so a candidate's is computed again only when it
    leads (lazy greedy).

    Examples
    --------
    >>> vectors = np.array([[1, 0], [0.8, 0.6], [0.6, 0.8], [0, 1]], np.float32)
    >>> covering_rows(vectors, vectors[:0], 2).tolist()
    [1, 3]
    >>> covering_rows(vectors[:1], vectors[3:], 1).tolist()
    [0]
    """
    candidates, count = len(vectors_ND), min(count, len(vectors_ND))
    reached_N = np.zeros(candidates, np.float32)
    for start in range(0, len(covered_MD), _CHUNK):
        likeness = vectors_ND @ covered_MD[start : start + _CHUNK].T
        np.maximum(reached_N, likeness.max(axis=1), out=reached_N)
    queue: list[tuple[float, int]] = []
    for start in range(0, candidates, _CHUNK):
        likeness = vectors_ND @ vectors_ND[start : start + _CHUNK].T
        gains = np.maximum(likeness - reached_N[:, None], 0).sum(axis=0, dtype=np.float64)
        queue += [(-gain, start + position) for position, gain in enumerate(gains.tolist())]
    heapq.heapify(queue)
    chosen: list[int] = []
    while len(chosen) < count:
        _, row = heapq.heappop(queue)
        likeness = vectors_ND @ vectors_ND[row]
        gain = float(np.maximum(likeness - reached_N, 0).sum(dtype=np.float64))
        if queue and (-gain, row) > queue[0]:
            heapq.heappush(queue, (-gain, row))
            continue
        chosen.append(row)
        np.maximum(reached_N, likeness, out=reached_N)
        progress(Progress(stage="choose", done=len(chosen), total=count, unit="tiles"))
    return np.array(chosen, dtype=np.int64)
