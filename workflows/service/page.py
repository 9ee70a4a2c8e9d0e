"""The page of the map in three files: its HTML, its scripts joined, its styles joined.

A request of the page takes about 10 ms of CPU in Ray Serve's proxy and the application, and the
page's scripts are 18 modules beside MapLibre. The sources stay modules, without a build step.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

_STYLES = ("vendor/maplibre-gl.css", "style.css")
_FIRST, _LIBRARY, _MAIN = "about.js", "vendor/maplibre-gl-csp.js", "main.js"
"""The description of the index is requested before MapLibre, which the main module needs."""
_IMPORT = re.compile(r'^import (?:\* as (\w+)|\{([^}]*)\}) from "\./([\w-]+)\.js";$', re.MULTILINE)
_EXPORT = re.compile(r"^export ((?:async )?(?:function|class|const) (\w+))", re.MULTILINE)
_LEFT = re.compile(r"^(?:import|export)\b.*", re.MULTILINE)


@dataclass(frozen=True, kw_only=True, slots=True)
class MapPage:
    """The HTML of the page, which names the digests of its script and styles."""

    html: str
    script: str
    styles: str


@lru_cache(1)
def map_page(web: Path) -> MapPage:
    """Return the page of the map from the folder of its sources.

    Raises
    ------
    ValueError
        A module has an import or export that :func:`joined` does not know.
    """
    loaded: set[str] = set()
    library = (web / _LIBRARY).read_text()
    parts = [*joined(web, _FIRST, loaded), library, *joined(web, _MAIN, loaded)]
    script = "\n".join(parts)
    styles = "\n".join((web / name).read_text() for name in _STYLES)
    html = (web / "index.html").read_text()
    for name, text in (("map.js", script), ("map.css", styles)):
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        html = html.replace(f"web/{name}", f"web/{name}?{digest}")
    return MapPage(html=html, script=script, styles=styles)


def joined(web: Path, name: str, loaded: set[str]) -> Iterator[str]:
    """Yield a module and those that it imports as functions of one script, each once.

    A module is a constant with its exports, after the constants of the modules that it imports.
    Modules of the page have imports from files beside them, each on a line, export declarations,
    and no cycles.

    Parameters
    ----------
    web
        The folder of the modules.
    name
        The module.
    loaded
        Names of modules that the script has; those that are yielded are added.

    Raises
    ------
    ValueError
        A module has another kind of import or export.
    """
    if name in loaded:
        return
    loaded.add(name)
    text = (web / name).read_text()
    for found in _IMPORT.finditer(text):
        yield from joined(web, f"{found[3]}.js", loaded)
    exports = ", ".join(found[2] for found in _EXPORT.finditer(text))
    text = _EXPORT.sub(r"\1", _IMPORT.sub(_constants, text))
    if left := _LEFT.search(text):
        raise ValueError(f"{name} cannot be joined to the page's script: {left[0]}")
    body = f'"use strict";\n{text}\nreturn {{ {exports} }};'
    yield f"const {_constant(name)} = (() => {{ {body} }})();"


def _constants(found: re.Match[str]) -> str:
    """Return an import as constants."""
    whole, names, module = found.groups()
    taken = whole or "{" + names.replace(" as ", ": ") + "}"
    return f"const {taken} = {_constant(module)};"


def _constant(module: str) -> str:
    """Return the name under which the script has the exports of a module."""
    return f"page_{module.removesuffix('.js').replace('-', '_')}"
