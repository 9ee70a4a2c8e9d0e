"""What all shards of an index share: train it, fill copies of it, merge them. A home of faiss.

Every kind is an inverted file with inner products, so one set of code serves all:

==========  ===================================================  ==============================
kind        a stored vector                                      bytes of a vector
==========  ===================================================  ==============================
flat        float16 as in the archive, in one list               2 D
ivf_flat    float16 as in the archive                            2 D
ivf_sq8     8 bits a dimension                                   D
ivf_rabitq  ``bits`` a dimension of the list's residual, turned  D bits / 8 + 8, or 20 from 2
                                                                 bits on
ivf_opq     product quantizer of the list's residual, turned     ``pq_bytes``
ivf_pq      product quantizer of the list's residual             ``pq_bytes``
==========  ===================================================  ==============================

Two kinds turn vectors first (an orthonormal map): RaBitQ by a random one, which its error bound
asks for; OPQ by one that spreads the residuals' variance evenly over the parts of the product.

References
----------
J. Gao, C. Long, RaBitQ, SIGMOD 2024; T. Ge et al., Optimized Product Quantization, TPAMI 2014
(the parametric solution).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from storage.errors import ConfigError, CorruptIndexError
from storage.index.gpu import NearestCentre, accelerated
from storage.index.kinds import Kind
from storage.index.ranking import Float32, Floats, Int64, canonical

Bytes = npt.NDArray[np.uint8]

PQ_CODEWORDS = 256
TRAINING_ROWS_PER_CENTRE = 256
"""FAISS looks at no more rows than this for each centre that it trains."""
_ROWS_PER_CODEWORD = 64  # more rows or iterations cost several times as much and find no more
_CODEWORD_ITERATIONS = 12
_ROTATION_ROWS = 20_000
# From how many values a batch of queries is compared with the lists' centres by a matrix product:
# FAISS would begin at 128,000 and take four times as long for 256 queries of 128 dimensions.
faiss.cvar.distance_compute_blas_threshold = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardParameters:
    """What decides how vectors are stored and found; the same for every shard of an index.

    ``pq_bytes`` is the code size of ``ivf_pq`` and ``ivf_opq`` and divides the dimension; ``bits``
    (1 to 9) is what ``ivf_rabitq`` spends on a dimension.
    """

    kind: Kind
    dimension: int
    nlist: int = 1
    pq_bytes: int = 0
    bits: int = 1
    seed: int = 0

    @property
    def code_bytes(self) -> int:
        """Size of one stored vector."""
        if self.product:
            return self.pq_bytes
        if self.kind == "ivf_rabitq":
            planes = self.bits * -(-self.dimension // 8)
            return planes + (8 if self.bits == 1 else 20)
        return self.dimension if self.kind == "ivf_sq8" else 2 * self.dimension

    @property
    def product(self) -> bool:
        """Whether stored vectors are those of a product quantizer."""
        return self.kind in ("ivf_opq", "ivf_pq")

    @property
    def turned(self) -> bool:
        """Whether vectors are turned before they are stored."""
        return self.kind in ("ivf_rabitq", "ivf_opq")

    @property
    def lossy(self) -> bool:
        """Whether stored vectors are approximations of the archive's."""
        return self.kind not in ("flat", "ivf_flat")


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizationError:
    """How well vectors fit what was trained: both are 0 for a perfect fit.

    ``distance`` is the mean of 1 - similarity to their list's centre, ``distortion`` the mean
    squared distance of a vector to what is stored of it.
    """

    distance: float
    distortion: float


def set_threads(threads: int) -> None:
    """Let FAISS use so many threads in calls from this thread."""
    faiss.omp_set_num_threads(threads)


def train(sample: Float32, parameters: ShardParameters) -> Bytes:
    """Train the empty index that every shard starts from, and return its bytes.

    Parameters
    ----------
    sample
        Vectors (n, D) of a uniform sample of all rows.
    parameters
        What to train.

    Raises
    ------
    ConfigError
        The sample is too small for the kind.
    """
    p, sample = parameters, np.ascontiguousarray(sample, dtype=np.float32)
    least = max(p.nlist, PQ_CODEWORDS if p.product else 1)
    if len(sample) < least:
        raise ConfigError(
            f"index kind {p.kind} with {p.nlist} lists needs at least {least} "
            f"rows to train on, got {len(sample)}; choose fewer lists, or kind flat"
        )
    centres = _trained_centres(sample, p)
    turn = _turn(sample, centres, p) if p.turned else None
    inner = _empty_index(p)
    inner.quantizer.add(centres if turn is None else centres @ turn.T)
    whole = inner if turn is None else faiss.IndexPreTransform(_linear_map(turn), inner)
    whole.train(sample)
    return np.asarray(faiss.serialize_index(whole))


def _trained_centres(sample: Float32, p: ShardParameters) -> Float32:
    """Return the centres (nlist, D) of the lists; one list has its centre at 0."""
    if p.nlist == 1:
        return np.zeros((1, p.dimension), dtype=np.float32)
    clustering = faiss.Clustering(p.dimension, p.nlist, _effort(p, TRAINING_ROWS_PER_CENTRE, 10))
    clustering.spherical = True
    clustering.train(sample, accelerated(faiss.IndexFlatIP(p.dimension)))
    return faiss.vector_to_array(clustering.centroids).reshape(p.nlist, p.dimension)


def _effort(p: ShardParameters, rows_per_centre: int, iterations: int) -> Any:
    effort = faiss.ClusteringParameters()
    effort.seed = p.seed + 1
    effort.niter = iterations
    effort.min_points_per_centroid = 1  # the caller chose the number of lists
    effort.max_points_per_centroid = rows_per_centre
    return effort


def _turn(sample: Float32, centres: Float32, p: ShardParameters) -> Float32:
    """Return the orthonormal map (D, D) of a kind that turns vectors."""
    if p.kind == "ivf_rabitq":
        square = np.random.default_rng(p.seed).normal(size=(p.dimension, p.dimension))
        return np.asarray(np.linalg.qr(square)[0], dtype=np.float32)
    rows = sample[:: max(len(sample) // _ROTATION_ROWS, 1)]
    quantizer = faiss.IndexFlatIP(p.dimension)
    quantizer.add(centres)
    _, nearest = quantizer.search(rows, 1)
    return opq_rotation(rows - centres[nearest[:, 0]], p.pq_bytes)


def opq_rotation(residuals: Float32, parts: int) -> Float32:
    """Return the orthonormal map (D, D) after which every part has the same share of variance.

    Principal axes, strongest first, each dealt to the part whose product of variances is least.
    """
    variance, axes = np.linalg.eigh(np.cov(residuals.T.astype(np.float64)))
    weight = np.log(np.maximum(variance / max(variance.max(), 1e-30), 1e-12)) + np.log(1e12)
    dealt: list[list[int]] = [[] for _ in range(parts)]
    totals = np.zeros(parts)
    for axis in np.argsort(-variance, kind="stable").tolist():
        part = int(np.argmin(totals))
        dealt[part].append(axis)
        full = len(dealt[part]) == len(variance) // parts
        totals[part] = np.inf if full else totals[part] + weight[axis]
    order = [axis for part in dealt for axis in part]
    return np.ascontiguousarray(axes[:, order].T, dtype=np.float32)


def _linear_map(turn: Float32) -> Any:
    mapping = faiss.LinearTransform(len(turn), len(turn), False)
    faiss.copy_array_to_vector(turn.ravel(), mapping.A)
    mapping.is_trained = True
    mapping.set_is_orthonormal()
    return mapping


def _empty_index(p: ShardParameters) -> Any:
    metric, quantizer = faiss.METRIC_INNER_PRODUCT, faiss.IndexFlatIP(p.dimension)
    index: Any
    if p.product:
        index = faiss.IndexIVFPQ(quantizer, p.dimension, p.nlist, p.pq_bytes, 8, metric)
        effort = _effort(p, _ROWS_PER_CODEWORD, _CODEWORD_ITERATIONS)
        for name in ("seed", "niter", "min_points_per_centroid", "max_points_per_centroid"):
            setattr(index.pq.cp, name, getattr(effort, name))
    elif p.kind == "ivf_rabitq":
        index = faiss.IndexIVFRaBitQ(quantizer, p.dimension, p.nlist, metric, True, p.bits)
    else:
        codec = faiss.ScalarQuantizer.QT_8bit if p.lossy else faiss.ScalarQuantizer.QT_fp16
        index = faiss.IndexIVFScalarQuantizer(quantizer, p.dimension, p.nlist, codec, metric, False)
    return index


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardIndex:
    """An index in memory: the whole of it, its inverted file, and how it turns vectors.

    ``turn`` (D, D) is what maps a vector into the inverted file; None where they are stored as
    they come. ``lossy`` tells whether stored vectors are approximations.
    """

    whole: Any
    lists: Any
    turn: Float32 | None
    lossy: bool

    @property
    def list_rows(self) -> Int64:
        """How many rows each list holds (nlist,)."""
        sizes = [self.lists.get_list_size(number) for number in range(self.lists.nlist)]
        return np.array(sizes, dtype=np.int64)

    def turned(self, vectors: Float32) -> Float32:
        """Return vectors (n, D) as the inverted file stores them."""
        return vectors if self.turn is None else np.asarray(self.whole.chain.at(0).apply(vectors))

    def canonical(self, stored: Float32) -> Floats:
        """Return stored vectors (m, D) turned back and canonical, exactly, in any batch."""
        if not self.lossy:
            return stored
        if self.turn is None:
            return canonical(stored)
        # Sums of products of multiples of 2**-24 are exact, so batches cannot change a bit.
        return canonical(canonical(stored) @ canonical(self.turn))


def loaded(data: Bytes | Path) -> ShardIndex:
    """Read an index from its verified bytes, or map a verified local file into memory.

    What is mapped takes memory only where searches touch it, and gives it back under pressure.
    """
    whole: Any
    if isinstance(data, Path):
        whole = faiss.read_index(str(data), faiss.IO_FLAG_MMAP_IFC | faiss.IO_FLAG_READ_ONLY)
    else:
        whole = faiss.deserialize_index(data)
    if isinstance(whole, faiss.IndexPreTransform):
        chain: Any = whole.chain
        mapping: Any = faiss.downcast_VectorTransform(chain.at(0))
        turn = faiss.vector_to_array(mapping.A).reshape(mapping.d_out, mapping.d_in)
        lists = faiss.downcast_index(whole.index)
        return ShardIndex(whole=whole, lists=lists, turn=turn, lossy=True)
    codec = whole.sq.qtype if isinstance(whole, faiss.IndexIVFScalarQuantizer) else None
    lossy = codec != faiss.ScalarQuantizer.QT_fp16
    return ShardIndex(whole=whole, lists=whole, turn=None, lossy=lossy)


def joined(sources: Sequence[Bytes | Path], list_rows: Int64) -> ShardIndex:
    """Read several shards into one index, which numbers their rows one after the other.

    Parameters
    ----------
    sources
        Verified bytes of shards that were filled from the same trained index; or one, read or
        mapped as it is.
    list_rows
        How many rows each list of each of them holds (sources, nlist).

    Raises
    ------
    CorruptIndexError
        A shard does not hold so many rows.
    """
    if len(sources) == 1:
        return loaded(sources[0])
    filled = ShardIndexBuilder(sources[0])
    filled.empty(list_rows.sum(axis=0))
    start = 0
    for source, sizes in zip(sources, list_rows, strict=True):
        stop = start + int(sizes.sum())
        filled.merge_from(source, np.arange(start, stop))
        start = stop
    return filled.loaded


def quantization_error(trained: Bytes, vectors: Float32) -> QuantizationError:
    """Return how well vectors (n, D) fit what was trained."""
    index, vectors = loaded(trained), np.ascontiguousarray(vectors, dtype=np.float32)
    similarity, _ = index.lists.quantizer.search(index.turned(vectors), 1)
    stored = index.whole.sa_decode(index.whole.sa_encode(vectors))
    return QuantizationError(
        distance=1 - float(similarity.mean()),
        distortion=float(np.square(stored - vectors).sum(axis=1).mean()),
    )


def proposals(trained: Bytes, rows: Float32, queries: Float32, depth: int) -> Int64:
    """Return the rows (Q, depth) that a shard of ``rows`` (n, D) ranks best, every list probed."""
    index = loaded(trained)
    index.whole.add(np.ascontiguousarray(rows))
    index.lists.nprobe = index.lists.nlist
    _, found = index.whole.search(np.ascontiguousarray(queries), depth)
    return np.asarray(found)


class ShardIndexBuilder:
    """A shard in memory, that grows from the trained index and goes to a file."""

    def __init__(self, trained: Bytes | Path) -> None:
        self.loaded = loaded(trained)
        self._nearest = NearestCentre(self.loaded.lists.quantizer)

    def add(self, positions: Int64, embeddings: npt.NDArray[np.float16]) -> None:
        """Store vectors (m, D) under positions (m,)."""
        vectors = self.loaded.turned(np.ascontiguousarray(embeddings, dtype=np.float32))
        nearest = np.ascontiguousarray(self._nearest(vectors))
        ids, pointer = np.ascontiguousarray(positions, dtype=np.int64), faiss.swig_ptr
        self.loaded.lists.add_core(len(ids), pointer(vectors), pointer(ids), pointer(nearest))
        self.loaded.whole.ntotal = self.loaded.lists.ntotal

    def empty(self, list_rows: Int64) -> None:
        """Let go of all rows, and make room for so many in each list (nlist,), and no more."""
        self.loaded.whole.reset()
        lists = self.loaded.lists.invlists
        for number in np.flatnonzero(list_rows).tolist():
            lists.resize(number, int(list_rows[number]))
            lists.resize(number, 0)

    def merge_from(self, source: Bytes | Path, places: Int64) -> None:
        """Store what another shard stores, bit for bit.

        Parameters
        ----------
        source
            The other shard's verified bytes.
        places
            Its rows' positions here (n,); -1 leaves a row out.

        Raises
        ------
        CorruptIndexError
            It holds another number of rows.
        """
        other = loaded(source)  # owns the lists
        if other.lists.ntotal != len(places):
            raise CorruptIndexError(
                f"a shard holds {other.lists.ntotal} rows, expected {len(places)}; "
                "run `skysift index verify`"
            )
        theirs, ours, pointer = other.lists, self.loaded.lists, faiss.swig_ptr
        for number in range(ours.nlist):
            ids, codes = _list_of(theirs, number)
            there = places[ids]
            kept = there >= 0
            there, codes = there[kept], np.ascontiguousarray(codes[kept])
            ours.invlists.add_entries(number, len(there), pointer(there), pointer(codes))
            ours.ntotal += len(there)
        self.loaded.whole.ntotal = ours.ntotal

    def save(self, path: Path, rows: int) -> None:
        """Write the shard to a file.

        Raises
        ------
        CorruptIndexError
            It does not hold so many rows.
        """
        found = int(self.loaded.lists.ntotal)
        if found != rows:
            raise CorruptIndexError(
                f"a shard got {found} rows, expected {rows}; the archive changed below the "
                "build, build again"
            )
        faiss.write_index(self.loaded.whole, str(path))


def _list_of(lists: Any, number: int) -> tuple[Int64, Bytes]:
    """Return copies of the ids (m,) and codes (m, bytes) of one list."""
    size, width = lists.get_list_size(number), int(lists.code_size)
    if not size:
        return np.empty(0, np.int64), np.empty((0, width), np.uint8)
    view = faiss.rev_swig_ptr
    ids = np.array(view(lists.invlists.get_ids(number), size), dtype=np.int64)
    codes = np.array(view(lists.invlists.get_codes(number), size * width), dtype=np.uint8)
    return ids, codes.reshape(size, width)
