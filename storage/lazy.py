"""Public names of a package that are imported when they are first used (PEP 562).

Importing a light module imports its package first; without this, ``pipeline.ingest.spec`` would
bring Ray because ``pipeline.ingest`` offers ``ingest``.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def public_names(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a package's ``__getattr__``, which imports each public name from its home.

    Parameters
    ----------
    package
        ``__name__`` of the package.
    homes
        Module that defines each public name.
    """

    def getattr_(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(homes[name]), name)

    return getattr_
