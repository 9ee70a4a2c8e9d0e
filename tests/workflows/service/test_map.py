"""The map in a real browser: what an analyst does, with mouse and keyboard, wide and narrow."""

import hashlib
import io
import json
import re
import urllib.request
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Error, Page, expect

from storage.archive.reader import Archive
from tests.support.map_page import CHROMIUM, RULES, Watched
from tests.support.service_world import serving
from workflows.service import mosaic
from workflows.service.app import WEB, create_app, create_service
from workflows.service.backend import IndexBackend
from workflows.service.settings import BackendConfig, Limits, MapConfig
from workflows.service.tokens import Access, token_digests

TOKEN = "0123456789abcdef-token"

pytestmark = [
    pytest.mark.usefixtures("ray_session"),
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]


def test_click_search_refine_step_and_export(wide, address):
    page = wide.open(address).page
    expect(page.locator("#status")).to_contain_text("3 scenes")
    wide.click_map(0.5, 0.45)
    wide.found(24)
    image = page.locator(".card img").first
    expect(image).to_have_js_property("naturalWidth", 128)

    wide.cards.nth(0).get_by_role("button", name="Right").click()
    wide.cards.nth(5).get_by_role("button", name="Wrong").click()
    marked = [wide.cards.nth(n).locator(".show").get_attribute("aria-label") for n in (0, 5)]
    expect(page.locator("#examples li")).to_have_count(2)
    with page.expect_response("**/v1/search") as answer:
        page.get_by_role("button", name="Search again with the marks").click()
    body = json.loads(answer.value.request.post_data)
    assert (len(body["positive"]), len(body["negative"])) == (1, 1)
    wide.found(24)
    shown = page.locator(".card .show").evaluate_all("all => all.map(e => e.ariaLabel)")
    facts = {text.partition(", ")[2] for text in shown if text}
    assert len(facts) > 1
    assert marked[0]
    assert page.locator(".card[data-mark=good]").count() == 0  # what asks is no hit

    wide.cards.nth(2).locator(".show").click()
    place = page.locator("#place")
    expect(place).to_contain_text("of 3)")
    before = place.locator("strong").inner_text()
    step = "Later date" if "(1 of" in before else "Earlier date"
    place.get_by_role("button", name=step).click()
    expect(place.locator("strong")).not_to_have_text(before)
    assert "open=" in page.url

    with page.expect_download() as saved:
        page.get_by_role("button", name="GeoJSON", exact=True).click()
    collection = json.loads(Path(saved.value.path()).read_text())
    assert len(collection["features"]) == 24
    with page.expect_download() as saved:
        page.get_by_role("button", name="GeoParquet", exact=True).click()
    assert len(gpd.read_parquet(saved.value.path())) == 24
    assert wide.said == []


def shown_colour(page: Page, across: float, down: float) -> np.ndarray:
    """The colour of a pixel of the map, as the screen shows it."""
    box = page.locator("#map canvas").bounding_box()
    assert box
    place = (int(box["x"] + box["width"] * across), int(box["y"] + box["height"] * down))
    shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    return np.array(shot.getpixel(place), int)


def wait_for_tiles(page: Page) -> None:
    expect(page.locator("#map")).to_have_attribute("data-idle", "true")


def test_the_scenes_lie_beneath_outlines_by_day_with_opacity(wide, address):
    page = wide.open(address).page
    expect(page.locator("#status")).to_contain_text("3 scenes")
    wait_for_tiles(page)
    seen = shown_colour(page, 0.5, 0.45)
    assert np.ptp(seen) > 5 or seen.max() < 200, seen  # neither white nor the grey of the water
    days = page.locator("#ground [name=day]")
    expect(days.locator("option")).to_have_count(4)
    with page.expect_request("**/v1/mosaic/**since=2024-05-01**"):
        days.select_option("2024-05-01")
    assert "day=2024-05-01" in page.url
    with page.expect_request("**/v1/mosaic/**since=2024-06-01**"):
        page.get_by_role("button", name="Later day").click()
    page.locator("#ground summary").click()
    page.get_by_label("Opacity").fill("0")
    for _ in range(50):  # the scenes fade
        differs = np.abs(shown_colour(page, 0.5, 0.45) - shown_colour(page, 0.02, 0.9))
        if differs.max() <= 3:
            break
        page.wait_for_timeout(200)
    assert differs.max() <= 3
    assert "opacity=0" in page.url
    with page.expect_request("**/v1/mosaic/**gamma=2**"):
        page.get_by_label("Brightness").fill("2")
    other = page.context.new_page()
    other.goto(page.url)
    expect(other.locator("#ground [name=day]")).to_have_value("2024-06-01")
    other.close()
    assert wide.said == []


def test_the_page_says_why_scenes_are_hatched_and_what_helps(wide, address, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(mosaic, "MOST_FILE_PIXELS", 0)
        page = wide.open(f"{address}/#gamma=1.7").page
        note = page.locator("#ground .note")
        expect(note).to_contain_text("Scenes without overviews are hatched")
        expect(note).to_contain_text("gdaladdo")
        wait_for_tiles(page)
        shot = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB"), int)
        middle = shot[250:350, 740:840].reshape(-1, 3)
        assert (np.abs(middle - np.array([122, 134, 145])).max(axis=1) < 45).mean() > 0.1
        page.locator("#ground summary").click()
        page.get_by_label("Opacity").fill("0")
        page.get_by_label("Opacity").dispatch_event("change")
        expect(note).to_be_hidden()
    page.goto("about:blank")
    wide.open(f"{address}/#gamma=1.8")
    wait_for_tiles(page)
    expect(note).to_be_hidden()
    assert wide.said == []


@pytest.mark.parametrize("size", [(1280, 800), (390, 844)])
def test_an_open_hit_is_fitted_clear_of_its_panel(browser, address, size):
    context = browser.new_context(viewport={"width": size[0], "height": size[1]})
    watched = Watched(context.new_page()).open(address)
    page = watched.page
    expect(page.locator("#status")).to_contain_text("3 scenes")
    watched.click_map(0.5, 0.45)
    watched.found(24)
    for rank in (0, 7, 15):
        page.locator("#map").evaluate("map => delete map.dataset.open")
        watched.cards.nth(rank).locator(".show").click()
        expect(page.locator("#place")).to_be_visible()
        page.wait_for_selector("#map[data-open]")  # the map has moved
        hit = page.evaluate("document.querySelector('#map').dataset.open.split(',').map(Number)")
        panel = page.locator("#place").bounding_box()
        stage = page.locator("#map").bounding_box()
        assert panel
        assert stage
        left, top, right, bottom = hit
        assert left >= stage["x"]
        assert right <= stage["x"] + stage["width"]
        assert top >= stage["y"]
        assert bottom <= stage["y"] + stage["height"]
        beside = right <= panel["x"] or top >= panel["y"] + panel["height"]
        assert beside, (hit, panel)
    assert watched.said == []
    context.close()


def test_a_base_map_stays_in_sight_beneath_the_outlines(browser, backend):
    """Under three dates of one place, with the scenes made transparent."""
    config = MapConfig(base_map="http://127.0.0.1:9/{z}/{x}/{y}.png")
    tile = io.BytesIO()
    Image.new("RGB", (256, 256), (10, 160, 60)).save(tile, "PNG")
    app = create_app(backend, limits=Limits(rate_per_s=0), map_config=config)
    with serving(app) as address:
        watched = Watched(browser.new_page())
        watched.page.route(
            "http://127.0.0.1:9/**",
            lambda route: route.fulfill(
                body=tile.getvalue(),
                content_type="image/png",
                headers={"Access-Control-Allow-Origin": "*"},
            ),
        )
        watched.open(f"{address}/#opacity=0")
        expect(watched.page.locator("#status")).to_contain_text("3 scenes")
        wait_for_tiles(watched.page)
        np.testing.assert_allclose(shown_colour(watched.page, 0.5, 0.45), (10, 160, 60), atol=12)
        assert watched.said == []
        watched.page.close()


def test_the_page_says_why_there_are_no_pictures(wide, backend, monkeypatch):
    monkeypatch.setattr(Archive, "origins", lambda *_: {})
    blind = IndexBackend(BackendConfig(index_uri=backend._config.index_uri))
    with serving(create_app(blind, limits=Limits(rate_per_s=0))) as address:
        page = wide.open(address).page
        expect(page.get_by_role("alert")).to_contain_text("skysift archive remember")
        assert page.locator("#ground").count() == 0
    assert wide.said == []


def test_a_link_reproduces_the_view(wide, browser, address):
    page = wide.open(address).page
    wide.click_map(0.5, 0.45)
    wide.found(24)
    page.locator("[name=since]").fill("2024-06-01")
    page.locator("[name=until]").fill("2024-06-01")
    expect(wide.cards).to_have_count(16)
    assert {*wide.scenes_of()} == {"site_20240601"}
    wide.cards.nth(1).locator(".show").click()
    expect(page.locator("#place")).to_be_visible()
    wide.cards.nth(3).get_by_role("button", name="Wrong").click()
    page.get_by_role("button", name="Search again").click()
    expect(page.locator("#results")).not_to_have_attribute("aria-busy", "true")
    count = wide.cards.count()
    labels = page.locator(".card .show").evaluate_all("all => all.map(e => e.ariaLabel)")
    other = Watched(browser.new_page()).open(page.url)
    other.found(count)
    again = other.page.locator(".card .show").evaluate_all("all => all.map(e => e.ariaLabel)")
    assert again == labels
    expect(other.page.locator("#place")).to_be_visible()
    expect(other.page.locator("[name=since]")).to_have_value("2024-06-01")
    assert other.page.locator("#examples li").count() == 1
    assert (wide.said, other.said) == ([], [])
    other.page.close()


def test_a_box_asks_or_confines(wide, address):
    page = wide.open(address).page
    expect(page.locator("#status")).to_contain_text("scenes")
    canvas = page.locator("#map canvas").bounding_box()
    assert canvas
    west, north = canvas["x"] + canvas["width"] * 0.45, canvas["y"] + canvas["height"] * 0.4

    def drag() -> None:
        page.mouse.move(west, north)
        page.mouse.down()
        page.mouse.move(west + 60, north + 60, steps=3)
        page.mouse.up()

    page.get_by_role("button", name="Draw a box").click()
    expect(page.locator("#mode")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#mode")).to_be_hidden()
    page.get_by_role("button", name="Draw a box").click()
    drag()
    expect(page.locator("#status")).to_contain_text("like the tiles in the box")
    assert "box=" in page.url
    page.get_by_role("button", name="Draw an area").click()
    drag()
    expect(page.locator("[name=area]")).not_to_have_value("")
    assert "area=" in page.url
    page.get_by_role("button", name="Clear filters").click()
    expect(page.locator("[name=area]")).to_have_value("")
    assert wide.said == []


def test_a_picture_asks_and_a_wrong_one_is_explained(wide, address):
    page = wide.open(address).page
    pixels = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG")
    file = {"name": "chip.png", "mimeType": "image/png", "buffer": png.getvalue()}
    page.locator("#file").set_input_files(file)
    wide.found(24)
    expect(page.locator("#status")).to_contain_text("like the picture chip.png")
    assert wide.said == []
    broken = {"name": "chip.png", "mimeType": "image/png", "buffer": png.getvalue()[:60]}
    page.locator("#file").set_input_files(broken)
    expect(page.get_by_role("alert")).to_contain_text("the image")
    page.locator("#file").set_input_files({**file, "name": "chip.gif"})
    expect(page.get_by_role("alert")).to_contain_text("chip.gif is no PNG")


def test_errors_are_told_in_words(wide, address):
    page = wide.open(address).page
    page.locator("[name=lon]").fill("0")
    page.locator("[name=lat]").fill("95")
    page.get_by_role("button", name="Find").click()
    expect(page.get_by_role("alert")).to_contain_text("latitude -90 to 90")
    page.locator("[name=lat]").fill("0")
    page.locator("[name=lat]").press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("inside one of the outlined scenes")
    page.route("**/v1/search", lambda route: route.abort())
    page.locator("[name=lat]").press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("cannot be reached")
    assert all("404" in text or "ERR_FAILED" in text for text in wide.said)


def test_everything_is_reached_by_keyboard(wide, address):
    page = wide.open(address).page
    expect(page.locator("#status")).to_contain_text("scenes")
    page.locator("#map canvas").focus()
    page.keyboard.press("Enter")
    wide.found(24)
    wide.cards.nth(0).locator(".show").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(page.locator("#place")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#place")).to_be_hidden()
    focused = page.evaluate("document.activeElement.closest('.card')?.dataset.rank")
    assert focused == "2"
    seen = set()
    page.locator(".skip").focus()
    for _ in range(24):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.id || document.activeElement.name"))
    assert {"link", "geojson", "lon", "lat", "file", "box", "draw-query", "since", "cloud"} <= seen
    unnamed = page.evaluate(
        """[...document.querySelectorAll('button, input, select')].filter(e =>
        !(e.ariaLabel || e.textContent.trim() || e.labels?.length)).map(e => e.outerHTML)"""
    )
    assert unnamed == []


def test_a_narrow_page_fits(browser, address):
    context = browser.new_context(
        viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True
    )
    narrow = Watched(context.new_page()).open(address)
    expect(narrow.page.locator("#status")).to_contain_text("scenes")
    narrow.click_map(0.5, 0.45)
    narrow.found(24)
    narrow.cards.nth(0).locator(".show").click()
    expect(narrow.page.locator("#place")).to_be_visible()
    assert narrow.page.evaluate("document.documentElement.scrollWidth") <= 390
    for button in narrow.page.locator("button:visible").all():
        box = button.bounding_box()
        assert box
        assert box["height"] >= 24, button.inner_text()
    assert narrow.said == []
    context.close()


def test_without_webgl_the_page_says_so_and_works_as_a_list(browser, address):
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-3d-apis"]
    other = browser.browser_type.launch(executable_path=CHROMIUM, args=arguments)
    plain = Watched(other.new_page()).open(address, drawn=False)
    expect(plain.page.locator("#no-map")).to_contain_text("no WebGL")
    west, south, east, north = _extent(address)
    plain.page.locator("[name=lon]").fill(str((west + east) / 2))
    plain.page.locator("[name=lat]").fill(str((south + north) / 2))
    plain.page.get_by_role("button", name="Find").click()
    plain.found(24)
    assert plain.said == []
    other.close()


def test_a_token_is_asked_for_once_and_kept_out_of_the_address(browser, backend):
    app = create_app(backend, digests=token_digests(TOKEN), limits=Limits(rate_per_s=0))
    with serving(app) as address:
        page = browser.new_page()
        page.goto(address)
        dialog = page.get_by_role("dialog")
        dialog.get_by_label("Token").fill("wrong-wrong-wrong-wrong")
        dialog.get_by_role("button", name="Go on").click()
        expect(dialog).to_be_visible()
        dialog.get_by_label("Token").fill(TOKEN)
        dialog.get_by_role("button", name="Go on").click()
        expect(page.locator("#about")).to_contain_text("tiles")
        expect(page.locator("#status")).to_contain_text("3 scenes")
        assert TOKEN not in page.url
        page.close()


def test_a_refusal_from_before_the_token_does_not_ask_for_it_again(browser, backend):
    app = create_app(backend, digests=token_digests(TOKEN), limits=Limits(rate_per_s=0))
    with serving(app) as address:
        page, held = browser.new_page(), []
        page.route("**/v1/indexes", lambda route: held.append(route), times=1)
        page.goto(address)
        dialog = page.get_by_role("dialog")
        dialog.get_by_label("Token").fill(TOKEN)
        dialog.get_by_role("button", name="Go on").click()
        expect(page.locator("#status")).to_contain_text("3 scenes")
        with page.expect_response(lambda answer: answer.url.endswith("indexes") and answer.ok):
            held[0].continue_()  # without a token, so the first answer is 401
        expect(dialog).to_be_hidden()
        page.close()


def test_a_person_chooses_among_the_indexes_that_the_token_may_read(browser, backend, tmp_path):
    tokens = tmp_path / "tokens.yaml"
    tokens.write_text(f"tokens: [{{token: {TOKEN}, indexes: {{coast: read, lakes: read}}}}]")
    backends = {"prairie": backend, "coast": backend, "lakes": backend}
    app = create_service(backends, Access((), tokens), limits=Limits(rate_per_s=0))
    asked: list[str] = []
    with serving(app) as address:
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        page.get_by_role("dialog").get_by_label("Token").fill(TOKEN)
        page.get_by_role("dialog").get_by_role("button", name="Go on").click()
        page.wait_for_url("**/?index=coast")  # the default may not be read
        indexes = page.get_by_role("combobox", name="Index")
        expect(indexes).to_have_value("coast")
        assert indexes.locator("option").all_inner_texts() == ["coast", "lakes"]
        found = Axe().run(page, options={"runOnly": RULES}).response["violations"]
        assert [(one["id"], one["nodes"][0]["html"]) for one in found] == []
        page.wait_for_load_state("networkidle")  # nothing of this page comes after the next
        asked.clear()
        indexes.select_option("lakes")
        page.wait_for_url("**/?index=lakes*")
        expect(page.locator("#about")).to_contain_text("tiles")
        expect(page.locator("#status")).to_contain_text("3 scenes")
        routes = {url.split("/")[4] for url in asked if url.startswith(f"{address}/v1/")}
        assert routes == {"lakes", "indexes"}
        page.close()


def test_nothing_is_loaded_from_elsewhere(wide, address):
    asked: list[str] = []
    wide.page.on("request", lambda request: asked.append(request.url))
    wide.open(address)
    expect(wide.page.locator("#status")).to_contain_text("scenes")
    foreign = [url for url in asked if not url.startswith((address, "blob:", "data:"))]
    assert foreign == []
    with pytest.raises(Error, match="dynamically imported"):
        wide.page.evaluate("import('https://cdn.example/x.js')")


def test_what_is_vendored_is_what_npm_gave():
    vendor = WEB / "vendor"
    for line in (vendor / "SHA256SUMS").read_text().splitlines():
        digest, name = re.split(r"\s+", line)
        assert hashlib.sha256((vendor / name).read_bytes()).hexdigest() == digest, name


def _extent(address: str) -> list[float]:
    with urllib.request.urlopen(f"{address}/v1/index") as answer:
        return json.load(answer)["bbox"]
