"""Losses of one's own: found by path and entry point, digested, refused in one line."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from encoders.gather_check import check_gather
from encoders.losses import LabelStatistics, build_loss, loss_options
from encoders.losses.core import Loss
from encoders.losses.supcon import SupCon
from encoders.plugins import find_plugin, plugin_names, require_source
from storage.errors import ConfigError, NotFoundError
from tests.support.own_losses import write_losses

STATISTICS = LabelStatistics.from_labels([[1, 0], [1, 1], [0, 1]])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder of a user; modules that the test imports from it are forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name, module in [*sys.modules.items()]:
        if (getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


def test_a_loss_of_the_current_folder_is_built_with_its_options(folder: Path):
    write_losses(folder)
    loss = build_loss("my_losses:HardNegatives", STATISTICS, hardness=3.0, temperature=0.2)
    assert (loss.hardness, loss.temperature) == (3.0, 0.2)
    assert list(loss_options("my_losses:HardNegatives")) == [
        "hardness",
        "temperature",
        "chunk_pairs",
    ]
    with pytest.raises(ConfigError, match="no option 'hardnes'; it has hardness"):
        build_loss("my_losses:HardNegatives", STATISTICS, hardnes=3.0)


def test_finding_a_loss_does_not_run_its_code(folder: Path):
    (folder / "loud.py").write_text("raise SystemExit")
    plugin = find_plugin("losses", "loud:Loss")
    assert plugin.root == folder / "loud.py"
    assert "loud" not in sys.modules


def test_the_digest_is_that_of_all_python_files_of_the_package(folder: Path):
    package = folder / "mine"
    (package / "deep").mkdir(parents=True)
    for name in ("__init__", "losses", "deep/__init__", "deep/maths"):
        (package / f"{name}.py").write_text(f'"""{name}"""\n')
    digests = [find_plugin("losses", "mine.losses:Own").digest]
    (package / "notes.txt").write_text("no code")
    (package / ".ipynb_checkpoints").mkdir()
    (package / ".ipynb_checkpoints" / "losses-checkpoint.py").write_text("x = 2\n")
    digests.append(find_plugin("losses", "mine.losses:Own").digest)
    (package / "deep" / "maths.py").write_text("x = 1\n")
    digests.append(find_plugin("losses", "mine.losses:Own").digest)
    (package / "deep" / "maths.py").rename(package / "deep" / "numbers.py")
    digests.append(find_plugin("losses", "mine.losses:Own").digest)
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3
    with pytest.raises(ConfigError, match="bring the same source to all machines"):
        require_source(find_plugin("losses", "mine.losses:Own"), digests[0])


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("my_loses:HardNegatives", NotFoundError, "no module my_loses; put my_loses.py"),
        ("my_losses:NoLoss", ConfigError, r"has no class NoLoss derived from encoders.losses.core"),
        ("my_losses:Gone", ConfigError, "has no class Gone"),
        ("my_losses:", ConfigError, "package.module:Name"),
        ("my_losses:a.b", ConfigError, "package.module:Name"),
        ("my-losses:Mine", ConfigError, "package.module:Name"),
        ("__main__:Mine", NotFoundError, "no module __main__"),
        ("broken:Mine", ConfigError, r"SyntaxError.*broken.py:2"),
        ("raising:Mine", ConfigError, r"ZeroDivisionError.*raising.py:1"),
        ("needy:Mine", ConfigError, r"ModuleNotFoundError.*not_there"),
        ("my_losses", ConfigError, "write one of your own as module:Name"),
    ],
)
def test_what_is_no_loss_is_refused_in_one_line(folder: Path, name: str, error, words: str):
    write_losses(folder)
    (folder / "broken.py").write_text("import os\nclass\n")
    (folder / "raising.py").write_text("1 / 0\n")
    (folder / "needy.py").write_text("import not_there\n")
    with pytest.raises(error, match=words) as caught:
        build_loss(name, STATISTICS)
    assert "\n" not in str(caught.value)


def test_an_entry_point_of_an_installed_package_is_a_name(folder: Path, monkeypatch):
    site = folder / "site-packages"
    site.mkdir()
    write_losses(site, "shipped_losses")
    info = site / "shipped-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shipped\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[skysift.losses]\nhard = shipped_losses:HardNegatives\nmacl = shipped_losses:NoLoss\n"
    )
    monkeypatch.syspath_prepend(site)
    assert plugin_names("losses") == ("hard", "macl")
    assert find_plugin("losses", "hard").is_installed
    assert type(build_loss("hard", STATISTICS)).__name__ == "HardNegatives"
    assert isinstance(build_loss("macl", STATISTICS), Loss)  # Skysift's own name stays
    assert type(build_loss("macl", STATISTICS)).__module__ == "encoders.losses.macl"


def test_a_loss_that_divides_on_each_worker_fails_the_gather_test(folder: Path):
    write_losses(folder)
    [exact] = check_gather("my_losses:HardNegatives", {"hardness": 2.0}, workers=(3,))
    [wrong] = check_gather("my_losses:DividesOnItsOwn", workers=(3,))
    assert exact.is_exact
    assert exact.difference < 1e-12
    assert exact.largest_gradient > 1e-3
    assert not wrong.is_exact
    assert wrong.difference > 1e-2
    assert wrong.loss != pytest.approx(wrong.gathered_loss)


def test_a_gather_test_that_compares_nothing_is_refused(folder: Path):
    write_losses(folder)
    with pytest.raises(ConfigError, match="from 2 on"):
        check_gather("macl", workers=(1, 2))
    (folder / "odd.py").write_text(
        "from skysift import PairLoss, Ratio\n\n"
        "class Zero(PairLoss):\n    def terms(self, pairs):\n"
        "        zero = pairs.similarity_RG.sum() * 0\n        return [Ratio(zero, zero + 1)]\n\n"
        "class Raises(PairLoss):\n    def terms(self, pairs):\n        return pairs.nothing\n"
    )
    with pytest.raises(ConfigError, match="gradient is zero"):
        check_gather("odd:Zero")
    with pytest.raises(ConfigError, match=r"raises AttributeError.*nothing"):
        check_gather("odd:Raises")


def test_a_class_without_further_options_has_its_own_alone():
    class Few(SupCon):
        def __init__(self, statistics, *, share: float = 0.5):
            super().__init__(statistics)

    from encoders.losses import _keywords

    assert _keywords(Few) == {"share": 0.5}


def test_the_plugins_module_brings_no_torch():
    code = "import sys, encoders.plugins; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
