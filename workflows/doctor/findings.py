"""Findings, and the probes that make them: side by side, each within its time."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "note", "broken"]


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check; ``advice`` is empty if there is nothing to repair."""

    what: str
    verdict: Verdict
    found: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Probe:
    """One look at a subject: the findings, within a time in seconds."""

    what: str
    look: Callable[[], Sequence[Finding]]
    limit_s: float = 10.0


def checked(what: str, passed: bool, found: str, advice: str) -> Finding:
    """Return a finding that is ok or broken."""
    return Finding(what, "ok", found) if passed else Finding(what, "broken", found, advice)


def first_line(error: BaseException) -> str:
    """Return the first line of an error, or its kind."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def run_probes(probes: Sequence[Probe]) -> list[Finding]:
    """Run probes side by side; return their findings in the order of the probes.

    A probe that fails or exceeds its time is a finding and does not stop the others.
    """
    return [finding for answer in [_start(probe) for probe in probes] for finding in answer]


def _start(probe: Probe) -> Iterator[Finding]:
    """Start a probe in a thread that does not keep the process; return its findings to come."""
    answer: list[Sequence[Finding]] = []
    began_s = time.monotonic()

    def look() -> None:
        try:
            answer.append(probe.look())
        except Exception as error:  # one probe's fault is a finding beside those of the others
            found = f"the check failed: {type(error).__name__}: {first_line(error)}"
            advice = "report it, with the output of `skysift doctor --debug`"
            answer.append([Finding(probe.what, "broken", found, advice)])

    thread = threading.Thread(target=look, name=f"doctor-{probe.what}", daemon=True)
    thread.start()

    def findings() -> Iterator[Finding]:
        thread.join(max(0.0, began_s + probe.limit_s - time.monotonic()))
        late = Finding(
            probe.what,
            "broken",
            f"no answer within {probe.limit_s:g} s",
            "check the network and the disk that it is on, then run `skysift doctor` again",
        )
        yield from answer[0] if answer else [late]

    return findings()
