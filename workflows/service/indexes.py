"""Several indexes behind one address: ``/v1/{index}/...`` is ``/v1/...`` of another index."""

import re
from collections.abc import Mapping
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

_OF_INDEX = re.compile(r"/v1/([^/]+)(/.+)")
_PARAMETER = {
    "name": "index",
    "in": "path",
    "required": True,
    "description": "The name of an index, as `/v1/indexes` lists it.",
    "schema": {"type": "string"},
}
NAMED = "skysift.named_index"
"""Key of an ASGI scope that is true where the address names the index."""
_OF_SERVICE = ("/v1/health", "/v1/indexes")


class ByIndex:
    """Pass requests whose address names an index to the application of this index.

    The wrapped application answers all others: it is that of the default index.
    """

    def __init__(self, app: ASGIApp, others: Mapping[str, ASGIApp], default: str) -> None:
        self._app, self._apps = app, {**others, default: app}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, without the name in its path."""
        app, found = self._app, _OF_INDEX.fullmatch(scope.get("path", ""))
        if scope["type"] == "http" and found and found[1] in self._apps:
            path = f"/v1{found[2]}"
            app = self._apps[found[1]]
            scope = {**scope, "path": path, "raw_path": path.encode(), NAMED: True}
        await app(scope, receive, send)


def with_named_paths(document: dict[str, Any]) -> dict[str, Any]:
    """Add the paths ``/v1/{index}/...`` to an OpenAPI document, once."""
    paths = document["paths"]
    for path, operations in list(paths.items()):
        if path.startswith("/v1/") and "{index}" not in path and path not in _OF_SERVICE:
            named = f"/v1/{{index}}{path.removeprefix('/v1')}"
            paths[named] = {verb: _named(asked) for verb, asked in operations.items()}
    return document


def _named(operation: dict[str, Any]) -> dict[str, Any]:
    parameters = [_PARAMETER, *operation.get("parameters", [])]
    return {
        **operation, "operationId": f"{operation['operationId']}_of_index",
        "parameters": parameters,
    }  # fmt: skip
