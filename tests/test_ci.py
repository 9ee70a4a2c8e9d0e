"""The workflows of GitHub and GitLab run what a submission must pass; uv installs as pip would."""

import importlib.util
import os
import re
import subprocess
import sys

import pytest
import yaml

from tests.support.paths import REPOSITORY

INSTALL = REPOSITORY / ".ci/install.py"


@pytest.fixture(scope="module")
def install():
    spec = importlib.util.spec_from_file_location("ci_install", INSTALL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_workflows_run_the_script_on_the_oldest_python():
    assert os.access(REPOSITORY / ".ci/run", os.X_OK)
    (oldest,) = re.findall(
        r'requires-python = ">=([\d.]+)"', (REPOSITORY / "pyproject.toml").read_text()
    )
    github = yaml.safe_load((REPOSITORY / ".github/workflows/ci.yml").read_text())["jobs"]["run"]
    assert github["steps"][-1] == {"run": ".ci/run"}
    gitlab = yaml.safe_load((REPOSITORY / ".gitlab-ci.yml").read_text())["run"]
    assert gitlab["script"] == [".ci/run"]
    for image in (github["container"], gitlab["image"]):
        assert image.startswith(f"python:{oldest}-")


def test_settings_of_pip_reach_uv_by_their_precedence(install):
    listing = (
        ":env:.find-links='/wheels /more'\n"
        "download.index-url='https://other.example/simple'\n"
        "global.constraint='/etc/all.txt\\n/etc/more.txt'\n"
        "global.find-links='/old'\n"
        "global.index-url='https://a.example/simple'\n"
        "install.index-url='https://b.example/simple'\n"
    )
    variables, arguments = install.uv_settings(install.pip_settings(listing))
    assert variables == {
        "UV_FIND_LINKS": "/wheels,/more",
        "UV_DEFAULT_INDEX": "https://b.example/simple",
    }
    assert arguments[2:] == ["-c", "/etc/all.txt", "-c", "/etc/more.txt"]


def test_a_setting_without_translation_leaves_the_work_to_pip(install):
    with pytest.raises(install.CannotTranslateError, match="no-index"):
        install.uv_settings({"no-index": "true"})


def test_the_listing_of_the_real_pip_is_read(install, tmp_path):
    config = tmp_path / "pip.conf"
    config.write_text("[global]\nfind-links =\n    /one\n    /two\n")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PIP_")}
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"],
        env={**environment, "PIP_CONFIG_FILE": str(config)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    variables, _ = install.uv_settings(install.pip_settings(listing))
    assert variables["UV_FIND_LINKS"] == "/one,/two"
