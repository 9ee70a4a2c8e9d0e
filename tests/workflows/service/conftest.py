"""A service and a browser for the tests of the map; other modules have services of their own."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.support.map_page import CHROMIUM, WEBGL, Watched
from tests.support.service_world import make_world, serving
from workflows.service.app import create_app
from workflows.service.backend import IndexBackend
from workflows.service.settings import Limits


@pytest.fixture(scope="module")
def backend(tmp_path_factory, ray_session) -> IndexBackend:
    made = IndexBackend(make_world(tmp_path_factory.mktemp("map")))
    made.ready()  # the first page does not wait for search actors
    return made


@pytest.fixture(scope="module")
def address(backend) -> Iterator[str]:
    with serving(create_app(backend, limits=Limits(rate_per_s=0))) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=WEBGL)
        yield browser
        browser.close()


@pytest.fixture
def wide(browser) -> Iterator[Watched]:
    context = browser.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True)
    yield Watched(context.new_page())
    context.close()
