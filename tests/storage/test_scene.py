"""A scene says how to reach its files, and never a secret."""

import datetime as dt
import json
import pickle
from dataclasses import replace

from storage.location import Location, StorageOptions
from storage.scene import BandSource, CatalogSpec, MaskSource, Scene

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
