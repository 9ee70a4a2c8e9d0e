"""Authentication and limits of requests: tokens, rates, body sizes, response headers.

Only the SHA-256 of a token is stored, and compared in constant time. Neither tokens nor headers
are ever logged.
"""

import hashlib
import hmac
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from storage.errors import ConfigError
from workflows.service.errors import error_response

_MIN_TOKEN_CHARS = 16
_MOST_CLIENTS = 10_000
_bearer = HTTPBearer(auto_error=False, description="The service's token.")


def token_digests(tokens: str) -> tuple[str, ...]:
    """Return the digests of a token, or of several separated by commas.

    Raises
    ------
    ConfigError
        A token is too short to be secure.
    """
    stripped = [token.strip() for token in tokens.split(",")]
    short = min(len(token) for token in stripped)
    if short < _MIN_TOKEN_CHARS:
        raise ConfigError(
            f"a service token has {short} characters, at least {_MIN_TOKEN_CHARS} are needed; "
            "make one with `openssl rand -hex 32`"
        )
    return tuple(hashlib.sha256(token.encode()).hexdigest() for token in stripped)


class Authenticator:
    """A dependency of every guarded route: counts the request, then checks its token.

    Parameters
    ----------
    digests
        SHA-256 of the valid bearer tokens; when empty, no token is needed.
    rate_per_s, burst
        Requests that a client (an address and a token) may make on average, and at once. A rate
        of 0 disables the limit.
    clock
        Monotonic clock, in seconds.
    """

    def __init__(
        self,
        digests: Sequence[str],
        rate_per_s: float,
        burst: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._digests = tuple(digests)
        self._rate, self._burst, self._clock = rate_per_s, burst, clock
        self._lock = threading.Lock()
        self._clients: OrderedDict[tuple[str, int], tuple[float, float]] = OrderedDict()

    async def __call__(
        self,
        request: Request,
        credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)] = None,
    ) -> None:
        """Admit a request.

        Raises
        ------
        HTTPException
            401 without a valid token, 429 after too many requests.
        """
        number = self._token_number(credentials.credentials if credentials else "")
        wait_s = self._take((request.client.host if request.client else "", number))
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

    def _token_number(self, token: str) -> int:
        """Return the position of a token, -1 when it is not valid; takes constant time."""
        digest = hashlib.sha256(token.encode()).hexdigest()
        equal = [hmac.compare_digest(digest, known) for known in self._digests]
        return equal.index(True) if True in equal else -1

    def _take(self, client: tuple[str, int]) -> float:
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
