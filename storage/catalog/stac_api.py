"""Items from a STAC API: a search over HTTP, page by page. The home of pystac-client.

The request is the query, rounded outwards; :mod:`storage.catalog.read` filters the answer again,
because servers differ in how they understand boxes, open intervals and cloud cover.
"""

import datetime as dt
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urljoin, urlsplit

import pystac_client
from pystac_client.exceptions import APIError
from pystac_client.item_search import ItemSearch
from pystac_client.stac_api_io import StacApiIO
from pystac_client.warnings import DoesNotConformTo, PystacClientWarning
from urllib3.util import Retry

from storage.catalog.stac import item_candidate
from storage.catalog.url_policy import CheckedAdapter
from storage.dates import as_utc
from storage.errors import CatalogError, SkysiftError
from storage.geometry import BBox, cut
from storage.location import Location
from storage.quarantine import Quarantine, reason_of
from storage.scene import Candidate, CatalogSpec, Rejected, SceneQuery

logger = logging.getLogger(__name__)

PAGE_ITEMS = 250
_TIMEOUT_S = 60.0
_RETRIES = 4
_STALE_PAGES = 20
"""Pages without a new item, in a row, after which a search does not end."""


def api_candidates(
    source: Location, spec: CatalogSpec, *, page_items: int = PAGE_ITEMS
) -> Iterator[Candidate | Rejected]:
    """Yield a candidate for every item that an API finds for a query, each once.

    Parameters
    ----------
    source
        The API's landing page.
    spec
        How to find bands and mask in items, and the query.
    page_items
        Items to a request; servers may give fewer.

    Raises
    ------
    CatalogError
        There is no STAC API with item search, it refuses the search, cannot be reached, or its
        pages do not come to an end.
    """
    try:
        client, requests = _open(source.uri)
        seen: set[str] = set()
        area = spec.query.area
        for box in cut(area) if area else [None]:  # not every server understands west > east
            search = _search(client, spec.query, box, page_items)
            for features in _pages(search, requests, source):
                yield from _fresh(features, source, spec, seen)
    except APIError as error:
        status = getattr(error, "status_code", None)
        answer = f"answered {status}" if status else "could not be reached"
        raise CatalogError(
            f"the STAC API at {source} {answer}: {' '.join(str(error).split())[:200]}; "
            "check the address and the query, then repeat"
        ) from error
    except DoesNotConformTo as error:
        raise CatalogError(
            f"{source} is no STAC API with item search; "
            "give the landing page of one, or an item collection of its items"
        ) from error
    except SkysiftError:
        raise
    except Exception as error:  # pystac raises whatever an answer of another shape leads to
        raise CatalogError(
            f"{source} does not answer as a STAC API: {reason_of(error)}; "
            "give the address of its landing page"
        ) from error


def _open(source: str) -> tuple[pystac_client.Client, StacApiIO]:
    """Open an API; requests that fail or meet a busy server are repeated."""
    retry = Retry(
        total=_RETRIES,
        backoff_factor=0.2,
        status_forcelist=(429, 502, 503, 504),
        allowed_methods=None,  # a search changes nothing, by POST either
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PystacClientWarning)  # the search itself raises
        requests = StacApiIO(timeout=_TIMEOUT_S)
        adapter = CheckedAdapter([urlsplit(source).hostname or ""], retry)
        for scheme in ("http://", "https://"):
            requests.session.mount(scheme, adapter)
        return pystac_client.Client.open(source, stac_io=requests), requests


def _search(
    client: pystac_client.Client, query: SceneQuery, box: BBox | None, page_items: int
) -> ItemSearch:
    methods = {link.extra_fields.get("method") for link in client.get_links("search")}
    return client.search(
        method="POST" if "POST" in methods else "GET",
        limit=page_items,
        bbox=list(box) if box else None,
        datetime=_interval(*query.interval),
        collections=list(query.collections) or None,
    )


def _pages(search: ItemSearch, requests: StacApiIO, source: Location) -> Iterator[list[Any]]:
    """Yield the items of each page.

    pystac-client takes an empty page for the last one; some servers have them in the middle.
    """
    seen: set[str] = set()
    stale = 0
    for page in _answers(search, requests):
        features = page.get("features") or []
        if not isinstance(features, list):
            raise CatalogError(f"the STAC API at {source} answers with features that are no list")
        keys = {_key(item) for item in features}
        stale = 0 if keys - seen else stale + 1
        if stale > _STALE_PAGES and not features:
            logger.warning("%s: %d empty pages are taken for the end", source, _STALE_PAGES)
            return
        if stale > _STALE_PAGES:
            raise CatalogError(
                f"the STAC API at {source} answers the same page of {len(features)} items again "
                "and again; narrow the query, or report the fault to its operator"
            )
        seen |= keys
        yield features


def _answers(search: ItemSearch, requests: StacApiIO) -> Iterator[dict[str, Any]]:
    """Yield the answer to a search, and those that `next` links lead to."""
    asked = search.get_parameters()
    request: tuple[Any, ...] = (search.url, search.method, None, asked)
    while True:
        page = json.loads(requests.request(*request))
        yield page
        link = next((x for x in page.get("links") or [] if x.get("rel") == "next"), None)
        if link is None:
            return
        method, body = link.get("method", "GET"), link.get("body") or {}
        if link.get("merge"):
            body = {**asked, **body}
        # The address of a GET has its parameters.
        body = body if method == "POST" else None
        request = (urljoin(search.url, link["href"]), method, link.get("headers"), body)


def _key(item: Any) -> str:
    """Return the identity of an item: results shift while an archive grows."""
    if isinstance(item, dict) and isinstance(item.get("id"), str):
        return repr((item.get("collection"), item["id"]))
    return repr(item)


def _fresh(
    features: list[Any], source: Location, spec: CatalogSpec, seen: set[str]
) -> Iterator[Candidate | Rejected]:
    """Yield the items that no earlier page had."""
    for item in features:
        if _key(item) not in seen:
            seen.add(_key(item))
            place = source
            with Quarantine("the link of an item to itself"):
                place = source.at(_own_address(item) or source.uri)
            yield item_candidate(place, item, spec)


def _own_address(item: Mapping[str, Any]) -> str | None:
    """Return the address in an item's `self` link, to which its relative links refer."""
    for link in item.get("links") or []:
        if isinstance(link, dict) and link.get("rel") == "self":
            address = str(link.get("href"))
            if Location(address).is_web:
                return address
    return None


def _interval(since: dt.datetime | None, until: dt.datetime | None) -> str | None:
    """Return the interval of a search, in whole seconds, rounded outwards.

    Examples
    --------
    >>> _interval(dt.datetime(2024, 5, 1), dt.datetime(2024, 5, 1, 23, 59, 59, 999999))
    '2024-05-01T00:00:00Z/2024-05-02T00:00:00Z'
    """
    if since is None and until is None:
        return None
    start = as_utc(since).replace(microsecond=0) if since else None
    end = as_utc(until) if until else None
    if end and end.microsecond:
        whole = end.replace(microsecond=0)
        last = dt.datetime.max.replace(microsecond=0, tzinfo=dt.UTC)
        end = whole + dt.timedelta(seconds=1) if whole < last else None
    times = (f"{moment:%FT%TZ}".rjust(20, "0") if moment else ".." for moment in (start, end))
    return "/".join(times)
