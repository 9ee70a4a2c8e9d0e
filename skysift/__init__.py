"""Skysift in Python: ``import skysift``. The names are imported when they are first used.

    index = skysift.open("work/index")
    index.like(lonlat=(103.75, 17.92)).where(since="2024-01-01").top(20)

Nothing is defined here: each name lives in one of the packages :mod:`storage`, :mod:`encoders`,
:mod:`pipeline` and :mod:`workflows`.
"""

from typing import TYPE_CHECKING

from storage.lazy import public_names

if TYPE_CHECKING:
    from encoders.bundle import Encoder, save_bundle
    from encoders.gather_check import check_gather
    from encoders.losses import build_loss
    from encoders.losses.core import Loss, PairLoss, Pairs, Ratio, contrast
    from encoders.losses.statistics import LabelStatistics
    from encoders.metrics import retrieval_metrics
    from pipeline.datasets.images import ImageReader
    from pipeline.datasets.own import LabelledImages
    from pipeline.indexing.driver import build_index, update_index
    from pipeline.indexing.spec import IndexSpec
    from pipeline.ingest.driver import ingest, plan_ingest
    from pipeline.ingest.spec import IngestSpec
    from pipeline.search.accuracy import Check, read_check
    from pipeline.search.change import ChangeSpec, find_changes
    from pipeline.search.hits import Hits
    from pipeline.search.query import Query
    from pipeline.search.question import Question
    from pipeline.search.searcher import Searcher
    from pipeline.tiles.spec import GridSpec, TileRules
    from storage.archive.reader import Archive
    from storage.dataset import LabelledDataset
    from storage.errors import (
        ArchiveConflictError,
        CatalogError,
        ConfigError,
        CorruptIndexError,
        EncoderMismatchError,
        GridError,
        NotFoundError,
        SceneError,
        SearchUnavailableError,
        SkysiftError,
    )
    from storage.index.filter import Filter
    from storage.location import Location, StorageOptions
    from storage.scene import BandMapping, CatalogSpec, MaskMapping, SceneQuery
    from workflows.notebook.index import Index, open  # noqa: A004
    from workflows.notebook.recipe import Recipe

__all__ = [
    "Archive",
    "ArchiveConflictError",
    "BandMapping",
    "CatalogError",
    "CatalogSpec",
    "ChangeSpec",
    "Check",
    "ConfigError",
    "CorruptIndexError",
    "Encoder",
    "EncoderMismatchError",
    "Filter",
    "GridError",
    "GridSpec",
    "Hits",
    "ImageReader",
    "Index",
    "IndexSpec",
    "IngestSpec",
    "LabelStatistics",
    "LabelledDataset",
    "LabelledImages",
    "Location",
    "Loss",
    "MaskMapping",
    "NotFoundError",
    "PairLoss",
    "Pairs",
    "Query",
    "Question",
    "Ratio",
    "Recipe",
    "SceneError",
    "SceneQuery",
    "SearchUnavailableError",
    "Searcher",
    "SkysiftError",
    "StorageOptions",
    "TileRules",
    "build_index",
    "build_loss",
    "check_gather",
    "contrast",
    "find_changes",
    "ingest",
    "open",
    "plan_ingest",
    "read_check",
    "retrieval_metrics",
    "save_bundle",
    "update_index",
]

__getattr__ = public_names(
    __name__,
    {
        "Archive": "storage.archive.reader",
        "ArchiveConflictError": "storage.errors",
        "BandMapping": "storage.scene",
        "CatalogError": "storage.errors",
        "CatalogSpec": "storage.scene",
        "ChangeSpec": "pipeline.search.change",
        "Check": "pipeline.search.accuracy",
        "ConfigError": "storage.errors",
        "CorruptIndexError": "storage.errors",
        "Encoder": "encoders.bundle",
        "EncoderMismatchError": "storage.errors",
        "Filter": "storage.index.filter",
        "GridError": "storage.errors",
        "GridSpec": "pipeline.tiles.spec",
        "Hits": "pipeline.search.hits",
        "ImageReader": "pipeline.datasets.images",
        "Index": "workflows.notebook.index",
        "IndexSpec": "pipeline.indexing.spec",
        "IngestSpec": "pipeline.ingest.spec",
        "LabelStatistics": "encoders.losses.statistics",
        "LabelledDataset": "storage.dataset",
        "LabelledImages": "pipeline.datasets.own",
        "Location": "storage.location",
        "Loss": "encoders.losses.core",
        "MaskMapping": "storage.scene",
        "NotFoundError": "storage.errors",
        "PairLoss": "encoders.losses.core",
        "Pairs": "encoders.losses.core",
        "Query": "pipeline.search.query",
        "Question": "pipeline.search.question",
        "Ratio": "encoders.losses.core",
        "Recipe": "workflows.notebook.recipe",
        "SceneError": "storage.errors",
        "SceneQuery": "storage.scene",
        "SearchUnavailableError": "storage.errors",
        "Searcher": "pipeline.search.searcher",
        "SkysiftError": "storage.errors",
        "StorageOptions": "storage.location",
        "TileRules": "pipeline.tiles.spec",
        "build_index": "pipeline.indexing.driver",
        "build_loss": "encoders.losses",
        "check_gather": "encoders.gather_check",
        "contrast": "encoders.losses.core",
        "find_changes": "pipeline.search.change",
        "ingest": "pipeline.ingest.driver",
        "open": "workflows.notebook.index",
        "plan_ingest": "pipeline.ingest.driver",
        "read_check": "pipeline.search.accuracy",
        "retrieval_metrics": "encoders.metrics",
        "save_bundle": "encoders.bundle",
        "update_index": "pipeline.indexing.driver",
    },
)


def __dir__() -> list[str]:
    return __all__
