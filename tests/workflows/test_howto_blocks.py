"""The shell commands of docs/howto run as printed, in order, in a prepared folder."""

from pathlib import Path

import pytest

from tests.support.object_store import MotoS3
from tests.support.page_reader import Reader, follow
from tests.support.pages import PAGES


@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("docs/howto/")])
def test_every_block_runs_as_printed(
    page: str, reader: Reader, tmp_path: Path, page_bucket: MotoS3
):
    follow(page, reader, tmp_path, page_bucket)
