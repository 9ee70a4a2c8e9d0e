"""One URI and one set of options mean the same to every library."""

from pathlib import Path

import pytest

from storage import location as object_store
from storage import location as uris
from storage.errors import ConfigError, NotFoundError, SkysiftError
from storage.location import StorageOptions
from tests.support.object_store import MotoS3


def test_files_round_trip_locally_and_on_s3(moto_s3: MotoS3, tmp_path: Path):
    for base in (str(tmp_path / "folder"), moto_s3.uri("folder")):
        uri = uris.join_uri(base, "a", "b.bin")
        object_store.write_bytes(uri, b"first", moto_s3.options)
        object_store.write_bytes(uri, b"second", moto_s3.options)
        assert object_store.read_bytes(uri, moto_s3.options) == b"second"
        assert object_store.list_files(base, moto_s3.options) == [uri]
        assert object_store.list_files(f"{base}/*/*.bin", moto_s3.options) == [uri]
        local = tmp_path / "copy.bin"
        object_store.download(uri, local, moto_s3.options)
        object_store.upload(local, uris.join_uri(base, "c.bin"), moto_s3.options)
        assert object_store.exists(f"{base}/c.bin", moto_s3.options)
        object_store.delete(base, moto_s3.options)
        assert object_store.list_files(base, moto_s3.options) == []
        with pytest.raises(NotFoundError, match="does not exist"):
            object_store.read_bytes(uri, moto_s3.options)


def test_a_wrong_bucket_and_an_unreachable_store_are_named(moto_s3: MotoS3):
    with pytest.raises(NotFoundError, match="s3://no-such-bucket/x"):
        object_store.read_bytes("s3://no-such-bucket/x", moto_s3.options)
    closed = StorageOptions(
        endpoint_url="http://127.0.0.1:9", region="eu-central-1", anonymous=True
    )
    with pytest.raises(SkysiftError, match=r"s3://b/x could not be accessed.*check the endpoint"):
        object_store.read_bytes("s3://b/x", closed)


def test_options_come_from_the_usual_variables_and_secrets_stay_out_of_sight():
    options = StorageOptions().resolved(
        {
            "AWS_ENDPOINT_URL": "http://127.0.0.1:9000",
            "AWS_DEFAULT_REGION": "eu-west-1",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "hush",
        }
    )
    assert (options.region, options.access_key_id) == ("eu-west-1", "key")
    assert "hush" not in repr(options)
    gdal = object_store.gdal_environment(options)
    assert gdal["AWS_S3_ENDPOINT"] == "127.0.0.1:9000"
    assert (gdal["AWS_HTTPS"], gdal["AWS_SECRET_ACCESS_KEY"]) == ("NO", "hush")
    anonymous = object_store.gdal_environment(StorageOptions(anonymous=True))
    assert anonymous["AWS_NO_SIGN_REQUEST"] == "YES"
    assert "AWS_SECRET_ACCESS_KEY" not in anonymous


def test_unknown_schemes_are_refused():
    with pytest.raises(ConfigError, match="its scheme is 'ftp'"):
        uris.gdal_path("ftp://example.invalid/a.tif")
    with pytest.raises(ConfigError, match="its scheme is 'https'"):
        object_store.read_bytes("https://example.invalid/a.json")


def test_relative_references_resolve_against_their_document():
    resolve = uris.resolve_uri
    assert resolve("/data/items/a.json", "./a.tif") == "/data/items/a.tif"
    assert resolve("s3://b/items/a.json", "../t/a.tif") == "s3://b/t/a.tif"
    assert resolve("/data/items/a.json", "s3://b/a.tif") == "s3://b/a.tif"
    assert resolve("https://h/v1/items/a?x=1", "../t/a.tif") == "https://h/v1/t/a.tif"
