"""The demo that the tests of the demo, of the notebooks and of the documents' Python share."""

import pytest

from tests.support.demo_world import make_demo
from workflows.demo.run import DemoResult


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> DemoResult:
    """A small demo that was stopped and started again."""
    return make_demo(tmp_path_factory.mktemp("demo") / "demo")
