import json

import pytest

from storage.errors import ConfigError
from workflows.demo.stages import StageCache


class Work:
    """A stage that writes its output and counts its calls."""

    def __init__(self, folder, name="out", fails=False):
        self.path, self.calls, self.fails = folder / name, 0, fails

    def __call__(self):
        self.calls += 1
        kept = self.path.read_text() if self.path.exists() else ""
        self.path.write_text(kept + "x")
        if self.fails:
            raise KeyboardInterrupt
        return {"calls": self.calls}


def test_a_done_stage_is_skipped_with_its_result(tmp_path):
    folder = tmp_path / "demo"
    work = Work(folder)
    first = StageCache(folder).run("a", {"seed": 1}, ["out"], work)
    again = StageCache(folder).run("a", {"seed": 1}, ["out"], work)
    assert (first.skipped, again.skipped, work.calls) == (False, True, 1)
    assert again.result == {"calls": 1}
    assert again.digest == first.digest


def test_other_inputs_delete_the_outputs_and_run_again(tmp_path):
    folder = tmp_path / "demo"
    work = Work(folder)
    first = StageCache(folder).run("a", {"seed": 1}, ["out"], work)
    second = StageCache(folder).run("a", {"seed": 2}, ["out"], work)
    assert work.calls == 2
    assert work.path.read_text() == "x"
    assert first.digest != second.digest


def test_a_lost_output_is_made_again(tmp_path):
    folder = tmp_path / "demo"
    work = Work(folder)
    StageCache(folder).run("a", {}, ["out"], work)
    work.path.unlink()
    assert not StageCache(folder).run("a", {}, ["out"], work).skipped
    assert work.path.exists()


def test_a_stopped_stage_goes_on_with_what_it_left(tmp_path):
    folder = tmp_path / "demo"
    with pytest.raises(KeyboardInterrupt):
        StageCache(folder).run("a", {}, ["out"], Work(folder, fails=True))
    work = Work(folder)
    assert not StageCache(folder).run("a", {}, ["out"], work).skipped
    assert work.path.read_text() == "xx"


def test_a_stopped_stage_with_other_inputs_starts_clean(tmp_path):
    folder = tmp_path / "demo"
    with pytest.raises(KeyboardInterrupt):
        StageCache(folder).run("a", {"seed": 1}, ["out"], Work(folder, fails=True))
    work = Work(folder)
    StageCache(folder).run("a", {"seed": 2}, ["out"], work)
    assert work.path.read_text() == "x"


def test_stages_of_the_same_inputs_but_other_names_differ(tmp_path):
    book = StageCache(tmp_path / "demo")
    one = book.run("a", {}, [], dict)
    other = book.run("b", {}, [], dict)
    assert one.digest != other.digest
    assert [done.name for done in book.finished] == ["a", "b"]


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    (tmp_path / "holiday.jpg").write_text("mine")
    with pytest.raises(ConfigError, match="give a new or an empty folder"):
        StageCache(tmp_path)
    assert (tmp_path / "holiday.jpg").read_text() == "mine"


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"format": 1})])
def test_a_damaged_record_is_named(tmp_path, content):
    (tmp_path / "stages.json").write_text(content)
    with pytest.raises(ConfigError, match=r"stages\.json"):
        StageCache(tmp_path)
