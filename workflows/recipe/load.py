"""Recipes: one YAML file with the settings of a run, its inputs and its outputs.

The YAML is validated strictly, as JSON, against the dataclasses of :mod:`workflows.recipe.schema`.
Every error names the file, the line, the key and the next step. Relative paths are relative to the
folder in which the command runs.
"""

import difflib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from storage.errors import ConfigError
from storage.location import Location
from workflows.recipe.errors import (
    SECRET_MASK,
    KeyPath,
    complaint,
    dotted,
    short,
    where_written,
)
from workflows.recipe.schema import Recipe
from workflows.recipe.sections import keys_of

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
T = TypeVar("T")


class _Loader(yaml.SafeLoader):
    """YAML whose dates stay text: the specifications read dates, and name a wrong one."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Override:
    """A value given on the command line: its key path, value, and the option that gave it."""

    path: KeyPath
    value: Any
    origin: str

    @classmethod
    def parse(cls, text: str) -> "Override":
        """Read ``a.b=c`` as ``--set`` takes it; the value is YAML.

        Raises
        ------
        ConfigError
            There is no ``=``, or the value is not valid YAML.

        Examples
        --------
        >>> Override.parse("grid.tile_px=64").value
        64
        """
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise ConfigError(f"--set {text!r} is not of the form section.key=value")
        try:
            parsed = _Loader(value).get_single_data()
        except yaml.YAMLError as error:
            raise ConfigError(
                f"--set {text!r}: its value is not valid YAML: {_problem(error)}"
            ) from error
        return cls(path=tuple(name.split(".")), value=parsed, origin=f"--set {name}")


@dataclass(frozen=True, kw_only=True)
class LoadedRecipe:
    """A checked recipe that remembers where each of its values was written."""

    recipe: Recipe
    source: str
    origins: Mapping[KeyPath, str] = field(repr=False)

    def where(self, key: str) -> str:
        """Name the place of a value: a file and line, an option, or the key alone."""
        return where_written(self.origins, tuple(key.split(".")), self.source)

    def located(self, section: T, path: KeyPath = ()) -> T:
        """Return a section whose URIs are Locations with the options of the recipe.

        Raises
        ------
        ConfigError
            A URI is written as a mapping.
        """
        kind: Any = type(section)
        changed: dict[str, Any] = {}
        for name, hint in get_type_hints(kind).items():
            value, below = getattr(section, name), (*path, name)
            if isinstance(value, Location):
                where = where_written(self.origins, below, self.source)
                raise ConfigError(f"{where}: {dotted(below)}: expected a URI, got a mapping")
            if isinstance(value, str) and Location in get_args(hint):
                changed[name] = Location(value, self.recipe.storage)
            elif is_dataclass(value) and (inner := self.located(value, below)) is not value:
                changed[name] = inner
        # A section without URIs stays as it is: a copy would repeat the checks of its values.
        return replace(section, **changed) if changed else section  # type: ignore[type-var]

    def shown(self) -> dict[str, Any]:
        """Return the effective recipe as plain values, with secrets masked."""
        shown: dict[str, Any] = _masked(self.recipe)
        return shown


def packaged_recipes() -> dict[str, str]:
    """Return name and description of the recipes that come with Skysift."""
    folder = resources.files("workflows") / "recipes"
    found = {}
    for entry in sorted(folder.iterdir(), key=lambda item: item.name):
        if entry.name.endswith(".yaml"):
            text = entry.read_text(encoding="utf-8")
            found[entry.name.removesuffix(".yaml")] = str(
                (yaml.safe_load(text) or {}).get("description", "")
            )
    return found


def read_recipe_text(name: str) -> tuple[str, str]:
    """Return the text of a recipe, and the name by which messages call it.

    ``name`` is a file, or the name of a recipe that comes with Skysift.

    Raises
    ------
    ConfigError
        There is neither.
    """
    path = Path(name)
    if path.is_file():
        return path.read_text(encoding="utf-8"), str(path)
    packaged = resources.files("workflows") / "recipes" / f"{name}.yaml"
    if re.fullmatch(r"[A-Za-z0-9_-]+", name) and packaged.is_file():
        return packaged.read_text(encoding="utf-8"), f"recipe {name}"
    names = list(packaged_recipes())
    near = difflib.get_close_matches(name, names, 1) or None
    hint = f"did you mean {near[0]}? " if near else ""
    raise ConfigError(
        f"recipe {name!r} is neither a file nor a recipe that comes with Skysift; "
        f"{hint}`skysift recipe list` shows them"
    )


def load_recipe(
    name: str | None = None,
    overrides: Sequence[Override] = (),
    environ: Mapping[str, str] = os.environ,
) -> LoadedRecipe:
    """Read, expand, override and check a recipe.

    Parameters
    ----------
    name
        A YAML file or the name of a packaged recipe; None for the defaults alone.
    overrides
        Values of the command line, later ones win.
    environ
        Where ``${NAME}`` and ``${NAME:-default}`` are looked up.

    Raises
    ------
    ConfigError
        The recipe cannot be read, or a key, type or value in it is wrong.
    """
    data: dict[str, Any] = {}
    origins: dict[KeyPath, str] = {}
    source = ""
    if name is not None:
        text, source = read_recipe_text(name)
        data, origins = parse_recipe(text, source, environ)
    for override in overrides:
        _apply(data, override, origins)
    values = _json_values(data)
    try:
        recipe = _recipe_type().validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        raise ConfigError(complaint(error, values, origins, source)) from error
    loaded = LoadedRecipe(recipe=recipe, source=source, origins=origins)
    return replace(loaded, recipe=loaded.located(recipe))


@cache
def _recipe_type() -> TypeAdapter[Recipe]:
    return TypeAdapter(Recipe)


def _json_values(value: Any, key: str = "") -> Any:
    """Turn values of YAML into those of JSON; a size such as ``16GB`` becomes a number of bytes."""
    if isinstance(value, Mapping):
        return {str(name): _json_values(item, str(name)) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_values(item) for item in value]
    if key.endswith("_bytes") and isinstance(value, str):
        return parse_bytes(value)
    return value if value is None or isinstance(value, (str, int, float)) else str(value)


def parse_bytes(text: str) -> int | str:
    """Return a size such as ``"16GB"`` or ``"512MiB"`` in bytes; other text as it is.

    Examples
    --------
    >>> parse_bytes("16GB"), parse_bytes("1KiB"), parse_bytes("16 parsecs")
    (16000000000, 1024, '16 parsecs')
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([kmgt]?)(i?)b?\s*", text.lower())
    if not match or (match[3] and not match[2]):
        return text
    return int(float(match[1]) * (1024 if match[3] else 1000) ** " kmgt".index(match[2] or " "))


def parse_recipe(
    text: str, source: str, environ: Mapping[str, str] = os.environ
) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    """Parse YAML with variables expanded, and where each value stands (file and line).

    Raises
    ------
    ConfigError
        The text is not valid YAML or not a mapping, has a key twice, or uses a variable that is
        not set.
    """
    loader = _Loader(text)
    origins: dict[KeyPath, str] = {}
    try:
        root = loader.get_single_node()
        if root is None:
            return {}, origins
        _walk(loader, root, (), source, origins, environ)
        data = loader.construct_document(root)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"{source}{_line_of(error)}: not valid YAML: {_problem(error)}"
        ) from error
    finally:
        loader.dispose()
    if not isinstance(data, dict):
        raise ConfigError(f"{source}: expected sections such as `catalog:`, got {short(data)}")
    return data, origins


def _walk(
    loader: yaml.SafeLoader,
    node: yaml.Node,
    path: KeyPath,
    source: str,
    origins: dict[KeyPath, str],
    environ: Mapping[str, str],
) -> None:
    """Note the line of every value below a node, and expand the variables in its scalars."""
    where = f"{source}, line {node.start_mark.line + 1}"
    origins.setdefault(path, where)
    if isinstance(node, yaml.ScalarNode) and "${" in node.value:
        node.value = _expand(node.value, f"{where}: {dotted(path)}", environ)
        if node.style is None:  # a plain scalar: ${PORT} may be a number
            node.tag = loader.resolve(yaml.ScalarNode, node.value, (True, False))  # type: ignore[no-untyped-call]
    elif isinstance(node, yaml.SequenceNode):
        for position, item in enumerate(node.value):
            _walk(loader, item, (*path, position), source, origins, environ)
    elif isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, item in node.value:
            line = key.start_mark.line + 1
            if key.value in seen:
                raise ConfigError(
                    f"{source}, line {line}: {dotted((*path, key.value))} is given twice, "
                    f"first in line {seen[key.value]}; remove one"
                )
            seen[key.value] = line
            origins[(*path, key.value)] = f"{source}, line {line}"
            _walk(loader, item, (*path, key.value), source, origins, environ)


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


def _apply(data: dict[str, Any], override: Override, origins: dict[KeyPath, str]) -> None:
    target = data
    *sections, last = map(str, override.path)
    for name in sections:
        if not isinstance(target.get(name), dict):
            target[name] = {}
        target = target[name]
    target[last] = override.value
    for path in [path for path in origins if path[: len(override.path)] == override.path]:
        del origins[path]
    origins[override.path] = override.origin


def _problem(error: yaml.YAMLError) -> str:
    return str(getattr(error, "problem", None) or error).partition("\n")[0]


def _line_of(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f", line {mark.line + 1}" if mark is not None else ""


def _masked(value: Any) -> Any:
    if isinstance(value, Location):
        return value.uri
    if is_dataclass(value):
        section: Any = type(value)
        keys, given = keys_of(section), {name: getattr(value, name) for name in keys_of(section)}
        return {
            name: SECRET_MASK if keys[name].is_secret and item is not None else _masked(item)
            for name, item in given.items()
        }
    if isinstance(value, Mapping):
        return {name: _masked(item) for name, item in value.items()}
    return [_masked(item) for item in value] if isinstance(value, (list, tuple)) else value
