"""Marks on the map: the whole way from a search to detections that the command line finds again."""

import json
from pathlib import Path
from typing import Any

import geopandas as gpd
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.support.command_line import run
from tests.support.map_page import CHROMIUM, RULES, Watched
from tests.support.service_world import add_day

pytestmark = [
    pytest.mark.usefixtures("ray_session"),
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]

LATER = "20240801"
THRESHOLD = "0.3"


def _answer_of(page: Page, route: str, button: str) -> dict[str, Any]:
    """Press a button; return the answer of the route that it asks."""
    with page.expect_response(f"**/v1/{route}") as answer:
        page.get_by_role("button", name=button, exact=True).click()
    assert answer.value.status == 200, answer.value.text()
    found: dict[str, Any] = answer.value.json()
    return found


def _mark_all(page: Page, tiles: list[dict[str, Any]], place: str) -> None:
    """Mark the tiles of a queue by keys: right at one place, wrong elsewhere."""
    for number, tile in enumerate(tiles, 1):
        expect(page.locator("#queue strong")).to_contain_text(f"{number} of {len(tiles)}")
        page.keyboard.press("y" if tile["tile_key"] == place else "n")


def _download(page: Page, button: str, folder: Path) -> Path:
    with page.expect_download() as download:
        page.get_by_role("button", name=button, exact=True).click()
    target = folder / download.value.suggested_filename
    download.value.save_as(target)
    return target


def _accessible(page: Page) -> None:
    found = Axe().run(page, options={"runOnly": RULES}).response
    assert [(one["id"], one["nodes"][0]["html"]) for one in found["violations"]] == []


def _until_learned(wide: Watched) -> str:
    """Search, mark and let the page suggest what to mark; return the key of the right place."""
    page = wide.page
    with page.expect_response("**/v1/search") as answer:
        wide.click_map(0.5, 0.45)
    found = answer.value.json()
    place = str(found["tile"])
    wide.found(24)
    others = [at for at, hit in enumerate(found["hits"]) if hit["tile_key"] == place]
    assert len(others) == 2  # the two other days of the place
    for card in others:
        wide.cards.nth(card).get_by_role("button", name="Right").click()
    note = page.locator("#marks-note")
    expect(note).to_contain_text(
        "3 right marks and 0 wrong marks; the query is a right one. In use: a mean"
    )
    expect(page.get_by_role("button", name="Detections")).to_be_disabled()
    size = page.viewport_size
    page.set_viewport_size({"width": 390, "height": 800})
    page.locator("#suggest").evaluate("button => button.scrollIntoView({block: 'start'})")
    tiles = _answer_of(page, "suggestions", "Mark these next")["hits"]
    assert len(tiles) == 10
    expect(page.locator("#queue")).to_be_in_viewport(ratio=0.9)
    page.set_viewport_size(size)
    expect(page.locator("#queue img")).to_have_js_property("naturalWidth", 256)
    _accessible(page)
    page.keyboard.press("y")
    expect(note).to_contain_text("4 right")
    page.keyboard.press("u")
    expect(note).to_contain_text("3 right")
    page.keyboard.press("s")
    page.keyboard.press("u")
    _mark_all(page, tiles, place)
    expect(page.locator("#queue")).to_contain_text("All seen")
    _answer_of(page, "search", "Search again")
    expect(page.locator("#queue")).to_be_hidden()
    expect(note).to_contain_text("In use: a query learned from marks.")
    return place


def _check_accuracy(wide: Watched, place: str, folder: Path) -> None:
    """Mark the tiles that are drawn; a saved search brings back what they measure."""
    page = wide.page
    expect(page.locator("#expected")).to_contain_text("Expected from the marks: precision")
    drawn = _answer_of(page, "detections", "Check accuracy")["check"]
    note, marks = page.locator("#queue .note"), page.locator("#marks-note").inner_text()
    expect(page.locator("#queue .hint").first).not_to_contain_text("probable")
    page.keyboard.press("y" if drawn["tiles"][0]["tile_key"] == place else "n")
    expect(note).to_contain_text(f"from 1 of {len(drawn['tiles'])} tiles drawn at random")
    _accessible(page)
    for tile in drawn["tiles"][1:]:
        page.keyboard.press("y" if tile["tile_key"] == place else "n")
    expect(note).to_contain_text(f"from {len(drawn['tiles'])} of {len(drawn['tiles'])} tiles")
    after = _answer_of(page, "detections", "Show detections")["check"]
    assert [one["mark"] is None for one in after["tiles"]] == [False] * len(after["tiles"])
    expect(page.locator("#marks-note")).to_have_text(marks)  # they are not those of the query
    found = page.locator("#expected").inner_text()
    assert "90 % intervals" in found
    assert after["measured"]["scope"] in found
    with page.expect_response("**/v1/detections") as answer:
        page.locator("#file").set_input_files(_download(page, "Saved search", folder))
    assert answer.value.json()["check"]["tiles"] == after["tiles"]
    expect(page.locator("#expected")).to_have_text(found)


def _detect_and_review(wide: Watched, place: str, folder: Path) -> dict[str, Any]:
    """Detect, move the threshold, check, review; return the detections after the review."""
    page = wide.page
    heading = page.locator("#results-title")
    expect(heading).to_have_text("Hits")
    _answer_of(page, "detections", "Detections")
    expect(heading).to_have_text("Detections")
    slider = page.get_by_role("slider", name="Probability at least")
    with page.expect_response("**/v1/detections") as answer:
        slider.fill(THRESHOLD)
    before = answer.value.json()
    expect(page.locator("#status")).to_contain_text(f"{before['total']} detections at 30 % or more")
    expect(page.locator("#threshold")).to_contain_text("30 %")
    assert json.loads(answer.value.request.post_data)["threshold"] == float(THRESHOLD)
    _check_accuracy(wide, place, folder)
    page.get_by_role("button", name=f"Review {len(before['review'])} tiles").click()
    _mark_all(page, before["review"], place)
    after = _answer_of(page, "detections", "Detect again")
    reviewed = {hit["row"] for hit in before["review"]}
    assert not reviewed & {hit["row"] for hit in after["review"]}
    _accessible(page)
    return after


def test_marks_become_detections_that_the_command_line_finds_on_later_scenes(
    wide, address, backend, tmp_path
):
    page = wide.open(address).page
    place = _until_learned(wide)
    found = _detect_and_review(wide, place, tmp_path)
    assert sum(hit["mark"] == "right" for hit in found["hits"]) == 3
    unmarked = [hit["probability"] for hit in found["hits"] if hit["mark"] is None]
    assert all(probability >= float(THRESHOLD) for probability in unmarked)
    status, link = page.locator("#status").inner_text(), page.url

    detections = gpd.read_file(_download(page, "GeoJSON", tmp_path))
    assert detections["row"].tolist() == [hit["row"] for hit in found["hits"]]
    assert {"probability", "mark"} <= set(detections)
    marks = gpd.read_file(_download(page, "Marks, GeoJSON", tmp_path))
    table = gpd.read_parquet(_download(page, "Marks, GeoParquet", tmp_path))
    assert table["mark"].tolist() == marks["mark"].tolist()
    right = marks[marks["mark"] == "right"]
    assert set(right["tile_key"]) == {place}
    assert len(right) == 3
    saved = _download(page, "Saved search", tmp_path)

    page.goto("about:blank")
    wide.open(address)
    page.locator("#file").set_input_files(saved)
    expect(page.locator("#status")).to_have_text(status)
    expect(page.locator("#marks-note")).to_contain_text(
        f"3 right marks and {len(marks) - 3} wrong marks"
    )
    slider = page.get_by_role("slider", name="Probability at least")
    expect(slider).to_have_value(THRESHOLD)
    page.goto("about:blank")
    wide.open(link)
    expect(page.locator("#status")).to_have_text(status)

    index = backend._config.index
    ready = f"{address}/v1/ready"
    before = page.request.get(ready).json()["version"]
    add_day(index.path.parent, LATER, 7)
    while page.request.get(ready).json()["version"] == before:  # the service follows the index
        page.wait_for_timeout(100)
    again = run("detect", "--index", index, "--saved", saved, "--json")
    assert again.code == 0, again.err
    fresh = [hit for hit in again.data["detections"] if hit["scene"] == f"site_{LATER}"]
    assert place in [hit["tile_key"] for hit in fresh]
    assert all(hit["probability"] >= float(THRESHOLD) for hit in fresh)
    hits = run("search", "--index", index, "--saved", saved, "--json")
    assert f"site_{LATER}" in {hit["scene"] for hit in hits.data["hits"]}
    assert wide.said == []


def test_a_file_that_is_no_saved_search_is_refused_in_words(wide, address):
    page = wide.open(address).page
    page.locator("#file").set_input_files(
        {"name": "notes.json", "mimeType": "application/json", "buffer": b"[1]"}
    )
    expect(page.get_by_role("alert")).to_contain_text("the file is not a saved search: it does not")
    assert all("422" in text for text in wide.said)
