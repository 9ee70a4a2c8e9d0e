"""Questions in Python ask what the searcher answers, and say what is wrong with an example."""

import geopandas
import numpy as np
import pytest
import shapely

from pipeline.indexing.driver import build_index
from pipeline.search.query import QueryResolver, combine
from pipeline.search.question import Question
from pipeline.search.searcher import Searcher
from storage.errors import ConfigError, EncoderMismatchError, NotFoundError
from storage.geometry import centres
from storage.index.filter import Filter
from tests.support.archive_world import add_scenes, create_archive
from tests.support.indexing_world import patch_out_ray


@pytest.fixture(scope="module")
def searcher(tmp_path_factory: pytest.TempPathFactory) -> Searcher:
    """Three scenes on three days."""
    folder = tmp_path_factory.mktemp("question")
    archive, index = str(folder / "archive"), str(folder / "index")
    create_archive(archive, 8)
    for day, name in enumerate("abc"):
        add_scenes(archive, {name: 20}, seed=day, version=name, days=10 * day)
    with pytest.MonkeyPatch.context() as patch:
        patch_out_ray(patch)
        build_index(archive, index)
    return Searcher.local(index)


@pytest.fixture
def index(searcher: Searcher) -> Question:
    return Question(searcher=searcher, resolver=QueryResolver(searcher))


@pytest.fixture
def rows(searcher: Searcher):
    return searcher.find(Filter(), 100).to_pylist()


def same(one, other) -> bool:
    return one.to_arrow().equals(other.to_arrow())


def test_a_question_asks_what_the_searcher_answers(searcher, index, rows):
    tile, other = rows[3], rows[30]
    resolver = QueryResolver(searcher)
    query = combine(
        [resolver.tile(tile["tile_key"], tile["scene"])],
        [resolver.tile(other["tile_key"], other["scene"])],
    )
    asked = index.like(tile=tile["tile_key"], scene=tile["scene"], negative=[other])
    assert same(asked.top(7), searcher.answer(query, 7))
    assert len(asked.top(7)) == 7
    few = asked.where(scenes=["b"], max_cloud_fraction=0.9)
    where = Filter(scenes=("b",), max_cloud_fraction=0.9)
    assert same(few.top(5), searcher.answer(query, 5, where))
    assert {hit["scene"] for hit in few.top(5)} == {"b"}
    assert same(asked.above(0.2), searcher.answer(query, min_score=0.2))
    assert same(asked.top(4, distinct="place"), searcher.answer(query, 4, distinct="place"))
    assert asked.top(7).queries[0].label == query.label


def test_examples_have_many_forms_of_one_meaning(searcher, index, rows):
    row = rows[11]
    lon, lat = centres([[row[edge] for edge in ("west", "south", "east", "north")]])[0].tolist()
    day = row["datetime"]
    by_place = index.like(lonlat=(lon, lat), date=day).top(5)
    forms = [
        {"lonlat": (lon, lat), "date": day},
        {"lonlat": shapely.Point(lon, lat), "date": day.isoformat()},
    ]
    for form in forms:
        assert same(index.like(**form).top(5), by_place)
        assert same(index.like(positive=[form]).top(5), by_place)
    newest = index.like(lonlat=(lon, lat)).top(5)
    for value in ((lon, lat), [lon, lat], np.array([lon, lat]), shapely.Point(lon, lat)):
        assert same(index.like(positive=[value]).top(5), newest)
    by_tile = index.like(tile=row["tile_key"], scene=row["scene"]).top(5)
    assert same(index.like(positive=[row]).top(5), by_tile)
    (hit, *_) = by_tile
    assert same(
        index.like(positive=[hit]).top(5),
        index.like(tile=hit["tile_key"], scene=hit["scene"]).top(5),
    )
    (vector,) = searcher.archive.read([row["row"]], ["embedding"])["embedding"]
    by_vector = index.like(vector=vector).top(5)
    assert by_vector.rows[0, 0] == row["row"]
    assert same(index.like(positive=[vector.tolist()]).top(5), by_vector)
    assert index.like(vector=np.stack([vector, vector])).positive[1].label == "vector 1"


def test_a_step_leaves_the_question_before_as_it_was(index, rows):
    first = index.like(tile=rows[0]["tile_key"])
    autumn = first.where(since="2020-01-01").where(labels=["water"])
    assert (len(first.positive), first.filter) == (1, Filter())
    assert autumn.filter == Filter(since="2020-01-01", labels=("water",))
    assert autumn.where(labels=["crops"]).filter.labels == ("crops",)
    assert len(first.like(tile=rows[1]["tile_key"]).positive) == 2
    text = repr(autumn)
    assert rows[0]["tile_key"] in text
    assert "labels water" in text


AREA = shapely.box(0, 0, 20, 20)


@pytest.mark.parametrize(
    "polygon",
    [
        AREA.wkt,
        shapely.to_geojson(AREA),
        shapely.geometry.mapping(AREA),
        {"type": "Feature", "geometry": shapely.geometry.mapping(AREA), "properties": {}},
        AREA,
        geopandas.GeoSeries([AREA], crs=4326),
        geopandas.GeoDataFrame(geometry=[shapely.box(0, 0, 10, 20), shapely.box(10, 0, 20, 20)]),
    ],
    ids=["wkt", "text", "mapping", "feature", "shapely", "series", "frame"],
)
def test_an_area_is_taken_from_any_library(index, polygon):
    asked = index.where(polygon=polygon)
    assert shapely.equals(shapely.from_wkt(asked.filter.polygon), AREA)


def test_conditions_may_be_a_mapping_everywhere(searcher, index, rows):
    where = {"scenes": ["a"], "until": "2030-01-01"}
    assert index.where(where).filter == Filter.of(where)
    vector = np.ones(8)
    assert same(searcher.search(vector, 3, where), searcher.search(vector, 3, Filter.of(where)))
    assert searcher.find(where, 100).num_rows == 20
    assert searcher.explain(3, where).where == Filter.of(where)
    assert same(
        searcher.search_above(vector, 0.1, where),
        searcher.search_above(vector, 0.1, Filter(**where)),
    )


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda i: i.top(5), "no example to be like"),
        (lambda i: i.like(), "give an example"),
        (lambda i: i.like(lonlat="here"), "lonlat is 'here'; give longitude and latitude"),
        (lambda i: i.like(lonlat=(17.9, 103.7)), "longitude comes first"),
        (lambda i: i.like(tile=5), "tile is 5; give its text"),
        (lambda i: i.like(date="2024-01-01"), "date goes with lonlat"),
        (lambda i: i.like(scene="a"), "scene goes with tile"),
        (lambda i: i.like(vector=[1, 2, 3]), r"shape \(3,\); the index's encoder .* 8 values"),
        (lambda i: i.like(positive="a/1/2"), "positive is 'a/1/2'; give a list"),
        (lambda i: i.like(positive=[{"tyle": "a"}]), "an example has no field 'tyle'"),
        (lambda i: i.like(positive=[object()]), "is no example"),
        (lambda i: i.like(image=np.zeros((4, 4))), r"shape \(4, 4\); give bands, height, width"),
        (lambda i: i.where({"lables": ["x"]}), "no field 'lables'; did you mean 'labels'"),
        (lambda i: i.where("water"), "filter is 'water'; give a Filter or a mapping"),
        (lambda i: i.where(labels="water"), "give a list of names"),
        (lambda i: i.where(polygon=shapely.Point(1, 2)), "polygon is a Point"),
        (lambda i: i.where(polygon=7), "neither WKT nor GeoJSON"),
    ],
)
def test_what_is_no_example_or_condition_is_named(index, ask, message):
    with pytest.raises(ConfigError, match=message) as caught:
        ask(index)
    assert "\n" not in str(caught.value)


def test_a_place_and_a_tile_that_are_not_there(index):
    with pytest.raises(NotFoundError, match="its tiles lie between"):
        index.like(lonlat=(-170, 80))
    with pytest.raises(NotFoundError, match="no tile"):
        index.like(tile="epsg32632-10-64/1/1")


def test_the_encoder_is_loaded_for_a_picture_and_compared(searcher):
    loaded = []

    class Other:
        fingerprint = "cd" * 32

    def load():
        loaded.append(1)
        return Other()

    index = Question(searcher=searcher, resolver=QueryResolver(searcher, load=load))
    index.like(vector=np.ones(8))
    assert not loaded
    with pytest.raises(EncoderMismatchError, match="use that bundle"):
        index.like(image=np.zeros((1, 64, 64)))
    assert loaded == [1]
