"""A small demo, made once for all tests that look at its output."""

from pathlib import Path

import pytest

from workflows.demo.run import DemoResult, DemoSpec, run_demo

SMALL = DemoSpec(seed=7, scene_px=512, scenes_per_zone=1, epochs=2, batch_size=32)


class Stopped(Exception):
    """Ends a run in the middle."""


def make_demo(folder: Path) -> DemoResult:
    """A demo that was stopped in the middle of the ingest and started again."""

    def stop(report):
        if report.stage == "ingest":
            raise Stopped

    with pytest.raises(Stopped):
        run_demo(folder, spec=SMALL, progress=stop)
    return run_demo(folder, spec=SMALL)
