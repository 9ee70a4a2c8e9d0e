"""Documents from outside lead only where they may."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from storage.catalog.read import read_scenes
from storage.catalog.url_policy import check_host, is_within
from storage.errors import CatalogError
from storage.scene import CatalogSpec
from tests.support.stac_api_server import make_item, stac_api


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data/",
        "http://127.0.0.1/",
        "http://2130706433/",
        "http://localhost/",
        "http://[::1]/",
        "http://[::ffff:10.0.0.1]/",
        "http://10.1.2.3/",
        "http://192.168.0.1/",
        "http://0.0.0.0/",
        "https://no-such-host.invalid/",
        "file:///etc/passwd",
        "ftp://example.org/",
        "http:///nothing",
    ],
)
def test_what_is_not_public_is_not_followed(url: str):
    with pytest.raises(CatalogError, match="not followed"):
        check_host(url, ["catalog.example"])


def test_the_host_that_the_recipe_names_may_be_anywhere():
    check_host("http://127.0.0.1:8000/search", ["127.0.0.1"])
    check_host("https://1.1.1.1/")


class _Elsewhere(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        self.send_response(404)
        self.end_headers()

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def elsewhere() -> Iterator[ThreadingHTTPServer]:
    """A service of this machine that no catalog should reach; it notes who does."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Elsewhere)
    server.asked = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


class _Redirect(_Elsewhere):
    def do_GET(self) -> None:
        self.send_response(307)
        self.send_header("Location", self.server.target)  # type: ignore[attr-defined]
        self.end_headers()


def test_a_redirect_into_this_machine_is_not_followed(elsewhere: ThreadingHTTPServer):
    with ThreadingHTTPServer(("127.0.0.1", 0), _Redirect) as catalog:
        catalog.target = f"http://localhost:{elsewhere.server_port}/secret"  # type: ignore[attr-defined]
        thread = threading.Thread(target=catalog.serve_forever)
        thread.start()
        try:
            with pytest.raises(
                CatalogError, match=r"localhost is (127\.0\.0\.1|::1), which is not"
            ):
                read_scenes(CatalogSpec(source=f"http://127.0.0.1:{catalog.server_port}"), ["red"])
        finally:
            catalog.shutdown()
            thread.join()
    assert elsewhere.asked == []  # type: ignore[attr-defined]


def test_assets_lie_where_the_recipe_allows():
    items = [make_item(n, (0, 0, 1, 1), "2024-05-01T00:00:00Z") for n in range(2)]
    with stac_api(items) as api:
        inside = read_scenes(CatalogSpec(source=api.url, allow=("s3://bucket",)), ["red"])
        assert len(inside.scenes) == 2
        outside = read_scenes(CatalogSpec(source=api.url, allow=("s3://bucket/000",)), ["red"])
        assert len(outside.scenes) == 0
        assert "catalog.allow" in outside.rejected[0].reason


def test_a_link_does_not_leave_a_folder(tmp_path: Path):
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "out")
    assert is_within(str(tmp_path / "in" / "a.tif"), str(tmp_path / "in"))
    assert not is_within(str(tmp_path / "in" / "link" / "a.tif"), str(tmp_path / "in"))


@pytest.mark.parametrize(
    "path",
    [
        "/pub/../secret/x.tif",
        "/pub/../../other/x.tif",
        "/pub/a/../../secret/x.tif",
        "/pub/./../secret/x.tif",
        "/pub/..",
        "/pub/%2e%2e/secret/x.tif",
        "/pub/.%2E/secret/x.tif",
        "/pub/%2e./secret/x.tif",
        "/pub/%2e%2e",
        "/pub/%252e%252e/secret/x.tif",
        "/pub/%25252e%25252e/secret/x.tif",
        "/pub/%2525252525252e%2e/secret/x.tif",
        "/pub/..%2fsecret/x.tif",
        "/pub%2f..%2fsecret/x.tif",
        "/pub/%2e%2e%2fsecret/x.tif",
        "/pub/..%252fsecret/x.tif",
        "/pub/..\\secret\\x.tif",
        "/pub\\..\\secret/x.tif",
        "/pub/..%5csecret/x.tif",
        "/pub/..;/secret/x.tif",
        "/pub/..;a=1/secret/x.tif",
        "/public/x.tif",
        "/PUB/x.tif",
        "//pub/x.tif",
        "/secret/x.tif",
        "/x.tif?/pub/",
        "/x.tif#/pub/",
        "",
    ],
)
@pytest.mark.parametrize("start", ["https://h.org", "s3://bucket"])
def test_no_spelling_leaves_an_allowed_folder(start: str, path: str):
    assert not is_within(start + path, f"{start}/pub")


@pytest.mark.parametrize(
    "uri",
    [
        "https://h.org@evil.org/pub/x.tif",
        "https://h.org:443@evil.org/pub/x.tif",
        "https://evil.org@h.org@evil.org/pub/x.tif",
        "https://h.org\\@evil.org/pub/x.tif",
        "https://evil.org\\@h.org/pub/x.tif",
        "https://evil.org#@h.org/pub/x.tif",
        "https://h.org.evil.org/pub/x.tif",
        "https://h.org:444/pub/x.tif",
        "https://h.org:443x/pub/x.tif",
        "http://h.org/pub/x.tif",
        "https://h.org /pub/x.tif",
        "https://h.o\trg/pub/x.tif",
        "https://[h.org/pub/x.tif",
        "https:///pub/x.tif",
        "https:h.org/pub/x.tif",
        "//h.org/pub/x.tif",
        "ftp://h.org/pub/x.tif",
        "s3://h.org/pub/x.tif",
        "/vsicurl/https://h.org/pub/x.tif",
    ],
)
def test_another_host_port_or_scheme_is_elsewhere(uri: str):
    assert not is_within(uri, "https://h.org/pub")


@pytest.mark.parametrize(
    ("uri", "root"),
    [
        ("https://h.org/pub/x.tif", "https://h.org/pub/"),
        ("https://h.org/pub", "https://h.org/pub"),
        ("https://H.ORG./pub/x.tif", "https://h.org/pub"),
        ("https://h.org:443/pub/x.tif", "https://h.org:/pub"),
        ("http://h.org/pub/x.tif", "http://h.org:80"),
        ("HTTPS://h.org/pub/x.tif", "https://h.org"),
        ("https://me:pass@h.org/pub/x.tif", "https://h.org/pub"),
        ("https://h.org/my%20pub/50%25..tif", "https://h.org/my pub"),
        ("https://h.org/pub/x.tif?sig=a/../b&c=%2e%2e%2f", "https://h.org/pub"),
        ("s3://bucket/pub/a b+c%20...tif", "s3://bucket/pub"),
        ("s3://bucket/pub/x.tif", "s3://bucket"),
        ("file:///data/a%20b/x.tif", "/data/a b"),
        ("/data/x.tif", "/"),
    ],
)
def test_the_same_folder_is_within_however_it_is_spelled(uri: str, root: str):
    assert is_within(uri, root)
