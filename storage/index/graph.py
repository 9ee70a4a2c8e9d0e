"""The graph of nearest neighbours of some vectors: who is like whom. A home of faiss."""

import faiss
import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

EXACT_ROWS = 50_000
"""Most rows that are compared with all others; beyond them lists of similar rows are probed."""
_PROBES = 32


def nearest_neighbours(vectors_ND: Float32, k: int) -> tuple[Float32, Int64]:
    """Return the cosines and positions of the k nearest other rows of each row.

    Parameters
    ----------
    vectors_ND
        Unit vectors, float32 (N, D).
    k
        Neighbours, at most N - 1.

    Returns
    -------
    scores_Nk, positions_Nk
        Best first. A position of -1 (score -inf) fills up where the probed lists hold fewer rows.

    Notes
    -----
    Memory is the vectors once more (4 N D bytes) and 12 N k bytes. Up to `EXACT_ROWS` rows time is
    O(N² D) and the neighbours are exact; beyond, ``√N`` lists of which 32 are probed miss a few.

    Examples
    --------
    >>> scores, positions = nearest_neighbours(np.eye(3, dtype=np.float32)[[0, 1, 0]], 1)
    >>> positions[[0, 2]].tolist(), scores[0].tolist()
    ([[2], [0]], [1.0])
    """
    vectors_ND = np.ascontiguousarray(vectors_ND, dtype=np.float32)
    rows, dimension = vectors_ND.shape
    k = min(k, rows - 1)
    index = _lists_of(vectors_ND) if rows > EXACT_ROWS else faiss.IndexFlatIP(dimension)
    index.add(vectors_ND)
    scores, positions = index.search(vectors_ND, k + 1)
    # The row itself is among its neighbours unless k + 1 rows are equal to it: then the last goes.
    own = positions == np.arange(rows)[:, None]
    own[~own.any(1), -1] = True
    return scores[~own].reshape(rows, k), positions[~own].reshape(rows, k)


def _lists_of(vectors_ND: Float32) -> faiss.IndexIVFFlat:
    rows, dimension = vectors_ND.shape
    lists = int(np.sqrt(rows))
    centres = faiss.IndexFlatIP(dimension)
    index = faiss.IndexIVFFlat(centres, dimension, lists, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors_ND[:: max(1, rows // (64 * lists))])
    index.nprobe = _PROBES
    return index
