"""Change on the map: two periods, cards with both pictures, a swipe, and a link that keeps it."""

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

import pipeline.search.change
from tests.support.map_page import CHROMIUM, RULES

pytestmark = [
    pytest.mark.usefixtures("ray_session"),
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]


@pytest.fixture(autouse=True)
def _few_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """The world has 16 places."""
    monkeypatch.setattr(pipeline.search.change, "FEWEST_PAIRS", 10)


def _compare(page: Page) -> None:
    page.get_by_label("Before").fill("2024-05")
    page.get_by_label("After").fill("2024-07")
    page.get_by_role("button", name="Compare").click()
    expect(page.locator("#status")).to_contain_text("16 compared")


def test_two_periods_give_pairs_and_a_swipe_shows_one_over_the_other(wide, address):
    page = wide.open(address).page
    _compare(page)
    expect(wide.cards).to_have_count(16)
    assert wide.cards.first.locator("img").count() == 2
    scores = [float(text) for text in page.locator(".card .score").all_inner_texts()]
    assert scores == sorted(scores, reverse=True)
    wide.cards.first.locator(".show").click()
    expect(page.locator("#place .swipe img")).to_have_count(2)
    expect(page.locator("#place dl")).to_contain_text("usual")
    slider = page.get_by_role("slider", name="Swipe from 1 May 2024 to 1 Jul 2024")
    pictures = page.locator("#place .pictures")
    for image in page.locator("#place .swipe img").all():
        expect(image).to_have_js_property("naturalWidth", 256)
    seen = []
    for value in (0, 50, 100):
        slider.fill(str(value))
        seen.append(pictures.screenshot())
    assert len(set(seen)) == 3  # the later one, a half of each, the earlier one
    slider.press("ArrowLeft")
    assert slider.input_value() == "99"
    found = Axe().run(page, options={"runOnly": {"type": "tag", "values": RULES}})
    assert found.response["violations"] == []
    assert wide.said == []


def test_a_link_keeps_the_change_and_what_it_is_toward(wide, address):
    page = wide.open(address).page
    expect(page.get_by_label("toward")).to_be_disabled()
    wide.click_map(0.5, 0.45)
    wide.found(24)
    page.get_by_label("toward").check()
    _compare(page)
    expect(page.locator("#status")).to_contain_text("toward the query")
    shown, link = page.locator(".card .score").all_inner_texts(), page.url
    page.goto("about:blank")
    wide.open(link)
    expect(page.locator("#status")).to_contain_text("toward the query")
    assert page.locator(".card .score").all_inner_texts() == shown
    with page.expect_download() as download:
        page.get_by_role("button", name="GeoJSON", exact=True).click()
    assert download.value.suggested_filename == "changes.geojson"
    page.get_by_label("Before").fill("x")
    page.get_by_role("button", name="Compare").click()
    expect(page.locator("#error")).to_contain_text("Give two periods")
    assert wide.said == []


def test_periods_without_tiles_are_said_in_the_words_of_the_service(wide, address):
    page = wide.open(address).page
    page.get_by_label("Before").fill("2019")
    page.get_by_label("After").fill("2020")
    page.get_by_role("button", name="Compare").click()
    expect(page.locator("#error")).to_contain_text("0 places have a tile in both periods")
    assert np.all([("422" in text) for text in wide.said])
