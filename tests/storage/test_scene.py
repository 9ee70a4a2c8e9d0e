"""A scene says how to reach its files, and never a secret."""

import datetime as dt
import json
import pickle
from dataclasses import replace

import pytest

from storage.errors import ConfigError
from storage.location import Location, StorageOptions
from storage.scene import BandSource, CatalogSpec, MaskMapping, MaskSource, Scene, SceneQuery

SECRET = StorageOptions(
    region="eu-central-1",
    access_key_id="hush-key",
    secret_access_key="hush-secret",
    session_token="hush-token",
)


def scene(options: StorageOptions) -> Scene:
    return Scene(
        id="S2A_36VWN",
        datetime=dt.datetime(2024, 6, 18, 10, tzinfo=dt.timezone(dt.timedelta(hours=2))),
        bands=(
            BandSource(
                name="red",
                href=Location("s3://scenes/a/B04.tif", options),
                scale=0.0001,
                offset=-0.1,
                nodata=0.0,
            ),
            BandSource(name="nir", href="/data/B08.tif", index=2),
        ),
        mask=MaskSource(href=Location("s3://scenes/a/SCL.tif", options), cloud_values=(3, 8, 9)),
        revision="2024-06-19T00:00:00Z",
    )


def test_fingerprint_is_that_of_archives_written_before_locations() -> None:
    # Another value would embed every scene of every archive again.
    assert scene(StorageOptions()).fingerprint == "7b8975f50b62eece"


def test_options_decide_no_pixels() -> None:
    assert scene(SECRET).fingerprint == scene(StorageOptions()).fingerprint


def test_secrets_travel_to_workers_but_are_never_printed() -> None:
    made = scene(SECRET)
    assert pickle.loads(pickle.dumps(made)).bands[0].href.options == SECRET
    spec = CatalogSpec(source=Location("s3://scenes/catalog.json", SECRET))
    for value in (made, made.bands[0], made.bands[0].href, spec, replace(made, mask=None)):
        assert "hush" not in f"{value}{value!r}"
        assert "hush" not in json.dumps({"value": value}, default=str)


def test_hrefs_are_the_distinct_files() -> None:
    hrefs = scene(SECRET).hrefs
    assert [str(href) for href in hrefs] == [
        "s3://scenes/a/B04.tif",
        "/data/B08.tif",
        "s3://scenes/a/SCL.tif",
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bbox": (1, 2, 3)}, r"bbox \(1, 2, 3\) has 3 numbers"),
        ({"bbox": (0, 5, 1, 2)}, "south <= north"),
        ({"bbox": (0, 0, 400, 2)}, "WGS84 degrees"),
        ({"bbox": "here"}, "four numbers"),
        ({"polygon": "POINT(1 1)"}, "polygon is a Point"),
        ({"since": "soon"}, "since is 'soon'; give an ISO 8601 date"),
        ({"since": "2024-02-01", "until": "2024-01-01"}, "swap the two dates"),
        ({"max_cloud_cover_percent": 130}, "max_cloud_cover_percent is 130"),
        ({"collections": "sentinel"}, "collections is the text 'sentinel'"),
    ],
)
def test_a_query_is_as_strict_as_a_filter(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^catalog query: .*{message}"):
        SceneQuery(**values)


def test_a_query_takes_what_a_filter_takes() -> None:
    query = SceneQuery(bbox=[1, 2, 3, 4], since="2024-05-01", until=dt.date(2024, 5, 31))
    assert query.bbox == (1.0, 2.0, 3.0, 4.0)
    assert query == SceneQuery(bbox=(1, 2, 3, 4), since=dt.datetime(2024, 5, 1), until="2024-05-31")
    assert query.interval == (
        dt.datetime(2024, 5, 1, tzinfo=dt.UTC),
        dt.datetime(2024, 5, 31, 23, 59, 59, 999_999, tzinfo=dt.UTC),
    )


@pytest.mark.parametrize("bits", [(64,), (-1,), (0, 1024)])
def test_bits_beyond_64_are_refused(bits):
    with pytest.raises(ConfigError, match=r"cloud_bits are .* from 0 to 63"):
        MaskMapping(cloud_bits=bits)
