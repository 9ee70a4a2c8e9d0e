"""Recipes: one YAML file with the settings of a run, its inputs and its outputs.

The YAML is validated strictly, as JSON, against the dataclasses of :mod:`workflows.recipe.schema`.
Every error names the file, the line, the key and the next step. Relative paths are relative to the
folder in which the command runs.
"""

import difflib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from importlib import resources
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from storage.errors import ConfigError
from storage.location import Location
from workflows.recipe.document import MOST_DEPTH, KeyPath, dotted, read_document, read_text, short
from workflows.recipe.errors import SECRET_MASK, complaint, where_written
from workflows.recipe.schema import Recipe
from workflows.recipe.sections import keys_of

T = TypeVar("T")
_RECIPE = TypeAdapter(Recipe)


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
        path = tuple(name.split("."))
        if not separator or not all(path) or len(path) > MOST_DEPTH:
            shown = f"--set {short(name)}" + separator + "..." * bool(separator)
            raise ConfigError(f"{shown} is not of the form section.key=value")
        parsed, _ = read_document(value, f"--set {name}", None)
        return cls(path=path, value=parsed, origin=f"--set {name}")


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
                read_document(text, entry.name, None)[0].get("description", "")
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
        return read_text(path), str(path)
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
    values = _json_values(data, lambda path: where_written(origins, path, source))
    try:
        recipe = _RECIPE.validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        raise ConfigError(complaint(error, values, origins, source)) from error
    loaded = LoadedRecipe(recipe=recipe, source=source, origins=origins)
    return replace(loaded, recipe=loaded.located(recipe))


def _json_values(value: Any, where: Callable[[KeyPath], str], path: KeyPath = ()) -> Any:
    """Turn values of YAML into those of JSON; a size such as ``16GB`` becomes a number of bytes.

    Only a band's ``nodata`` may be a number that is not finite.
    """
    key = str(path[-1]) if path else ""
    if isinstance(value, Mapping):
        return {str(k): _json_values(item, where, (*path, str(k))) for k, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_values(item, where, (*path, n)) for n, item in enumerate(value)]
    if key.endswith("_bytes") and isinstance(value, str):
        return parse_bytes(value)
    if isinstance(value, float) and not isfinite(value) and key != "nodata":
        raise ConfigError(f"{where(path)}: {dotted(path)} is {value}; give a finite number")
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
    size = float(match[1]) * (1024 if match[3] else 1000) ** " kmgt".index(match[2] or " ")
    return int(size) if size < 2**63 else text


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
    data, origins = read_document(text, source, environ)
    if data is None:
        return {}, {}
    if not isinstance(data, dict):
        raise ConfigError(f"{source}: expected sections such as `catalog:`, got {short(data)}")
    return data, origins


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
