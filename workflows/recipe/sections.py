"""Sections of a recipe, made of specifications, and the meaning of their keys.

A specification is a frozen dataclass of the packages below. Most sections are one. Where a recipe
fills some fields elsewhere, leaves required fields open or has further keys, :func:`section_of`
derives the section from the fields of the specification, and :func:`spec_from` goes back.
"""

import inspect
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, make_dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_type_hints

from storage.location import Location

T = TypeVar("T")


class Section:
    """A part of a recipe whose fields are partly those of a specification."""

    __slots__ = ()
    if TYPE_CHECKING:

        def __init__(self, **values: Any) -> None: ...
        def __getattr__(self, name: str) -> Any: ...


S = TypeVar("S", bound=type[Section])


def section_of(spec: type, *, without: Collection[str] = ()) -> Callable[[S], S]:
    """Complete a section, as a frozen dataclass, with the fields of a specification.

    The annotations of the class come first; one that has the name of a field replaces it. A field
    that the specification requires may be left open, and is None then. A section that has all that
    is required is checked as the specification is.

    Parameters
    ----------
    spec
        The dataclass to take fields from.
    without
        Names of the fields that are filled from elsewhere.
    """

    def complete(section: S) -> S:
        own = get_type_hints(section, include_extras=True)
        hints = get_type_hints(spec, include_extras=True)
        taken = {part.name: part for part in fields(spec) if part.name not in without}
        parts = [(name, own[name], section.__dict__[name]) for name in own if name not in taken]
        for name, part in taken.items():
            if name in own:
                parts.append((name, own[name], section.__dict__[name]))
            elif _is_required(part):
                parts.append((name, hints[name] | None, None))
            else:
                default: dict[str, Any] = {
                    "default": part.default,
                    "default_factory": part.default_factory,
                }
                parts.append((name, hints[name], field(**default, repr=part.repr)))
        required = [part.name for part in fields(spec) if _is_required(part)]

        def check(self: Any) -> None:
            if all(getattr(self, name, None) is not None for name in required):
                spec_from(spec, self)

        body = {"__doc__": section.__doc__, "__module__": section.__module__, "configures": spec}
        made: Any = make_dataclass(
            section.__name__,
            parts,
            bases=(Section,),
            namespace={**body, "__post_init__": check},
            frozen=True,
            kw_only=True,
            slots=True,
        )
        return made  # type: ignore[no-any-return]

    return complete


def spec_from(spec: type[T], section: object, **others: Any) -> T:
    """Build a specification from a section; ``others`` are the fields that it has not, or fills."""
    names = [part.name for part in fields(spec)]  # type: ignore[arg-type]
    shared = {name for name in names if hasattr(section, name)} - set(others)
    return spec(**{name: getattr(section, name) for name in shared}, **others)


def _is_required(part: "Field[Any]") -> bool:
    return part.default is MISSING and part.default_factory is MISSING


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """One key of a section.

    Attributes
    ----------
    annotation
        Type of its values.
    default
        Its value where a recipe does not give one.
    meaning
        The entry of the docstring.
    is_secret
        Whether its value is never shown.
    """

    annotation: Any
    default: Any
    meaning: str
    is_secret: bool


@cache
def keys_of(section: type) -> Mapping[str, Key]:
    """Return the keys of a section, in order."""
    hints = get_type_hints(section, include_extras=True)
    meanings = documented(getattr(section, "configures", object)) | documented(section)
    return {
        part.name: Key(
            annotation=hints[part.name],
            default=part.default_factory()
            if part.default_factory is not MISSING
            else None
            if part.default is MISSING
            else part.default,
            meaning=meanings.get(part.name, ""),
            is_secret=not part.repr,
        )
        for part in fields(section)
    }


def section_in(annotation: Any) -> type | None:
    """Return the section within an annotation such as ``Mapping[str, BandMapping] | None``."""
    if isinstance(annotation, type) and is_dataclass(annotation) and annotation is not Location:
        return annotation
    return next((found for part in get_args(annotation) if (found := section_in(part))), None)


def documented(kind: type) -> dict[str, str]:
    """Return name to meaning from the NumPy docstrings of a class and its bases."""
    meanings: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        text = inspect.cleandoc(base.__doc__ or "") + "\n"
        for part in re.split(r"^(?=\w+\n-+$)", text, flags=re.M):
            if part.startswith(("Attributes\n", "Parameters\n")):
                entries = re.findall(r"^(\w+)\n((?:[ ]+[^\n]*\n|\n)+)", part, re.M)
                meanings |= {name: " ".join(meaning.split()) for name, meaning in entries}
    return meanings
