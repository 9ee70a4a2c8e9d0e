"""Published embeddings to an archive: the plan, the tiles of chips and pixels, and the driver.

Files and layouts are read by :mod:`storage.embeddings`, archives written by
:mod:`storage.archive`.
"""

from typing import TYPE_CHECKING

from storage.lazy import public_names

if TYPE_CHECKING:
    from pipeline.importing.driver import import_embeddings
    from pipeline.importing.plan import plan_import
    from pipeline.importing.spec import ImportSpec

__all__ = ["ImportSpec", "import_embeddings", "plan_import"]

__getattr__ = public_names(
    __name__,
    {
        "import_embeddings": "pipeline.importing.driver",
        "plan_import": "pipeline.importing.plan",
        "ImportSpec": "pipeline.importing.spec",
    },
)
