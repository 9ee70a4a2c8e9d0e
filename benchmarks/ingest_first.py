"""`skysift` as it is, also noting when the first tile is embedded; see :mod:`benchmarks.ingest`.

python -m benchmarks.ingest_first FILE MOST_TILES_WITHOUT_RAY ingest ...
"""

import sys
import time
from pathlib import Path

from pipeline.ingest import driver as ingest
from storage.progress import Progress
from workflows import console
from workflows.cli import main


class _Noting(console.ProgressView):
    """The view of every command, writing the time of the first tile to a file."""

    def __call__(self, report: Progress) -> None:
        begun = report.stage == "ingest" and report.speed not in ("", "0 tiles/s")
        if begun and not _FILE.exists():
            _FILE.write_text(str(time.time()))
        super().__call__(report)


if __name__ == "__main__":
    _FILE = Path(sys.argv[1])
    ingest.LOCAL_TILES = int(sys.argv[2])
    console.ProgressView = _Noting  # type: ignore[misc]
    main(sys.argv[3:])
