"""Who may ask, and how much: tokens, origins, rates, shares, body sizes, response headers.

Neither tokens nor headers are ever logged; the log names a token by the start of its digest.
"""

import math
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from typing import Annotated, TypeVar
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

from anyio import CapacityLimiter, to_thread
from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from workflows.service.errors import error_response
from workflows.service.tokens import Access, Grant

_MOST_CLIENTS = 10_000
Client = tuple[str, str]
"""An address, and the digest of its token; empty without a valid one."""
T = TypeVar("T")
_bearer = HTTPBearer(auto_error=False, description="The service's token.")


class Buckets:
    """Token buckets: how many requests each key may make, on average and at once."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._left: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()

    def take(self, key: Hashable, rate_per_s: float, burst: float) -> float:
        """Count a request; return the seconds that it has to wait. A rate of 0 does not limit."""
        if not rate_per_s:
            return 0.0
        now = self._clock()
        with self._lock:
            left, since = self._left.pop(key, (burst, now))
            left = min(burst, left + (now - since) * rate_per_s)
            allowed = left >= 1
            self._left[key] = (left - allowed, now)
            if len(self._left) > _MOST_CLIENTS:
                self._left.popitem(last=False)
        return 0.0 if allowed else (1 - left) / rate_per_s


class Gate:
    """The state that the requests of a service share, whichever index they are for.

    Parameters
    ----------
    access
        The tokens and their rights.
    rate_per_s, burst
        Requests that a client (an address and a token) may make on average, and at once. A rate
        of 0 disables the limit.
    share
        Requests of one client that are answered at a time, from their headers to the end of
        their answers.
    replicas
        Processes that share the quota of a token; each counts its own part.
    """

    def __init__(
        self,
        access: Access,
        rate_per_s: float,
        burst: int,
        share: int,
        *,
        replicas: int = 1,
        buckets: Buckets | None = None,
    ) -> None:
        self.access, self.share = access, share
        self._rate, self._burst, self._replicas = rate_per_s, burst, replicas
        self._buckets = buckets or Buckets()
        self.inside: Counter[Client] = Counter()  # changed by the event loop alone

    def take(self, client: Client, grant: Grant | None) -> None:
        """Count a request against the rate of its client and the quota of its token.

        Raises
        ------
        HTTPException
            429 after too many requests.
        """
        wait_s = self._buckets.take(client, self._rate, self._burst)
        message = f"more than {self._rate:g} requests a second"
        if not wait_s and grant and grant.per_minute:
            quota = grant.per_minute / self._replicas
            wait_s = self._buckets.take(grant.digest, quota / 60, max(quota, 1))
            message = f"more than {grant.per_minute:,} requests a minute with this token"
        if wait_s:
            after = {"Retry-After": str(math.ceil(wait_s))}
            raise HTTPException(429, f"{message}; wait {wait_s:.1f} s", headers=after)


class Authenticator:
    """A dependency of every guarded route of an index: counts the request, checks its token.

    ``request.state`` gets the ``client`` of an admitted request and what its token allows,
    ``grant``.
    """

    def __init__(self, gate: Gate, index: str, right: str = "read") -> None:
        self._gate, self._index, self._right = gate, index, right

    @property
    def access(self) -> Access:
        """The tokens."""
        return self._gate.access

    def needing(self, right: str) -> "Authenticator":
        """Return the dependency of routes that need another right; empty for none."""
        return Authenticator(self._gate, self._index, right)

    async def __call__(
        self,
        request: Request,
        credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)] = None,
    ) -> AsyncIterator[None]:
        """Admit a request, and count it until it is answered.

        Raises
        ------
        HTTPException
            401 without a valid token, 403 without the right, 429 after or beside too many requests.
        """
        gate = self._gate
        grant = gate.access.grant(credentials.credentials if credentials else "")
        address = request.client.host if request.client else ""
        client = (address, grant.digest if grant else "")
        request.state.token = grant.short if grant else ""
        gate.take(client, grant)
        if grant is None:
            raise HTTPException(
                401,
                "this service needs the header `Authorization: Bearer <token>`",
                headers={"WWW-Authenticate": "Bearer"},
            )
        if self._right and not grant.allows(self._index, self._right):
            raise HTTPException(403, self._refusal(grant))
        if gate.inside[client] >= gate.share:
            raise HTTPException(
                429,
                f"{gate.share} requests of this client are being answered; wait for one of them",
                headers={"Retry-After": "1"},
            )
        request.state.client, request.state.grant = client, grant
        gate.inside[client] += 1
        try:
            yield
        finally:
            gate.inside[client] -= 1
            gate.inside += Counter()  # forget the clients without a request

    def _refusal(self, grant: Grant) -> str:
        given = grant.right(self._index)
        has = f"has the right {given}" if given else "has no right"
        return f"the token {has} on the index {self._index!r}, and this needs {self._right}"


class FairPlaces:
    """Threads for one kind of work, of which one client holds at most half at a time."""

    def __init__(self, places: int) -> None:
        self._places, self._share = CapacityLimiter(places), (places + 1) // 2
        self._of: WeakValueDictionary[Client, CapacityLimiter] = WeakValueDictionary()

    async def run(self, client: Client, work: Callable[[], T]) -> T:
        """Do a client's work in a thread, when the client's turn has come."""
        own = self._of.setdefault(client, CapacityLimiter(self._share))
        async with own:
            return await to_thread.run_sync(work, limiter=self._places)


class OwnPages:
    """Refuse requests of web pages of other origins, before they cost any work.

    Browsers say where a request comes from (Fetch Metadata, or ``Origin``); programs say nothing,
    and are served. A link from elsewhere may open the map, which holds no data.

    Parameters
    ----------
    origins
        Foreign origins whose pages may send requests; ``*`` for all.

    References
    ----------
    https://www.w3.org/TR/fetch-metadata/
    """

    def __init__(self, app: ASGIApp, origins: Sequence[str] = ()) -> None:
        self._app, self._origins = app, frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "http" and not self._admits(scope, Headers(scope=scope)):
            message = "pages of another origin may not use this service; see service.cors_origins"
            await error_response(403, "HTTPError", message)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _admits(self, scope: Scope, headers: Headers) -> bool:
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if not self._origins.isdisjoint({origin, "*"}):
            return True
        if site is None:
            return origin is None or urlsplit(origin).netloc == headers.get("host")
        opened = headers.get("sec-fetch-mode") == "navigate" and scope["method"] == "GET"
        return site in ("same-origin", "none") or (opened and scope["path"] in ("/", "/docs"))


class BodyLimit:
    """Refuse a request whose body is longer than allowed, whether its length is declared or not."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app, self._max = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, counting its body."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > self._max:
            await error_response(413, "HTTPError", self._message())(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max:
                raise HTTPException(413, self._message())
            return message

        await self._app(scope, counted, send)

    def _message(self) -> str:
        return f"the request is longer than {self._max:,} bytes"


class SafeHeaders:
    """Set the headers that keep foreign scripts, frames and content sniffing out of the pages.

    Parameters
    ----------
    image_origins
        Further origins of images: that of the base map.
    """

    def __init__(self, app: ASGIApp, image_origins: Sequence[str] = ()) -> None:
        self._app = app
        origins = "".join(f" {origin}" for origin in image_origins)
        self._headers = {
            "Content-Security-Policy": (
                "default-src 'none'; script-src 'self'; style-src 'self'; worker-src 'self'; "
                f"img-src 'self' blob: data:{origins}; connect-src 'self'{origins}; "
                "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
            ),
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cross-Origin-Resource-Policy": "same-origin",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, adding the headers to its answer."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self._app(scope, receive, with_headers if scope["type"] == "http" else send)
