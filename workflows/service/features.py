"""Live layers for other programs: OGC API Features and STAC API item search.

The landing page, conformance, collections and pages of items, with the links that clients follow.
The features are those of :mod:`workflows.service.collections`.

References
----------
OGC API - Features - Part 1, https://docs.ogc.org/is/17-069r4/17-069r4.html. STAC API 1.0.0,
https://github.com/radiantearth/stac-api-spec.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote, urlencode, urljoin

from fastapi import Body, FastAPI, Query, Request
from fastapi.responses import JSONResponse, Response

from storage.errors import ConfigError, NotFoundError
from storage.index.filter import Filter
from workflows.service.collections import Collection, Collections, Feature, Wanted, period
from workflows.service.errors import documented
from workflows.service.guard import FairPlaces
from workflows.service.items import ItemSearchBody, ItemSearchQuery, ItemsQuery
from workflows.service.negotiation import GEOJSON

if TYPE_CHECKING:
    from workflows.service.backend import IndexBackend

CONFORMS_TO = (
    "http://www.opengis.net/spec/ogcapi-features-1/1.0/conf/core",
    "http://www.opengis.net/spec/ogcapi-features-1/1.0/conf/oas30",
    "http://www.opengis.net/spec/ogcapi-features-1/1.0/conf/geojson",
    "http://www.opengis.net/spec/ogcapi-features-3/1.0/conf/queryables",
    "http://www.opengis.net/spec/ogcapi-features-3/1.0/conf/queryables-query-parameters",
    "https://api.stacspec.org/v1.0.0/core",
    "https://api.stacspec.org/v1.0.0/collections",
    "https://api.stacspec.org/v1.0.0/ogcapi-features",
    "https://api.stacspec.org/v1.0.0/item-search",
)
MOST_ITEMS = 2000
_JSON = "application/json"
_SCHEMA = "application/schema+json"
_QUERYABLES = "http://www.opengis.net/def/rel/ogc/1.0/queryables"
_CRS84 = "http://www.opengis.net/def/crs/OGC/1.3/CRS84"


class GeoJson(JSONResponse):
    """GeoJSON under its own media type."""

    media_type = GEOJSON


def add_features(
    app: FastAPI, backend: "IndexBackend", places: FairPlaces, guard: list[Any]
) -> None:
    """Add the routes.

    Parameters
    ----------
    app, backend, guard
        The application, what answers, and the guards of the routes.
    places
        The threads that build pages.
    """
    options: dict[str, Any] = {
        "dependencies": guard,
        "tags": ["layers"],
        "responses": documented(404, 503),
    }

    @app.get("/conformance", **options)
    async def conformance() -> dict[str, list[str]]:
        """List the standards that the layers follow."""
        return {"conformsTo": list(CONFORMS_TO)}

    @app.get("/collections", **options)
    def collections(request: Request) -> dict[str, Any]:
        """List the collections: tiles, scenes and the saved searches."""
        known, base = backend.collections(), _base(request)
        return {
            "collections": [_described(one, known, base) for one in known.all()],
            "links": [
                _link("self", f"{base}collections"),
                _link("root", base),
            ],
        }

    async def items(request: Request, name: str, query: ItemsQuery) -> Response:
        work = partial(_items, backend, _base(request), name, query)
        return await places.run(request.state.client, work)

    async def item(request: Request, name: str, feature: str) -> Response:
        work = partial(_item, backend, _base(request), name, feature)
        return await places.run(request.state.client, work)

    _add_collection(app, backend, items, item, options)
    _add_search(app, backend, places, options)


def _add_collection(
    app: FastAPI,
    backend: "IndexBackend",
    items: Callable[..., Any],
    item: Callable[..., Any],
    options: dict[str, Any],
) -> None:
    geojson = _of_type(GEOJSON, options)

    @app.get("/collections/searches/{search}/items", **geojson)
    async def hits(
        request: Request, search: str, query: Annotated[ItemsQuery, Query()]
    ) -> Response:
        """Return the hits of a saved search, the best first, a page at a time."""
        return await items(request, f"searches/{search}", query)  # type: ignore[no-any-return]

    @app.get("/collections/searches/{search}/items/{feature}", **geojson)
    async def hit(request: Request, search: str, feature: str) -> Response:
        """Return a hit of a saved search."""
        return await item(request, f"searches/{search}", feature)  # type: ignore[no-any-return]

    @app.get("/collections/searches/{search}/queryables", **_of_type(_SCHEMA, options))
    def hit_queryables(request: Request, search: str) -> Response:
        """List the properties that choose among the hits of a saved search."""
        return _queryables(backend, _base(request), f"searches/{search}")

    @app.get("/collections/{collection}/queryables", **_of_type(_SCHEMA, options))
    def queryables(request: Request, collection: str) -> Response:
        """List the properties that choose features, as a JSON Schema."""
        return _queryables(backend, _base(request), collection)

    @app.get("/collections/searches/{search}", **options)
    def saved(request: Request, search: str) -> dict[str, Any]:
        """Describe a saved search."""
        known = backend.collections()
        return _described(known.get(f"searches/{search}"), known, _base(request))

    @app.get("/collections/{collection}/items", **geojson)
    async def features(
        request: Request, collection: str, query: Annotated[ItemsQuery, Query()]
    ) -> Response:
        """Return the features of a collection, a page at a time."""
        return await items(request, collection, query)  # type: ignore[no-any-return]

    @app.get("/collections/{collection}/items/{feature}", **geojson)
    async def feature(request: Request, collection: str, feature: str) -> Response:
        """Return a feature: a tile by the id of its row, a scene by its id."""
        return await item(request, collection, feature)  # type: ignore[no-any-return]

    @app.get("/collections/{collection}", **options)
    def described(request: Request, collection: str) -> dict[str, Any]:
        """Describe a collection."""
        known = backend.collections()
        return _described(known.get(collection), known, _base(request))


def _add_search(
    app: FastAPI, backend: "IndexBackend", places: FairPlaces, options: dict[str, Any]
) -> None:
    geojson = _of_type(GEOJSON, options)

    @app.get("/search", **geojson)
    async def search(request: Request, query: Annotated[ItemSearchQuery, Query()]) -> Response:
        """Search the collections for items; without `collections`, tiles and scenes."""
        work = partial(_searched, backend, _base(request), query.as_body(), post=False)
        return await places.run(request.state.client, work)

    @app.post("/search", **geojson)
    async def post_search(request: Request, body: Annotated[ItemSearchBody, Body()]) -> Response:
        """Search the collections for items, with the conditions as JSON."""
        work = partial(_searched, backend, _base(request), body, post=True)
        return await places.run(request.state.client, work)


def _of_type(media_type: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a route with an answer of its own type and errors in JSON."""
    answer = {200: {"content": {media_type: {"schema": {"type": "object"}}}}}
    return {
        **options,
        "response_class": Response,
        "responses": {**options["responses"], **answer},
    }


def landing(request: Request) -> JSONResponse:
    """Return the landing page, which holds no data and needs no token."""
    base = _base(request)
    return JSONResponse(
        {
            "type": "Catalog",
            "stac_version": "1.1.0",
            "id": "skysift",
            "title": "Skysift",
            "description": "Tiles and scenes of an archive of satellite scenes, and searches.",
            "conformsTo": list(CONFORMS_TO),
            "links": [
                _link("self", base),
                _link("root", base),
                _link("service-desc", f"{base}openapi.json", "application/vnd.oai.openapi+json"),
                _link("service-doc", urljoin(base, "/docs"), "text/html"),
                _link("conformance", f"{base}conformance"),
                _link("data", f"{base}collections"),
                _link("search", f"{base}search", GEOJSON, method="GET"),
                _link("search", f"{base}search", GEOJSON, method="POST"),
                *(_link("child", f"{base}collections/{name}") for name in ("tiles", "scenes")),
            ],
        }
    )


def _queryables(backend: "IndexBackend", base: str, name: str) -> Response:
    one = backend.collections().get(name)
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"{base}collections/{name}/queryables",
        "type": "object",
        "title": one.title,
        "properties": {
            key: {"type": "string", "title": title} for key, title in one.queryables.items()
        },
        "additionalProperties": False,
    }
    return JSONResponse(schema, media_type=_SCHEMA)


def _items(backend: "IndexBackend", base: str, name: str, query: ItemsQuery) -> Response:
    collection = backend.collections().get(name)
    since, until = period(query.datetime)
    equal = query.model_dump(include={"scene", "tile_key"}, exclude_none=True)
    for key in equal.keys() - collection.queryables.keys():
        raise ConfigError(f"collection {name} has no queryable {key!r}; see its /queryables")
    scenes, tiles = ((equal[key],) if key in equal else () for key in ("scene", "tile_key"))
    where = Filter(bbox=query.box, since=since, until=until, scenes=scenes, tiles=tiles)
    limit = min(query.limit, MOST_ITEMS)
    page = collection.page(Wanted(where=where, limit=limit, token=query.token))
    at = f"{base}collections/{name}"
    links = [_link("self", _address(f"{at}/items", query), GEOJSON), _link("collection", at)]
    if page.token is not None:
        after = query.model_copy(update={"token": page.token})
        links.append(_link("next", _address(f"{at}/items", after), GEOJSON))
    links.append(_link("root", base))
    return GeoJson(_collected(page.features, page.matched, links, base))


def _item(backend: "IndexBackend", base: str, name: str, feature: str) -> Response:
    wanted = Wanted(where=Filter(), limit=1, ids=(feature,))
    found = backend.collections().get(name).page(wanted).features
    if not found:
        raise NotFoundError(f"collection {name} has no feature {feature!r}")
    return GeoJson(_linked(found[0], base))


def _searched(backend: "IndexBackend", base: str, body: ItemSearchBody, *, post: bool) -> Response:
    known = backend.collections()
    names = body.collections or ["tiles", "scenes"]
    chosen = [name for name in dict.fromkeys(names) if _has(known, name)]
    since, until = period(body.datetime)
    where = Filter(bbox=body.place, polygon=body.area, since=since, until=until)
    ids = None if body.ids is None else tuple(body.ids)
    limit, (start, token) = min(body.limit, MOST_ITEMS), _split(body.token, chosen)
    found: list[Feature] = []
    counts: list[int | None] = []
    after = None
    for number, name in enumerate(chosen[start:], start):
        wanted = Wanted(where=where, limit=limit - len(found), ids=ids, token=token)
        features, token, matched = known.get(name).page(wanted)
        found += features
        counts.append(matched)
        if token is not None or (len(found) == limit and number + 1 < len(chosen)):
            after = f"{name}:{token}" if token is not None else f"{chosen[number + 1]}:"
            break
    links = [_link("root", base), _link("self", f"{base}search", GEOJSON)]
    if after is not None:
        links.append(_next(base, body, after, post=post))
    known_counts = [count for count in counts if count is not None]
    whole = len(known_counts) == len(chosen)  # of every collection: none was left for later pages
    return GeoJson(_collected(found, sum(known_counts) if whole else None, links, base))


def _has(known: Collections, name: str) -> bool:
    try:
        known.get(name)
    except NotFoundError:  # STAC: an unknown collection has no items
        return False
    return True


def _split(token: str | None, chosen: list[str]) -> tuple[int, str | None]:
    """Return the number of the collection at which a search goes on, and its own token."""
    if token is None:
        return 0, None
    name, _, rest = token.partition(":")
    if name not in chosen:
        raise NotFoundError(f"token {token!r:.80} is not one of this search; start again")
    return chosen.index(name), rest or None


def _next(base: str, body: ItemSearchBody, token: str, *, post: bool) -> dict[str, Any]:
    if post:
        more = {"method": "POST", "body": {"token": token}, "merge": True}
        return _link("next", f"{base}search", GEOJSON, **more)
    query = ItemSearchQuery.of(body.model_copy(update={"token": token}))
    return _link("next", _address(f"{base}search", query), GEOJSON, method="GET")


def _collected(
    found: list[Feature], matched: int | None, links: list[dict[str, Any]], base: str
) -> dict[str, Any]:
    """Return a page of features; the number of all matches is left out where it is not known."""
    return {
        "type": "FeatureCollection",
        "features": [_linked(feature, base) for feature in found],
        **({} if matched is None else {"numberMatched": matched}),
        "numberReturned": len(found),
        "links": links,
    }


def _linked(feature: Feature, base: str) -> Feature:
    """Return a feature with its links, and its own assets under the service's address."""
    collection = f"{base}collections/{feature['collection']}"
    assets = {
        name: {**asset, "href": urljoin(_routes(base), asset["href"])}
        for name, asset in feature["assets"].items()
    }
    links = [
        _link("self", f"{collection}/items/{quote(feature['id'], safe='')}", GEOJSON),
        _link("parent", collection),
        _link("collection", collection),
        _link("root", base),
    ]
    return {**feature, "links": links, "assets": assets}


def _routes(base: str) -> str:
    """Return the address of the routes of the index whose layers are at ``base``.

    Examples
    --------
    >>> _routes("http://host/"), _routes("http://host/v1/coast/layers/")
    ('http://host/v1/', 'http://host/v1/coast/')
    """
    return base.removesuffix("layers/") if base.endswith("/layers/") else f"{base}v1/"


def _described(one: Collection, known: Collections, base: str) -> dict[str, Any]:
    """Return a collection of OGC API Features, which is one of STAC too."""
    box, times = known.extent
    at = f"{base}collections/{one.id}"
    return {
        "type": "Collection",
        "stac_version": "1.1.0",
        "id": one.id,
        "title": one.title,
        "description": one.description,
        "license": "other",
        "extent": {
            "spatial": {"bbox": [list(box)], "crs": _CRS84},
            "temporal": {"interval": [times]},
        },
        "itemType": "feature",
        "crs": [_CRS84],
        "links": [
            _link("self", at),
            _link("root", base),
            _link("parent", base),
            _link("items", f"{at}/items", GEOJSON),
            _link(_QUERYABLES, f"{at}/queryables", _SCHEMA),
        ],
    }


def _address(path: str, query: ItemsQuery | ItemSearchQuery) -> str:
    given = query.model_dump(exclude_none=True, exclude_defaults=True)
    return f"{path}?{urlencode(given)}" if given else path


def _link(rel: str, href: str, kind: str = _JSON, **more: Any) -> dict[str, Any]:
    return {"rel": rel, "href": href, "type": kind, **more}


def _base(request: Request) -> str:
    """Return the address of the service, with a slash at its end.

    A proxy that ends TLS says so in ``X-Forwarded-Proto``.
    """
    scheme = request.headers.get("x-forwarded-proto", "")
    url = request.base_url
    return str(url.replace(scheme=scheme) if scheme in ("http", "https") else url)
