"""Several indexes behind one address: ``/v1/{index}/...`` is ``/v1/...`` of another index.

``/v1/{index}/layers/`` is the landing page of its layers for other programs, whose standards fix
the paths below.
"""

import re
from collections.abc import Mapping
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from workflows.service.settings import RESERVED_NAMES

_OF_INDEX = re.compile(r"/v1/([^/]+)(/.+)")
_LAYERS = re.compile(r"/layers(/?|/(?:collections(?:/.*)?|conformance|search|openapi\.json))")
_PARAMETER = {
    "name": "index",
    "in": "path",
    "required": True,
    "description": "The name of an index, as `/v1/indexes` lists it.",
    "schema": {"type": "string"},
}
NAMED = "skysift.named_index"
"""Key of an ASGI scope with the name of the index in the address, where there is one."""
UNKNOWN = "/v1/indexes/unknown"
"""Path of the answer to an address with the name of no index."""
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
            app = self._apps[found[1]]
            if _LAYERS.fullmatch(found[2]):
                scope = {**scope, "root_path": f"/v1/{found[1]}/layers", NAMED: found[1]}
            else:
                scope = _asking(scope, f"/v1{found[2]}", found[1])
        elif scope["type"] == "http" and found and found[1] not in RESERVED_NAMES:
            scope = _asking(scope, UNKNOWN, found[1])
        await app(scope, receive, send)


def _asking(scope: Scope, path: str, name: str) -> Scope:
    return {**scope, "path": path, "raw_path": path.encode(), NAMED: name}


def with_named_paths(document: dict[str, Any]) -> dict[str, Any]:
    """Add the paths ``/v1/{index}/...`` to an OpenAPI document, once."""
    paths = document["paths"]
    for path, operations in list(paths.items()):
        is_layer = any("layers" in operation.get("tags", ()) for operation in operations.values())
        if "{index}" in path or path in _OF_SERVICE or not (is_layer or path.startswith("/v1/")):
            continue
        below = f"/layers{path}" if is_layer else path.removeprefix("/v1")
        paths[f"/v1/{{index}}{below}"] = {verb: _named(asked) for verb, asked in operations.items()}
    return document


def _named(operation: dict[str, Any]) -> dict[str, Any]:
    parameters = [_PARAMETER, *operation.get("parameters", [])]
    return {
        **operation, "operationId": f"{operation['operationId']}_of_index",
        "parameters": parameters,
    }  # fmt: skip
