"""Docstrings, comments and messages are plain technical English."""

import ast
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.support.paths import REPOSITORY

PACKAGES = ("skysift", "storage", "encoders", "pipeline", "workflows")
MOST_WHAT = 0.03
"""Largest share of docstrings with "what"; it is a pronoun in nearly all of them."""
IDIOMS = (
    "anybody",
    "lone",
    "nobody",
    "so few",
    "so many",
    "told",
    "whoever",
)
"""Words that a maintainer of rasterio or zarr would not use: say who does what to which thing."""
CODE = re.compile(r"``.*?``|`[^`]*`|:\w+:`[^`]*`|>>>.*", re.DOTALL)
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def sources() -> list[Path]:
    return [path for name in PACKAGES for path in sorted((REPOSITORY / name).rglob("*.py"))]


def documents() -> list[Path]:
    """The documents that people write; the others are made from code and measurements."""
    made = {"performance.md", "results.md", "licences.md"}
    docs = [path for path in (REPOSITORY / "docs").glob("*.md") if path.name not in made]
    howto = (REPOSITORY / "docs" / "howto").glob("*.md")
    return sorted([REPOSITORY / "README.md", REPOSITORY / "CHANGELOG.md", *docs, *howto])


def docstrings(path: Path) -> Iterator[str]:
    """Docstrings of a file without code spans and examples."""
    for node in ast.walk(ast.parse(path.read_text())):
        text = ast.get_docstring(node) if isinstance(node, DOCUMENTED) else None
        if text:
            yield CODE.sub("", text)


@cache
def texts() -> list[tuple[str, int, str]]:
    """File, first line and text of every comment and every string, docstrings included."""
    found = []
    for path in sources():
        name = path.relative_to(REPOSITORY).as_posix()
        with tokenize.open(path) as stream:
            for token in tokenize.generate_tokens(stream.readline):
                if token.type in (tokenize.COMMENT, tokenize.STRING):
                    text = CODE.sub(lambda code: "\n" * code[0].count("\n"), token.string)
                    found.append((name, token.start[0], text))
    return found


def test_few_docstrings_say_what():
    found = [(path, text) for path in sources() for text in docstrings(path)]
    vague = [(path, text) for path, text in found if re.search(r"\bwhat\b", text, re.IGNORECASE)]
    listed = "\n".join(
        f"{path.relative_to(REPOSITORY)}: {text.partition(chr(10))[0]}" for path, text in vague
    )
    assert len(vague) < MOST_WHAT * len(found), f"{len(vague)} of {len(found)}:\n{listed}"


@pytest.mark.parametrize("idiom", IDIOMS)
def test_no_text_of_the_code_uses_an_idiom(idiom: str):
    pattern = re.compile(r"\b" + idiom.replace(" ", r"\s+") + r"\b", re.IGNORECASE)
    found = [
        f"{name}:{line + text[: match.start()].count(chr(10))}"
        for name, line, text in texts()
        for match in pattern.finditer(text)
    ]
    assert found == [], f"{idiom!r} stands in {', '.join(found)}"


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_no_document_uses_an_idiom(path: Path):
    text = CODE.sub("", path.read_text())
    for idiom in IDIOMS:
        pattern = r"\b" + idiom.replace(" ", r"\s+") + r"\b"
        assert not re.search(pattern, text, re.IGNORECASE), f"{path.name} says {idiom!r}"
