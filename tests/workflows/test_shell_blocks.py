"""The shell commands of the README and of docs/*.md run as printed; every page has its test."""

import re
from pathlib import Path

import pytest

from tests.support.object_store import MotoS3
from tests.support.page_reader import Reader, follow
from tests.support.pages import ELSEWHERE, PAGES, blocks_of
from tests.support.paths import REPOSITORY

HOWTO = "docs/howto/"


@pytest.mark.parametrize("page", [page for page in PAGES if not page.startswith(HOWTO)])
def test_every_block_runs_as_printed(
    page: str, reader: Reader, tmp_path: Path, page_bucket: MotoS3
):
    follow(page, reader, tmp_path, page_bucket)


def test_blocks_that_do_not_run_are_few_and_say_why():
    found = {page: sum(bool(block.reason) for block in blocks_of(page)) for page in PAGES}
    assert found == {page: about.not_run for page, about in PAGES.items()}


def test_every_page_with_commands_is_run():
    places = [REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")]
    places += (REPOSITORY / "docs/howto").glob("*.md")
    pages = {path.relative_to(REPOSITORY).as_posix() for path in places}
    assert {page for page in pages if blocks_of(page)} == {*PAGES, *ELSEWHERE}
    assert not [
        page for page in pages if re.search(r"^    skysift ", (REPOSITORY / page).read_text(), re.M)
    ]
    for page, test in ELSEWHERE.items():
        assert Path(page).name in (REPOSITORY / test).read_text(), f"{test} does not read {page}"
