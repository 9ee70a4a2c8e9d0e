"""The pages with shell commands: what their readers have, and which test runs them.

A block that cannot run in a test has the line ``<!-- not run: reason -->`` above it, and
:data:`PAGES` says how many a page has. The tests of :data:`ELSEWHERE` run the other pages.
"""

import re
from dataclasses import dataclass

from tests.support.paths import REPOSITORY

INGEST = "skysift ingest --scenes catalog.json --encoder work/bundle --archive work/archive"
LABELLED = f"{INGEST} --labels labels.parquet"
INDEX = "skysift index build --archive work/archive --index work/index"


@dataclass(frozen=True, kw_only=True)
class Page:
    """What a page takes for granted, and how many of its blocks do not run.

    Attributes
    ----------
    parts
        Names of :data:`tests.support.page_worlds.PARTS`.
    before
        Commands.
    not_run
        Number of blocks with a reason.
    """

    parts: tuple[str, ...] = ("scenes",)
    before: tuple[str, ...] = ()
    not_run: int = 0


PAGES = {
    "README.md": Page(not_run=1),
    "docs/howto/geospatial.md": Page(parts=("scenes", "bands"), before=(INGEST,)),
    "docs/howto/analyst.md": Page(before=(INGEST, INDEX), not_run=2),
    "docs/howto/migrate-encoder.md": Page(parts=("scenes", "other bundle"), before=(INGEST, INDEX)),
    "docs/howto/platform.md": Page(not_run=3),
    "docs/howto/kubernetes.md": Page(parts=(), not_run=1),
    "docs/howto/embeddings.md": Page(parts=("embeddings",)),
    "docs/howto/loss.md": Page(parts=("trainings",)),
    "docs/howto/researcher.md": Page(
        parts=("trainings", "series"),
        before=("skysift ingest -r naip-series", "skysift train -r aid-labels"),
        not_run=1,
    ),
    "docs/howto/soft-labels.md": Page(parts=(), not_run=1),
    "docs/howto/label-next.md": Page(parts=(), not_run=1),
    "docs/composites.md": Page(parts=("scenes", "collection")),
    "docs/change.md": Page(before=(INGEST, INDEX)),
    "docs/backup.md": Page(before=(INGEST, INDEX), not_run=1),
    "docs/cluster.md": Page(parts=(), not_run=2),
    "docs/indexes.md": Page(before=(INGEST, f"{INDEX} --set index.shards=2")),
    "docs/ingest.md": Page(parts=("bands", "formats", "series"), not_run=2),
    "docs/interfaces.md": Page(
        parts=("scenes", "series"),
        before=(
            f"{INGEST.replace('work/archive', 'archive')} --until 2024-03-01",
            "skysift archive tag release-1 --archive archive",
            INGEST.replace("work/archive", "archive"),
            "skysift index build --archive archive --index index",
            "skysift ingest -r naip-series",
            "skysift index build -r naip-series",
            "skysift search -r naip-series --lonlat=-99.15,47.02 --out hits.geojson",
        ),
    ),
    "docs/search.md": Page(
        parts=("scenes", "searches", "marks"),
        before=(LABELLED, INDEX, INDEX.replace("work/index", "work/next")),
        not_run=3,
    ),
    "docs/service.md": Page(parts=("scenes", "searches"), before=(INGEST, INDEX), not_run=3),
    "docs/training.md": Page(parts=("trainings",), not_run=2),
    "docs/upgrades.md": Page(before=(INGEST, INDEX)),
}
ELSEWHERE = {
    "docs/tutorial.md": "tests/workflows/test_tutorial.py",
    "docs/datasets.md": "tests/pipeline/datasets/test_importers.py",
    "docs/howto/encoder.md": "tests/workflows/commands/test_own_encoder.py",
    "docs/howto/importer.md": "tests/workflows/commands/test_own_importer.py",
}

_BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>[^>]+) -->\n)?```(?:sh|console|bash)\n(?P<lines>.*?)```",
    re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """Commands of a page, and why they are not run; empty for those that are."""

    commands: tuple[str, ...]
    reason: str


def blocks_of(page: str) -> list[Block]:
    found = []
    for match in _BLOCK.finditer((REPOSITORY / page).read_text()):
        lines = match["lines"].replace("\\\n", " ").splitlines()
        commands = tuple(line.strip() for line in lines if line.strip())
        found.append(Block(commands, match["reason"] or ""))
    return found
