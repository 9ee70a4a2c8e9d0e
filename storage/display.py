"""Objects as a person sees them in a session: a few facts as text, and as HTML in a notebook.

A class names its facts once, by :class:`Described`; both forms follow from them. The HTML has no
script and no style sheet of its own, so it is shown by every notebook, and when it was saved.
"""

import html
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from storage.geometry import BBox
from storage.values import printable

_CELL = "text-align:left;padding:2px 12px 2px 0;vertical-align:top"


class Picture(str):
    """The ``data:`` URI of an image, which a table shows in place of the text."""

    __slots__ = ()


class Described(ABC):
    """A class whose objects name a few facts about themselves.

    The facts have to be cheap: they are read whenever a notebook shows the object.
    """

    __slots__ = ()
    shown_as: ClassVar[str] = ""
    """The name of the class in the representation; the name of the class itself by default."""

    @abstractmethod
    def facts(self) -> Mapping[str, Any]:
        """Return names and values, the most important first."""

    def __repr__(self) -> str:
        found = self.facts()
        width = max(map(len, found), default=0)
        lines = [f"  {name:<{width}}  {in_words(value)}" for name, value in found.items()]
        return "\n".join([f"<{self._title()}>", *lines])

    def _repr_html_(self) -> str:
        return facts_html(self._title(), self.facts())

    def _title(self) -> str:
        return self.shown_as or type(self).__name__


def in_words(value: Any) -> str:
    """Return a value for a person.

    Examples
    --------
    >>> in_words(12345), in_words(("red", "nir")), in_words(None), in_words({"a": 1})
    ('12,345', 'red, nir', '-', 'a 1')
    """
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {in_words(item)}" for name, item in value.items()) or "-"
    if isinstance(value, (tuple, list)):
        return ", ".join(map(in_words, value)) or "-"
    return printable(str(value))


def box_in_words(bbox: BBox | None) -> str | None:
    """Return a WGS84 box in degrees for a person.

    Examples
    --------
    >>> box_in_words((-99.5, 46.0, -99.0, 47.25))
    'west -99.5, south 46, east -99, north 47.25 (WGS84)'
    """
    if bbox is None:
        return None
    names = ("west", "south", "east", "north")
    sides = ", ".join(f"{name} {value:.8g}" for name, value in zip(names, bbox, strict=True))
    return f"{sides} (WGS84)"


def facts_html(title: str, facts: Mapping[str, Any]) -> str:
    """Return facts as an HTML table of two columns below a title."""
    rows = "".join(
        f"<tr><th style='{_CELL}'>{_escaped(name)}</th>"
        f"<td style='{_CELL}'>{_escaped(value)}</td></tr>"
        for name, value in facts.items()
    )
    return f"<div><strong>{_escaped(title)}</strong><table>{rows}</table></div>"


def table_html(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], notes: Sequence[str] = ()
) -> str:
    """Return rows as an HTML table below a title, with notes below it."""
    head = "".join(f"<th style='{_CELL}'>{_escaped(name)}</th>" for name in columns)
    body = "".join(
        "<tr>" + "".join(f"<td style='{_CELL}'>{_cell(value)}</td>" for value in row) + "</tr>"
        for row in rows
    )
    below = "".join(f"<p>{_escaped(note)}</p>" for note in notes)
    return (
        f"<div><strong>{_escaped(title)}</strong>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{below}</div>"
    )


def _cell(value: Any) -> str:
    if isinstance(value, Picture):
        return f"<img src='{html.escape(value)}' alt='' style='display:block;margin:0'>"
    return _escaped(value)


def _escaped(value: Any) -> str:
    return html.escape(in_words(value))
