"""Other libraries of nearest neighbours on the vectors of `benchmarks.search`.

    PYTHON benchmarks/search_peers.py FOLDER THREADS RECALL

Needs NumPy only; each of usearch, hnswlib, SVS and ScaNN is measured where it is installed. Reads
``vectors.npy`` (n, D), ``queries.npy`` (Q, D) and ``truth.npy`` (judged, K) in the folder; prints
a line of JSON for each library: the fastest setting that reaches the recall, and its queries a
second.
"""

import importlib
import importlib.metadata
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

_BATCHES, _TURNS, _K = (2048, 256), 7, 10
_EFFORTS = (10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024)
_EDGES, _BUILD_EFFORT = 16, 100
Search = Callable[[Any], Any]
Settings = Iterator[tuple[str, Search]]


def usearch(vectors: Any, threads: int) -> tuple[Settings, float]:
    """Make a graph (HNSW) of float16 vectors."""
    from usearch.index import Index

    index = Index(
        ndim=vectors.shape[1], metric="ip", dtype="f16", connectivity=_EDGES,
        expansion_add=_BUILD_EFFORT,
    )  # fmt: skip
    index.add(np.arange(len(vectors)), vectors, threads=threads)

    def settings() -> Settings:
        for effort in _EFFORTS:
            index.expansion_search = effort
            yield f"ef {effort}", lambda q: index.search(q, _K, threads=threads).keys

    return settings(), index.memory_usage / len(vectors)


def hnswlib(vectors: Any, threads: int) -> tuple[Settings, float]:
    """Make a graph (HNSW) of float32 vectors."""
    module = importlib.import_module("hnswlib")
    index = module.Index(space="ip", dim=vectors.shape[1])
    index.init_index(max_elements=len(vectors), M=_EDGES, ef_construction=_BUILD_EFFORT)
    index.add_items(vectors, num_threads=threads)

    def settings() -> Settings:
        for effort in _EFFORTS:
            index.set_ef(effort)
            yield f"ef {effort}", lambda q: index.knn_query(q, _K, num_threads=threads)[0]

    return settings(), 4 * vectors.shape[1] + 8 * _EDGES + 16


def svs(vectors: Any, threads: int) -> tuple[Settings, float]:
    """Make a graph (Vamana) of float16 vectors."""
    module = importlib.import_module("svs")
    parameters = module.VamanaBuildParameters(
        alpha=0.95, graph_max_degree=2 * _EDGES, window_size=_BUILD_EFFORT
    )
    index = module.Vamana.build(
        parameters, vectors.astype(np.float16), module.DistanceType.MIP, num_threads=threads
    )

    def settings() -> Settings:
        for effort in _EFFORTS:
            index.search_window_size = effort
            yield f"window {effort}", lambda q: index.search(q, _K)[0]

    return settings(), 2 * vectors.shape[1] + 8 * _EDGES


def scann(vectors: Any, threads: int) -> tuple[Settings, float]:
    """Make lists of 4-bit codes of two dimensions; candidates are scored again."""
    module = importlib.import_module("scann")
    lists = int(2 * len(vectors) ** 0.5)
    searcher = (
        module.scann_ops_pybind.builder(vectors, _K, "dot_product")
        .tree(num_leaves=lists, num_leaves_to_search=8, training_sample_size=64 * lists)
        .score_ah(2, anisotropic_quantization_threshold=0.2)
        .reorder(100)
        .set_n_training_threads(threads)
        .build()
    )
    searcher.set_num_threads(threads)

    def settings() -> Settings:
        for again in (20, 40, 80, 160, 320):
            for leaves in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128):
                ask = {"leaves_to_search": leaves, "pre_reorder_num_neighbors": again}
                name = f"{leaves} of {lists} lists, {again} candidates"
                yield name, lambda q, a=ask: searcher.search_batched_parallel(q, _K, **a)[0]

    return settings(), 4 * vectors.shape[1] + vectors.shape[1] / 4


PEERS = {"usearch": usearch, "hnswlib": hnswlib, "scalable-vs": svs, "scann": scann}


def rate(search: Search, queries: Any, size: int) -> float:
    """Return the median queries a second of batches of one size."""
    took = []
    for turn in range(_TURNS + 1):
        start = turn * size % (len(queries) - size + 1)
        began = time.perf_counter()
        search(queries[start : start + size])
        took.append(time.perf_counter() - began)
    return size / statistics.median(took[1:])


def measured(name: str, folder: Path, threads: int, wanted: float) -> dict[str, Any] | None:
    """Return the figures of the fastest setting of a library; None where none reaches the recall.

    That is told on standard error.
    """
    vectors = np.load(folder / "vectors.npy")
    queries, truth = np.load(folder / "queries.npy"), np.load(folder / "truth.npy")
    began = time.perf_counter()
    settings, size = PEERS[name](vectors, threads)
    found = {
        "name": name,
        "version": importlib.metadata.version(name),
        "build_s": time.perf_counter() - began,
        "bytes_a_row": size,
        f"batch of {_BATCHES[0]}": 0.0,
    }
    for setting, search in settings:
        near = np.asarray(search(queries[: len(truth)])).astype(np.int64)
        pairs = zip(near, truth, strict=True)
        reached = statistics.fmean(len(set(a) & set(b)) / len(b) for a, b in pairs)
        if reached < wanted:
            continue
        rates = {f"batch of {batch}": rate(search, queries, batch) for batch in _BATCHES}
        if rates[f"batch of {_BATCHES[0]}"] > found[f"batch of {_BATCHES[0]}"]:
            found |= {"setting": setting, "recall": reached} | rates
        if not setting.endswith("candidates"):  # one effort only: a higher one is slower
            break
    if "setting" not in found:
        print(f"{name}: recall@10 {reached:.3f} at most", file=sys.stderr)
        return None
    return found


def main(arguments: list[str]) -> None:
    """Measure every library that is installed."""
    folder, threads, wanted = Path(arguments[0]), int(arguments[1]), float(arguments[2])
    for name in PEERS:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if found := measured(name, folder, threads, wanted):
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
