"""YAML text as plain values, and where each of them is written.

Numbers are those that every version of YAML reads alike: ``010`` (eight in YAML 1.1, ten in 1.2)
and ``1:30`` (ninety in 1.1) stay text, and so do dates, which the specifications read. A document
cannot stand for more than people write: its size, its depth and the values that its aliases
repeat are limited.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from storage.errors import ConfigError

KeyPath = tuple[str | int, ...]

MOST_BYTES = 256 * 1024
MOST_DEPTH = 32
_MOST_VALUES = 50_000
_LARGEST = 2**63
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")
_TAG = "tag:yaml.org,2002:"
_DIGITS = r"(0|[1-9][0-9_]*)"
_NUMBERS = {
    "int": rf"[-+]?{_DIGITS}|0x[0-9a-fA-F]+",
    "float": rf"[-+]?({_DIGITS}(\.[0-9_]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.(nan|NaN)",
}


class _Loader(yaml.SafeLoader):
    """Composes the nodes of a document, down to a depth that is no mistake."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.depth > MOST_DEPTH:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(
                problem=f"nested deeper than {MOST_DEPTH} levels", problem_mark=mark
            )
        self.depth += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if tag[len(_TAG) :] in ("bool", "null", "merge")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _name, _pattern in _NUMBERS.items():
    _Loader.add_implicit_resolver(
        f"{_TAG}{_name}", re.compile(rf"^({_pattern})$", re.ASCII), list("-+.0123456789")
    )


def read_document(
    text: str, source: str, environ: Mapping[str, str] | None
) -> tuple[Any, dict[KeyPath, str]]:
    """Read YAML, with variables expanded, and the file and line of each value.

    Parameters
    ----------
    text
        One YAML document.
    source
        Its name in messages.
    environ
        Where ``${NAME}`` and ``${NAME:-default}`` are looked up; None leaves them as they are.

    Raises
    ------
    ConfigError
        The text is not valid YAML, has a key twice, uses a variable that is not set, or holds
        what no recipe needs.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        values = _Values(loader, source, environ)
        return (None if node is None else values.of(node, ())), values.origins
    except yaml.YAMLError as error:
        raise ConfigError(
            f"{source}, line {_line_of(error, text)}: not valid YAML: {_problem(error)}"
        ) from error
    except OverflowError as error:  # of an escaped character
        raise ConfigError(f"{source}, line {loader.line + 1}: not valid YAML: {error}") from error


def read_text(path: Path, most_bytes: int = MOST_BYTES) -> str:
    """Read a small file of UTF-8 text.

    Raises
    ------
    ConfigError
        The path is no file, or the file is too large or not UTF-8.
    """
    if not path.is_file():  # also not a device or a pipe, which may never end
        raise ConfigError(f"{str(path)!r} is not a file; check the path")
    with path.open("rb") as stream:
        data = stream.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise ConfigError(f"{path} is larger than {most_bytes:,} bytes; is it the right file?")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path}, line {line}: not UTF-8 (byte 0x{data[error.start]:02x}); save the file as "
            "UTF-8"
        ) from error


class _Values:
    """Makes plain values of nodes: text, numbers, booleans, None, lists, and mappings of these."""

    def __init__(self, loader: _Loader, source: str, environ: Mapping[str, str] | None) -> None:
        self._loader, self._source, self._environ = loader, source, environ
        self._count = self._depth = 0
        self.origins: dict[KeyPath, str] = {}

    def of(self, node: yaml.Node, path: KeyPath, where: str = "") -> Any:
        """Return the value of a node, and note its line or that of its key."""
        self._count += 1
        self._depth += 1
        where = where or self._where(node)
        if self._count > _MOST_VALUES or self._depth > MOST_DEPTH:
            raise ConfigError(
                f"{where}: more than {_MOST_VALUES:,} values or {MOST_DEPTH} levels, counting what "
                "aliases repeat; write fewer"
            )
        self.origins[path] = where
        value = self._made(node, path)
        self._depth -= 1
        return value

    def _made(self, node: yaml.Node, path: KeyPath) -> Any:
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
            return [self.of(item, (*path, number)) for number, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
            return self._mapping(node, path)
        raise self._wrong(node, path, f"has the tag {node.tag}; remove the tag")

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        own = [pair for pair in node.value if pair[0].tag != f"{_TAG}merge"]
        merged = [item for key, item in node.value if key.tag == f"{_TAG}merge"]
        values = {str(key): value for item in merged for key, value in self._merged(item, path)}
        lines: dict[str, int] = {}
        for key_node, item in own:
            key = self._scalar(key_node, path) if isinstance(key_node, yaml.ScalarNode) else None
            if type(key) not in (str, int):
                fault = "has a key that is neither text nor a whole number; put it in quotes"
                raise self._wrong(key_node, path, fault)
            name, below = str(key), (*path, str(key))
            if name in lines:
                fault = f"is given twice, first in line {lines[name]}; remove one"
                raise self._wrong(key_node, below, fault)
            lines[name] = key_node.start_mark.line + 1
            values[name] = self.of(item, below, self._where(key_node))
        return values

    def _merged(self, node: yaml.Node, path: KeyPath) -> Iterator[tuple[str, Any]]:
        """Yield the entries of ``<<``: of a mapping, or of several, the first of them first."""
        if isinstance(node, yaml.MappingNode):
            yield from self.of(node, path).items()
        elif isinstance(node, yaml.SequenceNode):
            for item in reversed(node.value):
                yield from self._merged(item, path)
        else:
            raise self._wrong(node, path, "merges (`<<`) what is no mapping")

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath) -> str | int | float | bool | None:
        text, tag = node.value, node.tag
        if self._environ is not None and "${" in text:
            text = _expand(text, f"{self._where(node)}: {dotted(path)}", self._environ)
            if node.style is None:  # a plain scalar: ${PORT} may be a number
                tag = self._loader.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
        value: str | int | float | bool | None
        try:
            value = _KINDS[tag.removeprefix(_TAG)](text)
        except KeyError:
            raise self._wrong(node, path, f"has the tag {tag}; remove the tag") from None
        except ValueError:
            raise self._wrong(node, path, f"is no {tag.removeprefix(_TAG)}") from None
        if isinstance(value, int) and not -_LARGEST <= value < _LARGEST:
            raise self._wrong(node, path, "is a number beyond 64 bits")
        if isinstance(value, str) and (odd := _UNPRINTABLE.search(value)):
            raise self._wrong(node, path, f"holds the character {odd[0]!r}; remove it")
        return value

    def _where(self, node: yaml.Node) -> str:
        return f"{self._source}, line {node.start_mark.line + 1}"

    def _wrong(self, node: yaml.Node, path: KeyPath, fault: str) -> ConfigError:
        return ConfigError(f"{self._where(node)}: {dotted(path) or 'the value'} {fault}")


def _integer(text: str) -> int:
    return int(text.replace("_", ""), 16 if text.startswith("0x") else 10)


def _real(text: str) -> float:
    plain = text.replace("_", "").lower()
    return float(plain.replace(".inf", "inf").replace(".nan", "nan"))


def _truth(text: str) -> bool:
    if text.lower() not in yaml.SafeLoader.bool_values:
        raise ValueError(text)
    return yaml.SafeLoader.bool_values[text.lower()]


_KINDS: Mapping[str, Callable[[str], Any]] = {
    "str": str,
    "int": _integer,
    "float": _real,
    "bool": _truth,
    "null": lambda text: None,
}


def _expand(text: str, where: str, environ: Mapping[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        name, default = match.group(1), match.group(2)
        found = environ.get(name) or default
        if found is None:
            raise ConfigError(
                f"{where} uses ${{{name}}}, which is not set; set it or write ${{{name}:-default}}"
            )
        return found

    return _VARIABLE.sub(value, text)


def dotted(path: Sequence[str | int]) -> str:
    """Write a key path as people do."""
    return ".".join(str(name) for name in path)


def short(value: Any) -> str:
    """Show a value in at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _problem(error: yaml.YAMLError) -> str:
    return str(getattr(error, "problem", None) or error).partition("\n")[0]


def _line_of(error: yaml.YAMLError, text: str) -> int:
    if (mark := getattr(error, "problem_mark", None)) is not None:
        return int(mark.line) + 1
    return text.count("\n", 0, getattr(error, "position", 0)) + 1  # a character that YAML forbids
