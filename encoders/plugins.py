"""Code of one's own in a recipe: ``package.module:Name``, or an entry point.

A name with a colon is a class or function in a module that Python finds: an installed one, or one
in the current folder. A name without a colon may be an entry point of an installed package, in the
group ``skysift.losses``, ``skysift.backbones`` or ``skysift.importers``. The source of such code is
part of its results: its digest is part of a training run, of the bundle's fingerprint and of the
origin of a dataset.

The form of a loss is in :mod:`encoders.losses.core`, that of a backbone in
:mod:`encoders.backbones.own`, that of an importer in :mod:`pipeline.datasets.own`.
"""

import difflib
import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeVar

from storage.errors import ConfigError, NotFoundError
from storage.values import json_digest

Group = Literal["backbones", "importers", "losses"]
_NOUNS: dict[Group, str] = {"backbones": "backbone", "importers": "importer", "losses": "loss"}
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Plugin:
    """A class or function of one's own, and its source; it is imported when it is loaded.

    Attributes
    ----------
    group, name
        What it is, and its name in a recipe.
    module, attribute
        The dotted module, and the class in it.
    root
        Folder of the top-level package, or file of the top-level module.
    """

    group: Group
    name: str
    module: str
    attribute: str
    root: Path

    def __str__(self) -> str:
        return f"{_NOUNS[self.group]} {self.name!r}"

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hexadecimal) over all ``.py`` files of the top-level package, and their names.

        The whole package counts, because the class may use any part of it. Other files, hidden
        folders, and other packages that it imports, do not count.
        """
        files = sorted(self.root.rglob("*.py")) if self.root.is_dir() else [self.root]
        names = {path: path.relative_to(self.root.parent).as_posix() for path in files}
        return json_digest(
            {
                name: hashlib.sha256(path.read_bytes()).hexdigest()
                for path, name in names.items()
                if "/." not in name  # copies that editors and notebooks keep
            }
        )

    @property
    def is_installed(self) -> bool:
        """Whether the code lies where packages are installed, not in a folder of the user's."""
        return bool({"site-packages", "dist-packages"} & set(self.root.parts))

    def load(self, base: type[T]) -> type[T]:
        """Import the class.

        Raises
        ------
        ConfigError
            The module cannot be imported, lacks the name, or the name is no subclass of ``base``.
        """
        module, found = self._imported()
        if not (isinstance(found, type) and issubclass(found, base)):
            raise ConfigError(
                f"{self}: {self.module} ({module.__file__}) has no class {self.attribute} derived "
                f"from {base.__module__}.{base.__name__}"
            )
        return found

    def load_maker(self) -> Callable[..., Any]:
        """Import a class or function.

        Raises
        ------
        ConfigError
            The module cannot be imported, or has no class or function of the name.
        """
        module, found = self._imported()
        if not callable(found):
            raise ConfigError(
                f"{self}: {self.module} ({module.__file__}) has no class or function "
                f"{self.attribute}"
            )
        maker: Callable[..., Any] = found
        return maker

    def _imported(self) -> tuple[ModuleType, Any]:
        folder = str(self.root.parent)
        if importlib.util.find_spec(self.module.partition(".")[0]) is None:
            sys.path.append(folder)  # last, where it hides no other module
        try:
            module = import_module(self.module)
        except Exception as error:  # whatever code of others raises
            raise ConfigError(
                f"{self}: {self.module} cannot be imported ({raised_by(error)}); correct it there"
            ) from error
        return module, getattr(module, self.attribute, None)


def find_plugin(group: Group, name: str) -> Plugin | None:
    """Find code of one's own by its name in a recipe, without importing it.

    Returns
    -------
    Plugin or None
        None for a name without a colon that no entry point of the group has.

    Raises
    ------
    ConfigError
        The name has not the form ``package.module:Name``.
    NotFoundError
        There is no such module.
    """
    target = name
    if ":" not in name:
        found = sorted(entry_points(group=f"skysift.{group}", name=name), key=lambda e: e.value)
        if not found:
            return None
        target = found[0].value
    module, _, attribute = target.partition(":")
    parts = module.split(".")
    if not all(part.isidentifier() for part in (*parts, attribute)):
        raise ConfigError(f"{_NOUNS[group]} {name!r}: write it as package.module:Name")
    spec = _spec(parts[0])
    places = [spec.origin] if spec and spec.origin else []
    if spec and spec.submodule_search_locations:
        places = list(spec.submodule_search_locations)
    if not places or not Path(places[0]).exists():
        raise NotFoundError(
            f"{_NOUNS[group]} {name!r}: there is no module {parts[0]}; put {parts[0]}.py or "
            f"the folder {parts[0]} into the current folder ({Path.cwd()}), or install it"
        )
    return Plugin(
        group=group, name=name, module=module, attribute=attribute, root=Path(places[0]).resolve()
    )


def plugin_names(group: Group) -> tuple[str, ...]:
    """Return the names of the entry points of a group."""
    return tuple(sorted({entry.name for entry in entry_points(group=f"skysift.{group}")}))


def unknown_name(group: Group, name: str, known: Iterable[str]) -> ConfigError:
    """Return the error for a name that is neither in ``known`` nor code of one's own."""
    names = (*known, *plugin_names(group))
    near = difflib.get_close_matches(name, names, n=1)
    hint = (
        f"did you mean {near[0]!r}?"
        if near
        else f"known: {', '.join(names)}; write one of your own as module:Name"
    )
    return ConfigError(f"{_NOUNS[group]} {name!r} does not exist; {hint}")


def raised_by(error: BaseException) -> str:
    """Return type, message, file and line of an error, in one line, for messages about code."""
    if isinstance(error, SyntaxError) and error.filename:
        place = f"{error.filename}:{error.lineno}"
    else:
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{last.filename}:{last.lineno}"
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message}; {place}"


def require_source(plugin: Plugin, digest: str) -> None:
    """Refuse code whose source is another than that of the process that planned the work.

    Raises
    ------
    ConfigError
        The digests differ.
    """
    if plugin.digest != digest:
        raise ConfigError(
            f"{plugin}: the source at {plugin.root} has the digest "
            f"{plugin.digest[:16]}, that of this run {digest[:16]}; bring the same source to all "
            "machines, and start again"
        )


def _spec(top: str) -> ModuleSpec | None:
    if top == "__main__":  # a notebook or script, of which workers know nothing
        return None
    importlib.invalidate_caches()  # the file may be a moment old
    return importlib.util.find_spec(top) or PathFinder.find_spec(top, [str(Path.cwd())])
