"""Train the quantizers that all shards share; fill, merge and decode shards. A home of faiss.

Every kind is an inverted file with inner products, so the same code serves all kinds:

==========  ===================================================  ==============================
kind        a stored vector                                      bytes of a vector
==========  ===================================================  ==============================
flat        float16 as in the archive, in one list               2 D
ivf_flat    float16 as in the archive                            2 D
ivf_sq8     8 bits a dimension                                   D
ivf_rabitq  ``bits`` a dimension of the rotated residual         D bits / 8 + 8, or 20 from 2
                                                                 bits on
ivf_opq     product quantizer of the rotated residual            ``pq_bytes``
ivf_pq      product quantizer of the residual                    ``pq_bytes``
ivf_pq4     product quantizer of the residual, 4 bits a part     ``pq_bytes``
==========  ===================================================  ==============================

A residual is a vector minus the centre of its list. Two kinds rotate vectors first: RaBitQ by a
random rotation, which its error bound requires; OPQ by a rotation that spreads the variance of the
residuals evenly over the subquantizers.

Codes of 4 bits a part and of RaBitQ are searched in the fast-scan layout: blocks of 32 vectors,
whose scores come from tables in registers. A score is a sum of integers of one byte, from one table
for each query, so equal codes have equal scores in any shard and batch. Files hold plain codes,
which can be merged; :func:`scannable` lays them out in memory.

References
----------
J. Gao, C. Long, RaBitQ, SIGMOD 2024; T. Ge et al., Optimized Product Quantization, TPAMI 2014
(the parametric solution); F. André et al., Quicker ADC, TPAMI 2021 (fast-scan).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from storage.errors import ConfigError, CorruptIndexError
from storage.index.gpu import accelerated
from storage.index.kinds import PQ_BITS, Kind
from storage.index.ranking import Float32, Floats, Int64, canonical, exact_scores
from storage.index.vectors import Codes

Bytes = npt.NDArray[np.uint8]

# Centres are multiples of 2**-10, and queries are compared with them as multiples of 2**-12; sums
# of products are multiples of 2**-22 below 4, which float32 holds. So no batch size, thread or CPU
# changes the lists that a query probes.
_CENTRE, _PROBE = 2.0**-10, 2.0**-12
TRAINING_ROWS_PER_CENTRE = 128
"""Most rows to train each centre on; FAISS's 256 take twice as long for hardly more recall."""
_PART, _LEAST_ROWS_PER_CENTRE = 4, 16  # one row in _PART, where that leaves each centre enough
_ITERATIONS_OF_PART, _ITERATIONS, _ITERATIONS_ALONE = 8, 3, 10
_ROWS_PER_CODEWORD = 64  # more rows or iterations cost several times as much for the same recall
_CODEWORD_ITERATIONS = 12
_ROTATION_ROWS = 20_000
# The number of values of a batch of queries from which FAISS compares the batch with the centres by
# a matrix product. FAISS's default of 128,000 takes four times as long for 256 queries of 128
# dimensions.
faiss.cvar.distance_compute_blas_threshold = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardParameters:
    """How vectors are stored and found; the same for every shard of an index.

    ``pq_bytes`` is the code size of the kinds with a product quantizer; the number of its parts
    divides the dimension. ``bits`` (1 to 9) is the code size of a dimension in ``ivf_rabitq``.
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
        """Whether a product quantizer encodes the vectors."""
        return self.kind in PQ_BITS

    @property
    def codewords(self) -> int:
        """Codewords of each part of the product quantizer; 1 for other kinds."""
        return 1 << PQ_BITS.get(self.kind, 0)

    @property
    def parts(self) -> int:
        """Parts of a vector that the product quantizer encodes by themselves."""
        return self.pq_bytes * 8 // PQ_BITS[self.kind]

    @property
    def rotated(self) -> bool:
        """Whether vectors are rotated before they are stored."""
        return self.kind in ("ivf_rabitq", "ivf_opq")

    @property
    def lossy(self) -> bool:
        """Whether stored vectors are approximations of the archive's."""
        return self.kind not in ("flat", "ivf_flat")


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizationError:
    """How far vectors are from the trained quantizers: both values are 0 for a perfect fit.

    ``distance`` is the mean of 1 - similarity to the centre of the list, ``distortion`` the mean
    squared distance of a vector to its stored approximation.
    """

    distance: float
    distortion: float


def set_threads(threads: int) -> None:
    """Set the number of OpenMP threads FAISS uses for calls from this thread."""
    faiss.omp_set_num_threads(threads)


def train(sample: Float32, parameters: ShardParameters, centres: Float32 | None = None) -> Bytes:
    """Train the empty index that every shard starts from, and return its bytes.

    Parameters
    ----------
    sample
        Vectors (n, D) of a uniform sample of all rows.
    parameters
        Kind and sizes.
    centres
        Centres (nlist, D) of the lists, where they are trained already.

    Raises
    ------
    ConfigError
        The sample is too small for the kind.
    """
    p, sample = parameters, np.ascontiguousarray(sample, dtype=np.float32)
    least = max(p.nlist, p.codewords)
    if len(sample) < least:
        raise ConfigError(
            f"index kind {p.kind} with {p.nlist} lists needs at least {least} "
            f"rows to train on, got {len(sample)}; choose fewer lists, or kind flat"
        )
    centres = trained_centres(sample, p) if centres is None else centres
    rotation = _rotation(sample, centres, p) if p.rotated else None
    inner = _empty_index(p)
    inner.quantizer.add(_rounded(centres if rotation is None else centres @ rotation.T, _CENTRE))
    whole = inner if rotation is None else faiss.IndexPreTransform(_linear_map(rotation), inner)
    whole.train(sample)
    return np.asarray(faiss.serialize_index(whole))


def trained_centres(sample: Float32, p: ShardParameters) -> Float32:
    """Return the centres (nlist, D) of the lists; one list has its centre at 0.

    Most iterations see a quarter of a large sample: half the time, and lists that are as good.
    """
    if p.nlist == 1:
        return np.zeros((1, p.dimension), dtype=np.float32)
    part = sample[::_PART]
    if len(part) < _LEAST_ROWS_PER_CENTRE * p.nlist:
        return _clustered(sample, p, _ITERATIONS_ALONE)
    return _clustered(sample, p, _ITERATIONS, _clustered(part, p, _ITERATIONS_OF_PART))


def _clustered(
    sample: Float32, p: ShardParameters, iterations: int, start: Float32 | None = None
) -> Float32:
    """Return the centres (nlist, D) after some iterations of spherical k-means."""
    effort = _effort(p, TRAINING_ROWS_PER_CENTRE, iterations)
    clustering = faiss.Clustering(p.dimension, p.nlist, effort)
    clustering.spherical = True
    if start is not None:
        faiss.copy_array_to_vector(start.ravel(), clustering.centroids)
    clustering.train(np.ascontiguousarray(sample), accelerated(faiss.IndexFlatIP(p.dimension)))
    return faiss.vector_to_array(clustering.centroids).reshape(p.nlist, p.dimension)


def _rounded(values: Float32, step: float) -> Float32:
    return np.asarray(np.rint(values * (1 / step)) * step, dtype=np.float32)


def _effort(p: ShardParameters, rows_per_centre: int, iterations: int) -> Any:
    effort = faiss.ClusteringParameters()
    effort.seed = p.seed + 1
    effort.niter = iterations
    effort.min_points_per_centroid = 1  # the caller chose the number of lists
    effort.max_points_per_centroid = rows_per_centre
    return effort


def _rotation(sample: Float32, centres: Float32, p: ShardParameters) -> Float32:
    """Return the orthonormal map (D, D) of a kind that rotates vectors."""
    if p.kind == "ivf_rabitq":
        square = np.random.default_rng(p.seed).normal(size=(p.dimension, p.dimension))
        return np.asarray(np.linalg.qr(square)[0], dtype=np.float32)
    rows = sample[:: max(len(sample) // _ROTATION_ROWS, 1)]
    quantizer = faiss.IndexFlatIP(p.dimension)
    quantizer.add(centres)
    _, nearest = quantizer.search(rows, 1)
    return opq_rotation(rows - centres[nearest[:, 0]], p.parts)


def opq_rotation(residuals: Float32, parts: int) -> Float32:
    """Return the orthonormal map (D, D) after which every part has the same share of variance.

    Principal axes, strongest first, are assigned in turn to the part whose product of variances is
    least. Logarithms turn the products into sums; the offset keeps all weights positive.
    """
    variance, axes = np.linalg.eigh(np.cov(residuals.T.astype(np.float64)))
    weight = np.log(np.maximum(variance / max(variance.max(), 1e-30), 1e-12)) + np.log(1e12)
    axes_of: list[list[int]] = [[] for _ in range(parts)]
    totals = np.zeros(parts)
    for axis in np.argsort(-variance, kind="stable").tolist():
        part = int(np.argmin(totals))
        axes_of[part].append(axis)
        full = len(axes_of[part]) == len(variance) // parts
        totals[part] = np.inf if full else totals[part] + weight[axis]
    order = [axis for part in axes_of for axis in part]
    return np.ascontiguousarray(axes[:, order].T, dtype=np.float32)


def _linear_map(rotation: Float32) -> Any:
    mapping = faiss.LinearTransform(len(rotation), len(rotation), False)
    faiss.copy_array_to_vector(rotation.ravel(), mapping.A)
    mapping.is_trained = True
    mapping.set_is_orthonormal()
    return mapping


def _empty_index(p: ShardParameters) -> Any:
    metric, quantizer = faiss.METRIC_INNER_PRODUCT, faiss.IndexFlatIP(p.dimension)
    index: Any
    if p.product:
        size = p.parts, PQ_BITS[p.kind]
        index = faiss.IndexIVFPQ(quantizer, p.dimension, p.nlist, *size, metric)
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
    """An index in memory: the FAISS index, its inverted file, and its rotation.

    ``rotation`` (D, D) maps a vector into the inverted file; None for kinds that do not rotate.
    ``lossy`` tells whether stored vectors are approximations.
    """

    whole: Any
    lists: Any
    rotation: Float32 | None
    lossy: bool

    @property
    def list_rows(self) -> Int64:
        """The number of rows in each list (nlist,)."""
        sizes = [self.lists.get_list_size(number) for number in range(self.lists.nlist)]
        return np.array(sizes, dtype=np.int64)

    def rotated(self, vectors: Float32) -> Float32:
        """Return vectors (n, D) in the coordinates of the inverted file."""
        if self.rotation is None:
            return vectors
        return np.asarray(self.whole.chain.at(0).apply(vectors))

    def query(self, queries: Float32) -> Float32:
        """Return canonical queries (Q, D) in the coordinates of the inverted file, bit for bit."""
        if self.rotation is None:
            return queries
        return (canonical(queries) @ canonical(self.rotation).T).astype(np.float32)

    def probe(self, queries: Float32) -> Float32:
        """Return canonical queries (Q, D) as they are compared with the centres of the lists."""
        return _rounded(self.query(queries), _PROBE)

    def canonical(self, stored: Float32) -> Floats:
        """Return lossy vectors (m, D) rotated back and canonical, bit for bit in any batch."""
        if self.rotation is None:
            return canonical(stored)
        # Sums of products of multiples of 2**-24 are exact, so batches cannot change a bit.
        return canonical(canonical(stored) @ canonical(self.rotation))


def loaded(data: Bytes | Path) -> ShardIndex:
    """Read an index from its verified bytes, or map a verified local file into memory.

    A mapped file takes memory only for the pages that searches touch, and the system reclaims the
    pages under pressure.
    """
    whole: Any
    if isinstance(data, Path):
        whole = faiss.read_index(str(data), faiss.IO_FLAG_MMAP_IFC | faiss.IO_FLAG_READ_ONLY)
    else:
        whole = faiss.deserialize_index(data)
    if isinstance(whole, faiss.IndexPreTransform):
        chain: Any = whole.chain
        mapping: Any = faiss.downcast_VectorTransform(chain.at(0))
        rotation = faiss.vector_to_array(mapping.A).reshape(mapping.d_out, mapping.d_in)
        lists = faiss.downcast_index(whole.index)
        return ShardIndex(whole=whole, lists=lists, rotation=rotation, lossy=True)
    codec = whole.sq.qtype if isinstance(whole, faiss.IndexIVFScalarQuantizer) else None
    lossy = codec != faiss.ScalarQuantizer.QT_fp16
    return ShardIndex(whole=whole, lists=whole, rotation=None, lossy=lossy)


def joined(sources: Sequence[Bytes | Path], list_rows: Int64) -> ShardIndex:
    """Read several shards into one index, which numbers the rows of the shards consecutively.

    Parameters
    ----------
    sources
        Verified bytes of shards that were filled from the same trained index; a single shard is
        read, or mapped, unchanged.
    list_rows
        The number of rows in each list of each shard (sources, nlist).

    Raises
    ------
    CorruptIndexError
        A shard holds another number of rows.
    """
    if len(sources) == 1:
        return loaded(sources[0])
    builder = ShardIndexBuilder(sources[0])
    builder.reserve(list_rows.sum(axis=0))
    start = 0
    for source, sizes in zip(sources, list_rows, strict=True):
        stop = start + int(sizes.sum())
        builder.merge_from(source, np.arange(start, stop))
        start = stop
    return builder.loaded


def scannable(lists: Any) -> Any:
    """Return an inverted file in the layout that is searched fastest; the rows move into it.

    Codes in the fast-scan layout are in memory, also those of a mapped file.
    """
    fast: Any = lists
    if isinstance(lists, faiss.IndexIVFRaBitQ):
        fast = faiss.IndexIVFRaBitQFastScan(lists)
    elif isinstance(lists, faiss.IndexIVFPQ) and lists.pq.nbits == PQ_BITS["ivf_pq4"]:
        fast = faiss.IndexIVFPQFastScan(lists)
    if fast is not lists:
        empty = faiss.ArrayInvertedLists(lists.nlist, lists.code_size)
        lists.replace_invlists(empty, False)
        fast.referenced_objects = [lists, empty]  # the former owns the centres
    return fast


def quantization_error(trained: Bytes, vectors: Float32) -> QuantizationError:
    """Return how far vectors (n, D) are from the trained quantizers."""
    index, vectors = loaded(trained), np.ascontiguousarray(vectors, dtype=np.float32)
    similarity, _ = index.lists.quantizer.search(index.rotated(vectors), 1)
    stored = index.whole.sa_decode(index.whole.sa_encode(vectors))
    return QuantizationError(
        distance=1 - float(similarity.mean()),
        distortion=float(np.square(stored - vectors).sum(axis=1).mean()),
    )


def codes_of(lists: Any) -> Codes:
    """Return the codes in a filled inverted file by position; nothing may be added to it later.

    Raises
    ------
    CorruptIndexError
        A row between the first and the last is missing.
    """
    stored: Any = lists.invlists
    width = int(lists.code_size)
    addresses = np.zeros(lists.ntotal, dtype=np.int64)
    for number in range(lists.nlist):
        if size := stored.list_size(number):
            ids = faiss.rev_swig_ptr(stored.get_ids(number), size)
            addresses[ids] = int(stored.get_codes(number)) + width * np.arange(size)
    if not len(addresses):
        return Codes(lists, width, 0, 0)
    first, stop = int(addresses.min()), int(addresses.max()) + width
    if not first:
        raise CorruptIndexError("a shard lacks rows; run `skysift index verify`")
    return Codes(lists, width, first, stop, table=np.subtract(addresses, first, out=addresses))


class DecodedVectors:
    """The approximations of vectors in a filled inverted file of lossy codes, by position.

    Canonical, and rotated back where the kind rotates vectors; safe to read from several threads.

    FAISS's `reconstruct_batch` prepares a decoder for every row, which takes longer than the exact
    scores. Codes of 8 bits a dimension are therefore gathered and decoded in one call.
    """

    def __init__(self, index: ShardIndex, lists: Any) -> None:
        self._canonical, self._lists = index.canonical, lists
        scalar = isinstance(lists, faiss.IndexIVFScalarQuantizer)
        self._codes = codes_of(lists) if scalar else None
        if not scalar:
            lists.make_direct_map()

    def __getitem__(self, positions: Int64) -> Floats:
        """Return the approximations (m, D)."""
        if self._codes is None:
            return self._canonical(self._lists.reconstruct_batch(positions))
        return self._canonical(self._lists.sq.decode(self._codes[positions]))

    def scores(self, queries: Floats, positions: Int64) -> Float32:
        """Return the exact scores (Q, C) of the approximations; -inf where a position is -1."""
        return exact_scores(queries, positions, self.__getitem__)


class ShardIndexBuilder:
    """A shard in memory that grows from the trained index and is written to a file."""

    def __init__(self, trained: Bytes | Path) -> None:
        self.loaded = loaded(trained)
        self._centres = accelerated(self.loaded.lists.quantizer)

    def add(self, positions: Int64, embeddings: npt.NDArray[np.float16]) -> None:
        """Store vectors (m, D) under positions (m,)."""
        vectors = self.loaded.rotated(np.ascontiguousarray(embeddings, dtype=np.float32))
        nearest = np.ascontiguousarray(self._centres.search(vectors, 1)[1][:, 0])
        ids, pointer = np.ascontiguousarray(positions, dtype=np.int64), faiss.swig_ptr
        self.loaded.lists.add_core(len(ids), pointer(vectors), pointer(ids), pointer(nearest))
        self.loaded.whole.ntotal = self.loaded.lists.ntotal

    def reserve(self, list_rows: Int64) -> None:
        """Drop all rows, and reserve exactly ``list_rows`` (nlist,) rows in each list."""
        self.loaded.whole.reset()
        lists = self.loaded.lists.invlists
        for number in np.flatnonzero(list_rows).tolist():
            lists.resize(number, int(list_rows[number]))
            lists.resize(number, 0)

    def merge_from(self, source: Bytes | Path, positions: Int64) -> None:
        """Copy the stored codes of another shard, bit for bit.

        Parameters
        ----------
        source
            Verified bytes of the other shard.
        positions
            New position (n,) of each row of the other shard; -1 leaves a row out.

        Raises
        ------
        CorruptIndexError
            The other shard holds another number of rows.
        """
        other = loaded(source)  # owns the lists
        if other.lists.ntotal != len(positions):
            raise CorruptIndexError(
                f"a shard holds {other.lists.ntotal} rows, expected {len(positions)}; "
                "run `skysift index verify`"
            )
        lists, pointer = self.loaded.lists, faiss.swig_ptr
        for number in range(lists.nlist):
            old_ids, codes = _list_of(other.lists, number)
            ids = positions[old_ids]
            included = ids >= 0
            ids, codes = ids[included], np.ascontiguousarray(codes[included])
            lists.invlists.add_entries(number, len(ids), pointer(ids), pointer(codes))
            lists.ntotal += len(ids)
        self.loaded.whole.ntotal = lists.ntotal

    def save(self, path: Path, rows: int) -> None:
        """Write the shard to a file.

        Raises
        ------
        CorruptIndexError
            The shard holds another number of rows.
        """
        stored = int(self.loaded.lists.ntotal)
        if stored != rows:
            raise CorruptIndexError(
                f"a shard got {stored} rows, expected {rows}; the archive changed below the "
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
