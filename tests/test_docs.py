"""The documents say what is so: names that exist, links that lead somewhere, commands that run."""

import importlib.util
import re
import shlex
from pathlib import Path

import click
import pytest

from docs.build_reference import FOLDER, PAGES
from workflows.cli import cli

REPOSITORY = Path(__file__).resolve().parent.parent
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


def test_every_module_in_the_picture_exists():
    text = (REPOSITORY / "docs" / "architecture.md").read_text()
    names = set(re.findall(r"\b((?:storage|encoders|pipeline|workflows)\.[a-z_]+)", text))
    assert len(names) > 10
    for name in names:
        assert importlib.util.find_spec(name), f"docs/architecture.md names {name}"


@pytest.mark.parametrize("name", PAGES)
def test_the_reference_is_what_the_code_says(name: str):
    made = PAGES[name]()
    assert (FOLDER / name).read_text() == made, "run `make docs`"
    without_meaning = re.findall(r"^\| `(\w+)` \|.*\|  \|$", made, re.MULTILINE)
    assert not without_meaning or name == "http.md"


def documented_commands() -> list[str]:
    """Every `skysift` line of a shell block, continued lines joined."""
    commands = set()
    for path in DOCUMENTS:
        for block in re.findall(r"```(?:bash|console|sh)\n(.*?)```", path.read_text(), re.DOTALL):
            lines = block.replace("\\\n", " ").splitlines()
            commands |= {line.strip() for line in lines if line.startswith("skysift ")}
    return sorted(commands)


@pytest.mark.parametrize("line", documented_commands())
def test_every_documented_command_parses(line: str, monkeypatch: pytest.MonkeyPatch):
    """The verbs themselves run in tests/workflows; here each line's options must be right."""
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
