"""Run the notebooks of ``docs/notebooks/`` and keep their output.

    python docs/build_notebooks.py FOLDER

``FOLDER`` holds ``skysift-demo``, as `skysift demo` makes it. A test runs the same notebooks.
"""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def executed(path: Path, folder: Path) -> nbformat.NotebookNode:
    """Return a notebook with the results of its cells, run in a folder.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        A cell raises.
    """
    book = nbformat.read(path, as_version=4)
    client = NotebookClient(
        book,
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        store_widget_state=False,
        record_timing=False,
    )
    client.execute()
    for cell in book.cells:
        if cell.cell_type == "code":  # messages of libraries differ from run to run
            cell.outputs = [part for part in cell.outputs if part.get("name") != "stderr"]
    return book


if __name__ == "__main__":
    place = Path(sys.argv[1]).absolute()
    for notebook in NOTEBOOKS:
        text = nbformat.writes(executed(notebook, place))
        notebook.write_text(text.replace(f"{place}/", "") + "\n")  # whose machine it was is nothing
