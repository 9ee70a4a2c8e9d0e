"""The dial of the map: how much looks count against labels in an index of two-part vectors."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Locator, Page, Response, expect

from pipeline.search.saved import load_search
from tests.support.map_page import CHROMIUM, RULES, Watched
from tests.support.service_world import make_world
from tests.support.two_parts import two_part_encoder
from workflows.service.backend import IndexBackend

pytestmark = [
    pytest.mark.usefixtures("ray_session"),
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> IndexBackend:
    rng = np.random.default_rng(1)
    kinds = rng.integers(0, 4, 60)
    tiles = rng.uniform(20, 220, (60, 3, 1, 1)) + rng.normal(0, 10, (60, 3, 32, 32))
    tiles[:, 0] += 40 * kinds[:, None, None]
    made = IndexBackend(
        make_world(tmp_path_factory.mktemp("dial"), two_part_encoder(tiles, kinds, 8))
    )
    made.ready()
    return made


def _dial(page: Page) -> Locator:
    return page.get_by_role("slider", name="Alike in")


def _asked(answer: Response) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(answer.request.post_data or "")
    assert answer.status == 200, answer.text()
    return body


def _accessible(page: Page) -> None:
    found = Axe().run(page, options={"runOnly": RULES}).response
    assert [(one["id"], one["nodes"][0]["html"]) for one in found["violations"]] == []


def _moved(page: Page, key: str) -> dict[str, Any]:
    """Press a key on the dial; return the answer of the search that follows."""
    with page.expect_response("**/v1/search") as answer:
        _dial(page).press(key)
    _asked(answer.value)
    found: dict[str, Any] = answer.value.json()
    return found


def test_the_dial_asks_again_as_it_moves_and_is_in_the_link_and_the_saved_search(
    wide: Watched, address: str, tmp_path: Path
):
    page = wide.open(address).page
    about = page.request.get(f"{address}/v1/index").json()
    assert about["parts"] == {"appearance": 8, "labels": 16, "blend": 0.15}
    expect(_dial(page)).to_have_value("0.15")
    expect(page.locator("#dial")).to_contain_text("looks 15 %, labels 85 %")
    with page.expect_response("**/v1/search") as answer:
        wide.click_map(0.5, 0.45)
    assert "blend" not in _asked(answer.value)
    wide.found(24)
    _accessible(page)
    labels, looks = _moved(page, "Home"), _moved(page, "End")
    assert (labels["blend"], looks["blend"]) == (0, 1)
    assert [h["row"] for h in labels["hits"]] != [h["row"] for h in looks["hits"]]
    expect(page.locator("#dial")).to_contain_text("looks only")
    expect(page.locator(".card .score").first).to_have_text(f"{looks['hits'][0]['score']:.3f}")

    bodies: list[str] = []
    page.on("request", lambda r: bodies.append(r.post_data or "") if "/search" in r.url else None)
    with page.expect_response("**/v1/search") as answer:
        _dial(page).evaluate(
            "dial => { for (const value of [.9, .8, .7]) {"
            " dial.value = value; dial.dispatchEvent(new Event('input', { bubbles: true })); } }"
        )
    assert _asked(answer.value)["blend"] == 0.7
    assert len(bodies) == 1
    assert "blend=0.7" in page.url
    wide.found(24)
    wide.cards.nth(3).get_by_role("button", name="Right").click()
    link = page.url
    with page.expect_download() as download:
        page.get_by_role("button", name="Saved search", exact=True).click()
    saved = tmp_path / "saved.json"
    download.value.save_as(saved)
    assert load_search(str(saved)).blend == 0.7

    for begin in (link, address):
        page.goto("about:blank")
        with page.expect_response("**/v1/search") as answer:
            wide.open(begin)
            if begin == address:
                page.locator("#file").set_input_files(saved)
        assert _asked(answer.value)["blend"] == 0.7
        expect(_dial(page)).to_have_value("0.7")
    assert wide.said == []


def test_a_search_that_learns_from_marks_does_not_take_the_dial_and_says_so(
    wide: Watched, backend: IndexBackend, address: str
):
    page = wide.page
    every = page.request.post(
        f"{address}/v1/search", data={"lonlat": _middle(backend), "k": 30}
    ).json()["hits"]
    names = ["good"] * 7 + ["bad"] * 3
    marks = [f"{n}={h['tile_key']}@{h['scene']}" for n, h in zip(names, every[::3], strict=True)]
    page.set_viewport_size({"width": 390, "height": 800})
    page.emulate_media(color_scheme="dark")
    with page.expect_response("**/v1/search") as answer:
        wide.open(f"{address}/#{'&'.join(marks)}&blend=0.7")
    assert "blend" not in _asked(answer.value)
    assert answer.value.json()["learned"]
    expect(_dial(page)).to_be_disabled()
    expect(page.locator("#dial")).to_contain_text(
        "From 10 marks on, the marks weigh looks and labels"
    )
    expect(page.locator("#error")).to_be_hidden()
    _accessible(page)
    page.locator("#examples button").first.click()
    expect(_dial(page)).to_be_enabled()
    expect(_dial(page)).to_have_value("0.7")
    assert wide.said == []


def _middle(backend: IndexBackend) -> list[float]:
    west, south, east, north = backend.about().bbox
    return [(west + east) / 2 + 1e-5, (south + north) / 2 + 1e-5]
