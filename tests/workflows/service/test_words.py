"""Words as a query over HTTP and on the map."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from fastapi.testclient import TestClient
from playwright.sync_api import Browser, Page, expect

from encoders.bundle import load_encoder, new_encoder, with_text
from pipeline.search.query import WORDS
from tests.support.map_page import CHROMIUM, RULES, Watched
from tests.support.service_world import encoder_spec, make_world, serving
from tests.support.two_towers import write_clip
from workflows.service.app import create_app
from workflows.service.backend import IndexBackend
from workflows.service.settings import Limits

ASKED = "solar farm"

pytestmark = pytest.mark.usefixtures("ray_session")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("words")


@pytest.fixture(scope="module")
def speaking(folder: Path, ray_session: None) -> IndexBackend:
    """A service of an index whose encoder embeds words."""
    model = str(write_clip(folder / "model"))
    spec = encoder_spec(backbone="clip", head={"kind": "identity"})
    encoder = with_text(new_encoder(spec, pretrained=model), model)
    made = IndexBackend(make_world(folder / "world", encoder))
    made.ready()
    return made


@pytest.fixture(scope="module")
def spoken_to(speaking: IndexBackend) -> Iterator[str]:
    with serving(create_app(speaking, limits=Limits(rate_per_s=0))) as address:
        yield address


def client_of(backend: IndexBackend) -> TestClient:
    app = create_app(backend, limits=Limits(rate_per_s=0))
    return TestClient(app, base_url="http://127.0.0.1:8000")


def test_words_over_http_find_what_the_text_tower_says(speaking: IndexBackend, folder: Path):
    client = client_of(speaking)
    about = client.get("/v1/index").json()
    assert (about["words"], about["no_words_because"]) == (True, "")
    answer = client.post("/v1/search", json={"text": ASKED, "k": 4})
    assert answer.status_code == 200, answer.text
    (vector,) = load_encoder(folder / "world" / "bundle").embed_text([ASKED])
    direct = client.post("/v1/search", json={"vector": vector.tolist(), "k": 4}).json()
    said = answer.json()
    rows = [hit["row"] for hit in said["hits"]]
    assert rows == [hit["row"] for hit in direct["hits"]]
    assert {hit["closer_than"] for hit in said["hits"]} == {None}
    assert (said["ordinary"], said["note"], said["query"]) == (False, WORDS, f'"{ASKED}"')
    best = said["hits"][0]
    mark = {"tile": best["tile_key"], "scene": best["scene"]}
    marked = {"text": ASKED, "k": 4, "positive": [mark]}
    refined = client.post("/v1/search", json=marked).json()
    assert len(refined["hits"]) == 4
    assert best["row"] not in [hit["row"] for hit in refined["hits"]]
    assert refined["query"].startswith(f'"{ASKED}" + ')


@pytest.mark.parametrize("body", [{"text": ""}, {"text": ASKED, "tile": "a/1/2"}, {"text": 3}])
def test_no_words_and_two_queries_are_refused(speaking: IndexBackend, body: dict):
    assert client_of(speaking).post("/v1/search", json=body).status_code == 422


def test_an_encoder_without_text_tower_says_so(backend: IndexBackend):
    client = client_of(backend)
    about = client.get("/v1/index").json()
    assert about["words"] is False
    assert "(tiny-cnn) has no text tower: ask by a picture" in about["no_words_because"]
    refused = client.post("/v1/search", json={"text": ASKED})
    assert refused.status_code == 422
    assert refused.json()["message"] == about["no_words_because"]


def check_accessible(page: Page) -> None:
    found = Axe().run(page, options={"runOnly": RULES}).response
    assert [(one["id"], one["nodes"][0]["html"]) for one in found["violations"]] == []


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_map_is_asked_with_words(browser: Browser, spoken_to: str, width: int, scheme: str):
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    watched = Watched(context.new_page())
    page = watched.open(spoken_to).page
    field = page.get_by_role("textbox", name="Words")
    page.get_by_role("button", name="Find by words").click()
    expect(page.locator("#error")).to_contain_text("Give words")
    field.fill(f" {ASKED} ")
    with page.expect_response("**/v1/search") as answer:
        field.press("Enter")
    assert json.loads(answer.value.request.post_data)["text"] == ASKED
    watched.found(24)
    expect(page.locator("#status")).to_contain_text(f"like “{ASKED}”")
    expect(page.locator("#ordinary")).to_contain_text("scores between tiles")
    expect(page.locator("#legend")).to_contain_text("less")
    expect(page.locator(".card .meaning").first).to_be_empty()
    expect(page.locator("#asked")).to_contain_text(ASKED)
    expect(page.locator("#asked img")).to_have_count(0)
    check_accessible(page)
    page.locator("#layer").select_option("scores")
    if width == 1280:
        shades = page.evaluate(
            "async () => { const { scaleOf, shadeOf } = await import('/web/scale.js');"
            " const hits = [{ score: .3 }, { score: .25 }, { score: .2 }];"
            " const scale = scaleOf(hits, { shares: [0, 1], scores: [-1, 1] });"
            " return [.3, .25, .2, .1, 0].map((score) => shadeOf(score, scale)); }"
        )
        np.testing.assert_allclose(shades, [1, 0.75, 0.5, 0, 0], atol=1e-6)
    other = Watched(context.new_page()).open(page.url)
    expect(other.page.get_by_role("textbox", name="Words")).to_have_value(ASKED)
    other.found(24)
    assert watched.said == other.said == []
    context.close()


@needs_browser
def test_the_map_of_an_encoder_without_words_and_parts_has_no_fields_for_them(
    wide: Watched, address: str
):
    page = wide.open(f"{address}/#blend=0.5").page
    expect(page.locator("#words-row")).to_be_hidden()
    expect(page.locator("#dial")).to_be_hidden()
    wide.click_map(0.5, 0.45)
    wide.found(24)  # the blend of a link is left out where there is one part
    page.goto(f"{address}/#text=farm")
    page.reload()
    expect(page.locator("#error")).to_contain_text("has no text tower")
    check_accessible(page)
