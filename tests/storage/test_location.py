"""One URI and one set of options mean the same to every library."""

from pathlib import Path

import pytest

from storage.errors import ConfigError, NotFoundError, SkysiftError
from storage.location import Location, StorageOptions
from storage.raster.geotiff import environment
from tests.support.object_store import MotoS3


def test_a_mask_beside_a_file_is_a_part_of_its_revision(tmp_path):
    file = Location(str(tmp_path / "a.tif"))
    file.write(b"pixels")
    revisions = [file.revision()]
    for mask in (b"mask", b"other mask"):
        (tmp_path / "a.tif.msk").write_bytes(mask)
        revisions.append(file.revision())
    (tmp_path / "a.tif.msk").unlink()
    assert len(set(revisions)) == 3
    assert file.revision() == revisions[0]


def test_files_round_trip_locally_and_on_s3(moto_s3: MotoS3, tmp_path: Path):
    for base in (
        Location.of(tmp_path / "folder"),
        Location(moto_s3.uri("folder"), moto_s3.options),
    ):
        file = base / "a" / "b.bin"
        file.write(b"first")
        file.write(b"second")
        assert file.read() == b"second"
        assert base.list() == [file]
        assert (base / "*/*.bin").list() == [file]
        local = tmp_path / "copy.bin"
        file.download(local)
        (base / "c.bin").upload(local)
        assert (base / "c.bin").exists()
        assert (base / "c.bin").size_bytes() == len(b"second")
        base.delete()
        assert base.list() == []
        with pytest.raises(NotFoundError, match="does not exist"):
            file.read()


def test_a_staged_file_appears_whole_or_not_at_all(moto_s3: MotoS3, tmp_path: Path):
    for base in (Location.of(tmp_path / "folder"), Location(moto_s3.uri("stage"), moto_s3.options)):
        file = base / "a.bin"
        with pytest.raises(ZeroDivisionError), file.staged() as temporary:
            temporary.write_bytes(b"half" * (1 // 0))
        assert base.list() == []
        with file.staged() as temporary:
            temporary.write_bytes(b"whole")
            assert not file.exists()
        assert file.read() == b"whole"


def test_a_wrong_bucket_and_an_unreachable_store_are_named(moto_s3: MotoS3):
    with pytest.raises(NotFoundError, match="s3://no-such-bucket/x"):
        Location("s3://no-such-bucket/x", moto_s3.options).read()
    closed = StorageOptions(
        endpoint_url="http://127.0.0.1:9", region="eu-central-1", anonymous=True
    )
    with pytest.raises(SkysiftError, match=r"s3://b/x could not be accessed.*check the endpoint"):
        Location("s3://b/x", closed).read()


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
    gdal = environment(Location("s3://b/a.tif", options))
    assert (gdal.options["AWS_S3_ENDPOINT"], gdal.options["AWS_HTTPS"]) == ("127.0.0.1:9000", "NO")
    assert gdal.session.get_credential_options()["AWS_SECRET_ACCESS_KEY"] == "hush"
    anonymous = environment(Location("s3://b/a.tif", StorageOptions(anonymous=True)))
    assert anonymous.options["AWS_NO_SIGN_REQUEST"] == "YES"
    assert "AWS_SECRET_ACCESS_KEY" not in anonymous.session.get_credential_options()


def test_unknown_schemes_are_refused():
    with pytest.raises(ConfigError, match="its scheme is 'ftp'"):
        assert Location("ftp://example.invalid/a.tif").gdal_path
    with pytest.raises(ConfigError, match="its scheme is 'https'"):
        Location("https://example.invalid/a.json").read()


def test_relative_references_resolve_against_their_document():
    def resolved(document: str, href: str) -> str:
        return str(Location(document).resolve(href))

    assert resolved("/data/items/a.json", "./a.tif") == "/data/items/a.tif"
    assert resolved("s3://b/items/a.json", "../t/a.tif") == "s3://b/t/a.tif"
    assert resolved("/data/items/a.json", "s3://b/a.tif") == "s3://b/a.tif"
    assert resolved("https://h/v1/items/a?x=1", "../t/a.tif") == "https://h/v1/t/a.tif"


def test_what_is_reached_from_a_location_has_its_options():
    options = StorageOptions(region="eu-west-1")
    place = Location("s3://b/items", options)
    assert {x.options for x in (place / "a", place.at("s3://c"), place.resolve("a.tif"))} == {
        options
    }
    assert Location.of(place) is place
    assert Location.of("relative").absolute.path == Path.cwd() / "relative"


NAMES = ("proj [2020]", "what?", "a*b", "[!x]", "[")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("on_s3", [False, True])
def test_a_folder_may_have_the_marks_of_patterns_in_its_name(
    moto_s3: MotoS3, tmp_path: Path, name: str, on_s3: bool
):
    root = moto_s3.location("marks") if on_s3 else Location(str(tmp_path))
    for file in ("sub/a.tif", "sub/b.txt", "sub/deep/c.tif"):
        (root / name / file).write(b"x")
    (root / "axb" / "sub" / "a.tif").write(b"x")

    def found(pattern: str) -> list[str]:
        files = root.at(f"{root}/{pattern}").list()
        return [file.uri.removeprefix(f"{root}/{name}/") for file in files]

    assert found(name) == ["sub/a.tif", "sub/b.txt", "sub/deep/c.tif"]
    assert found(f"{name}/sub/*.tif") == ["sub/a.tif"]
    assert found(f"{name}/**/*.tif") == ["sub/a.tif", "sub/deep/c.tif"]
    assert found(f"{name}/*/[b-z].*") == ["sub/b.txt"]
    assert found(f"{name}/sub/a.tif") == ["sub/a.tif"]
    assert not root.at(f"{root}/{name}").is_pattern
    assert root.at(f"{root}/{name}/*.tif").is_pattern
    (root / name).delete()
    assert found(name) in ([], [f"{root}/axb/sub/a.tif"])
    assert (root / "axb" / "sub" / "a.tif").exists(), "a name is not deleted as a pattern"


@pytest.mark.parametrize("pattern", ["a**b.tif", "s3://*/a.tif"])
def test_a_wrong_pattern_is_refused(tmp_path: Path, pattern: str):
    place = pattern if "://" in pattern else str(tmp_path / pattern)
    with pytest.raises(ConfigError, match=r"pattern.*; "):
        Location(place).list()


def test_the_requester_pays_where_the_environment_says_so(monkeypatch: pytest.MonkeyPatch):
    assert not Location("s3://bucket/a").filesystem()[0].requester_pays
    monkeypatch.setenv("AWS_REQUEST_PAYER", "requester")
    assert Location("s3://bucket/a").filesystem()[0].requester_pays


def test_schemes_are_read_in_any_case():
    item = Location("/data/item.json")
    assert item.resolve("S3://Bucket/Key.tif").gdal_path == "/vsis3/Bucket/Key.tif"
    assert item.resolve("HTTPS://h/A.tif") == Location("https://h/A.tif")
    assert Location("S3://Bucket/Key.tif").gdal_path == "/vsis3/Bucket/Key.tif"
