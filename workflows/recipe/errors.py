"""Messages about a recipe: where a value is written, what was expected, the nearest known key."""

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_origin

from pydantic import ValidationError

from workflows.recipe.document import KeyPath, dotted, short
from workflows.recipe.schema import Recipe
from workflows.recipe.sections import Key, keys_of, section_in

SECRET_MASK = "********"
_UNKNOWN = "unexpected_keyword_argument"


def complaint(
    error: ValidationError, data: dict[str, Any], origins: Mapping[KeyPath, str], source: str
) -> str:
    """Describe the first wrong value in one line, and count the others."""
    by_path: dict[KeyPath, list[Any]] = {}
    for problem in error.errors(include_url=False):
        path: KeyPath = problem["loc"]
        if problem["type"] != _UNKNOWN:
            path = _written_part(problem["loc"], data)
        if problem["type"] == "value_error":  # a specification refused the section as a whole
            path = (*path, *_key_named_in(problem["msg"], problem["input"]))
        by_path.setdefault(path, []).append(problem)
    messages = []
    for path, problems in by_path.items():
        text = (
            _unknown_key(path) if problems[0]["type"] == _UNKNOWN else _wrong_value(path, problems)
        )
        messages.append(f"{where_written(origins, path, source)}: {text}")
    more = f" (and {len(messages) - 1} more)" if len(messages) > 1 else ""
    return messages[0] + more


def _unknown_key(path: KeyPath) -> str:
    key, names = str(path[-1]), list(_keys_at(path[:-1]))
    near = difflib.get_close_matches(key, names, 1, 0.6)
    if near:
        hint = f"did you mean {near[0]}?"
    else:
        owners = [
            dotted((section, key)) for section in keys_of(Recipe) if key in _keys_at((section,))
        ]
        hint = f"did you mean {owners[0]}?" if owners else f"known here: {', '.join(names)}"
    return f"{dotted(path)} is not a key of a recipe; {hint}"


def _wrong_value(path: KeyPath, problems: Sequence[Any]) -> str:
    first = problems[0]
    if first["type"] == "missing":
        return f"{dotted((*path, *first['loc'][len(path) :]))} is missing; add it"
    if first["type"] == "value_error":
        return f"{dotted(path)}: {first['ctx']['error']}"
    if first["type"] == "string_type":  # a Location is written as its URI
        problems = [first]
    expected = list(dict.fromkeys(p["msg"].removeprefix("Input should be ") for p in problems))
    key, value = str(path[-1]), first["input"]
    if key.endswith("_bytes") and isinstance(value, str):
        expected.append("a size such as 16GB or 512MiB")
    words = " or ".join(expected).replace("an object", "a mapping")
    secrets = [known.is_secret for known in _keys_at(path).values()]
    known = _keys_at(path[:-1]).get(key)
    shown = SECRET_MASK if any(secrets) or (known and known.is_secret) else short(value)
    return f"{dotted(path)}: expected {words}, got {shown}"


def _key_named_in(message: str, section: Any) -> KeyPath:
    """Return the given key of a section that a message names first, if any."""
    given = section if isinstance(section, dict) else {}
    found = {match.start(): name for name in given if (match := re.search(rf"\b{name}\b", message))}
    return (found[min(found)],) if found else ()


def _written_part(loc: Sequence[str | int], data: Any) -> KeyPath:
    """Cut a validation path to the keys that were written: unions add tags of their own."""
    path: list[str | int] = []
    for name in loc:
        in_list = isinstance(data, list) and isinstance(name, int) and name < len(data)
        if not in_list and not (isinstance(data, dict) and name in data):
            break
        data = data[name]
        path.append(name)
    return tuple(path)


def _keys_at(path: KeyPath) -> Mapping[str, Key]:
    """Return the keys that the section at a path knows."""
    annotation: Any = Recipe
    for name in path:
        section = section_in(annotation)
        if get_origin(annotation) is Mapping:  # the name is a key of the recipe's own choosing
            annotation = section
        else:
            key = keys_of(section).get(str(name)) if section else None
            annotation = key.annotation if key else None
    section = section_in(annotation)
    return keys_of(section) if section else {}


def missing_path(path: Path) -> str:
    """Return the message that a local path does not exist, with the nearest path that does.

    Examples
    --------
    >>> missing_path(Path("no-such-folder-at-all/x"))
    "'no-such-folder-at-all/x' does not exist"
    """
    have, missing = path, path
    while not have.exists() and have.parent != have:
        have, missing = have.parent, have
    names = sorted(entry.name for entry in have.iterdir()) if have.is_dir() else []
    near = difflib.get_close_matches(missing.name, names, 1, 0.6)
    hint = f"; did you mean {str(have / near[0])!r}?" if near else ""
    return f"{str(path)!r} does not exist{hint}"


def where_written(origins: Mapping[KeyPath, str], path: KeyPath, source: str) -> str:
    """Name the file and line, or the option, that a value or the part around it came from."""
    for size in range(len(path), 0, -1):
        if path[:size] in origins:
            return origins[path[:size]]
    below = (origin for known, origin in origins.items() if known[: len(path)] == path)
    return next(below, source or "recipe")
