"""How long work tells how far it is.

Libraries report :class:`Progress` values to a sink; only the command line decides whether that
becomes a bar, plain lines or nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One report: ``done`` of ``total`` units (``total`` is None while unknown) of a stage.

    ``speed`` replaces units per second where another measure says more.
    """

    stage: str
    done: int
    total: int | None = None
    unit: str = "items"
    speed: str = ""
    note: str = ""


ProgressSink = Callable[[Progress], None]


def quiet(report: Progress) -> None:
    """Discard a report: the default sink."""
