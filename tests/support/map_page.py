"""The map's page in a real browser, watched by tests."""

import shutil

from playwright.sync_api import Locator, Page, expect

CHROMIUM = shutil.which("chromium")
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
"""The rules of axe that pages follow."""
WEBGL = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]

expect.set_options(timeout=60_000)  # a busy machine is slow, not wrong


class Watched:
    """A page of the map and what its console said."""

    def __init__(self, page: Page) -> None:
        self.page, self.said = page, []
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))

    def open(self, url: str, *, drawn: bool = True) -> "Watched":
        """Open the page; ``drawn`` waits until the map listens."""
        self.page.goto(url)
        expect(self.page.locator("#about")).to_contain_text("tiles")
        if drawn:
            expect(self.page.locator(".crosshair")).to_be_attached()
        return self

    @property
    def cards(self) -> Locator:
        return self.page.locator(".card")

    def found(self, count: int) -> None:
        expect(self.page.locator("#status")).to_contain_text(f"{count} hits")
        expect(self.cards).to_have_count(count)

    def click_map(self, across: float, down: float) -> None:
        canvas = self.page.locator("#map canvas")
        box = canvas.bounding_box()
        assert box
        self.page.mouse.click(box["x"] + box["width"] * across, box["y"] + box["height"] * down)

    def scenes_of(self) -> list[str]:
        return self.page.locator(".card .scene").all_inner_texts()
