"""A small STAC API on loopback: item search by box, interval, collection and limit, in pages.

It follows the STAC API specification 1.0 (core, item search): GET and POST, intervals closed or
open at one end, boxes of four or six numbers, and `next` links that carry a token.
"""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

CONFORMS_TO = [
    "https://api.stacspec.org/v1.0.0/core",
    "https://api.stacspec.org/v1.0.0/item-search",
]
MAX_LIMIT = 100


@dataclass
class StacApi:
    """A running server; ``searches`` are the requests that it answered, oldest first.

    ``round`` leads from the tokens of pages back to others; ``change`` is applied to every document
    before it is sent.
    """

    url: str
    items: list[dict[str, Any]]
    searches: list[dict[str, Any]] = field(default_factory=list)
    methods: tuple[str, ...] = ("GET", "POST")
    conforms_to: list[str] = field(default_factory=lambda: list(CONFORMS_TO))
    refuse: list[int] = field(default_factory=list)
    stuck: bool = False
    round: dict[int, int] = field(default_factory=dict)
    change: Callable[[Any], Any] = lambda document: document


@contextmanager
def stac_api(items: list[dict[str, Any]]) -> Iterator[StacApi]:
    """Serve items until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    api = StacApi(url=f"http://127.0.0.1:{server.server_port}", items=items)
    server.api = api  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def make_item(
    number: int, bbox: tuple[float, ...], moment: str | None, **properties: Any
) -> dict[str, Any]:
    """An item with one two-band GeoTIFF on S3."""
    collection = properties.pop("collection", "landsat")
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": f"item-{number:03d}",
        "collection": collection,
        "bbox": list(bbox),
        "geometry": None,
        "properties": {"datetime": moment, **properties},
        "links": [],
        "assets": {
            "data": {
                "href": f"s3://bucket/{number:03d}.tif",
                "type": "image/tiff; application=geotiff; profile=cloud-optimized",
                "eo:bands": [{"name": "B4", "common_name": "red"}, {"name": "B5"}],
            }
        },
    }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def api(self) -> StacApi:
        return self.server.api  # type: ignore[attr-defined, no-any-return]

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        if parts.path in ("", "/"):
            self._reply(200, _landing_page(self.api))
        elif parts.path == "/search" and "GET" in self.api.methods:
            asked: dict[str, Any] = dict(parse_qsl(parts.query))
            for name in ("bbox", "collections"):
                if name in asked:
                    asked[name] = asked[name].split(",")
            self._search(asked)
        else:
            self._reply(404, {"code": "NotFound", "description": parts.path})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if urlsplit(self.path).path == "/search" and "POST" in self.api.methods:
            self._search(json.loads(body))
        else:
            self._reply(405, {"code": "MethodNotAllowed", "description": self.path})

    def _search(self, asked: dict[str, Any]) -> None:
        self.api.searches.append({"method": self.command, **asked})
        if self.api.refuse:
            self._reply(self.api.refuse.pop(0), {"code": "Busy", "description": "later"})
            return
        try:
            found = [item for item in self.api.items if _matches(item, asked)]
            limit = min(int(asked.get("limit", 10)), MAX_LIMIT)
            start = int(asked.get("token", 0))
        except ValueError as error:
            self._reply(400, {"code": "BadRequest", "description": str(error)})
            return
        page = found[start : start + limit]
        links = []
        if start + limit < len(found):
            token = start if self.api.stuck else start + limit
            token = self.api.round.get(token, token)
            links.append(self._next({**asked, "token": str(token)}))
        self._reply(
            200,
            {
                "type": "FeatureCollection",
                "features": page,
                "links": links,
                "numberMatched": len(found),
                "numberReturned": len(page),
            },
        )

    def _next(self, asked: dict[str, Any]) -> dict[str, Any]:
        href = f"{self.api.url}/search"
        if self.command == "POST":
            return {"rel": "next", "href": href, "method": "POST", "body": asked}
        flat = {k: ",".join(v) if isinstance(v, list) else v for k, v in asked.items()}
        return {"rel": "next", "href": f"{href}?{urlencode(flat)}", "method": "GET"}

    def _reply(self, status: int, document: dict[str, Any]) -> None:
        data = json.dumps(self.api.change(document)).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/geo+json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


def _landing_page(api: StacApi) -> dict[str, Any]:
    links = [
        {"rel": "root", "href": api.url, "type": "application/json"},
        {"rel": "self", "href": api.url, "type": "application/json"},
        *(
            {
                "rel": "search",
                "href": f"{api.url}/search",
                "type": "application/geo+json",
                "method": method,
            }
            for method in api.methods
        ),
    ]
    return {
        "type": "Catalog",
        "stac_version": "1.0.0",
        "id": "loopback",
        "description": "A STAC API for tests",
        "conformsTo": api.conforms_to,
        "links": links,
    }


def _matches(item: dict[str, Any], asked: dict[str, Any]) -> bool:
    if asked.get("collections") and item["collection"] not in asked["collections"]:
        return False
    if asked.get("bbox") and not _touches(item["bbox"], [float(n) for n in asked["bbox"]]):
        return False
    return not asked.get("datetime") or _within(item["properties"], asked["datetime"])


def _touches(box: list[float], asked: list[float]) -> bool:
    if len(asked) not in (4, 6):
        raise ValueError(f"bbox has {len(asked)} numbers")
    west, south, east, north = asked[0], asked[1], asked[len(asked) // 2], asked[-1]
    if len(asked) == 6:
        north = asked[4]
    if west > east:
        raise ValueError("this server knows no boxes across the antimeridian")
    half = len(box) // 2
    if box[1] > north or box[half + 1] < south:
        return False
    spans = [(box[0], box[half])]
    if box[0] > box[half]:
        spans = [(box[0], 180.0), (-180.0, box[half])]
    return any(left <= east and west <= right for left, right in spans)


def _within(properties: dict[str, Any], asked: str) -> bool:
    start, _, end = asked.partition("/")
    end = end or start
    first = properties.get("datetime") or properties["start_datetime"]
    last = properties.get("datetime") or properties["end_datetime"]
    return (start == ".." or _moment(last) >= _moment(start)) and (
        end == ".." or _moment(first) <= _moment(end)
    )


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)
