"""Places in file systems and object stores; the only home of s3fs and fsspec.

fsspec/s3fs, GDAL and Icechunk each have their own names for endpoint, region and credentials. A
:class:`Location` holds a URI and one set of :class:`StorageOptions` for all three. Filesystems are
built where they are used (fsspec keeps one per process and options, and starts anew after a fork).
"""

import hashlib
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal
from urllib.parse import unquote, urljoin, urlsplit

import fsspec
import fsspec.utils
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from storage.errors import ConfigError, NotFoundError, SkysiftError
from storage.signatures import without_signatures

if TYPE_CHECKING:
    import icechunk


Driver = Literal["jp2", "vrt"]
"""A raster format that GDAL opens only where it is asked for: JPEG 2000, virtual rasters."""
SCHEMES = ("s3", "file")
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
REQUEST_PAYER = "AWS_REQUEST_PAYER"


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
    return "s3", uri.partition("://")[2]


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
    sidecars
        Read the files beside a remote GeoTIFF, as beside a local one always: masks (``.msk``),
        ``.aux.xml``, world files, ``.ovr``. Costs about 15 requests a file more, with a mask
        about 30.
    """

    endpoint_url: str | None = None
    region: str | None = None
    anonymous: bool = False
    access_key_id: str | None = field(default=None, repr=False)
    secret_access_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    sidecars: bool = False

    def resolved(self, environ: Mapping[str, str] = os.environ) -> "StorageOptions":
        """Fill fields that are None from ``AWS_*`` variables of ``environ``.

        Anonymous access has no keys.
        """

        def first(*names: str) -> str | None:
            return next((environ[name] for name in names if environ.get(name)), None)

        unsigned = environ.get("AWS_NO_SIGN_REQUEST", "").upper() in {"YES", "TRUE", "1"}
        filled = replace(
            self,
            endpoint_url=self.endpoint_url or first("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
            region=self.region or first("AWS_REGION", "AWS_DEFAULT_REGION"),
            anonymous=self.anonymous or unsigned,
        )
        if filled.anonymous:
            return replace(filled, access_key_id=None, secret_access_key=None, session_token=None)
        # A token belongs to its keys: that of the environment does not go with keys given here.
        token = first("AWS_SESSION_TOKEN") if self.access_key_id is None else None
        return replace(
            filled,
            access_key_id=self.access_key_id or first("AWS_ACCESS_KEY_ID"),
            secret_access_key=self.secret_access_key or first("AWS_SECRET_ACCESS_KEY"),
            session_token=self.session_token or token,
        )


@dataclass(frozen=True, slots=True)
class Location:
    """A place in a file system or an object store, with the options that reach it.

    Immutable, hashable and picklable. ``str(location)`` is the URI without signature or password;
    ``location.uri`` is what readers open. Pixels of scenes may also be at web addresses.

    Parameters
    ----------
    uri
        ``s3://bucket/key``, ``file:///path`` or a plain path.
    options
        Endpoint, region and credentials of the object store.
    drivers
        Formats beside GeoTIFF that GDAL may open here; see `catalog.drivers`.

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
    drivers: tuple[Driver, ...] = field(default=(), repr=False)

    @classmethod
    def of(cls, place: "str | os.PathLike[str] | Location") -> "Location":
        """Return a location; a plain URI or path gets the default options."""
        return place if isinstance(place, Location) else cls(os.fspath(place))

    def __str__(self) -> str:
        return without_signatures(self.uri)

    def __repr__(self) -> str:
        return f"Location(uri={str(self)!r})"

    def __truediv__(self, part: str) -> "Location":
        """Append path parts.

        Examples
        --------
        >>> Location("s3://bucket/index/") / "v1/manifest.json"
        Location(uri='s3://bucket/index/v1/manifest.json')
        """
        return self.at(f"{self.uri.rstrip('/')}/{part.strip('/')}")

    def at(self, uri: str) -> "Location":
        """Return another place that the same options reach."""
        return replace(self, uri=uri)

    def with_sidecars(self) -> "Location":
        """Return the same place, read together with the files beside it."""
        return replace(self, options=replace(self.options, sidecars=True))

    def with_drivers(self, drivers: Iterable[Driver]) -> "Location":
        """Return the same place, where GDAL may open further formats."""
        return replace(self, drivers=tuple(drivers))

    def resolve(self, href: str) -> "Location":
        """Return ``href``, relative to the folder of this document when it is relative.

        Examples
        --------
        >>> str(Location("s3://bucket/items/a.json").resolve("../tifs/a.tif"))
        's3://bucket/tifs/a.tif'
        """
        if self.is_web:
            return self.at(urljoin(self.uri, href))
        if address := _ADDRESS.match(href):
            return self.at(address[0].lower() + href[address.end() :])
        if href.startswith("/"):
            return self.at(href)
        scheme, path = split_uri(self.uri)
        joined = os.path.normpath(PurePosixPath(path).parent / href)
        return self.at(f"s3://{joined}" if scheme == "s3" else joined)

    @property
    def absolute(self) -> "Location":
        """The same place, named independently of the working directory."""
        return self.at(str(self.path.absolute())) if self.is_local else self

    @property
    def stem(self) -> str:
        """The name of the file or folder, without the folders before it and without suffix."""
        return PurePosixPath(self.uri.rstrip("/")).stem

    @property
    def is_local(self) -> bool:
        """Whether this is a path of this machine."""
        return not self.is_web and split_uri(self.uri)[0] == "file"

    @property
    def is_web(self) -> bool:
        """Whether this is a web address; only pixels of scenes are read from web addresses."""
        return self.uri[:8].lower().startswith(("https://", "http://"))

    @property
    def path(self) -> Path:
        """The local path.

        Raises
        ------
        ConfigError
            The location is remote.
        """
        scheme, path = split_uri(self.uri)
        if scheme != "file":
            raise ConfigError(f"{self.uri!r} is not a local path; give one on this machine")
        return Path(path)

    @property
    def gdal_path(self) -> str:
        """The name by which GDAL opens this file.

        Examples
        --------
        >>> Location("s3://bucket/a.tif").gdal_path
        '/vsis3/bucket/a.tif'
        """
        if self.is_web:
            return f"/vsicurl/{self.uri}"
        scheme, path = split_uri(self.uri)
        return f"/vsis3/{path}" if scheme == "s3" else str(Path(path).absolute())

    def filesystem(self) -> tuple[fsspec.AbstractFileSystem, str]:
        """Return the fsspec filesystem of this place, and the path in that filesystem.

        Raises
        ------
        ConfigError
            The scheme is not one that Skysift reads.
        """
        scheme, path = split_uri(self.uri)
        if scheme == "file":
            return fsspec.filesystem("file"), str(Path(path).absolute())
        options = self.options.resolved()
        given = {
            "key": options.access_key_id,
            "secret": options.secret_access_key,
            "token": options.session_token,
            "endpoint_url": options.endpoint_url,
        }
        s3 = fsspec.filesystem(
            "s3",
            # Zarr writes the options as JSON, in which fsspec takes no None.
            **{name: value for name, value in given.items() if value is not None},
            anon=options.anonymous,
            client_kwargs={"region_name": options.region} if options.region else {},
            requester_pays=os.environ.get(REQUEST_PAYER) == "requester",  # as GDAL has it
            use_listings_cache=False,
        )
        return s3, path

    def exists(self) -> bool:
        """Tell whether a file or folder exists.

        Raises
        ------
        SkysiftError
            The store refuses or cannot be reached.
        """
        fs, path = self.filesystem()
        with named_failures(self):
            return bool(fs.exists(path))

    def ask(self) -> None:
        """Ask an object store for one name below this place, as a store tells why it refuses.

        :meth:`exists` asks by HEAD, whose answers state no reason.

        Raises
        ------
        NotFoundError
            There is no such bucket.
        SkysiftError
            The store refuses or cannot be reached.
        """
        fs, path = self.filesystem()
        if not self.is_local:
            bucket, _, prefix = path.partition("/")
            with named_failures(self):
                fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=1)

    @property
    def is_pattern(self) -> bool:
        """Whether this is a glob pattern; a name that exists is none, whatever is in the name."""
        fs, path = self.filesystem()
        with named_failures(self):
            return bool(_split_pattern(fs, path)[1])

    def list(self) -> "list[Location]":
        """Return the files that a glob pattern names, or all files below a folder, sorted.

        The result is empty when no file matches. A folder that exists may have ``*``, ``?`` and
        ``[`` in its name.

        Raises
        ------
        ConfigError
            The pattern is wrong.
        """
        fs, path = self.filesystem()
        with named_failures(self):
            folder, pattern = _split_pattern(fs, path)
            depth = None if "**" in pattern or not pattern else pattern.count("/") + 1
            names = fs.find(folder, maxdepth=depth)
        if pattern:
            matches = _matcher(pattern)
            names = [name for name in names if matches(name[len(folder.rstrip("/")) + 1 :])]
        prefix = "" if self.is_local else "s3://"
        return [self.at(f"{prefix}{name}") for name in sorted(names)]

    def read(self) -> bytes:
        """Read a whole file.

        Raises
        ------
        NotFoundError
            The file does not exist.
        SkysiftError
            The store refuses or cannot be reached.
        """
        fs, path = self.filesystem()
        with named_failures(self):
            if self.is_local and not self.path.is_file() and self.path.exists():
                raise NotFoundError(f"{self} is a folder or a device, not a file; check the path")
            return bytes(fs.cat_file(path))

    def write(self, data: bytes) -> None:
        """Write a whole file so that a reader sees the old content or the new, never a part."""
        if self.is_local:
            with self.staged() as temporary:
                temporary.write_bytes(data)
            return
        fs, path = self.filesystem()
        with named_failures(self):
            fs.pipe_file(path, data)

    @contextmanager
    def staged(self) -> Iterator[Path]:
        """Yield a local file to write, which appears at this place, whole, after the block.

        Nothing appears when the block raises.
        """
        local = self.is_local
        target = self.path if local else Path(tempfile.gettempdir()) / "upload"
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".writing-{uuid.uuid4().hex}")
        try:
            yield temporary
            if local:
                with temporary.open("rb") as stream:
                    os.fsync(stream.fileno())
                temporary.replace(target)
            else:
                self.upload(temporary)
        finally:
            temporary.unlink(missing_ok=True)

    def size_bytes(self) -> int:
        """Return the size of a file, also of one on the web; 0 where a server does not state it."""
        fs, path = (fsspec.filesystem("https"), self.uri) if self.is_web else self.filesystem()
        with named_failures(self):
            return int(fs.size(path) or 0)

    def revision(self) -> str:
        """Return a text that changes when a file is replaced: its size and time or entity tag.

        The mask beside a local file (``.msk``) counts as a part of the file.
        """
        fs, path = self.filesystem()
        with named_failures(self):
            if self.is_local:
                mask = Path(f"{path}.msk")
                parts = [Path(path), *([mask] if mask.exists() else [])]
                states = [part.stat() for part in parts]
                return " ".join(f"{state.st_size}-{state.st_mtime_ns}" for state in states)
            details = fs.info(path)
        return f"{details['size']}-{str(details.get('ETag', '')).strip(chr(34))}"

    def modified_at(self) -> datetime:
        """Return when a file was last written (UTC)."""
        fs, path = self.filesystem()
        with named_failures(self):
            when: datetime = fs.modified(path)
        return when.astimezone(UTC)

    def download(self, target: Path) -> None:
        """Copy this file to a local path."""
        fs, path = self.filesystem()
        target.parent.mkdir(parents=True, exist_ok=True)
        with named_failures(self):
            fs.get_file(path, str(target))

    def upload(self, source: Path) -> None:
        """Copy a local file to this place; a local target appears whole or not at all."""
        if self.is_local:
            with self.staged() as temporary:
                shutil.copyfile(source, temporary)
            return
        fs, path = self.filesystem()
        with named_failures(self):
            fs.put_file(str(source), path)

    def delete(self) -> None:
        """Delete a file, or a folder with its content; do nothing when there is none."""
        fs, path = self.filesystem()
        with named_failures(self):
            if _has_marks(path) and not self.is_local:
                for name in fs.find(path):  # s3fs would delete all that a name matches as a pattern
                    fs.rm_file(name)
            elif fs.exists(path):
                fs.rm(path, recursive=True)

    def icechunk(self) -> "icechunk.Storage":
        """Return Icechunk's storage for this place."""
        import icechunk  # brings zarr; a worker that reads scenes needs neither

        scheme, path = split_uri(self.uri)
        if scheme == "file":
            return icechunk.local_filesystem_storage(str(Path(path).absolute()))
        options = self.options.resolved()
        bucket, _, prefix = path.partition("/")
        return icechunk.s3_storage(
            bucket=bucket,
            prefix=prefix.rstrip("/"),
            region=options.region or "us-east-1",
            endpoint_url=options.endpoint_url,
            allow_http=bool(options.endpoint_url and options.endpoint_url.startswith("http://")),
            force_path_style=options.endpoint_url is not None,
            anonymous=options.anonymous or None,
            access_key_id=options.access_key_id,
            secret_access_key=options.secret_access_key,
            session_token=options.session_token,
            from_env=None if options.anonymous or options.access_key_id else True,
        )


def _split_pattern(fs: fsspec.AbstractFileSystem, path: str) -> tuple[str, str]:
    """Return the beginning of a path that exists as written, and the glob pattern below."""
    parts = path.split("/")
    if _has_marks(parts[0]):
        raise ConfigError(f"the pattern {path!r} names no bucket; begin with s3://bucket/")
    end = len(parts)
    while _has_marks(literal := "/".join(parts[:end])) and not fs.exists(literal):
        end -= 1
    return literal or "/", "/".join(parts[end:])


def _has_marks(path: str) -> bool:
    return any(mark in path for mark in "*?[")


def _matcher(pattern: str) -> Callable[[str], object]:
    try:
        return re.compile(fsspec.utils.glob_translate(pattern)).match
    except (ValueError, re.error) as error:
        raise ConfigError(f"{pattern!r} is no pattern: {error}; correct it") from error


def sha256_of_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a local file, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def named_failures(place: Location) -> Iterator[None]:
    """Turn a storage library's failure into an error of Skysift that names the place."""
    try:
        yield
    except FileNotFoundError as error:
        raise NotFoundError(
            f"{place} does not exist; check the path, the bucket and the key"
        ) from error
    except (PermissionError, NoCredentialsError) as error:
        raise SkysiftError(
            f"{place} may not be accessed ({_first_line(error)}); check the credentials (or say "
            f"`anonymous`) and the policy; where the requester pays, set {REQUEST_PAYER}=requester"
        ) from error
    except (OSError, BotoCoreError, ClientError) as error:
        raise SkysiftError(
            f"{place} could not be accessed: {_first_line(error)}; "
            "check the endpoint, the network and the disk"
        ) from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
