"""Limits for URLs and paths in documents from outside: allowed hosts and allowed folders.

A recipe is trusted; STAC APIs and items are not. Requests go to the host that a recipe names, and
to another host, to which an answer leads, only when its address is public. :func:`is_within`
confines files to the folders that a recipe lists.
"""

import os
import re
import socket
from collections.abc import Collection
from ipaddress import ip_address
from typing import Any
from urllib.parse import unquote, urlsplit

from requests import PreparedRequest, Response
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from storage.errors import CatalogError
from storage.location import Location, split_uri


class CheckedAdapter(HTTPAdapter):
    """HTTP adapter that checks the host of every request, next pages and redirects included.

    Parameters
    ----------
    trusted_hosts
        Hosts that may have any address.
    retries
        Rule for repeating a request.
    """

    def __init__(self, trusted_hosts: Collection[str], retries: Retry) -> None:
        super().__init__(max_retries=retries)
        self._trusted_hosts = frozenset(trusted_hosts)

    def send(self, request: PreparedRequest, *args: Any, **kwargs: Any) -> Response:
        """Send a request to an allowed host.

        Raises
        ------
        CatalogError
            The host is not allowed.
        """
        check_host(str(request.url), self._trusted_hosts)
        return super().send(request, *args, **kwargs)


def check_host(url: str, trusted_hosts: Collection[str] = ()) -> None:
    """Check that a URL from outside leads to a public host, or to a trusted one.

    Raises
    ------
    CatalogError
        The scheme is not http or https, or the host has no address or an address that is private,
        loopback, link-local or otherwise not public.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme not in ("http", "https") or not host:
        raise CatalogError(f"{url[:200]} is not followed: only http and https addresses are")
    if host in trusted_hosts:
        return
    try:
        addresses = socket.getaddrinfo(host, parts.port, type=socket.SOCK_STREAM)
    except (OSError, ValueError) as error:
        raise CatalogError(f"{url[:200]} is not followed: {host} has no address") from error
    for *_, address in addresses:
        if not ip_address(str(address[0]).partition("%")[0]).is_global:
            raise CatalogError(
                f"{url[:200]} is not followed: {host} is {address[0]}, which is not a public "
                "address; name that host as the catalog itself if it is meant"
            )


def is_within(uri: str, root: str) -> bool:
    """Tell whether a URI is a folder or lies within that folder, however a reader takes the URI.

    A path with a segment that some reader could take for ``..`` (encoded, doubly encoded, with a
    backslash, with parameters) lies nowhere. Local paths are compared with their links resolved.

    Examples
    --------
    >>> is_within("s3://bucket/a/b.tif", "s3://bucket/a")
    True
    >>> is_within("s3://bucket/abc.tif", "s3://bucket/a"), is_within("/data/../etc/x", "/data")
    (False, False)
    >>> is_within("https://H.org:443/a/b.tif", "https://h.org/a")
    True
    """
    try:
        place, folder = _address(uri), _address(root)
    except ValueError:  # not an address, not one that is read, or one that can be taken differently
        return False
    return place[0] == folder[0] and place[1][: len(folder[1])] == folder[1]


def _address(uri: str) -> tuple[tuple[object, ...], list[str]]:
    """Return what is asked (scheme, host, port) and the segments of the path there.

    Raises
    ------
    ValueError
        Two readers could take the address differently.
    """
    if not Location(uri).is_web:
        scheme, path = split_uri(uri)
        if scheme == "file":
            return (scheme,), _segments(os.path.realpath(path))
        _require_plain(path)
        return (scheme,), _segments(path)
    parts = urlsplit(uri)
    if not parts.hostname or parts.netloc.count("@") > 1 or re.search(r"[\\\x00-\x1f]", uri):
        raise ValueError(f"{uri!r} can be taken differently")
    _require_plain(parts.path)
    port = {"http": 80, "https": 443}[parts.scheme] if parts.port is None else parts.port
    host = parts.hostname.removesuffix(".")
    return (parts.scheme, host, port), [unquote(part) for part in _segments(parts.path)]


def _segments(path: str) -> list[str]:
    return path.rstrip("/").split("/")


def _require_plain(path: str) -> None:
    """Refuse a path that leaves its folder, or may do so, as it is or decoded, once or again."""
    for _ in range(4):
        decoded = unquote(path)
        names = {part.partition(";")[0] for part in re.split(r"[/\\]", path)}
        if names & {".", ".."} or decoded.count("/") > path.count("/"):
            break
        if decoded == path:
            return
        path = decoded
    raise ValueError(f"{path!r} can be taken differently")
