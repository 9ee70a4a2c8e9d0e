"""The quarantine boundary: every exception becomes one printable line; the way out stays open."""

import logging

import pytest

from storage.errors import SceneError
from storage.quarantine import Quarantine, none_readable, reason_of, required, set_aside


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


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (SceneError("a.tif is\n torn"), r"scene a: a\.tif is torn$"),
        (KeyError("crs"), "scene a: KeyError: 'crs'; check the file or document"),
    ],
)
def test_what_is_required_raises_every_exception_as_a_scene_error(error: Exception, text: str):
    with pytest.raises(SceneError, match=rf"^{text}"), required("scene a"):
        raise error
    with pytest.raises(SceneError, match=rf"^{text}"), set_aside("a", None):
        raise error
    with pytest.raises(KeyboardInterrupt), required("scene a"):
        raise KeyboardInterrupt


def test_scenes_set_aside_are_noted_until_none_is_left():
    left_out: dict[str, str] = {}
    for name, error in {"a": KeyError("crs"), "b": SceneError("b.tif is torn")}.items():
        with set_aside(name, left_out):
            raise error
    with required("scene c"), set_aside("c", left_out):
        pass
    assert left_out["a"].startswith("KeyError: 'crs'")
    assert left_out.keys() == {"a", "b"}
    assert "none of 2 scenes can be read (a: KeyError" in str(none_readable(left_out))
