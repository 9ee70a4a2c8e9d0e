"""Where things are: URIs are ``s3://bucket/key``, ``file:///path`` or plain paths.

Pixels of scenes may also be at web addresses; nothing else is read from those or written there.
"""

import os
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urljoin, urlsplit

from storage.errors import ConfigError

SCHEMES = ("s3", "file")


def split_uri(uri: str) -> tuple[str, str]:
    """Split a URI into its scheme (``s3`` or ``file``) and the path within it.

    Raises
    ------
    ConfigError
        The scheme is not one that Skysift reads.

    Examples
    --------
    >>> split_uri("s3://bucket/a/b.tif")
    ('s3', 'bucket/a/b.tif')
    >>> split_uri("scenes/a.tif")
    ('file', 'scenes/a.tif')
    """
    if "://" not in uri:
        return "file", uri
    parts = urlsplit(uri)
    if parts.scheme == "file":
        return "file", unquote(parts.path)
    if parts.scheme != "s3":
        raise ConfigError(
            f"cannot use {uri!r}: its scheme is {parts.scheme!r}; "
            f"give a plain path or one of {', '.join(s + '://' for s in SCHEMES)}"
        )
    return "s3", uri.removeprefix("s3://")


def is_local(uri: str) -> bool:
    """Tell whether a URI names the local filesystem."""
    return not is_web(uri) and split_uri(uri)[0] == "file"


def is_web(uri: str) -> bool:
    """Tell whether a URI is a web address; scenes' pixels are read from those, nothing else is."""
    return uri.startswith(("https://", "http://"))


def local_path(uri: str) -> Path:
    """Return the local path that a URI names.

    Raises
    ------
    ConfigError
        The URI is remote.
    """
    scheme, path = split_uri(uri)
    if scheme != "file":
        raise ConfigError(f"{uri!r} is not a local path; give one on this machine")
    return Path(path)


def join_uri(base: str, *parts: str) -> str:
    """Append path parts to a URI.

    Examples
    --------
    >>> join_uri("s3://bucket/index/", "v1", "manifest.json")
    's3://bucket/index/v1/manifest.json'
    """
    return "/".join([base.rstrip("/"), *(part.strip("/") for part in parts)])


def absolute_uri(uri: str) -> str:
    """Make a local path absolute, so that a worker in another directory means the same file."""
    return str(local_path(uri).absolute()) if is_local(uri) else uri


def resolve_uri(base: str, href: str) -> str:
    """Return ``href``, taken relative to the folder of the document ``base`` when it is relative.

    Examples
    --------
    >>> resolve_uri("s3://bucket/items/a.json", "../tifs/a.tif")
    's3://bucket/tifs/a.tif'
    """
    if is_web(base):
        return urljoin(base, href)
    if "://" in href or href.startswith("/"):
        return href
    scheme, path = split_uri(base)
    joined = os.path.normpath(PurePosixPath(path).parent / href)
    return f"s3://{joined}" if scheme == "s3" else joined


def gdal_path(uri: str) -> str:
    """Return the name by which GDAL opens a URI.

    Examples
    --------
    >>> gdal_path("s3://bucket/a.tif")
    '/vsis3/bucket/a.tif'
    """
    if is_web(uri):
        return f"/vsicurl/{uri}"
    scheme, path = split_uri(uri)
    return f"/vsis3/{path}" if scheme == "s3" else str(Path(path).absolute())
