"""A small manifest of an index, without the index's other files."""

from storage.index.manifest import FileEntry, IndexManifest, ShardEntry
from storage.index.quantizer import QuantizationError, ShardParameters


def manifest_of(version: str) -> IndexManifest:
    """The manifest of an index of one shard with three rows."""
    fit = QuantizationError(distance=0.5, distortion=0.25)

    def file(suffix: str) -> FileEntry:
        return FileEntry(path=f"{version}/shard-00000.{suffix}", sha256="ab" * 32, size_bytes=9)

    shard = ShardEntry(
        name="shard-00000",
        rows=3,
        bbox=(0.0, 0.0, 1.0, 1.0),
        since="2024-01-01T00:00:00.000",
        until="2024-01-02T00:00:00.000",
        memory_bytes=99,
        trained_rows=3,
        fit=fit,
        index=file("faiss"),
        columns=file("arrow"),
        lists=file("lists"),
        vectors=file("vectors"),
    )
    return IndexManifest(
        version=version,
        digest="cd" * 32,
        archive_uri="archive",
        snapshot="S",
        encoder_fingerprint="ab" * 32,
        segments=("s1",),
        parameters=ShardParameters(kind="ivf_sq8", dimension=8, nlist=1),
        spec={"mapped": False, "memory_bytes": None},
        trained=FileEntry(path=f"{version}/trained.faiss", sha256="ef" * 32, size_bytes=9),
        shards=(shard,),
        predicted_bytes=99,
        measured_bytes=99,
        nprobe=1,
        rerank=1,
        recall={"1": 1.0},
        recall_version=version,
        fit=fit,
        trained_imbalance=1.0,
        list_imbalance=1.0,
    )
