"""What an index is asked to be, as plain values."""

from dataclasses import dataclass
from typing import Literal

from storage.errors import ConfigError
from storage.index.quantizer import KINDS, Kind

_COUNTS = (
    "shards", "rows_per_shard", "nlist", "memory_bytes", "builder_memory_bytes", "sample_rows",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexSpec:
    """What is asked of an index.

    Attributes
    ----------
    kind
        How vectors are stored; ``auto`` is the most exact kind that fits ``memory_bytes``.
    shards, rows_per_shard
        How many shards; by default one for every ``rows_per_shard`` rows.
    nlist
        Lists of the coarse quantizer; by default about twice the square root of the rows.
    memory_bytes
        Most memory that all shards together may take when loaded.
    builder_memory_bytes
        Most memory of a process that builds a shard; smaller shards are cut to stay below it.
    recall
        Recall@10 that the default ``nprobe`` has to reach on sampled rows.
    sample_rows
        Most rows to train on.
    rerank
        Score candidates of lossy kinds with the archive's vectors, kept beside the shards on disk.
    mapped
        Searches map the shards' files instead of reading them, for shards larger than memory: what
        they touch is read from disk when it is touched, and given back when memory is short.
    seed
        Of the training sample and the clustering.
    """

    kind: Kind | Literal["auto"] = "auto"
    shards: int | None = None
    rows_per_shard: int = 1_000_000
    nlist: int | None = None
    memory_bytes: int | None = None
    builder_memory_bytes: int | None = None
    recall: float = 0.95
    sample_rows: int = 262_144
    rerank: bool = True
    mapped: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("auto", *KINDS):
            raise ConfigError(f"index kind {self.kind!r} is unknown; give auto, {', '.join(KINDS)}")
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"index {name} is {value}; give at least 1")
        if self.kind == "ivf_rabitq" and not self.rerank:
            raise ConfigError(
                "index kind ivf_rabitq estimates scores and is always reranked; leave rerank on, "
                "or choose ivf_opq"
            )
        if not 0 < self.recall <= 1:
            raise ConfigError(f"index recall is {self.recall}; give a value in (0, 1]")
