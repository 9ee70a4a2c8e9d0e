"""The documents say what is so: names that exist, links that lead somewhere, commands that run."""

import importlib.util
import re
import shlex
from importlib import import_module
from pathlib import Path
from typing import get_args

import click
import geopandas
import pytest
import shapely

from docs.build_reference import FOLDER, PAGES
from encoders.plugins import Group
from tests.support.paths import REPOSITORY
from workflows.cli import cli
from workflows.recipe.schema import key_at

ENTRY_POINTS = {f"skysift.{group}" for group in get_args(Group)}
DOCUMENTS = [
    REPOSITORY / "README.md",
    REPOSITORY / "CHANGELOG.md",
    *sorted((REPOSITORY / "docs").rglob("*.md")),
]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_to_files_lead_somewhere(path: Path):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


def _exists(name: str) -> bool:
    """Whether a dotted name leads to a module, or to something that a module holds."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        if _is_module(".".join(parts[:cut])):
            owner: object = import_module(".".join(parts[:cut]))
            for part in parts[cut:]:
                if not hasattr(owner, part):
                    return False
                owner = getattr(owner, part)
            return True
    return False


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_name_of_the_code_exists(path: Path):
    text = path.read_text()
    names = re.findall(
        r"(?<![\w./:-])(?:skysift|storage|encoders|pipeline|workflows)(?:\.\w+)+", text
    )
    for name in {name for name in names if not name.endswith((".py", ".json"))}:
        assert _exists(name) or _is_key(name) or name in ENTRY_POINTS, f"{path.name} names {name}"


def _is_key(name: str) -> bool:
    """Whether a recipe has a key of this name."""
    try:
        return bool(key_at(name))
    except (AttributeError, KeyError, TypeError):
        return False


def test_the_glossary_names_words_of_the_code():
    folders = [REPOSITORY / name for name in ("storage", "encoders", "pipeline", "workflows")]
    paths = [path for folder in folders for path in sorted(folder.rglob("*.py"))]
    code = "\n".join(str(path) + path.read_text() for path in paths)
    rows = (REPOSITORY / "docs" / "glossary.md").read_text().splitlines()
    spans = {span for row in rows for span in re.findall(r"`([^`]+)`", row.rpartition(" | ")[2])}
    assert len(spans) > 40
    missing = {span for span in spans if span not in code and not _exists(span)}
    assert not missing


def test_the_rooms_in_the_architecture_are_the_folders_and_modules_there():
    """Folders of the four packages, and the modules that lie directly in a package."""
    text = (REPOSITORY / "docs" / "architecture.md").read_text()
    tree = text.partition("```text\n")[2].partition("```")[0]
    named, package = set(), ""
    for line in tree.splitlines():
        name, meaning = line.split(maxsplit=1)
        assert meaning, line
        if line.startswith(" "):
            named.add(package + name)
        else:
            package = name
    existing = set()
    for package in ("storage", "encoders", "pipeline", "workflows"):
        for entry in (REPOSITORY / package).iterdir():
            if entry.is_dir() and entry.name != "__pycache__":
                existing.add(f"{package}/{entry.name}/")
            elif entry.suffix == ".py" and entry.name != "__init__.py":
                existing.add(f"{package}/{entry.name}")
    assert named == existing


@pytest.mark.parametrize("name", PAGES)
def test_the_reference_is_what_the_code_says(name: str):
    made = PAGES[name]()
    assert (FOLDER / name).read_text() == made, "run `make docs`"
    without_meaning = re.findall(r"^\| `(\w+)` \|.*\|  \|$", made, re.MULTILINE)
    assert not without_meaning or name == "http.md"


def test_help_lists_no_option_without_a_word():
    """The usage and the text name arguments; a bare SOURCE among the options says nothing."""
    pages = (FOLDER / "commands.md").read_text()
    assert not re.findall(r"^  [A-Z][A-Z_|. -]*$", pages, re.MULTILINE)


def documented_commands() -> list[str]:
    """Every `skysift` line of a shell block, continued lines joined."""
    commands = set()
    for path in DOCUMENTS:
        for block in re.findall(r"```(?:bash|console|sh)\n(.*?)```", path.read_text(), re.DOTALL):
            lines = block.replace("\\\n", " ").splitlines()
            commands |= {line.strip() for line in lines if line.startswith("skysift ")}
    return sorted(commands)


@pytest.mark.parametrize("line", documented_commands())
def test_every_documented_command_parses(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The verbs themselves run in tests/workflows; here each line's options must be right."""
    monkeypatch.chdir(tmp_path)
    area = geopandas.GeoDataFrame(geometry=[shapely.box(103, 17, 104, 18)], crs=4326)
    area.to_file("area.gpkg")
    for name in ("AID_TAR", "MOBILENET_V2", "SCENES"):
        monkeypatch.setenv(name, "somewhere")
    command: click.Command = cli
    words = shlex.split(line)[1:]
    context = click.Context(cli)
    while isinstance(command, click.Group):
        found = command.get_command(context, words.pop(0))
        assert found, f"{line}: no such command"
        command = found
    command.make_context("skysift", words)
