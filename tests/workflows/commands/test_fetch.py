"""`skysift fetch`: whole and checked files, resumed downloads, and what it refuses."""

import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.support.command_line import run
from workflows.fetch import packaged_lists, read_scene_list

CONTENT = {"a.tif": b"abcdefgh" * 1000, "b.tif": bytes(range(256)) * 40}


class _Files(BaseHTTPRequestHandler):
    """Answers ranges; ``asked`` has the path and range of each request."""

    asked: list[tuple[str, str | None]]

    def do_GET(self) -> None:
        name, wanted = self.path[1:], self.headers["Range"]
        self.asked.append((name, wanted))
        if name not in CONTENT:
            self.send_error(404)
            return
        first = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        body = CONTENT[name][first:]
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    handler = type("Handler", (_Files,), {"asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", handler.asked
        running.shutdown()
        thread.join()


def scene_list(folder: Path, base: str, **changed: object) -> str:
    files = [
        {"name": name, "url": f"{base}/{name}", "bytes": len(content),
         "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in CONTENT.items()
    ]  # fmt: skip
    files[0] |= changed
    path = folder / "ours.json"
    path.write_text(json.dumps({"title": "ours", "licence": "CC0", "files": files}))
    return str(path)


def test_files_are_fetched_once_and_a_part_is_continued(tmp_path: Path, server):
    base, asked = server
    command = ("fetch", scene_list(tmp_path, base), "--out", tmp_path / "scenes", "--json")
    (tmp_path / "scenes").mkdir()
    (tmp_path / "scenes" / ".a.tif.part").write_bytes(CONTENT["a.tif"][:1234])
    report = run(*command).data["report"]
    assert asked == [("a.tif", "bytes=1234-"), ("b.tif", None)]
    assert (report["fetched"], report["there_before"]) == (["a.tif", "b.tif"], [])
    found = {path.name: path.read_bytes() for path in (tmp_path / "scenes").iterdir()}
    assert found == CONTENT
    (tmp_path / "scenes" / "b.tif").write_bytes(b"damaged")
    assert run(*command).data["report"]["fetched"] == ["b.tif"]
    assert (tmp_path / "scenes" / "b.tif").read_bytes() == CONTENT["b.tif"]


@pytest.mark.parametrize(
    ("changed", "code", "reason"),
    [
        ({"sha256": "0" * 64}, 1, "is another file"),
        ({"bytes": 7999}, 1, "is another file"),
        ({"url": "{base}/none.tif"}, 1, "answered 404"),
        ({"name": "../a.tif"}, 2, "no name of a file"),
        ({"url": "file:///etc/passwd"}, 2, "no web address"),
        ({"bytes": "many"}, 2, "bytes"),
    ],
)
def test_a_wrong_file_or_list_ends_in_one_line(tmp_path: Path, server, changed, code, reason):
    changed = {n: v.format(base=server[0]) if n == "url" else v for n, v in changed.items()}
    refused = run("fetch", scene_list(tmp_path, server[0], **changed), "--out", tmp_path / "out")
    assert (refused.code, refused.err.count("\n")) == (code, 1), refused.err
    assert reason in refused.err
    assert not (tmp_path / "out" / "a.tif").exists()
    assert not list(tmp_path.glob("out/.*"))


def test_without_internet_one_line_says_what_to_do(tmp_path: Path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        base = f"http://127.0.0.1:{closed.getsockname()[1]}"
        refused = run("fetch", scene_list(tmp_path, base), "--out", tmp_path / "out")
    assert (refused.code, refused.err.count("\n")) == (1, 1), refused.err
    assert "could not be reached (ConnectionError); the same command continues" in refused.err
    assert "copy the file to" in refused.err


def test_every_list_that_comes_with_skysift_is_one():
    assert packaged_lists() == ["prairie"]
    scenes = read_scene_list("prairie")
    assert len({file.sha256 for file in scenes.files}) == len(scenes.files) == 5
    assert run("fetch", "prarie").err.count("\n") == 1
    assert "prairie" in run("fetch", "prarie").err
