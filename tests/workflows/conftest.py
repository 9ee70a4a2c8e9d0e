"""The demo that tests share, and the reader of the pages with shell commands."""

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.location import StorageOptions
from tests.support.command_line import page_blocks
from tests.support.demo_world import make_demo
from tests.support.object_store import MotoS3
from tests.support.page_reader import Reader
from tests.support.paths import REPOSITORY
from workflows.demo.run import DemoResult


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> DemoResult:
    """A small demo that was stopped and started again."""
    return make_demo(tmp_path_factory.mktemp("demo") / "demo")


@pytest.fixture(scope="module")
def page_bucket(moto_server: str) -> MotoS3:
    """The bucket of the pages."""
    keys = {"access_key_id": "testing", "secret_access_key": "testing"}
    options = StorageOptions(endpoint_url=moto_server, region="eu-central-1", **keys)
    made = MotoS3(options, "pages")
    fs, _ = made.location().filesystem()
    if not fs.exists("pages"):
        fs.mkdir("pages")
    return made


@pytest.fixture(scope="module")
def reader(page_bucket: MotoS3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """A reader with credentials of the bucket, Skysift, and the package of docs/howto/loss.md."""
    site = tmp_path_factory.mktemp("installed") / "site-packages"
    install_losses(site)
    ours = ("AID_TAR", "MOBILENET_V2", "SCENES", "SKYSIFT_WORK", "SKYSIFT_TOKEN", "RAY_ADDRESS")
    one = Reader(
        {
            **{key: value for key, value in os.environ.items() if key not in ours},
            "PYTHONPATH": f"{REPOSITORY}:{site}",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "AWS_ENDPOINT_URL": str(page_bucket.options.endpoint_url),
            "AWS_REGION": str(page_bucket.options.region),
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
        }
    )
    yield one
    one.closes()


def install_losses(site: Path) -> None:
    """Install the loss of the page as the package whose entry point the page prints."""
    package, about = site / "my_package", site / "my_package-1.0.dist-info"
    for folder in (package, about):
        folder.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "losses.py").write_text(page_blocks("loss.md", "python")[0])
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    heading, *lines = page_blocks("loss.md", "toml")[0].splitlines()
    group = re.fullmatch(r'\[project.entry-points."(.*)"\]', heading)
    assert group
    points = [f"[{group[1]}]", *(line.replace('"', "") for line in lines)]
    (about / "entry_points.txt").write_text("\n".join(points))
