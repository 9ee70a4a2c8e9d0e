"""The HTTP application: its routes and their middleware. This module does not use Ray.

Beyond loopback a bearer token is required (:func:`workflows.service.settings.check_exposure`).
The map at ``/`` is static and holds no data; it gets its data from the guarded routes.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

from anyio import to_thread
from fastapi import Depends, FastAPI, Header, Query, Request, Response
from fastapi import Path as InPath
from fastapi.responses import FileResponse, HTMLResponse
from fastapi.staticfiles import StaticFiles
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from storage.errors import ConfigError
from workflows.service.errors import add_handlers, documented
from workflows.service.features import add_features, landing
from workflows.service.guard import (
    Authenticator,
    BodyLimit,
    FairPlaces,
    Gate,
    OwnPages,
    SafeHeaders,
)
from workflows.service.indexes import NAMED, ByIndex, with_named_paths
from workflows.service.marks import (
    AccuracyAnswer,
    CheckBody,
    DetectBody,
    DetectionsAnswer,
    MarksAnswer,
    OpenedSearch,
    SaveBody,
    SuggestBody,
    measured,
)
from workflows.service.mosaic import MOST_ZOOM, MapTile
from workflows.service.negotiation import CONTENT, negotiated
from workflows.service.page import map_page
from workflows.service.probes import add_probes
from workflows.service.schema import (
    AskBody,
    ChangeAnswer,
    ChangeQuery,
    IndexAnswer,
    MosaicQuery,
    ScenesAnswer,
    ScenesQuery,
    ScoresQuery,
    SearchAnswer,
    SearchBody,
    ThumbnailQuery,
    TileAnswer,
)
from workflows.service.settings import DEFAULT_NAME, LOOPBACK_HOSTS, Limits, MapConfig
from workflows.service.telemetry import Metrics, RequestMetrics
from workflows.service.thumbnails import Thumbnail
from workflows.service.tokens import Access
from workflows.service.uploads import Asked, read_query, receive

if TYPE_CHECKING:
    from workflows.service.backend import IndexBackend
    from workflows.service.layers import TileNumber

WEB = Path(__file__).parent / "web"
_HATCHED = "Why scenes are hatched, where they are, and what helps."
_MULTIPART = {
    "type": "object",
    "required": ["image"],
    "properties": {
        "image": {"type": "string", "format": "binary", "description": "PNG, JPEG or GeoTIFF."},
        "query": {"type": "string", "description": "The rest of the query, as JSON."},
    },
}

logger = logging.getLogger(__name__)

Accept = Annotated[str | None, Header(include_in_schema=False)]
Grid = Annotated[str, InPath(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=128)]
MVT = "application/vnd.mapbox-vector-tile"
Zoom = Annotated[int, InPath(ge=0, le=MOST_ZOOM)]
NOTE = "Skysift-Note"
"""Header of a picture that does not show all; people read it."""
Step = Annotated[int, InPath(ge=0, lt=2**MOST_ZOOM)]
Cell = Annotated[int, InPath(ge=-(2**31), le=2**31 - 1)]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Shared:
    """The parts that the applications of all indexes of a service share."""

    gate: Gate
    limits: Limits
    map_config: MapConfig
    hosts: Sequence[str] | None


def create_app(
    backend: "IndexBackend",
    *,
    digests: Sequence[str] = (),
    limits: Limits | None = None,
    map_config: MapConfig | None = None,
    hosts: Sequence[str] | None = LOOPBACK_HOSTS,
) -> FastAPI:
    """Build the application of one index; ``digests`` are of tokens with every right.

    See :func:`create_service`.
    """
    return create_service(
        {DEFAULT_NAME: backend},
        Access(digests),
        limits=limits,
        map_config=map_config,
        hosts=hosts,
    )


def create_service(
    backends: Mapping[str, "IndexBackend"],
    access: Access,
    *,
    limits: Limits | None = None,
    map_config: MapConfig | None = None,
    hosts: Sequence[str] | None = LOOPBACK_HOSTS,
) -> FastAPI:
    """Build the application of several indexes.

    Parameters
    ----------
    backends
        Answer the requests, by the names of their indexes; the first is the default.
    access
        The tokens, with their rights on the indexes.
    limits
        Limits of one request and of one client.
    map_config
        The base map, and the foreign pages that may send requests.
    hosts
        Values of the Host header that are served, so that a web page elsewhere cannot reach a
        service on loopback by a name of its own; None serves any.
    """
    limits = limits or Limits()
    gate = Gate(access, limits.rate_per_s, limits.burst, limits.share, replicas=limits.replicas)
    shared = _Shared(gate=gate, limits=limits, map_config=map_config or MapConfig(), hosts=hosts)
    metrics = Metrics()
    apps = {name: _index_app(name, backends, metrics.of(name), shared) for name in backends}
    default, *others = backends
    app = apps[default]
    app.add_middleware(ByIndex, others={name: apps[name] for name in others}, default=default)
    if others:
        generated = app.openapi
        app.openapi = lambda: with_named_paths(generated())  # type: ignore[method-assign]
    return app


def _index_app(
    name: str, backends: Mapping[str, "IndexBackend"], metrics: Metrics, shared: _Shared
) -> FastAPI:
    """Build the application of one of the indexes."""
    backend, limits, map_config = backends[name], shared.limits, shared.map_config
    app = FastAPI(
        title="Skysift",
        summary="Where else does it look like this?",
        version="1",
        docs_url=None,
        redoc_url=None,
        separate_input_output_schemas=False,
    )
    app.add_middleware(BodyLimit, max_bytes=limits.max_body_bytes)
    if map_config.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(map_config.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "Accept"],
        )
    app.add_middleware(OwnPages, origins=map_config.cors_origins)
    if shared.hosts is not None:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(shared.hosts))
    app.add_middleware(RequestMetrics, metrics=metrics)
    _add_headers(app, _origins(map_config.base_map))
    add_handlers(app)
    door = Authenticator(shared.gate, name)
    guard, marking = [Depends(door)], [Depends(door.needing("mark"))]
    add_probes(app, name, backends, metrics, door)
    queries = _Queries(limits)
    _add_search(app, backend, queries, limits, guard)
    _add_marks(app, backend, queries, limits, marking)
    _add_saved(app, backend, queries, marking)
    _add_change(app, backend, limits, guard)
    _add_archive(app, backend, limits, map_config, guard)
    _add_tiles(app, backend, limits, metrics, guard)
    _add_layers(app, backend, limits, guard)
    add_features(app, backend, FairPlaces(limits.drawing), guard)
    _add_map(app)
    return app


class _Queries:
    """Answers of routes that take a query: JSON, or a form with a picture.

    Pictures and words have few places to be embedded in; ``work`` is what else takes long.
    """

    def __init__(self, limits: Limits) -> None:
        self.upload_s = limits.upload_s
        self.embedding, self.work = FairPlaces(limits.decoding), FairPlaces(limits.decoding)

    async def answer(
        self,
        request: Request,
        kind: type[Asked],
        respond: Callable[[Asked, bytes | None], Response],
        *,
        takes_long: bool = True,
    ) -> Response:
        """Read a query and respond to it, each in a thread."""
        received = await receive(request, self.upload_s)
        client, read = request.state.client, partial(read_query, received, kind)
        if received.is_form:
            body, image = await self.embedding.run(client, read)
        else:
            body, image = await to_thread.run_sync(read)
        respond_to = partial(respond, body, image)
        if takes_long:
            return await self.work.run(client, respond_to)
        if image is not None or body.text is not None:  # much work, so within bounds
            return await self.embedding.run(client, respond_to)
        return await to_thread.run_sync(respond_to)


def _asks(kind: type[AskBody], answer: Any, guard: list[Any], **content: Any) -> dict[str, Any]:
    """Return the settings of a route that takes a query and gives an answer."""
    return {
        "response_model": answer,
        "responses": {**documented(404, 408, 413, 415, 422, 503), 200: content},
        "dependencies": guard,
        "openapi_extra": {"requestBody": {"required": True, "content": {
            "application/json": {"schema": {"$ref": f"#/components/schemas/{kind.__name__}"}},
            "multipart/form-data": {"schema": _MULTIPART},
        }}},
    }  # fmt: skip


def _add_search(
    app: FastAPI, backend: "IndexBackend", queries: _Queries, limits: Limits, guard: list[Any]
) -> None:
    @app.post("/v1/search", **_asks(SearchBody, SearchAnswer, guard, content=CONTENT))
    async def search(request: Request, accept: Accept = None) -> Response:
        """Find the tiles most like words, a vector, place, tile, box, image or examples."""

        def respond(body: SearchBody, image: bytes | None) -> Response:
            _check_k(body.k, limits)
            return negotiated(backend.search(body, image), accept)

        return await queries.answer(request, SearchBody, respond, takes_long=False)

    _describe(app, SearchBody)


def _add_marks(
    app: FastAPI, backend: "IndexBackend", queries: _Queries, limits: Limits, guard: list[Any]
) -> None:
    @app.post("/v1/suggestions", **_asks(SuggestBody, SearchAnswer, guard, content=CONTENT))
    async def suggestions(request: Request, accept: Accept = None) -> Response:
        """Choose the tiles whose marks would teach most."""

        def respond(body: SuggestBody, image: bytes | None) -> Response:
            return negotiated(backend.suggest(body, image), accept)

        return await queries.answer(request, SuggestBody, respond)

    @app.post("/v1/detections", **_asks(DetectBody, DetectionsAnswer, guard, content=CONTENT))
    async def detections(request: Request, accept: Accept = None) -> Response:
        """Find every place that marks ask for, with its probability and the tiles to review."""

        def respond(body: DetectBody, image: bytes | None) -> Response:
            _check_k(body.k, limits)
            return negotiated(backend.detect(body, image), accept)

        return await queries.answer(request, DetectBody, respond)

    @app.post(
        "/v1/accuracy",
        response_model=AccuracyAnswer,
        responses=documented(413, 422),
        dependencies=guard,
    )
    def accuracy(check: CheckBody) -> AccuracyAnswer:
        """Return precision, recall and F1 that the marks of an accuracy check measure."""
        return measured(check)

    _describe(app, SuggestBody, DetectBody)


def _add_saved(app: FastAPI, backend: "IndexBackend", queries: _Queries, guard: list[Any]) -> None:
    @app.post("/v1/marks", **_asks(AskBody, MarksAnswer, guard, content=CONTENT))
    async def marks(request: Request, accept: Accept = None) -> Response:
        """Return the marks that are tiles of the archive, to be kept as a file."""

        def respond(body: AskBody, image: bytes | None) -> Response:
            return negotiated(backend.marks(body, image), accept)

        return await queries.answer(request, AskBody, respond)

    document: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}

    @app.post("/v1/saved-search", **_asks(SaveBody, None, guard, content=document))
    async def save(request: Request) -> Response:
        """Return a query with its marks as the file of a saved search."""

        def respond(body: SaveBody, image: bytes | None) -> Response:
            return Response(backend.save(body, image), media_type="application/json")

        return await queries.answer(request, SaveBody, respond)

    @app.post(
        "/v1/saved-search/open",
        response_model=OpenedSearch,
        responses=documented(404, 408, 413, 415, 422, 503),
        dependencies=guard,
        openapi_extra={"requestBody": {"required": True, "content": document}},
    )
    async def open_saved(request: Request) -> Response:
        """Return a saved search as a query of this service; the body is its file."""
        received = await receive(request, queries.upload_s)

        def respond() -> Response:
            found = backend.open_saved(received.body)
            return Response(found.model_dump_json(), media_type="application/json")

        return await queries.work.run(request.state.client, respond)

    _describe(app, AskBody, SaveBody)


def _add_change(app: FastAPI, backend: "IndexBackend", limits: Limits, guard: list[Any]) -> None:
    comparing = FairPlaces(limits.decoding)

    @app.post(
        "/v1/change",
        response_model=ChangeAnswer,
        responses={**documented(404, 413, 422, 503), 200: {"content": CONTENT}},
        dependencies=guard,
    )
    async def change(request: Request, query: ChangeQuery, accept: Accept = None) -> Response:
        """Rank places by how far they moved between two periods, beyond the usual."""
        _check_k(query.k, limits)

        def answer() -> Response:
            return negotiated(backend.change(query), accept)

        return await comparing.run(request.state.client, answer)


def _check_k(k: int, limits: Limits) -> None:
    if k > limits.max_k:
        raise ConfigError(f"k is {k}; this service gives at most {limits.max_k}")


def _add_archive(
    app: FastAPI, backend: "IndexBackend", limits: Limits, map_config: MapConfig, guard: list[Any]
) -> None:
    @app.get("/v1/index", responses=documented(404, 503), dependencies=guard)
    def index() -> IndexAnswer:
        """Describe the index: its extent, period, classes and limits."""
        about = backend.about()
        return about.model_copy(
            update={
                "max_k": min(about.max_k, limits.max_k),
                "base_map": map_config.base_map,
                "base_map_attribution": map_config.base_map_attribution,
            }
        )

    @app.get(
        "/v1/scenes",
        response_model=ScenesAnswer,
        responses={**documented(404, 422, 503), 200: {"content": CONTENT}},
        dependencies=guard,
    )
    def scenes(
        page: Annotated[ScenesQuery, Query()],
        accept: Accept = None,
    ) -> Response:
        """List the state and the box of every scene, a page at a time."""
        return negotiated(backend.scenes(page.offset, page.limit, page.state), accept)


def _add_tiles(
    app: FastAPI, backend: "IndexBackend", limits: Limits, metrics: Metrics, guard: list[Any]
) -> None:
    drawing = FairPlaces(limits.drawing)
    png = {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}

    @app.get(
        "/v1/tiles/{grid}/{column}/{row}",
        responses=documented(404, 422, 503),
        dependencies=guard,
    )
    def tile(grid: Grid, column: Cell, row: Cell) -> TileAnswer:
        """List the acquisitions of a tile, oldest first; its key is grid/column/row."""
        return backend.tile(f"{grid}/{column}/{row}")

    @app.get(
        "/v1/tiles/{grid}/{column}/{row}/thumbnail.png",
        response_class=Response,
        responses={
            **documented(404, 422, 503),
            200: png,
            304: {"description": "The client has the current picture."},
        },
        dependencies=guard,
    )
    async def thumbnail(
        request: Request,
        grid: Grid,
        column: Cell,
        row: Cell,
        query: Annotated[ThumbnailQuery, Query()],
        if_none_match: Annotated[str, Header(include_in_schema=False)] = "",
    ) -> Response:
        """Draw a tile from its source scene; bytes as they are, other values with one stretch."""
        draw = partial(backend.thumbnail, f"{grid}/{column}/{row}", query, if_none_match)
        return _answered(await drawing.run(request.state.client, draw), metrics, "image/png")

    @app.get(
        "/v1/mosaic/{z}/{x}/{y}",
        response_class=Response,
        responses={
            **documented(404, 422, 503),
            200: {
                "content": {"image/webp": {"schema": {"type": "string", "format": "binary"}}},
                "headers": {NOTE: {"description": _HATCHED, "schema": {"type": "string"}}},
            },
            304: {"description": "The client has the current picture."},
        },
        dependencies=guard,
    )
    async def mosaic(
        request: Request,
        z: Zoom,
        x: Step,
        y: Step,
        query: Annotated[MosaicQuery, Query()],
        if_none_match: Annotated[str, Header(include_in_schema=False)] = "",
    ) -> Response:
        """Draw the scenes as a tile of a web map: the newest clear pixel of a period."""
        draw = partial(backend.mosaic, MapTile(z=z, x=x, y=y), query, if_none_match)
        return _answered(await drawing.run(request.state.client, draw), metrics, "image/webp")


def _answered(picture: Thumbnail, metrics: Metrics, media_type: str) -> Response:
    metrics.thumbnail(picture.source)
    headers = {"ETag": picture.etag, "Cache-Control": "private, max-age=300"}
    if picture.note:
        headers = {NOTE: picture.note, "Cache-Control": "private, max-age=60"}
    if picture.content is None:
        return Response(status_code=304, headers=headers)
    return Response(picture.content, media_type=media_type, headers=headers)


def _add_layers(app: FastAPI, backend: "IndexBackend", limits: Limits, guard: list[Any]) -> None:
    drawing = FairPlaces(limits.drawing)
    text = {"schema": {"type": "string", "format": "binary"}}
    responses = {**documented(404, 422, 503), 200: {"content": {MVT: text}}}
    common: dict[str, Any] = {
        "dependencies": guard, "response_class": Response, "responses": responses,
    }  # fmt: skip

    async def cut(
        request: Request, tile: "Callable[[TileNumber], bytes]", at: "TileNumber"
    ) -> Response:
        if max(at[1:]) >= 2 ** at[0]:
            raise ConfigError(f"tile {at[1]}/{at[2]} does not exist at zoom {at[0]}")
        content = await drawing.run(request.state.client, partial(tile, at))
        return Response(content, media_type=MVT, headers={"Cache-Control": "private, max-age=300"})

    @app.get("/v1/scores/{z}/{x}/{y}.mvt", **common)
    async def scores(
        request: Request, z: Zoom, x: Step, y: Step, query: Annotated[ScoresQuery, Query()]
    ) -> Response:
        """Draw the similarity of every place to a query as a vector tile of the map."""
        return await cut(request, partial(backend.scores, query.like), (z, x, y))

    @app.get("/v1/colours/{z}/{x}/{y}.mvt", **common)
    async def colours(request: Request, z: Zoom, x: Step, y: Step) -> Response:
        """Draw the principal components of every place's vectors as a vector tile of the map."""
        return await cut(request, backend.colours, (z, x, y))


def _add_map(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    def page(request: Request, accept: Accept = None) -> Response:
        """Return the map to browsers, the landing page of the layers for other programs."""
        if "text/html" not in (accept or "") or NAMED in request.scope:
            return landing(request)
        headers = {"Cache-Control": "no-cache", "Vary": "Accept"}
        return HTMLResponse(map_page(WEB).html, headers=headers)

    # The page asks for them by their digests.
    lasting = {"Cache-Control": "public, max-age=31536000, immutable"}

    @app.get("/web/map.js", include_in_schema=False)
    def script() -> Response:
        return Response(map_page(WEB).script, headers=lasting, media_type="text/javascript")

    @app.get("/web/map.css", include_in_schema=False)
    def styles() -> Response:
        return Response(map_page(WEB).styles, headers=lasting, media_type="text/css")

    @app.get("/docs", include_in_schema=False)
    def docs() -> FileResponse:
        return FileResponse(WEB / "docs.html", headers={"Cache-Control": "no-cache"})

    app.mount("/web", StaticFiles(directory=WEB), name="web")


def _add_headers(app: FastAPI, image_origins: Sequence[str]) -> None:
    """Put the headers on every answer; a middleware would miss those to internal errors."""
    stack = app.build_middleware_stack
    app.build_middleware_stack = (  # type: ignore[method-assign]
        lambda: SafeHeaders(stack(), image_origins)
    )


def _describe(app: FastAPI, *bodies: type[AskBody]) -> None:
    """Complete the OpenAPI document: bodies that routes parse themselves, and the layers' errors.

    FastAPI adds an answer 422 of its own form to each route with parameters that names no 422.
    """
    generated = app.openapi

    def openapi() -> dict[str, Any]:
        document = generated()
        schemas = document["components"]["schemas"]
        for body in bodies:
            schema = body.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas.update(schema.pop("$defs"))
            schemas[body.__name__] = schema
        for operations in document["paths"].values():
            for operation in operations.values():
                if "layers" in operation.get("tags", ()):
                    operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _origins(base_map: str | None) -> tuple[str, ...]:
    if base_map is None:
        return ()
    parts = urlsplit(base_map)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ConfigError(
            f"the base map {base_map!r} is not a URL template; give https://host/{{z}}/{{x}}/{{y}}.png"
        )
    return (f"{parts.scheme}://{parts.netloc}",)
