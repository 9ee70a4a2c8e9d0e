"""FAISS on GPUs, where the installed FAISS sees any. A home of faiss.

Three things are faster there: finding the nearest centres while training, the same while adding,
and scanning lists in a search. Vectors are encoded on the CPU in every case, so what is stored
differs only where two centres are equally near within float32 rounding. A GPU's scores differ from
the CPU's by rounding too; :mod:`storage.index.search` allows for it by the same margin as on the
CPU and scores what is left exactly. GPU indexes ignore ID selectors, know no range search and
return at most :data:`MOST_RESULTS`: those searches stay on the CPU, as do kinds that a GPU does not
have.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import faiss
import numpy as np

from storage.index.ranking import Float32, Int64

MOST_RESULTS = 2048


def accelerated(index: Any) -> Any:
    """Return a flat index on all GPUs, or as it is without one."""
    return faiss.index_cpu_to_all_gpus(index) if faiss.get_num_gpus() else index


class NearestCentre:
    """Finds the centre nearest to each vector, on all GPUs or on the CPUs that the caller may use.

    FAISS divides each matrix product among its own threads, which wait for each other. Here every
    thread has products of its own.
    """

    def __init__(self, centres: Any) -> None:
        self._index = accelerated(centres)
        self._threads = 1 if faiss.get_num_gpus() else faiss.omp_get_max_threads()
        self._pool = ThreadPoolExecutor(self._threads, "centres", faiss.omp_set_num_threads, (1,))

    def __call__(self, vectors: Float32) -> Int64:
        """Return the number (n,) of the centre with the largest inner product with each (n, D)."""
        if self._threads == 1:
            return self._nearest(vectors)
        parts = self._pool.map(self._nearest, np.array_split(vectors, self._threads))
        return np.concatenate(list(parts))

    def _nearest(self, vectors: Float32) -> Int64:
        nearest: Int64 = self._index.search(vectors, 1)[1][:, 0]
        return nearest


class GpuLists:
    """A copy of an inverted file on the first GPU."""

    def __init__(self, lists: Any) -> None:
        self._resources = faiss.StandardGpuResources()
        self._index: Any = faiss.index_cpu_to_gpu(self._resources, 0, lists)

    def search(
        self, queries: Float32, k: int, lists: Int64, similarity: Float32
    ) -> tuple[Float32, Int64]:
        """Return the k best of the given lists: scores (Q, k) and positions, -1 where none."""
        self._index.nprobe = lists.shape[1]
        scores, positions = self._index.search_preassigned(queries, k, lists, similarity)
        return scores, positions


def gpu_copy(lists: Any) -> GpuLists | None:
    """Return a copy on a GPU; None without a GPU, or when it does not have the kind."""
    kinds = (faiss.IndexIVFScalarQuantizer, faiss.IndexIVFPQ)
    if not faiss.get_num_gpus() or not isinstance(lists, kinds):
        return None
    return GpuLists(lists)
