"""One set of options for every library that touches storage; the only home of s3fs and fsspec.

fsspec/s3fs, GDAL and Icechunk each have their own way to say endpoint, region and credentials. This
module is the only place that knows the three dialects, so the same recipe reaches all of them. What
URIs mean: :mod:`storage.location`. Filesystems are built where they are used (fsspec keeps one per
process and options, and starts anew after a fork).
"""

import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urljoin, urlsplit

import fsspec
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from storage.errors import ConfigError, NotFoundError, SkysiftError

if TYPE_CHECKING:
    import icechunk


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


@dataclass(frozen=True, kw_only=True, slots=True)
class StorageOptions:
    """How to reach the object store; secrets never appear in ``repr``.

    Any value left None falls back to the usual AWS variables and files.

    Attributes
    ----------
    endpoint_url
        URL of an S3 service other than Amazon's.
    region
        Region of the buckets.
    anonymous
        Send no credentials: for public buckets.
    access_key_id
        Access key; better left to the environment or the machine's role.
    secret_access_key
        Secret of the access key, given together with it.
    session_token
        Token of temporary credentials, given together with the access key.
    """

    endpoint_url: str | None = None
    region: str | None = None
    anonymous: bool = False
    access_key_id: str | None = field(default=None, repr=False)
    secret_access_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)

    def resolved(self, environ: Mapping[str, str] = os.environ) -> "StorageOptions":
        """Fill what is None from ``AWS_*`` variables of ``environ``."""

        def first(*names: str) -> str | None:
            return next((environ[name] for name in names if environ.get(name)), None)

        unsigned = environ.get("AWS_NO_SIGN_REQUEST", "").upper() in {"YES", "TRUE", "1"}
        keys_given = self.access_key_id is not None
        return replace(
            self,
            endpoint_url=self.endpoint_url or first("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
            region=self.region or first("AWS_REGION", "AWS_DEFAULT_REGION"),
            anonymous=self.anonymous or unsigned,
            access_key_id=self.access_key_id or first("AWS_ACCESS_KEY_ID"),
            secret_access_key=self.secret_access_key or first("AWS_SECRET_ACCESS_KEY"),
            session_token=self.session_token
            if keys_given
            else self.session_token or first("AWS_SESSION_TOKEN"),
        )


@dataclass(frozen=True, slots=True)
class Location:
    """A place in a file system or an object store, with the options that reach it.

    Immutable, hashable and picklable. ``str(location)`` is the URI and never a secret. Pixels of
    scenes may also be at web addresses.

    Parameters
    ----------
    uri
        ``s3://bucket/key``, ``file:///path`` or a plain path.
    options
        Endpoint, region and credentials of the object store.

    Examples
    --------
    >>> archive = Location("s3://bucket/archive", StorageOptions(region="eu-central-1"))
    >>> str(archive / "segments" / "a")
    's3://bucket/archive/segments/a'
    >>> (archive / "segments").options.region
    'eu-central-1'
    """

    uri: str
    options: StorageOptions = field(default=StorageOptions(), repr=False)

    @classmethod
    def of(cls, place: "str | os.PathLike[str] | Location") -> "Location":
        """Return a location; a plain URI or path gets the default options."""
        return place if isinstance(place, Location) else cls(os.fspath(place))

    def __str__(self) -> str:
        return self.uri

    def __truediv__(self, part: str) -> "Location":
        """Append path parts.

        Examples
        --------
        >>> Location("index") / "v1/manifest.json"
        Location(uri='index/v1/manifest.json')
        """
        return self.at(join_uri(self.uri, part))

    def at(self, uri: str) -> "Location":
        """Return another place that the same options reach."""
        return replace(self, uri=uri)

    def resolve(self, href: str) -> "Location":
        """Return ``href``, relative to the folder of this document when it is relative."""
        return self.at(resolve_uri(self.uri, href))

    @property
    def absolute(self) -> "Location":
        """The same place, named independently of the working directory."""
        return self.at(absolute_uri(self.uri))

    @property
    def is_local(self) -> bool:
        """Whether this is a path of this machine."""
        return is_local(self.uri)

    @property
    def path(self) -> Path:
        """The local path.

        Raises
        ------
        ConfigError
            The location is remote.
        """
        return local_path(self.uri)

    def exists(self) -> bool:
        """Tell whether a file or folder exists.

        Raises
        ------
        SkysiftError
            The store refuses or cannot be reached.
        """
        return exists(self.uri, self.options)

    def list(self) -> "list[Location]":
        """Return the files that a glob pattern names, or all files below a folder, sorted."""
        return [self.at(uri) for uri in list_files(self.uri, self.options)]

    def read(self) -> bytes:
        """Read a whole file.

        Raises
        ------
        NotFoundError
            The file does not exist.
        SkysiftError
            The store refuses or cannot be reached.
        """
        return read_bytes(self.uri, self.options)

    def write(self, data: bytes) -> None:
        """Write a whole file so that a reader sees the old content or the new, never a part."""
        write_bytes(self.uri, data, self.options)

    def staged(self) -> AbstractContextManager[Path]:
        """Hand out a local file to write; it is here, whole, after the block and not before."""
        return staged(self.uri, self.options)

    def delete(self) -> None:
        """Delete a file, or a folder with its content; do nothing where there is none."""
        delete(self.uri, self.options)

    def icechunk(self) -> "icechunk.Storage":
        """Return Icechunk's storage for this place."""
        return icechunk_storage(self.uri, self.options)


def filesystem(
    uri: str, options: StorageOptions | None = None
) -> tuple[fsspec.AbstractFileSystem, str]:
    """Build the fsspec filesystem of a URI, and the path of the URI in it.

    Raises
    ------
    ConfigError
        The scheme is not one that Skysift reads.
    """
    scheme, path = split_uri(uri)
    if scheme == "file":
        return fsspec.filesystem("file"), str(Path(path).absolute())
    resolved = (options or StorageOptions()).resolved()
    client: dict[str, Any] = {}
    if resolved.region:
        client["region_name"] = resolved.region
    filesystem_ = fsspec.filesystem(
        "s3",
        anon=resolved.anonymous,
        key=None if resolved.anonymous else resolved.access_key_id,
        secret=None if resolved.anonymous else resolved.secret_access_key,
        token=None if resolved.anonymous else resolved.session_token,
        endpoint_url=resolved.endpoint_url,
        client_kwargs=client,
        use_listings_cache=False,
    )
    return filesystem_, path


def gdal_environment(options: StorageOptions | None = None) -> dict[str, str]:
    """Return GDAL's configuration for reading scenes in a worker, object store included."""
    resolved = (options or StorageOptions()).resolved()
    environment = {
        "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
        "GDAL_NUM_THREADS": "1",
        "GDAL_CACHEMAX": "128",
        "GDAL_HTTP_MAX_RETRY": "4",
        "GDAL_HTTP_RETRY_DELAY": "0.5",
        "GDAL_HTTP_TIMEOUT": "60",
        "VSI_CACHE": "TRUE",
        "VSI_CACHE_SIZE": str(16 * 1024 * 1024),
        # Long-lived workers must see the new content of an overwritten object.
        "CPL_VSIL_CURL_NON_CACHED": "/vsis3/:/vsicurl/",
    }
    if resolved.endpoint_url:
        endpoint = urlsplit(resolved.endpoint_url)
        environment["AWS_S3_ENDPOINT"] = endpoint.netloc
        environment["AWS_HTTPS"] = "YES" if endpoint.scheme == "https" else "NO"
        environment["AWS_VIRTUAL_HOSTING"] = "FALSE"
    if resolved.region:
        environment["AWS_REGION"] = resolved.region
    if resolved.anonymous:
        environment["AWS_NO_SIGN_REQUEST"] = "YES"
        return environment
    secrets = {
        "AWS_ACCESS_KEY_ID": resolved.access_key_id,
        "AWS_SECRET_ACCESS_KEY": resolved.secret_access_key,
        "AWS_SESSION_TOKEN": resolved.session_token,
    }
    return environment | {name: value for name, value in secrets.items() if value}


def icechunk_storage(uri: str, options: StorageOptions | None = None) -> "icechunk.Storage":
    """Build Icechunk's storage for a URI."""
    import icechunk  # brings zarr; a worker that reads scenes needs neither

    scheme, path = split_uri(uri)
    if scheme == "file":
        return icechunk.local_filesystem_storage(str(Path(path).absolute()))
    resolved = (options or StorageOptions()).resolved()
    bucket, _, prefix = path.partition("/")
    endpoint = resolved.endpoint_url
    return icechunk.s3_storage(
        bucket=bucket,
        prefix=prefix.rstrip("/"),
        region=resolved.region or "us-east-1",
        endpoint_url=endpoint,
        allow_http=bool(endpoint and endpoint.startswith("http://")),
        force_path_style=endpoint is not None,
        anonymous=resolved.anonymous or None,
        access_key_id=None if resolved.anonymous else resolved.access_key_id,
        secret_access_key=None if resolved.anonymous else resolved.secret_access_key,
        session_token=None if resolved.anonymous else resolved.session_token,
        from_env=None if resolved.anonymous or resolved.access_key_id else True,
    )


def exists(uri: str, options: StorageOptions | None = None) -> bool:
    """Tell whether a file or folder exists.

    Raises
    ------
    SkysiftError
        The store refuses or cannot be reached.
    """
    fs, path = filesystem(uri, options)
    with named_failures(uri):
        return bool(fs.exists(path))


def list_files(uri: str, options: StorageOptions | None = None) -> list[str]:
    """Return the URIs of the files that a glob pattern names, or of all files below a folder.

    The result is sorted; it is empty when nothing is there.
    """
    fs, path = filesystem(uri, options)
    with named_failures(uri):
        is_pattern = any(mark in path for mark in "*?[")
        found = fs.glob(path) if is_pattern else fs.find(path)
        if is_pattern:
            found = [name for name in found if not fs.isdir(name)]
    prefix = "s3://" if not is_local(uri) else ""
    return sorted(f"{prefix}{name}" for name in found)


def read_bytes(uri: str, options: StorageOptions | None = None) -> bytes:
    """Read a whole file.

    Raises
    ------
    NotFoundError
        The file does not exist.
    SkysiftError
        The store refuses or cannot be reached.
    """
    fs, path = filesystem(uri, options)
    with named_failures(uri):
        return bytes(fs.cat_file(path))


def write_bytes(uri: str, data: bytes, options: StorageOptions | None = None) -> None:
    """Write a whole file so that a reader sees the old content or the new, never a part."""
    if is_local(uri):
        with staged(uri) as temporary:
            temporary.write_bytes(data)
        return
    fs, path = filesystem(uri, options)
    with named_failures(uri):
        fs.pipe_file(path, data)


@contextmanager
def staged(uri: str, options: StorageOptions | None = None) -> Iterator[Path]:
    """Hand out a local file to write; it is at the URI, whole, after the block and not before."""
    local = is_local(uri)
    target = local_path(uri) if local else Path(tempfile.gettempdir()) / "upload"
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".writing-{uuid.uuid4().hex}")
    try:
        yield temporary
        if local:
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
            temporary.replace(target)
        else:
            upload(temporary, uri, options)
    finally:
        temporary.unlink(missing_ok=True)


def size_bytes(uri: str, options: StorageOptions | None = None) -> int:
    """Return the size of a file, also of one on the web; 0 where a server does not tell."""
    fs, path = (fsspec.filesystem("https"), uri) if is_web(uri) else filesystem(uri, options)
    with named_failures(uri):
        return int(fs.size(path) or 0)


def modified_at(uri: str, options: StorageOptions | None = None) -> datetime:
    """Return when a file was last written (UTC)."""
    fs, path = filesystem(uri, options)
    with named_failures(uri):
        when: datetime = fs.modified(path)
    return when.astimezone(UTC)


def download(uri: str, target: Path, options: StorageOptions | None = None) -> None:
    """Copy a file to a local path."""
    fs, path = filesystem(uri, options)
    target.parent.mkdir(parents=True, exist_ok=True)
    with named_failures(uri):
        fs.get_file(path, str(target))


def upload(source: Path, uri: str, options: StorageOptions | None = None) -> None:
    """Copy a local file to a URI; a local target appears whole or not at all."""
    if is_local(uri):
        with staged(uri) as temporary:
            shutil.copyfile(source, temporary)
        return
    fs, path = filesystem(uri, options)
    with named_failures(uri):
        fs.put_file(str(source), path)


def delete(uri: str, options: StorageOptions | None = None) -> None:
    """Delete a file, or a folder with all that is in it; nothing happens if it is not there."""
    fs, path = filesystem(uri, options)
    with named_failures(uri):
        if fs.exists(path):
            fs.rm(path, recursive=True)


def sha256_of_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a local file, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class named_failures:
    """Turn a storage library's failure into one of ours that names the URI."""

    def __init__(self, uri: str) -> None:
        self._uri = uri

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, FileNotFoundError):
            raise NotFoundError(
                f"{self._uri} does not exist; check the path, the bucket and the key"
            ) from error
        if isinstance(error, (PermissionError, NoCredentialsError)):
            raise SkysiftError(
                f"{self._uri} may not be accessed ({_first_line(error)}); "
                "check the credentials (or say `anonymous`) and the policy"
            ) from error
        if isinstance(error, (OSError, BotoCoreError, ClientError)):
            raise SkysiftError(
                f"{self._uri} could not be accessed: {_first_line(error)}; "
                "check the endpoint, the network and the disk"
            ) from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
