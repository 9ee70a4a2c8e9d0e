"""Hits in the forms that notebooks, data frames and maps take."""

import geopandas
import lonboard
import matplotlib as mpl
import numpy as np
import pyarrow as pa
import pytest
import shapely

from pipeline.indexing.driver import build_index
from pipeline.search.query import Query
from pipeline.search.searcher import Searcher
from storage.display import Picture
from storage.errors import ConfigError
from tests.support.archive_world import add_scenes, create_archive
from tests.support.indexing_world import patch_out_ray


@pytest.fixture(scope="module")
def searcher(tmp_path_factory: pytest.TempPathFactory) -> Searcher:
    folder = tmp_path_factory.mktemp("hits")
    create_archive(str(folder / "archive"), 8)
    add_scenes(str(folder / "archive"), {"a<b>": 15, "b": 15})
    with pytest.MonkeyPatch.context() as patch:
        patch_out_ray(patch)
        build_index(str(folder / "archive"), str(folder / "index"))
    return Searcher.local(str(folder / "index"))


def answer(searcher: Searcher, k: int = 6, **settings):
    return searcher.answer(Query(vector=np.ones(8, np.float32), label="<ones>"), k, **settings)


def test_length_and_iteration_are_those_of_the_table(searcher):
    hits = answer(searcher)
    assert len(hits) == len(list(hits)) == hits.to_arrow().num_rows == 6
    assert list(hits) == hits.to_arrow().to_pylist()
    assert [hit["score"] for hit in hits] == hits.scores[0].tolist()
    nothing = answer(searcher, where={"until": "1990-01-01"})
    assert (len(nothing), list(nothing)) == (0, [])


def test_frames_hold_every_column_and_the_footprint(searcher):
    hits = answer(searcher)
    frame = hits.to_pandas()
    assert frame.columns.tolist() == hits.to_arrow().column_names
    places = hits.to_geodataframe()
    assert places.crs.to_authority() == ("OGC", "CRS84")
    assert places.columns.tolist() == frame.columns.tolist()
    boxes = np.array([list(box.values()) for box in frame["bbox"]])
    np.testing.assert_allclose(places.geometry.bounds.to_numpy(), boxes)


def test_arrow_is_recognised_as_geometry_by_other_libraries(searcher):
    hits = answer(searcher)
    field = hits.to_arrow().schema.field("geometry")
    assert field.metadata[b"ARROW:extension:name"] == b"geoarrow.wkb"
    streamed = pa.table(hits)  # the PyCapsule interface
    assert streamed.num_rows == 6
    assert geopandas.GeoDataFrame.from_arrow(hits).geometry.geom_type.tolist() == ["Polygon"] * 6
    layer = lonboard.PolygonLayer(table=hits.to_arrow())
    drawn = geopandas.GeoDataFrame.from_arrow(layer.table)
    expected = hits.to_geodataframe().geometry
    assert shapely.equals(drawn.geometry.to_numpy(), expected.to_numpy()).all()
    assert isinstance(lonboard.viz(hits), lonboard.Map)


def test_a_plot_shows_every_footprint(searcher):
    mpl.use("agg")
    axes = answer(searcher).plot()
    assert len(axes.collections[0].get_paths()) == 6
    assert axes.get_xlabel() == "longitude, degrees"
    with pytest.raises(ConfigError, match="no hit to draw"):
        answer(searcher, where={"until": "1990-01-01"}).plot()


class Drawer:
    def thumbnails(self, tiles):
        return [
            Picture(f"data:image/png;base64,{len(scene)}") for scene, _ in tiles
        ], "1 is missing"

    def sheet(self, hits, title, columns, side_px):
        return hits.num_rows, title, columns, side_px


def test_a_notebook_shows_a_table_and_escapes_names(searcher):
    hits = answer(searcher, 12)
    html = hits._repr_html_()
    assert html.count("<tr>") == 13
    assert "a&lt;b&gt;" in html
    assert "12 hits like &lt;ones&gt;" in html
    assert "<b>" not in html
    assert "<img" not in html
    object.__setattr__(hits, "pictures", Drawer())
    html = hits._repr_html_()
    assert html.count("<img src='data:image/png;base64,") == 12
    assert "1 is missing" in html
    assert hits.sheet(count=5) == (5, "12 hits like <ones>", 6, 192)


def test_a_sheet_without_pictures_says_where_to_get_them(searcher):
    with pytest.raises(ConfigError, match=r"skysift\.open"):
        answer(searcher).sheet()


def test_text_shows_the_first_hits_and_counts_the_rest(searcher):
    text = repr(answer(searcher, 25))
    assert text.startswith("<25 hits like <ones>>\n")
    _title, _columns, *shown, more, ordinary = text.splitlines()
    assert (len(shown), more) == (20, "and 5 more; to_pandas() has all")
    assert ordinary == "nothing in the archive is like the query"
    several = searcher.search(np.eye(8)[:2], 2)
    assert repr(several).startswith("<4 hits of 2 queries>")
    assert "query" in repr(several).splitlines()[1]
    assert repr(answer(searcher, where={"until": "1990-01-01"})) == "<0 hits like <ones>>"
