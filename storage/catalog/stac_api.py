"""Items from a STAC API: a search over HTTP, page by page. The home of pystac-client.

The request is the query, rounded outwards; :mod:`storage.catalog.read` filters the answer again,
because servers differ in how they understand boxes, open intervals and cloud cover.
"""

import datetime as dt
import warnings
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import pystac_client
from pystac_client.exceptions import APIError
from pystac_client.stac_api_io import StacApiIO
from pystac_client.warnings import DoesNotConformTo, PystacClientWarning
from urllib3.util import Retry

from storage.catalog.stac import MALFORMED, item_candidate
from storage.catalog.url_policy import CheckedAdapter
from storage.dates import as_utc
from storage.errors import CatalogError
from storage.geometry import BBox, cut
from storage.location import Location
from storage.scene import Candidate, CatalogSpec, Rejected, SceneQuery

PAGE_ITEMS = 250
_TIMEOUT_S = 60.0
_RETRIES = 4


def is_api(source: str | Location) -> bool:
    """Tell whether a source is the address of a STAC API.

    Examples
    --------
    >>> is_api("https://earth-search.aws.element84.com/v1"), is_api("s3://bucket/catalog.json")
    (True, False)
    """
    return urlsplit(str(source)).scheme in ("http", "https")


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
        client = _open(source.uri)
        seen: set[tuple[str, str]] = set()
        area = spec.query.area
        for box in cut(area) if area else [None]:  # not every server understands west > east
            for page in _pages(client, spec.query, box, page_items):
                yield from _fresh(page, source, spec, seen)
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
    except MALFORMED as error:
        raise CatalogError(
            f"{source} does not answer as a STAC API: {type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}; give the address of its landing page"
        ) from error


def _open(source: str) -> pystac_client.Client:
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
        return pystac_client.Client.open(source, stac_io=requests)


def _pages(
    client: pystac_client.Client, query: SceneQuery, box: BBox | None, page_items: int
) -> Iterator[list[dict[str, Any]]]:
    methods = {link.extra_fields.get("method") for link in client.get_links("search")}
    search = client.search(
        method="POST" if "POST" in methods else "GET",
        limit=page_items,
        bbox=list(box) if box else None,
        datetime=_interval(*query.interval),
        collections=list(query.collections) or None,
    )
    before: list[str] | None = None
    for page in search.pages_as_dicts():
        features = page["features"]
        ids = [str(item.get("id")) for item in features if isinstance(item, dict)]
        if ids == before:
            raise CatalogError(
                f"the STAC API at {client.self_href} answers the same page of {len(ids)} items "
                "again and again; narrow the query, or report the fault to its operator"
            )
        before = ids
        yield features


def _fresh(
    features: list[Any], source: Location, spec: CatalogSpec, seen: set[tuple[str, str]]
) -> Iterator[Candidate | Rejected]:
    """Yield the items that no earlier page had: results shift while an archive grows."""
    for item in features:
        if not isinstance(item, dict):
            yield item_candidate(source, item, spec)
            continue
        key = (str(item.get("collection")), str(item.get("id")))
        if key not in seen:
            seen.add(key)
            yield item_candidate(source.at(_own_address(item) or source.uri), item, spec)


def _own_address(item: Mapping[str, Any]) -> str | None:
    """Return the address in an item's `self` link, to which its relative links refer."""
    for link in item.get("links") or []:
        if isinstance(link, dict) and link.get("rel") == "self" and is_api(str(link.get("href"))):
            return str(link["href"])
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
        end = end.replace(microsecond=0) + dt.timedelta(seconds=1)
    return "/".join(f"{moment:%Y-%m-%dT%H:%M:%SZ}" if moment else ".." for moment in (start, end))
