"""Serve an index with Ray Serve: bind the address, require a token, run until stopped."""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing, redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from io import StringIO
from ipaddress import ip_address
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict
from ray import serve

from storage.errors import ConfigError, SkysiftError
from storage.index.manifest import current_version
from workflows.recipe.sections import spec_from
from workflows.service.app import LOOPBACK_HOSTS, Limits, MapConfig, create_app
from workflows.service.backend import BackendConfig, IndexBackend
from workflows.service.guard import token_digests
from workflows.service.telemetry import log_to_stderr
from workflows.stages import Stages

logger = logging.getLogger(__name__)

_APPLICATION = "skysift"
_LOADING_S = 20.0
_ONGOING = 100
"""Requests that one replica answers at a time; further requests wait."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServiceSpec:
    """Address and settings; ``token`` (or several, with commas) never appears in ``repr``."""

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = field(default=None, repr=False)
    limits: Limits = field(default_factory=Limits)
    map_config: MapConfig = field(default_factory=MapConfig)
    request_timeout_s: float = 60.0
    replicas: int = 1


def serve_index(
    config: BackendConfig,
    spec: ServiceSpec,
    *,
    ready: Callable[[str], object] = logger.info,
    stop: threading.Event | None = None,
) -> None:
    """Serve an index until interrupted; this process has to be connected to Ray.

    Parameters
    ----------
    config
        The index and its files.
    spec
        Address, token and limits.
    ready
        Called with the address once the first page is answered at once, or after 20 s.
    stop
        Ends the service when set; None waits for an interrupt.

    Raises
    ------
    ConfigError
        The address is in use, or needs a token and has none.
    NotFoundError
        There is no such index.
    """
    digests = check_exposure(spec)
    current_version(config.index)  # a missing index fails here
    check_free(spec.host, spec.port)
    application = _application(config, spec, digests)
    serve.start(
        proxy_location="HeadOnly",
        http_options={
            "host": spec.host,
            "port": spec.port,
            "request_timeout_s": spec.request_timeout_s,
        },
        logging_config={"log_level": "ERROR", "enable_access_log": False},
    )
    try:
        serve.run(application, name=_APPLICATION, route_prefix="/")
        _wait_until_ready(spec)
        ready(f"http://{_in_url(spec.host)}:{spec.port}")
        (stop or threading.Event()).wait()
    except RuntimeError as error:
        raise SkysiftError(
            f"the service did not start ({' '.join(str(error).split())[:200]}); "
            "run again with --debug"
        ) from error
    finally:
        # Ray prints that its controller ended.
        with redirect_stdout(StringIO()):
            serve.shutdown()


def prepare_proxy() -> None:
    """Make HAProxy, where Ray Serve uses it, send a request to another replica when one dies.

    Call this before Ray starts: its processes inherit the variables. Requests only read, so a
    retry is harmless.
    """
    os.environ.setdefault("RAY_SERVE_HAPROXY_RETRY_ON", "conn-failure empty-response junk-response")
    os.environ.setdefault("RAY_SERVE_HAPROXY_RETRIES", "10")


class Arguments(BaseModel):
    """The ``args`` of the application in a config file of Ray Serve."""

    model_config = ConfigDict(extra="forbid")

    recipe: str


def application(arguments: Arguments) -> serve.Application:
    """Build the application for Ray Serve's config files, such as ``deploy/kuberay``'s.

    Ray Serve listens on every node, whatever address the recipe states; the token is the variable
    SKYSIFT_TOKEN.

    Raises
    ------
    ConfigError
        There is no token, or the recipe is wrong or names no index.
    """
    from workflows.notebook.recipe import Recipe

    config, stated = from_recipe(Recipe.load(arguments.recipe))
    spec = replace(stated, host="0.0.0.0")
    return _application(config, spec, check_exposure(spec))


def from_recipe(stages: Stages) -> tuple[BackendConfig, ServiceSpec]:
    """Return the service of a recipe; a token that the recipe does not state is SKYSIFT_TOKEN.

    Raises
    ------
    ConfigError
        The recipe names no index, or a value of it is wrong.
    """
    recipe, section = stages.recipe, stages.recipe.service
    config = BackendConfig(
        index_uri=stages.need_path("index.uri"),
        encoder_uri=recipe.encoder.bundle,
        catalog=stages.catalog_spec() if recipe.catalog.source else None,
        searches=None if section.searches is None else stages.location(section.searches),
        replicas=recipe.search.replicas,
        max_image_px=section.max_image_px,
        thumbnail_cache_bytes=section.thumbnail_cache_bytes,
    )
    rate = section.rate_per_s / section.replicas  # each replica counts alone
    spec = spec_from(
        ServiceSpec,
        section,
        token=section.token or os.environ.get("SKYSIFT_TOKEN"),
        limits=spec_from(Limits, section, rate_per_s=rate),
        map_config=spec_from(MapConfig, section),
    )
    return config, spec


def check_exposure(spec: ServiceSpec) -> tuple[str, ...]:
    """Return the digests of the tokens; beyond loopback a token is required.

    Raises
    ------
    ConfigError
        The token is missing or too short.
    """
    if spec.token:
        return token_digests(spec.token)
    if not is_loopback(spec.host):
        raise ConfigError(
            f"serving on {spec.host} lets other machines in, which needs a token: set "
            "SKYSIFT_TOKEN (make one with `openssl rand -hex 32`) or serve on 127.0.0.1"
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


def _application(
    config: BackendConfig, spec: ServiceSpec, digests: tuple[str, ...]
) -> serve.Application:
    """Bind the deployment; only the digests of the tokens travel to the replicas."""
    hosts = LOOPBACK_HOSTS if is_loopback(spec.host) else None
    limits, map_config = spec.limits, spec.map_config

    def build() -> FastAPI:
        log_to_stderr()
        backend = IndexBackend(config)
        backend.prepare()
        return create_app(
            backend,
            digests=digests,
            limits=limits,
            map_config=map_config,
            hosts=hosts,
        )

    deployment: Any = serve.deployment(
        serve.ingress(build)(),
        name="search",
        num_replicas=spec.replicas,
        max_ongoing_requests=_ONGOING,
        ray_actor_options={"num_cpus": 0},
    )
    application: serve.Application = deployment.bind()
    return application


def _wait_until_ready(spec: ServiceSpec) -> None:
    """Wait, at most some seconds, until the index and the first pictures of the map are loaded."""
    until = time.monotonic() + _LOADING_S
    while time.monotonic() < until:
        connection = HTTPConnection(spec.host, spec.port, timeout=_LOADING_S)
        with closing(connection), suppress(OSError, HTTPException):
            connection.request("GET", "/v1/ready")
            if connection.getresponse().status == HTTPStatus.OK:
                return
        time.sleep(0.1)


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
