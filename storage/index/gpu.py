"""FAISS on GPUs, where the installed FAISS sees any. A home of faiss.

A GPU finds the nearest centres while training and adding, and scans lists in a search. Vectors are
encoded on the CPU in every case, so stored codes differ only where two centres are equally near
within float32 rounding. A GPU's scores differ from the CPU's by rounding too;
:mod:`storage.index.search` allows for the difference by the same margin as on the CPU and scores
the remaining candidates exactly. GPU indexes ignore ID selectors and return at most
:data:`MOST_RESULTS` results: those searches stay on the CPU, as do kinds that a GPU does not have.
"""

from typing import Any

import faiss

from storage.index.ranking import Float32, Int64

MOST_RESULTS = 2048
CUDA_BYTES = 180_000_000 if hasattr(faiss, "StandardGpuResources") else 0
"""What the CUDA libraries of faiss-gpu take in every process (measured: 164 MB)."""


def accelerated(index: Any) -> Any:
    """Return a flat index on all GPUs, or unchanged where there is no GPU."""
    return faiss.index_cpu_to_all_gpus(index) if faiss.get_num_gpus() else index


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
    """Return a copy on a GPU; None when GPUs do not have the kind of inverted file."""
    kinds = (faiss.IndexIVFScalarQuantizer, faiss.IndexIVFPQ)
    return GpuLists(lists) if isinstance(lists, kinds) else None
