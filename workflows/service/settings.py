"""Settings of the service, and the checks of them that come before anything starts.

This module imports neither Ray nor FastAPI nor torch: the command checks its settings at once.
"""

import os
import re
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storage.errors import ConfigError
from storage.location import Location
from storage.scene import CatalogSpec
from workflows.recipe.sections import spec_from
from workflows.service.tokens import read_token_file, token_digests

if TYPE_CHECKING:
    from workflows.stages import Stages

DEFAULT_NAME = "default"
"""Name of the index of a service that is built without names."""
RESERVED_NAMES = (
    *("accuracy", "change", "colours", "detections", "health", "index", "indexes", "marks"),
    *("mosaic", "ready", "saved-search", "scenes", "scores", "search", "suggestions", "tiles"),
)
"""The first part of each route below ``/v1/``."""
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Limits of one request and of one client; a rate of 0 disables the limit.

    The quota of a token is shared by ``replicas`` processes.
    """

    max_k: int = 1000
    max_body_bytes: int = 16 * 1024 * 1024
    rate_per_s: float = 50.0
    burst: int = 300
    share: int = 32
    upload_s: float = 30.0
    drawing: int = 4
    decoding: int = 2
    replicas: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class MapConfig:
    """The base map (URL template of tiles) and the foreign origins that may use the service."""

    base_map: str | None = None
    base_map_attribution: str = ""
    cors_origins: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class BackendConfig:
    """The index to serve; ``encoder_uri`` None takes the bundle that the archive was made with.

    Thumbnails are drawn from the scenes of ``catalog``; None for those that the archive remembers.
    The saved searches in the folder ``searches`` are layers.
    """

    index_uri: str | Location
    encoder_uri: str | Location | None = None
    catalog: CatalogSpec | None = None
    searches: str | Location | None = None
    replicas: int = 1
    max_image_px: int = 16 * 1024 * 1024
    thumbnail_cache_bytes: int = 64 * 1024 * 1024

    def __post_init__(self) -> None:
        # Replicas have other working directories than the command.
        object.__setattr__(self, "index_uri", self.index)
        if self.encoder_uri is not None:
            object.__setattr__(self, "encoder_uri", Location.of(self.encoder_uri).absolute)
        if self.searches is not None:
            object.__setattr__(self, "searches", Location.of(self.searches).absolute)

    @property
    def index(self) -> Location:
        """The location of the index."""
        return Location.of(self.index_uri).absolute


def index_name(index: Location) -> str:
    """Return the name of an index in addresses: that of its folder, or of the folder above.

    The name of a route gets an ending.

    Examples
    --------
    >>> index_name(Location("/data/Coast 2024/index")), index_name(Location("/data/prairie"))
    ('coast-2024', 'prairie')
    >>> index_name(Location("/data/tiles")), index_name(Location("/index"))
    ('tiles-index', 'default')
    """
    parts = ["", *filter(None, index.absolute.uri.split("/"))]
    last = parts[-2] if parts[-1] == "index" else parts[-1]
    name = re.sub(r"[^a-z0-9._-]+", "-", last.lower()).strip("-._")[:58] or DEFAULT_NAME
    return f"{name}-index" if name in RESERVED_NAMES else name


def check_names(names: Iterable[str]) -> None:
    """Check the names of indexes in addresses.

    Raises
    ------
    ConfigError
        A name is used twice, is a route's, or has characters that need quoting.
    """
    seen = set()
    for name in names:
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"the index name {name!r} does not fit an address: use lower-case letters, "
                "digits, `.`, `_` and `-`, as in NAME=INDEX"
            )
        if name in RESERVED_NAMES or name in seen:
            why = "is used twice" if name in seen else "is the name of a route"
            raise ConfigError(f"the index name {name!r} {why}; give another, as in NAME=INDEX")
        seen.add(name)


@dataclass(frozen=True, kw_only=True, slots=True)
class ServiceSpec:
    """Address and settings; ``token`` (or several, with commas) never appears in ``repr``.

    ``tokens`` is a file of tokens with rights (:mod:`workflows.service.tokens`).
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = field(default=None, repr=False)
    tokens: Path | None = None
    limits: Limits = field(default_factory=Limits)
    map_config: MapConfig = field(default_factory=MapConfig)
    request_timeout_s: float = 60.0
    replicas: int = 1


def from_recipe(
    stages: "Stages", indexes: Sequence[str] = ()
) -> tuple[dict[str, BackendConfig], ServiceSpec]:
    """Return the indexes of a recipe by their names, and the service of them.

    A token that the recipe does not state is the variable SKYSIFT_TOKEN.

    Parameters
    ----------
    stages
        A recipe.
    indexes
        ``NAME=INDEX`` or ``INDEX`` of each index, in place of those of the recipe. The first is the
        default; the encoder, the catalog and the saved searches of the recipe are its own.

    Raises
    ------
    ConfigError
        The recipe names no index, two indexes have a name, or a value is wrong.
    """
    section = stages.recipe.service
    rate = section.rate_per_s / section.replicas  # each replica counts alone
    tokens = section.access
    spec = spec_from(
        ServiceSpec,
        section,
        token=section.token or os.environ.get("SKYSIFT_TOKEN"),
        tokens=None if tokens is None else stages.location(tokens).path.absolute(),
        limits=spec_from(Limits, section, rate_per_s=rate),
        map_config=spec_from(MapConfig, section),
    )
    return _configs(stages, indexes), spec


def _configs(stages: "Stages", indexes: Sequence[str]) -> dict[str, BackendConfig]:
    recipe, section = stages.recipe, stages.recipe.service
    if indexes:
        parts = [text.rpartition("=") for text in indexes]
        named = [(name, stages.location(uri)) for name, _, uri in parts]
    else:
        others = [(name, stages.location(uri)) for name, uri in section.indexes.items()]
        named = [("", Location.of(stages.need_path("index.uri"))), *others]
    common: dict[str, Any] = {
        "replicas": recipe.search.replicas,
        "max_image_px": section.max_image_px,
        "thumbnail_cache_bytes": section.thumbnail_cache_bytes,
    }
    configs: dict[str, BackendConfig] = {}
    for given, index in named:
        name = given or index_name(index)
        if name in configs:
            raise ConfigError(f"two indexes have the name {name!r}; give names, as in NAME=INDEX")
        configs[name] = BackendConfig(index_uri=index, **common)
    first, *further = configs
    searches = None if section.searches is None else stages.location(section.searches)
    configs[first] = replace(
        configs[first],
        encoder_uri=recipe.encoder.bundle,
        catalog=stages.pictured_catalog,
        searches=searches,
    )
    if searches is not None:
        for name in further:
            configs[name] = replace(configs[name], searches=searches / name)
    return configs


def check_exposure(spec: ServiceSpec) -> tuple[str, ...]:
    """Return the digests of the tokens with every right; beyond loopback a token is required.

    Raises
    ------
    ConfigError
        The token is missing or too short, or the file of tokens is invalid.
    """
    if spec.tokens is not None:
        read_token_file(spec.tokens)
    if spec.token:
        return token_digests(spec.token)
    if spec.tokens is None and not is_loopback(spec.host):
        raise ConfigError(
            f"serving on {spec.host} lets other machines in, which needs a token: set "
            "SKYSIFT_TOKEN (make one with `openssl rand -hex 32`) or service.access, or serve on "
            "127.0.0.1"
        )
    return ()


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches an address.

    Examples
    --------
    >>> is_loopback("::1"), is_loopback("0.0.0.0")
    (True, False)
    """
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_free(host: str, port: int) -> None:
    """Check that the address can be bound.

    Raises
    ------
    ConfigError
        The address is in use, or not of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"cannot serve on {host} port {port}: {error.strerror}; choose another --port"
            ) from error
