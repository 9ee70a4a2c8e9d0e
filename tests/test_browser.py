"""A machine without a browser says so in the last lines of a test run."""

import os
import subprocess
import sys

from tests.support.paths import REPOSITORY


def test_skipped_tests_of_the_map_name_the_remedy_at_the_end():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "tests/workflows/service/test_map.py", "-k", "vendored"],
        cwd=REPOSITORY,
        env={**os.environ, "PATH": "/nowhere"},
        capture_output=True,
        text=True,
        check=True,
    )
    last = done.stdout.strip().splitlines()[-2:]
    assert "apt-get install chromium" in last[0], done.stdout
    assert "1 skipped" in last[1]
