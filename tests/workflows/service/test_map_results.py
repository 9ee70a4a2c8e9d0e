"""Results for eyes: one hit a place, the meaning of scores, coloured places, the query and Back."""

import base64
import io
import json
import urllib.request
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Page, expect

from tests.support.map_page import CHROMIUM, RULES, Watched
from tests.support.service_world import DAYS, serving
from workflows.service.app import create_app
from workflows.service.settings import Limits
from workflows.service.tokens import token_digests

TOKEN = "0123456789abcdef-token"
PLACES = 16

pytestmark = [
    pytest.mark.usefixtures("ray_session"),
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]


def _png(pixels: np.ndarray) -> bytes:
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG")
    return png.getvalue()


def _file(content: bytes, name: str = "chip.png") -> dict[str, Any]:
    return {"name": name, "mimeType": "image/png", "buffer": content}


def _labels(page: Page) -> list[str]:
    return page.locator(".card .show").evaluate_all("all => all.map(e => e.ariaLabel)")


def _edge(page: Page) -> np.ndarray:
    """Pixels of the map's upper right corner, where nothing is but its background."""
    box = page.locator("#map canvas").bounding_box()
    assert box
    clip = {"x": box["x"] + box["width"] - 20, "y": box["y"] + 2, "width": 16, "height": 8}
    return np.asarray(Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB"), np.int64)


def _ground(page: Page) -> np.ndarray:
    """The pixels of the middle of the map."""
    box = page.locator("#map canvas").bounding_box()
    assert box
    clip = {"x": box["x"] + 200, "y": box["y"] + 80, "width": box["width"] - 400, "height": 200}
    return np.asarray(Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB"), np.int64)


def _change(page: Page, before: np.ndarray, is_done: Callable[[float], bool]) -> float:
    """The mean change of the map's pixels, once it is as wanted or after ten seconds."""
    for _ in range(50):
        change = float(np.abs(_ground(page) - before).mean())
        if is_done(change):
            break
        page.wait_for_timeout(200)  # tiles are loaded and fade in
    return change


def test_one_hit_a_place_in_a_grid_of_whole_squares(wide, address):
    page = wide.open(address).page
    wide.click_map(0.5, 0.45)
    wide.found(24)
    page.get_by_role("button", name="One hit a place").click()
    wide.found(PLACES)
    dates = page.locator(".card .scene").all_inner_texts()
    assert sorted(set(dates)) == ["2 dates", "3 dates"]  # two of the query's own place are left
    assert dates.count("2 dates") == 1
    image = page.locator(".card img").first.bounding_box()
    assert image
    assert image["width"] == pytest.approx(image["height"], abs=1)
    tops = "all => new Set(all.map(e => e.getBoundingClientRect().top)).size"
    assert page.locator(".card").evaluate_all(tops) == 1
    page.get_by_role("button", name="Grid").click()
    assert page.locator(".card").evaluate_all(tops) > 1
    wide.cards.nth(2).locator(".show").click()
    scores = []
    for _ in DAYS:
        scores.append(page.locator("#place dl").inner_text())
        step = page.get_by_role("button", name="Later date")
        if step.is_disabled():
            break
        step.click()
    assert all("Score" in text for text in scores)  # each date inside has its own
    assert wide.said == []


def test_a_link_keeps_places_grid_and_layer(wide, address):
    page = wide.open(address).page
    wide.click_map(0.5, 0.45)
    page.get_by_role("button", name="One hit a place").click()
    page.get_by_role("button", name="Grid").click()
    page.locator("#layer").select_option("scores")
    wide.found(PLACES)
    shown, link = _labels(page), page.url
    page.goto("about:blank")
    wide.open(link)
    wide.found(PLACES)
    assert _labels(page) == shown
    expect(page.locator("#layer")).to_have_value("scores")
    expect(page.locator("#layout")).to_have_attribute("aria-pressed", "true")
    assert wide.said == []


def test_a_score_says_what_it_means(wide, address):
    page = wide.open(address).page
    wide.click_map(0.5, 0.45)
    wide.found(24)
    first = _labels(page)[0]
    assert "closer than 9" in first
    assert first.endswith("% of pairs")
    expect(page.locator("#ordinary")).to_be_hidden()
    wide.cards.nth(0).locator(".show").click()
    expect(page.locator("#place dl")).to_contain_text("% of pairs")
    page.locator("#file").set_input_files(_file(_picture_like_nothing(address)))
    expect(page.locator("#ordinary")).to_contain_text("Nothing in the archive is like it")
    expect(page.locator("#ordinary")).to_contain_text("closer than only")
    assert wide.said == []


def test_a_picture_of_one_colour_is_told_apart(wide, address):
    page = wide.open(address).page
    page.locator("#file").set_input_files(_file(_png(np.full((40, 40, 3), 120, np.uint8))))
    expect(page.locator("#ordinary")).to_contain_text("The picture is of one colour")
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    page.locator("#file").set_input_files(_file(_png(noise), "noise.png"))
    expect(page.locator("#status")).to_contain_text("noise.png")
    expect(page.locator("#ordinary")).not_to_contain_text("one colour")
    assert wide.said == []


def _picture_like_nothing(address: str) -> bytes:
    """A picture whose best hit is no better than chance, by the service's own word."""
    ramp = np.linspace(0, 255, 32).astype(np.uint8)
    steep = np.stack([np.tile(ramp, (32, 1)), np.tile(ramp[::-1], (32, 1)).T, np.eye(32) * 255], 2)
    even = [
        np.full((32, 32, 3), colour) for colour in (0, 255, (255, 0, 0), (0, 0, 255), (0, 255, 0))
    ]
    for pixels in [steep, *even]:
        png = _png(np.asarray(pixels, dtype=np.uint8))
        body = {"image_base64": base64.b64encode(png).decode(), "k": 1}
        request = urllib.request.Request(
            f"{address}/v1/search", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            if json.load(answer)["ordinary"]:
                return png
    raise AssertionError("every picture is like something")


@pytest.mark.parametrize("layer", ["scores", "colours"])
def test_every_place_is_coloured(wide, address, layer):
    page = wide.open(address).page
    wide.click_map(0.5, 0.45)
    wide.found(24)
    page.wait_for_timeout(500)
    before = _ground(page)
    with page.expect_response(lambda answer: f"/v1/{layer}/" in answer.url) as answer:
        page.locator("#layer").select_option(layer)
    assert answer.value.status == 200
    assert _change(page, before, lambda change: change > 5) > 5
    page.locator("#layer").select_option("")
    assert _change(page, before, lambda change: change < 1) < 1
    assert wide.said == []


def test_tiles_of_layers_carry_the_token(browser, backend):
    app = create_app(backend, digests=token_digests(TOKEN), limits=Limits(rate_per_s=0))
    with serving(app) as address:
        page = browser.new_page()
        page.goto(f"{address}/#layer=colours")
        with page.expect_response(lambda answer: "/v1/colours/" in answer.url) as answer:
            page.get_by_role("dialog").get_by_label("Token").fill(TOKEN)
            page.get_by_role("button", name="Go on").click()
        assert answer.value.status == 200
        page.close()


def test_the_query_has_a_card_with_a_choice_of_dates(wide, address):
    page = wide.open(address).page
    expect(page.locator("#asked")).to_be_hidden()
    wide.click_map(0.5, 0.45)
    wide.found(24)
    card = page.locator("#asked")
    expect(card.locator("img")).to_have_js_property("naturalWidth", 128)
    choice = card.get_by_label("Date of the query")
    expect(choice.locator("option")).to_have_count(3)
    expect(choice).to_have_value("site_20240701")
    with page.expect_response("**/v1/search") as answer:
        choice.select_option("site_20240501")
    assert json.loads(answer.value.request.post_data)["scene"] == "site_20240501"
    expect(choice).to_have_value("site_20240501")
    page.locator("#file").set_input_files(_file(_png(np.zeros((40, 40, 3), np.uint8))))
    expect(card).to_contain_text("the picture chip.png")
    expect(card.locator("img")).to_have_js_property("naturalWidth", 40)
    assert wide.said == []


def test_back_goes_to_the_search_before(wide, address):
    page = wide.open(address).page
    status = page.locator("#status")
    wide.click_map(0.4, 0.4)
    expect(status).to_contain_text("24 hits")
    first, said = _labels(page), status.inner_text()
    page.locator("#file").set_input_files(_file(_png(np.full((40, 40, 3), 90, np.uint8))))
    expect(status).to_contain_text("the picture chip.png")
    second = _labels(page)
    page.locator("#file").set_input_files(_file(_png(np.zeros((40, 40, 3), np.uint8)), "dark.png"))
    expect(status).to_contain_text("the picture dark.png")
    page.go_back()
    expect(status).to_contain_text("the picture chip.png")
    assert _labels(page) == second
    page.go_back()
    expect(status).to_have_text(said)
    assert _labels(page) == first
    page.go_back()
    expect(wide.cards).to_have_count(0)
    expect(page.locator("#asked")).to_be_hidden()
    page.go_forward()
    expect(status).to_have_text(said)
    assert wide.said == []


def test_back_restores_the_settings_of_the_ground(wide, address):
    page = wide.open(address).page
    days, opacity = page.locator("#ground [name=day]"), page.locator("#ground [name=opacity]")
    wide.click_map(0.5, 0.45)
    wide.found(24)
    page.locator("#file").set_input_files(_file(_png(np.full((40, 40, 3), 90, np.uint8))))
    expect(page.locator("#status")).to_contain_text("the picture chip.png")
    days.select_option("2024-06-01")
    page.locator("#ground summary").click()
    opacity.fill("0.5")
    page.go_back()
    expect(days).to_have_value("")
    expect(opacity).to_have_value("1")
    page.go_forward()
    expect(days).to_have_value("2024-06-01")
    expect(opacity).to_have_value("0.5")
    assert wide.said == []


def test_an_open_panel_shows_no_score_of_another_search(wide, address):
    page = wide.open(address).page
    wide.click_map(0.5, 0.45)
    wide.found(24)
    wide.cards.nth(0).get_by_role("button", name="Right").click()
    wide.cards.nth(5).locator(".show").click()
    expect(page.locator("#place dl")).to_contain_text("Score")
    page.route("**/v1/search", lambda route: (page.wait_for_timeout(700), route.continue_()))
    page.get_by_role("button", name="Search again with the marks").click()
    expect(page.locator("#place dl")).not_to_contain_text("Score")
    expect(page.locator("#results")).not_to_have_attribute("aria-busy", "true")
    opened = page.locator(".card.open .score")
    if opened.count():
        expect(page.locator("#place dd").first).to_contain_text(opened.inner_text())
    assert wide.said == []


def test_bands_of_a_picture_are_chosen_and_missing_ones_filled(wide, address):
    page = wide.open(address).page
    grey = np.random.default_rng(1).integers(0, 255, (40, 40), dtype=np.uint8)
    page.locator("#file").set_input_files(_file(_png(grey)))
    form = page.get_by_role("form", name="Bands of the picture")
    expect(form).to_contain_text("The picture has 1 band, the encoder needs 3")
    form.get_by_label("b2").select_option("0")
    with page.expect_response("**/v1/search") as answer:
        form.get_by_role("button", name="Search with these bands").click()
    assert answer.value.status == 200
    wide.found(24)
    expect(form).to_be_hidden()
    assert all("422" in text for text in wide.said)


def test_exchanged_degrees_are_offered_back(wide, address):
    with urllib.request.urlopen(f"{address}/v1/index") as answer:
        west, south, east, north = json.load(answer)["bbox"]
    page = wide.open(address).page
    page.locator("[name=lon]").fill(str((south + north) / 2))
    page.locator("[name=lat]").fill(str((west + east) / 2))
    page.get_by_role("button", name="Find").click()
    page.get_by_role("alert").get_by_role("button", name="Search at longitude").click()
    wide.found(24)
    page.locator("[name=lon]").fill("20")
    page.locator("[name=lat]").fill("95")
    page.get_by_role("button", name="Find").click()
    expect(page.get_by_role("alert")).to_contain_text("Search at longitude 95, latitude 20")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_every_state_is_accessible_and_fits(browser, address, width, scheme):
    phone = width < 800
    context = browser.new_context(
        viewport={"width": width, "height": 800},
        color_scheme=scheme, has_touch=phone, is_mobile=phone,
    )  # fmt: skip
    watched = Watched(context.new_page()).open(address)
    page = watched.page
    assert (_edge(page).mean() < 128) == (scheme == "dark")
    watched.click_map(0.5, 0.45)
    watched.found(24)
    page.get_by_role("button", name="One hit a place").click()
    watched.found(PLACES)
    page.locator("#layer").select_option("scores")
    watched.cards.nth(0).get_by_role("button", name="Right").click()
    watched.cards.nth(1).get_by_role("button", name="Wrong").click()
    watched.cards.nth(2).locator(".show").click()
    expect(page.locator("#place")).to_be_visible()
    _check(page)
    button = page.get_by_role("button", name="Search from this one")
    expect(button).to_be_in_viewport(ratio=1)  # and not clipped by the panel
    panel, stage = (page.locator(name).bounding_box() for name in ("#place", "#stage"))
    assert panel
    assert stage
    assert 0 <= panel["x"] <= panel["x"] + panel["width"] <= width
    assert stage["y"] <= panel["y"]
    assert panel["y"] + panel["height"] <= stage["y"] + stage["height"]
    page.locator("#place .close").click()
    page.get_by_role("button", name="Draw a box").click()
    expect(page.locator("#mode")).to_be_in_viewport(ratio=1)
    expect(page.locator("#map canvas")).to_be_in_viewport(ratio=0.9)
    page.keyboard.press("Escape")
    assert watched.said == []
    page.locator("#file").set_input_files(_file(_png(np.zeros((40, 40), np.uint8))))
    expect(page.locator("#bands")).to_be_visible()
    _check(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    context.close()


def _check(page: Page) -> None:
    found = Axe().run(page, options={"runOnly": RULES}).response
    assert len(found["passes"]) > 20
    assert [(one["id"], one["nodes"][0]["html"]) for one in found["violations"]] == []
