import base64
import re
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from workflows.report.charts import Footprints, footprint_maps, line_chart
from workflows.report.html import (
    Answer,
    Command,
    LedgerSummary,
    ReportData,
    Score,
    TileCard,
    Timing,
    render_report,
    write_report,
)
from workflows.report.rendering import data_uri

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Collects text and references, and checks that tags close in order."""

    def __init__(self, html):
        super().__init__()
        self.open, self.urls, self.tags, self.text = [], [], [], []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.urls += [v for k, v in attrs if k in {"src", "href", "xlink:href", "action", "data"}]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def shown(value, **more):
    return TileCard(picture=data_uri(np.full((8, 8, 3), value, np.uint8)), title="s<1>", **more)


def _corners(boxes):
    west, south, east, north = boxes.T
    xs, ys = [west, east, east, west], [south, south, north, north]
    return np.stack([np.stack(xs, axis=1), np.stack(ys, axis=1)], axis=2)


@pytest.fixture
def footprints():
    west = np.array([18.0, 18.01, 18.02, -70.0])
    bbox = np.stack([west, np.full(4, 48.0), west + 0.01, np.full(4, 48.01)], axis=1)
    return Footprints(
        corners=_corners(bbox),
        scene=np.array(["a", "a", "b", "c"], object),
        class_index=np.array([0, 1, 1, -1]),
        classes=("forest", "mine & pit"),
        marks=((18.015, 48.005, "1"),),
    )


@pytest.fixture
def data(footprints):
    return ReportData(
        title="A <b>run</b>",
        summary="What was run.",
        figures=(("1,234", "tiles"),),
        metrics=("mAP", "rare mAP"),
        scores=(
            Score(name="trained", metrics={"mAP": 0.8123, "rare mAP": 0.5}),
            Score(name="random", metrics={"mAP": 0.2}),
        ),
        protocol="Held-out ground.",
        answers=(
            Answer(
                query=shown(10, labels=("mine",), date="2024-06-18"),
                hits=(shown(20, labels=("mine", "forest"), score=0.97),),
            ),
        ),
        footprints=footprints,
        history=({"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.0, "mAP": 0.4}),
        ledger=LedgerSummary(
            embedded=3, empty=1, quarantined=0, tiles=1234, remarks=(("d", "empty", "cloud"),)
        ),
        timings=(Timing(stage="world", seconds=3.25), Timing(stage="train", seconds=60.5)),
        facts=(("seed", "7"),),
        commands=(Command(why="Ask again.", line="skysift search --tile x"),),
    )


def test_page_needs_nothing_outside_itself(data):
    html = render_report(data)
    page = Page(html)
    assert all(url.startswith("data:image/") for url in page.urls)
    assert len(page.urls) == 2
    assert "script" not in page.tags
    assert not re.search(r"https?://|@import|url\(", html)


def test_page_shows_what_it_was_given(data):
    text = " ".join(" ".join(Page(render_report(data)).text).split())
    for piece in (
        "A <b>run</b>",
        "0.812",
        "n/a",
        "0.970",
        "2024-06-18",
        "mine & pit",
        "3 embedded ( 1,234 tiles), 1 empty, 0 quarantined".replace("( ", "("),
        "63.8",
        "skysift search --tile x",
    ):
        assert piece in text, piece


def test_shared_labels_are_marked_and_others_are_not(data):
    html = render_report(data)
    assert '<span class="same">mine</span><span>forest</span>' in html


def test_best_score_of_each_metric_is_marked(data):
    html = render_report(data)
    assert re.search(r'<td class="n best">0\.812', html)
    assert not re.search(r'best">0\.200', html)


def test_a_report_of_real_scenes_leaves_out_what_it_has_not():
    page = Page(render_report(ReportData(title="t", summary="s")))
    assert "section" not in page.tags
    assert "svg" not in page.tags


def test_write_report_replaces_the_file_whole(data, tmp_path):
    target = tmp_path / "report.html"
    target.write_text("old")
    write_report(data, target)
    assert target.read_text() == render_report(data)
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_regions_far_apart_get_panels_of_their_own(footprints):
    panels = footprint_maps(footprints)
    assert [p.caption.split(" · ")[-1] for p in panels] == ["3 tiles", "1 tiles"]
    assert panels[0].caption.startswith("48.00°N 18.01°E · 2.23 km by 1.11 km")
    assert panels[0].svg.count("M") == 3 + 1  # tiles and scale bar
    assert 'class="mark"' in panels[0].svg
    assert 'class="mark"' not in panels[1].svg


def test_a_region_across_the_antimeridian_is_one_small_panel():
    bbox = np.array([[179.9, 10.0, 179.99, 10.1], [179.99, 10.0, -179.9, 10.1]])
    panel = footprint_maps(
        Footprints(
            corners=_corners(bbox),
            scene=np.array(["a", "a"], object),
            class_index=np.array([-1, -1]),
            classes=(),
        )
    )
    assert len(panel) == 1
    assert "21.9 km" in panel[0].caption


def test_line_chart_puts_high_values_up_and_keeps_gaps():
    svg = line_chart("loss", [1, 2, 3], [3.0, None, 1.0], x_label="epoch")
    path = re.search(r'<path d="([^"]+)" style="[^"]*stroke-width: 2;', svg)[1]
    (_, x0, y0), (joins, x1, y1) = re.findall(r"([ML]) ([\d.]+) ([\d.]+)", path)
    assert joins == "M"  # nothing is drawn across the gap
    assert float(x0) < float(x1)
    assert float(y0) < float(y1)
    assert svg.count("stroke-linecap: round") == 2  # a dot a value
    with pytest.raises(ValueError, match="at least one"):
        line_chart("loss", [1], [None], x_label="epoch")


def test_charts_are_named_and_share_a_page():
    charts = [line_chart(name, [1, 2], [0.5, 0.25], x_label="epoch") for name in ("loss", "a & b")]
    for svg, title in zip(charts, ("loss", "a &amp; b"), strict=True):
        assert svg.startswith('<svg viewBox="0 0 380 220" role="img"')
        assert f"<title>{title}</title>" in svg
        assert not re.search(r" id=|href|url\(|<script|font-family|https?:", svg)
        Page(svg)


def test_data_uri_is_a_picture_of_the_asked_size():
    uri = data_uri(np.zeros((32, 64, 3), np.uint8), side_px=128)
    head, _, body = uri.partition(",")
    assert head == "data:image/jpeg;base64"
    assert Image.open(BytesIO(base64.b64decode(body))).size == (128, 64)
