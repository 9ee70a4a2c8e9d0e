"""Files and functions of the project that a search, an ingest and a training step run.

    python -m benchmarks.trace

Each way runs in a process of its own, so that no cache of an earlier run shortens it. A function
counts when it is called, in any thread. The code of modules, class bodies, lambdas and
comprehensions does not count, and neither do calls that an import makes, such as the declaration
of options.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field
from inspect import CO_OPTIMIZED
from io import StringIO
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGES = ("storage", "encoders", "pipeline", "workflows")
TILE_PX = 32
SCENES = 6
PLACE = "6.787,43.326"
"""Longitude and latitude of a tile of the scenes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """A traced run, and the most files and functions of the project that it should touch."""

    title: str
    files: int
    functions: int


WAYS: Mapping[str, Way] = {
    "search": Way(title="search by place", files=22, functions=130),
    "ingest": Way(title=f"ingest of {SCENES} scenes", files=30, functions=220),
    "step": Way(title="training step", files=9, functions=39),
}


@dataclass(frozen=True, slots=True)
class Trace:
    """Functions of the project in the order of their first call, as ``module.qualified_name``."""

    functions: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, list[str]]:
        """Return the trace as JSON holds it."""
        return {"functions": self.functions, "files": self.files}


@contextmanager
def recorded() -> Iterator[Trace]:
    """Record the functions of the four packages that this process calls inside the block.

    Threads that were started before the block are not recorded.
    """
    trace = Trace()
    seen: set[CodeType] = set()
    thread = threading.local()

    def profile(frame: FrameType, event: str, _argument: Any) -> None:
        code = frame.f_code
        if code.co_name == "<module>":
            steps = {"call": 1, "return": -1}  # a return is reported for exceptions, too
            thread.imports = getattr(thread, "imports", 0) + steps.get(event, 0)
        if event != "call" or code in seen or getattr(thread, "imports", 0):
            return
        seen.add(code)
        # Only functions have optimised locals: the code of modules and class bodies has not.
        if code.co_name.startswith("<") or not code.co_flags & CO_OPTIMIZED:
            return
        file = _file_of(code.co_filename)
        if file is None:
            return
        module = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        trace.functions.append(f"{module}.{code.co_qualname}")
        if file not in trace.files:
            trace.files.append(file)

    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        yield trace
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def _file_of(name: str) -> str | None:
    """Return a source file relative to the repository; None when it is not the project's."""
    with suppress(ValueError):
        path = Path(name).relative_to(REPOSITORY)
        if path.parts[0] in PACKAGES:
            return path.as_posix()
    return None


def trace_all(folder: Path) -> dict[str, Trace]:
    """Make a small world in an empty folder and trace the three ways through it."""
    write_world(folder)
    traces = {"ingest": _in_child("ingest", folder)}
    _in_child("index", folder)
    return traces | {name: _in_child(name, folder) for name in ("search", "step")}


def write_world(folder: Path) -> None:
    """Write six scenes of 4 x 4 tiles, an encoder for them and a labelled dataset."""
    import numpy as np

    from benchmarks.ingest_world import write_bundle, write_scenes
    from storage.dataset_writer import DatasetWriter

    (folder / "scenes").mkdir()
    write_scenes(folder / "scenes", SCENES, 4 * TILE_PX, 4 * TILE_PX)
    write_bundle(folder / "bundle", TILE_PX, width=8)
    rng = np.random.default_rng(0)
    rows = 64
    labels = (rng.random((rows, 5)) < 0.5).astype(np.uint8)
    labels[:, 0] |= labels.sum(1) == 0
    with DatasetWriter(str(folder / "dataset"), bands=("red", "nir"), classes=tuple("abcde")) as w:
        images = rng.normal(1000, 100, (rows, 2, 16, 16)).astype(np.float32)
        splits = ["val" if row % 4 == 0 else "train" for row in range(rows)]
        w.append(images, labels, {"source": [str(row) for row in range(rows)], "split": splits})
        w.finish()


def _in_child(way: str, folder: Path) -> Trace:
    """Run a way in a process of its own and return its trace.

    Raises
    ------
    RuntimeError
        The process failed; its standard error is in the message.
    """
    command = [sys.executable, "-m", "benchmarks.trace", "--way", way, "--folder", str(folder)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the way {way!r} ended with {done.returncode}: {done.stderr[-2000:]}")
    return Trace(**json.loads(done.stdout))


def run_way(way: str, folder: Path) -> Trace:
    """Run a way in this process, and return the functions that it called."""
    if way == "step":
        return _training_step(folder)
    names = ("scenes", "bundle", "archive", "index")
    scenes, bundle, archive, index = (str(folder / name) for name in names)
    commands = {
        "ingest": ["--scenes", scenes, "--encoder", bundle, "--archive", archive],
        "index": ["build", "--archive", archive, "--index", index, "--set", "cluster.cpus=1"],
        "search": ["--index", index, "--lonlat", PLACE, "-k", "5"],
    }
    from workflows.cli import main

    with recorded() as trace:
        try:
            main([way, *commands[way]])
        except SystemExit as end:
            if end.code:
                raise
    return trace


def _training_step(folder: Path) -> Trace:
    """Trace the second step of a training loop: MACL, augmented pixels, one process."""
    from encoders.bundle import Encoder
    from encoders.loop import TrainingLoop, TrainingRows
    from encoders.losses import LabelStatistics, build_loss
    from encoders.spec import EncoderSpec, LoopSpec
    from storage.dataset import LabelledDataset

    dataset = LabelledDataset.open(str(folder / "dataset"))
    rows = dataset.indices("train")
    labels = dataset.labels[rows]
    spec = EncoderSpec(
        backbone="tiny-cnn",
        backbone_options={"width": 8},
        bands=dataset.info.bands,
        band_mean=(1000.0,) * 2,
        band_std=(100.0,) * 2,
        tile_px=16,
        dimension=8,
    )
    loss = build_loss("macl", LabelStatistics.from_labels(labels), dimension=8)
    data = TrainingRows(inputs=dataset.images, rows=rows, labels=labels)
    loop_spec = LoopSpec(epochs=2, batch_size=16)
    steps = TrainingLoop(Encoder(spec), loss, data, loop_spec).run_epoch()
    next(steps)
    with recorded() as trace:
        next(steps)
    return trace


def report(traces: Mapping[str, Trace]) -> str:
    """Return the table of counts and limits."""
    lines = [f"{'way':<22}{'files':>8}{'limit':>8}{'functions':>12}{'limit':>8}"]
    for name, way in WAYS.items():
        files, functions = len(traces[name].files), len(traces[name].functions)
        lines.append(f"{way.title:<22}{files:>8}{way.files:>8}{functions:>12}{way.functions:>8}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Print the table, or with ``--list`` every function that ran."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--list", choices=WAYS, help="name the functions of a way instead")
    parser.add_argument("--way", choices=[*WAYS, "index"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.way:
        with redirect_stdout(StringIO()):
            trace = run_way(chosen.way, chosen.folder)
        print(json.dumps(trace.to_dict()))
        return 0
    with tempfile.TemporaryDirectory(prefix="skysift-trace-") as folder:
        traces = trace_all(Path(folder))
    print("\n".join(traces[chosen.list].functions) if chosen.list else report(traces))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
