"""Probes run side by side, each within its time, and a faulty one stops no other."""

import threading
import time

from workflows.doctor.findings import Finding, Probe, run_probes


def test_late_and_faulty_probes_are_findings_in_their_places():
    end, ok = threading.Event(), Finding("quick", "ok", "fine")

    def faulty() -> list[Finding]:
        raise KeyError("lost")

    def slow() -> list[Finding]:
        end.wait()
        return [ok]

    began = time.monotonic()
    late = [Probe(f"late {n}", slow, limit_s=0.3) for n in range(3)]
    found = run_probes([*late, Probe("faulty", faulty), Probe("quick", lambda: [ok, ok])])
    assert time.monotonic() - began < 0.8  # side by side, not one after the other
    end.set()
    assert [finding.verdict for finding in found] == ["broken"] * 4 + ["ok"] * 2
    assert "no answer within 0.3 s" in found[0].found
    assert "KeyError: 'lost'" in found[3].found
    assert all(finding.advice for finding in found if finding.verdict == "broken")
