"""The quarantine boundary: every exception becomes one printable line; the way out stays open."""

import logging

import pytest

from storage.errors import SceneError
from storage.quarantine import Quarantine, reason_of


class _RayCopy(Exception):
    def __init__(self, cause: Exception) -> None:
        super().__init__("Traceback (most recent call last): ...")
        self.cause = cause


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (SceneError("a.tif is\n torn"), "a.tif is torn"),
        (_RayCopy(SceneError("a.tif is torn")), "a.tif is torn"),
        (KeyError("crs"), "KeyError: 'crs'; check the file or document, "),
        (OverflowError(), "OverflowError: no message; check the file or document, "),
        (UnicodeDecodeError("utf8", b"\xff", 0, 1, "no"), "UnicodeDecodeError: "),
        (SceneError("\x1b[31mred\ud800"), r"\x1b[31mred\ud800"),
        (ValueError("x" * 10**6), f"ValueError: {'x' * 1000} ...; check"),
    ],
)
def test_every_exception_becomes_one_printable_line(error: Exception, reason: str):
    with Quarantine("scene a") as fault:
        raise error
    assert fault
    assert fault.reason == reason_of(error)
    assert fault.reason.startswith(reason)
    assert fault.reason.isprintable()
    assert fault.reason.encode()


def test_a_sound_block_has_no_fault():
    with Quarantine("scene a") as fault:
        pass
    assert not fault


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_the_end_of_a_run_passes(end: type[BaseException]):
    with pytest.raises(end), Quarantine("scene a"):
        raise end


def test_the_traceback_of_an_unforeseen_error_is_kept_or_logged(
    caplog: pytest.LogCaptureFixture,
):
    with Quarantine("scene a") as fault:
        [][1]
    assert "[][1]" in fault.trace
    assert not caplog.text
    with caplog.at_level(logging.DEBUG, "storage"), Quarantine("scene a") as logged:
        [][1]
    assert "[][1]" in caplog.text
    assert not logged.trace
    with Quarantine("scene a") as foreseen:
        raise SceneError("a.tif is torn")
    assert not foreseen.trace
