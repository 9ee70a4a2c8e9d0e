"""Settings of an index, as plain values."""

from dataclasses import dataclass
from typing import Literal

from storage.errors import ConfigError
from storage.index.kinds import ESTIMATING, KINDS, Kind
from storage.values import Count, PositiveFraction, check_limits


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexSpec:
    """Settings of an index.

    Attributes
    ----------
    kind
        How vectors are stored; ``auto`` is the fastest kind that fits ``memory_bytes`` and reaches
        ``recall``, as a pilot on some of the rows finds.
    shards
        Number of shards; by default one for every ``rows_per_shard`` rows.
    rows_per_shard
        Rows of a shard where ``shards`` is not given.
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
        Searches map the shards' files instead of reading them, for shards larger than memory: pages
        are read from disk when a search touches them, and reclaimed when memory is short.
    seed
        Seed of the training sample and of the clustering.
    """

    kind: Literal["auto"] | Kind = "auto"
    shards: Count | None = None
    rows_per_shard: Count = 1_000_000
    nlist: Count | None = None
    memory_bytes: Count | None = None
    builder_memory_bytes: Count | None = None
    recall: PositiveFraction = 0.95
    sample_rows: Count = 262_144
    rerank: bool = True
    mapped: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("auto", *KINDS):
            raise ConfigError(f"index kind {self.kind!r} is unknown; give auto, {', '.join(KINDS)}")
        check_limits(self, "index")
        if self.kind in ESTIMATING and not self.rerank:
            raise ConfigError(
                f"index kind {self.kind} estimates scores and is always reranked; leave rerank on, "
                "or choose ivf_opq"
            )
