"""An object store that takes its time: the files of a folder as a bucket, read-only.

    python -m benchmarks.slow_store FOLDER PORT SECONDS

Answers HEAD, GET with ranges, and lists, each after a delay in seconds. It hardly works at all: a
benchmark beside it measures the waiting, not, as beside a whole S3 server, that server's use of
the cores.
"""

import sys
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

BUCKET = "bench"
_LISTED = (
    "<Contents><Key>{name}</Key><Size>{size}</Size><ETag>&quot;{size}&quot;</ETag>"
    "<LastModified>2024-05-01T00:00:00.000Z</LastModified></Contents>"
)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        """Tell of a file."""
        self.do_GET()

    def do_GET(self) -> None:
        """Send a file, a range of it, or the list of all."""
        time.sleep(_SECONDS)
        name = unquote(urlsplit(self.path).path).removeprefix(f"/{BUCKET}").lstrip("/")
        path = _FOLDER / name
        if not name:
            (prefix,) = parse_qs(urlsplit(self.path).query).get("prefix", [""])
            files = sorted(file for file in _FOLDER.glob("*.tif") if file.name.startswith(prefix))
            rows = "".join(_LISTED.format(name=f.name, size=f.stat().st_size) for f in files)
            text = f"<ListBucketResult><Name>{BUCKET}</Name>{rows}</ListBucketResult>".encode()
            self._send(200, text, len(text), {})
        elif not path.is_file():
            self._send(404, b"", 0, {})
        else:
            self._send_file(path)

    def _send_file(self, path: Path) -> None:
        size = path.stat().st_size
        first, last, status = 0, size - 1, 200
        about = {"ETag": f'"{size}"', "Last-Modified": formatdate(0, usegmt=True)}
        if asked := self.headers.get("Range"):
            start, _, end = asked.removeprefix("bytes=").partition("-")
            first, last, status = int(start), min(int(end or size), size - 1), 206
            about["Content-Range"] = f"bytes {first}-{last}/{size}"
        with path.open("rb") as file:
            file.seek(first)
            data = file.read(last - first + 1)
        self._send(status, data, last - first + 1, about)

    def _send(self, status: int, data: bytes, length: int, about: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**about, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


if __name__ == "__main__":
    _FOLDER, _SECONDS = Path(sys.argv[1]), float(sys.argv[3])
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), _Handler)
    server.daemon_threads = True
    server.serve_forever()
