"""Progress in a real kernel: one bar of a stage, replaced in place."""

import nbformat
import pytest
from nbclient import NotebookClient

from tests.support.paths import REPOSITORY

CELL = """
import time
from storage.progress import Progress
from workflows.console import ProgressView

with ProgressView() as progress:
    for done in range(5):
        progress(Progress(stage="embed <b>", done=done, total=4, unit="tiles"))
        time.sleep(0.7)
"""


def test_a_long_stage_has_one_bar_that_ends_full(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    NotebookClient(book, timeout=60, kernel_name="python3").execute()
    (bar,) = book.cells[0].outputs
    assert bar.output_type == "display_data"
    html = bar.data["text/html"]
    assert "<progress value='4' max='4'" in html
    assert "embed &lt;b&gt;: 4/4 tiles" in html
