"""Web addresses without their signatures.

A signed address carries a secret that soon ends: the signature of Azure (``sig=``), of S3
(``X-Amz-Signature=``), of Google, a token, or a password before the host. A signature decides no
pixels and is a secret: whatever identifies a scene, and every text that is shown or
written, goes through :func:`without_signatures`.
"""

import re
from urllib.parse import quote, unquote

_USER = re.compile(r"(?<=://)[^\s/?#]*@")
# A query (or fragment) ends at a space, a quote or the punctuation of the text around an address.
_END = r"\s?#'\"<>"
_QUERY = re.compile(rf"(?<=[?#])[^{_END}]*[^{_END}.,;:)\]}}]")
_NO_QUERY = re.compile(rf"[?#](?=$|[{_END}.,;:)\]}}])")
_SECRET = re.compile(
    r"x-(amz|goog|oss|cos|obs|ms)-.+|sig|sas|hmac|hdne[at]s?|jwt|pwd|policy|key-?pair-?id"
    r"|authorization|.*(signature|token|secret|passw|credential|accesskey|accessid|apikey"
    r"|subscriptionkey|session).*"
)
# Parameters beside a signature, which mean something else without one: Azure's, times, digests.
_BESIDE = re.compile(
    "sv|ss|srt|sp|st|se|spr|sip|sr|si|sdd|ses|skoid|sktid|skt|ske|sks|skv|saoid|suoid|scid"
    "|rsc[cdelt]|e|exp|expiry|expires|md5"
)
_BARE_KEY = re.compile(r"[\w-]+")  # a key with a dot or slash is that of an object


def without_signatures(text: str) -> str:
    """Return an address, or a text with addresses in it, without signatures and passwords.

    Other parameters stay, and so does a text without any.

    Examples
    --------
    >>> without_signatures("https://h/a.tif?versionId=3&se=2024-01-01&sig=abc%3D is gone")
    'https://h/a.tif?versionId=3 is gone'
    >>> without_signatures("https://me:secret@h/a.tif?X-Amz-Signature=1f")
    'https://h/a.tif'
    """
    text = _USER.sub("", text)
    cleaned = _QUERY.sub(lambda query: _unsigned(query[0]), text)
    return cleaned if cleaned == text else _NO_QUERY.sub("", cleaned)


def _unsigned(query: str) -> str:
    """Return a query without the parameters of a signature."""
    parts = [part.partition("=") for part in query.split("&")]
    secret = [_is_secret(name, value) for name, _, value in parts]
    kept = [
        f"{name}{equals}{_inner(value)}"
        for (name, equals, value), drop in zip(parts, secret, strict=True)
        if not (drop or (any(secret) and _BESIDE.fullmatch(name.lower())))
    ]
    return "&".join(kept)


def _is_secret(name: str, value: str) -> bool:
    plain = unquote(name).lower()
    if not value:
        return False
    if plain == "key":
        return bool(_BARE_KEY.fullmatch(value))
    return bool(_SECRET.fullmatch(plain) or _SECRET.fullmatch(re.sub(r"[-_]", "", plain)))


def _inner(value: str) -> str:
    """Return a value, which may be an address itself, without signatures."""
    address = unquote(value)
    cleaned = without_signatures(address) if "://" in address else address
    return value if cleaned == address else quote(cleaned, safe="")
