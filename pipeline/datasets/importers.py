"""Importers by name: each makes a labelled dataset (`storage.dataset`) from one kind of source.

The module of an importer describes the expected layout. An importer names the first missing file,
and returns an existing dataset that was made from the same source with the same settings.
:mod:`pipeline.datasets.own` imports by code of the user's.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

from encoders.plugins import Plugin, find_plugin, unknown_name
from pipeline.datasets.annotated import import_annotated
from pipeline.datasets.bigearthnet import import_bigearthnet
from pipeline.datasets.folder import import_folder
from pipeline.datasets.published import DLRSD, ML_AID, UC_MERCED, WHDLD, import_published
from pipeline.datasets.scenes import import_scenes
from storage.dataset import DatasetInfo

importers: Mapping[str, Callable[..., DatasetInfo]] = MappingProxyType(
    {
        "folder": import_folder,
        **{
            layout.name: partial(import_published, layout)
            for layout in (DLRSD, WHDLD, UC_MERCED, ML_AID)
        },
        "bigearthnet": import_bigearthnet,
        "annotated": import_annotated,
        "scenes": import_scenes,
    }
)
"""Importers by the name that recipes use."""


def own_importer(name: str) -> Plugin:
    """Find an importer of one's own: ``package.module:Name`` or an entry point.

    Raises
    ------
    ConfigError
        The name is of neither form, and no importer has it.
    NotFoundError
        There is no such module.
    """
    if (plugin := find_plugin("importers", name)) is not None:
        return plugin
    raise unknown_name("importers", name, importers)
