"""The ways through the project stay short: files and functions that one run touches."""

import json
import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from benchmarks.trace import REPOSITORY, WAYS, Trace, recorded, report, trace_all
from workflows.console import format_pairs


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trace]:
    return trace_all(tmp_path_factory.mktemp("trace"))


# Files and functions that each way may touch, as many as it does today. The limits in
# benchmarks.trace are lower for the first two; lower these with each way that gets shorter. A few
# functions of the progress display run or not by the speed of the machine. An archive remembers the
# files of its scenes: storage/archive/origins.py lies on the way of an ingest.
# workflows/stages.py has the stages that commands and Python share, specifications may be given as
# mappings, and hits have the footprints of their tiles. The format of every file is checked. Pairs
# of places share the function that gives the grid of an encoder's tiles.
CEILINGS = {"search": (31, 190), "ingest": (43, 308), "step": (9, 44)}


@pytest.mark.parametrize("name", WAYS)
def test_a_way_does_not_get_longer(traces: dict[str, Trace], name: str):
    files, functions = CEILINGS[name]
    assert len(traces[name].files) <= files, report(traces)
    assert len(traces[name].functions) <= functions, report(traces)


SECTIONS = {"ingest": "Scene to row", "search": "Query to hit", "step": "Batch to gradient"}


@pytest.mark.parametrize("name", SECTIONS)
def test_the_stations_in_the_architecture_run_in_that_order(traces: dict[str, Trace], name: str):
    text = (REPOSITORY / "docs" / "architecture.md").read_text()
    section = text.partition(f"### {SECTIONS[name]}\n")[2].partition("\n#")[0]
    stations = re.findall(r"^\| `([\w.]+)` \|", section, re.MULTILINE)
    assert len(stations) > 5
    ran = traces[name].functions
    for station in stations:
        assert station in ran, f"{station} is not called"
    assert sorted(stations, key=ran.index) == stations


def test_functions_are_named_by_module_and_exist(traces: dict[str, Trace]):
    assert "encoders.loop.TrainingLoop._train_step" in traces["step"].functions
    for trace in traces.values():
        assert all((REPOSITORY / name).is_file() for name in trace.files)
        assert not any(name.rpartition(".")[2].startswith("<") for name in trace.functions)


def test_calls_in_threads_count_and_those_of_other_projects_do_not():
    with recorded() as trace, ThreadPoolExecutor(1) as pool:
        pool.submit(format_pairs, {"key": 1}).result()
        json.loads("[1]")
    assert trace.files == ["workflows/console.py"]
    assert trace.functions[0] == "workflows.console.format_pairs"
    format_pairs({"after": 1})
    assert trace.files == ["workflows/console.py"]
