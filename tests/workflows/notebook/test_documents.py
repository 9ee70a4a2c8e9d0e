"""The notebooks and the documents' Python run as their reader runs them: in a plain process."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image

from docs.build_notebooks import NOTEBOOKS, executed
from tests.support.command_line import run
from tests.support.embeddings import clay_v0, make_chips
from tests.support.paths import REPOSITORY
from workflows.demo.run import DemoResult

RUN_ELSEWHERE = "interfaces.md"  # tests/storage/archive/test_export.py


def blocks(path: Path) -> list[str]:
    """The Python of a document, in order."""
    return re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)


PAGES = [
    path
    for folder in (REPOSITORY, REPOSITORY / "docs", REPOSITORY / "docs" / "howto")
    for path in sorted(folder.glob("*.md"))
    if path.name != RUN_ELSEWHERE and blocks(path)
]


@pytest.fixture(scope="module")
def folder(demo: DemoResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the demo under the names that the documents use."""
    place = tmp_path_factory.mktemp("reader")
    (place / "skysift-demo").symlink_to(demo.folder)
    work = place / "work"
    work.mkdir()
    for name, target in {
        "bundle": "encoder/two-parts",
        "archive": "archive",
        "index": "index",
    }.items():
        (work / name).symlink_to(demo.folder / target)
    (place / "prairie.yaml").write_text((demo.folder / "recipe.yaml").read_text())
    chips = make_chips(40, 768)
    run("archive", "import", clay_v0(place / "published", chips), "--archive", work / "clay")
    np.save(place / "vectors.npy", chips.vectors)
    rng_like = Image.radial_gradient("L").resize((64, 64))
    Image.merge("RGBA", [rng_like] * 4).convert("RGB").save(place / "chip.png")
    return place


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_the_python_of_a_document_runs_as_printed(page: Path, folder: Path, tmp_path: Path):
    script = tmp_path / "snippets.py"
    script.write_text("\n".join(blocks(page)))
    ours = ("SKYSIFT_RECIPE", "SKYSIFT_WORK", "RAY_ADDRESS")
    environment = {key: value for key, value in os.environ.items() if key not in ours}
    environment |= {"PYTHONPATH": str(REPOSITORY), "MPLBACKEND": "agg"}
    done = subprocess.run(
        [sys.executable, script], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{page.name}:\n{done.stderr}"


def test_the_readme_and_the_page_of_python_have_some():
    assert {"README", "python", "search"} <= {path.stem for path in PAGES}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_the_kinds_of_output_that_are_kept(
    path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    kept = nbformat.read(path, as_version=4)
    again = executed(path, folder)
    for old, new in zip(kept.cells, again.cells, strict=True):
        assert old.source == new.source
        if old.cell_type == "code":
            assert shown(old) == shown(new), old.source
            assert str(REPOSITORY.parent) not in str(old.outputs)


def shown(cell: nbformat.NotebookNode) -> set[str]:
    """The kinds of results of a cell; messages on stderr and progress may come or not."""
    results = [output for output in cell.outputs if output.output_type == "execute_result"]
    return {kind for output in results for kind in output.data}


def test_there_is_one_notebook_for_each_kind_of_user():
    assert [path.stem for path in NOTEBOOKS] == ["analyst", "geospatial", "platform", "researcher"]
    assert max(path.stat().st_size for path in NOTEBOOKS) < 400_000


def test_the_readmes_line_completes_in_bash():
    line = re.search(r'`(eval "\$\(_SKYSIFT_COMPLETE=.*?)`', (REPOSITORY / "README.md").read_text())
    assert line
    words = (
        "COMP_WORDS=(skysift ind); COMP_CWORD=1; _skysift_completion skysift; echo ${COMPREPLY[@]}"
    )
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(REPOSITORY)}
    command = ["bash", "-c", f"{line[1]}; complete -p skysift; {words}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "index"
