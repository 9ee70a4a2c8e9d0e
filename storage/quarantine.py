"""The quarantine boundary: a bad scene or catalog item is set aside, and the others go on.

Files and documents come from everywhere, and libraries raise whatever they like about them. So a
stage that works on many scenes or items puts the work on each of them inside a :class:`Quarantine`,
which catches every exception. A catalog (:mod:`storage.catalog`) and a picture
(:mod:`storage.raster.picture`) are single: where they are read, every exception becomes one error.
"""

import logging
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from storage.errors import SceneError, SkysiftError
from storage.signatures import without_signatures
from storage.values import printable

logger = logging.getLogger(__name__)

_MOST_CHARACTERS = 1000


@dataclass(slots=True)
class Quarantine:
    """Catches every exception of a block; false afterwards when there was none.

    Only work on the scene or item itself belongs into the block: errors of an output, such as a
    full disk, concern all scenes.

    Parameters
    ----------
    subject
        The scene or item, for the log.
    reason
        The exception as one line; empty when there was none.
    trace
        Traceback of an error that no code of Skysift raised on purpose, where the log of this
        process does not show the traceback.
    expected
        Whether code of Skysift raised the exception on purpose.

    Examples
    --------
    >>> with Quarantine("scene a") as fault:
    ...     int("x")
    >>> fault.reason.partition(";")[0]
    "ValueError: invalid literal for int() with base 10: 'x'"
    """

    subject: str
    reason: str = ""
    trace: str = ""
    expected: bool = True

    @property
    def for_clients(self) -> str:
        """The reason for people outside: of an unexpected error only that the log has it."""
        return self.reason if self.expected else "an unexpected error; the service's log has it"

    def __bool__(self) -> bool:
        return bool(self.reason)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        self.reason = reason_of(error)
        self.expected = isinstance(error, SkysiftError)
        if not self.expected:
            if logger.isEnabledFor(logging.DEBUG):
                logger.debug("%s: %s", self.subject, self.reason, exc_info=error)
            else:
                self.trace = "".join(traceback.format_exception(error))
        return True


@contextmanager
def required(subject: str) -> Iterator[None]:
    """Raise a SceneError for every exception of the block, where nothing can go on without it.

    Raises
    ------
    SceneError
        The exception as one line, after the subject.
    """
    with Quarantine(subject) as fault:
        yield
    if fault:
        raise SceneError(f"{subject}: {fault.reason}")


@contextmanager
def set_aside(scene_id: str, left_out: dict[str, str] | None) -> Iterator[None]:
    """Note in ``left_out`` why the block cannot read a scene.

    Raises
    ------
    SceneError
        ``left_out`` is None: no scene may be left out.
    """
    with Quarantine(f"scene {scene_id}") as fault:
        yield
    if fault and left_out is None:
        raise SceneError(f"scene {scene_id}: {fault.reason}")
    if fault and left_out is not None:
        left_out[scene_id] = fault.reason


def none_readable(left_out: Mapping[str, str]) -> SceneError:
    """Return the error of work for which all scenes are left out; the error names the first."""
    reasons = "; ".join(f"{name}: {reason}" for name, reason in list(left_out.items())[:3])
    return SceneError(f"none of {len(left_out)} scenes can be read ({reasons}); check the files")


def reason_of(error: Exception) -> str:
    """Return an error as one printable line, which names the type of an unforeseen error."""
    inner = getattr(error, "cause", None)  # of Ray's copy, whose own text is a traceback
    error = inner if isinstance(inner, Exception) else error
    text = " ".join(str(error).split())
    text = text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]} ..."
    if not isinstance(error, SkysiftError):
        kind = type(error).__name__.lstrip("_")
        text = (
            f"{kind}: {text or 'no message'}; check the file or document, and report this error "
            "if nothing is wrong with it"
        )
    return printable(without_signatures(text))
