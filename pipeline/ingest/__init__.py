"""From scenes to rows of an archive: plan, cost, kernels, the committer and the driver.

Reading tiles lives in :mod:`pipeline.tiles`, the archive and its commits in
:mod:`storage.archive`.
"""

from typing import TYPE_CHECKING

from storage.lazy import public_names

if TYPE_CHECKING:
    from pipeline.ingest.driver import ingest, plan_ingest
    from pipeline.ingest.spec import IngestSpec

__all__ = ["IngestSpec", "ingest", "plan_ingest"]

__getattr__ = public_names(
    __name__,
    {
        "ingest": "pipeline.ingest.driver",
        "plan_ingest": "pipeline.ingest.driver",
        "IngestSpec": "pipeline.ingest.spec",
    },
)
