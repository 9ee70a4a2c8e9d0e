"""Importers by name: from what people have to a labelled dataset (`storage.dataset`).

Each says which layout it expects and names the first thing that is missing. An import that is
already there, made from the same source with the same settings, is returned as it is.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from pipeline.datasets.bigearthnet import import_bigearthnet
from pipeline.datasets.folder import import_folder
from pipeline.datasets.masks import import_dlrsd, import_whdld
from pipeline.datasets.scenes import import_scenes
from pipeline.datasets.tables import import_ml_aid, import_uc_merced
from storage.dataset import DatasetInfo

importers: Mapping[str, Callable[..., DatasetInfo]] = MappingProxyType(
    {
        "folder": import_folder,
        "dlrsd": import_dlrsd,
        "whdld": import_whdld,
        "uc-merced": import_uc_merced,
        "ml-aid": import_ml_aid,
        "bigearthnet": import_bigearthnet,
        "scenes": import_scenes,
    }
)
"""Importers by the name that recipes use."""
