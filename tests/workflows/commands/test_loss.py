"""`skysift loss`: a loss that is not exact, the test of docs/howto/loss.md, and the list."""

import re
from pathlib import Path

import pytest

from tests.support.command_line import page_blocks, run, run_beside
from tests.support.own_losses import write_losses


def test_the_page_shows_what_a_wrong_loss_prints(tmp_path: Path):
    write_losses(tmp_path)
    wrong = run_beside(
        tmp_path,
        *["-m", "workflows.cli", "loss", "check", "--loss", "my_losses:DividesOnItsOwn"],
        *["--workers", "2"],
    )
    assert wrong.returncode == 1
    assert "DIFFERS" in wrong.stdout
    assert "denominator of the Ratio" in wrong.stdout
    heading, row = page_blocks("loss.md", "text")[0].splitlines()
    shown = wrong.stdout.splitlines()
    assert re.sub(r"\s+", " ", shown[0]).strip() == re.sub(r"\s+", " ", heading).strip()
    assert shown[1].split()[0::5] == row.split()[0::5]


def test_the_test_of_the_page_passes_in_a_project_of_its_reader(tmp_path: Path):
    write_losses(tmp_path)
    (tmp_path / "test_mine.py").write_text(page_blocks("loss.md", "python")[1])
    done = run_beside(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_mine.py")
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


def test_losses_are_listed_with_their_options():
    listed = run("loss", "list", "--json").data
    assert listed["supcon-any"] == {"temperature": 0.1, "chunk_pairs": 4194304}
    assert "macl" in run("loss", "list").out


@pytest.mark.parametrize("workers", ["1", "2,x"])
def test_wrong_numbers_of_workers_are_refused(workers: str):
    assert run("loss", "check", "--workers", workers).code == 2
