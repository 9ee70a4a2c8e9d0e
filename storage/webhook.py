"""Events for a program elsewhere: one HTTP POST of JSON each, signed, repeated until acknowledged.

A POST can be acknowledged too late, and is then repeated with the same event id in the header
``Skysift-Event``: receivers drop the ids that they know. With a secret, the header
``Skysift-Signature`` is ``sha256=`` and the HMAC-SHA256 of the body in hexadecimal digits (RFC
2104). Redirects are not followed, and a host must have a public address unless it is named.
"""

import hashlib
import hmac
import json
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any
from urllib.parse import urlsplit

import requests
from urllib3.util import Retry

from storage.catalog.url_policy import CheckedAdapter, check_host
from storage.errors import CatalogError, ConfigError, SkysiftError

ATTEMPTS = 5
_TIMEOUT_S = 20.0
_BUSY = frozenset({408, 425, 429})


class Webhook:
    """A receiver of events.

    Parameters
    ----------
    url
        Of http or https.
    secret
        Signs the events; empty for none.
    hosts
        Hosts that may have an address that is not public.
    wait
        How to let seconds pass between attempts.

    Raises
    ------
    ConfigError
        The URL is not one that events may go to.
    """

    def __init__(
        self,
        url: str,
        secret: str = "",
        hosts: Collection[str] = (),
        *,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        try:
            check_host(url, hosts)
        except CatalogError as error:
            raise ConfigError(
                f"webhook: {str(error).partition('; name that host')[0]}; "
                "name a host of your own network with --webhook-host"
            ) from error
        self._url, self._secret, self._wait = url, secret.encode(), wait
        self._session = requests.Session()
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, CheckedAdapter(hosts, Retry(0)))

    def __str__(self) -> str:
        return f"webhook at {urlsplit(self._url).hostname}"  # the path is often a secret

    def send(self, event: Mapping[str, Any]) -> None:
        """Send an event; it has an ``id``.

        Raises
        ------
        SkysiftError
            The receiver did not acknowledge it (2xx) in five attempts, or refused it.
        """
        body = json.dumps(event, sort_keys=True).encode()
        headers = {"Content-Type": "application/json", "Skysift-Event": str(event["id"])}
        if self._secret:
            digest = hmac.new(self._secret, body, hashlib.sha256).hexdigest()
            headers["Skysift-Signature"] = f"sha256={digest}"
        reason = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                self._wait(2.0 ** (attempt - 1))
            try:
                with self._session.post(
                    self._url,
                    body,
                    headers=headers,
                    timeout=_TIMEOUT_S,
                    allow_redirects=False,
                    stream=True,  # nothing of the answer but its status is read
                ) as answer:
                    status = answer.status_code
            except requests.RequestException as error:
                reason = f"could not be reached ({type(error).__name__})"
                continue
            if 200 <= status < 300:
                return
            reason = f"answered {status}"
            if status < 500 and status not in _BUSY:
                break
        raise SkysiftError(
            f"{self} {reason}: event {event['id']} waits, and the next poll sends it again with "
            "the same id; check the receiver"
        )
