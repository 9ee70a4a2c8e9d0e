"""What is wrong with a recipe, in words: where it stands, what was expected, what is nearest."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import ValidationError

from workflows.recipe.schema import Recipe, Section

KeyPath = tuple[str | int, ...]
_UNKNOWN = "extra_forbidden"


def complaint(
    error: ValidationError, data: dict[str, Any], origins: Mapping[KeyPath, str], source: str
) -> str:
    """Say what the first wrong value is, in one line, and how many more there are."""
    by_path: dict[KeyPath, list[Any]] = {}
    for problem in error.errors(include_url=False):
        unknown = problem["type"] == _UNKNOWN
        path = problem["loc"] if unknown else _written_part(problem["loc"], data)
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
    key, names = str(path[-1]), _names_at(path[:-1])
    near = difflib.get_close_matches(key, names, 1, 0.6)
    if near:
        hint = f"did you mean {near[0]}?"
    else:
        owners = [
            dotted((section, key))
            for section in Recipe.model_fields
            if key in _names_at((section,))
        ]
        hint = f"did you mean {owners[0]}?" if owners else f"known here: {', '.join(names)}"
    return f"{dotted(path)} is not a key of a recipe; {hint}"


def _wrong_value(path: KeyPath, problems: Sequence[Any]) -> str:
    first = problems[0]
    if first["type"] == "missing":
        return f"{dotted((*path, *first['loc'][len(path) :]))} is missing; add it"
    expected = dict.fromkeys(
        p["msg"].removeprefix("Input should be ").removeprefix("Value error, ") for p in problems
    )
    return f"{dotted(path)}: expected {' or '.join(expected)}, got {short(first['input'])}"


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


def _names_at(path: KeyPath) -> list[str]:
    """Return the keys that the section at a path knows."""
    annotation: Any = Recipe
    for name in path:
        model = _section_in(annotation)
        if get_origin(annotation) is dict:  # the name is a key of the recipe's own choosing
            annotation = model
        else:
            known = model.model_fields.get(str(name)) if model else None
            annotation = known.annotation if known else None
    model = _section_in(annotation)
    return list(model.model_fields) if model else []


def _section_in(annotation: Any) -> type[Section] | None:
    """Find the section within an annotation such as ``dict[str, BandSection] | None``."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((s for part in get_args(annotation) if (s := _section_in(part))), None)


def missing_path(path: str) -> str:
    """Say that a local path does not exist, and which existing one is nearest.

    Examples
    --------
    >>> missing_path("no-such-folder-at-all/x")
    "'no-such-folder-at-all/x' does not exist"
    """
    have, missing = Path(path), Path(path)
    while not have.exists() and have.parent != have:
        have, missing = have.parent, have
    names = sorted(entry.name for entry in have.iterdir()) if have.is_dir() else []
    near = difflib.get_close_matches(missing.name, names, 1, 0.6)
    return f"{path!r} does not exist" + (f"; did you mean {str(have / near[0])!r}?" if near else "")


def where_written(origins: Mapping[KeyPath, str], path: KeyPath, source: str) -> str:
    """Name the file and line, or the option, that a value or the part around it came from."""
    for size in range(len(path), 0, -1):
        if path[:size] in origins:
            return origins[path[:size]]
    below = (origin for known, origin in origins.items() if known[: len(path)] == path)
    return next(below, source or "recipe")


def dotted(path: Sequence[str | int]) -> str:
    """Write a key path as people do."""
    return ".".join(str(name) for name in path)


def short(value: Any) -> str:
    """Show a value in at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
