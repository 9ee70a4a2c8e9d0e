"""Who may ask, and how much: tokens, origins, rates, shares, body sizes, response headers.

Only the SHA-256 of a token is stored, and compared in constant time. Neither tokens nor headers
are ever logged.
"""

import hashlib
import hmac
import math
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
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

_MOST_CLIENTS = 10_000
Client = tuple[str, int]
"""An address, and the position of its token; -1 without a valid one."""
T = TypeVar("T")
_bearer = HTTPBearer(auto_error=False, description="The service's token.")


class Authenticator:
    """A dependency of every guarded route: counts the request, then checks its token.

    ``request.state.client`` is the client of an admitted request.

    Parameters
    ----------
    digests
        SHA-256 of the valid bearer tokens; when empty, no token is needed.
    rate_per_s, burst
        Requests that a client (an address and a token) may make on average, and at once. A rate
        of 0 disables the limit.
    share
        Requests of one client that are answered at a time, from their headers to the end of
        their answers.
    clock
        Monotonic clock, in seconds.
    """

    def __init__(
        self,
        digests: Sequence[str],
        rate_per_s: float,
        burst: int,
        share: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._digests = tuple(digests)
        self._rate, self._burst, self._share, self._clock = rate_per_s, burst, share, clock
        self._lock = threading.Lock()
        self._clients: OrderedDict[Client, tuple[float, float]] = OrderedDict()
        self._inside: Counter[Client] = Counter()  # changed by the event loop alone

    async def __call__(
        self,
        request: Request,
        credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)] = None,
    ) -> AsyncIterator[None]:
        """Admit a request, and count it until it is answered.

        Raises
        ------
        HTTPException
            401 without a valid token, 429 after or beside too many requests.
        """
        number = self._token_number(credentials.credentials if credentials else "")
        client = (request.client.host if request.client else "", number)
        wait_s = self._take(client)
        if wait_s > 0:
            raise HTTPException(
                429,
                f"more than {self._rate:g} requests a second; wait {wait_s:.1f} s",
                headers={"Retry-After": str(math.ceil(wait_s))},
            )
        if self._digests and number < 0:
            raise HTTPException(
                401,
                "this service needs the header `Authorization: Bearer <token>`",
                headers={"WWW-Authenticate": "Bearer"},
            )
        if self._inside[client] >= self._share:
            raise HTTPException(
                429,
                f"{self._share} requests of this client are being answered; wait for one of them",
                headers={"Retry-After": "1"},
            )
        request.state.client = client
        self._inside[client] += 1
        try:
            yield
        finally:
            self._inside[client] -= 1
            self._inside += Counter()  # forget the clients without a request

    def _token_number(self, token: str) -> int:
        """Return the position of a token, -1 when it is not valid; takes constant time."""
        digest = hashlib.sha256(token.encode()).hexdigest()
        equal = [hmac.compare_digest(digest, known) for known in self._digests]
        return equal.index(True) if True in equal else -1

    def _take(self, client: Client) -> float:
        """Count a request; return the seconds that the client has to wait."""
        if not self._rate:
            return 0.0
        now = self._clock()
        with self._lock:
            left, since = self._clients.pop(client, (float(self._burst), now))
            left = min(self._burst, left + (now - since) * self._rate)
            allowed = left >= 1
            self._clients[client] = (left - allowed, now)
            if len(self._clients) > _MOST_CLIENTS:
                self._clients.popitem(last=False)
        return 0.0 if allowed else (1 - left) / self._rate


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
