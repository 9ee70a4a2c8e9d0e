"""Serve indexes with Ray Serve: bind the address, require a token, run until stopped."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing, redirect_stdout, suppress
from dataclasses import replace
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from importlib import import_module
from io import StringIO
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.exceptions import RayError

from storage.errors import SkysiftError
from storage.index.manifest import current_version
from workflows.service.settings import (
    LOOPBACK_HOSTS,
    BackendConfig,
    ServiceSpec,
    check_exposure,
    check_free,
    check_names,
    from_recipe,
    is_loopback,
)

if TYPE_CHECKING:
    from fastapi import FastAPI

logger = logging.getLogger(__name__)

logging.getLogger("ray.serve").setLevel(logging.ERROR)  # its news are stages of the start

_APPLICATION = "skysift"
_LOADING_S = 20.0
_POLL_S = 0.05
_ONGOING = 100
"""Requests that one replica answers at a time; further requests wait."""


def serve_indexes(
    configs: Mapping[str, BackendConfig],
    spec: ServiceSpec,
    *,
    ready: Callable[[str], object] = logger.info,
    stage: Callable[[str], object] = logger.info,
    stop: threading.Event | None = None,
    behind_haproxy: bool = False,
) -> None:
    """Serve indexes until interrupted; this process has to be connected to Ray.

    Parameters
    ----------
    configs
        The indexes and their files, by their names in addresses; the first is the default.
    spec
        Address, token and limits.
    ready
        Called with the address once the service is ready, or after 20 s.
    stage
        Called with the name of each stage of the start when the stage ends.
    stop
        Ends the service when set; None waits for an interrupt.
    behind_haproxy
        HAProxy listens at the address (:func:`workflows.service.proxy.haproxy_at`), and Ray Serve
        on loopback.

    Raises
    ------
    ConfigError
        The address is in use, or needs a token and has none.
    NotFoundError
        There is no such index.
    """
    digests = check_exposure(spec)
    check_names(configs)
    for config in configs.values():
        current_version(config.index)  # a missing index fails here
    check_free(spec.host, spec.port)
    application = _application(configs, spec, digests)
    _start_searching(configs, stage)
    try:
        _start_proxy(spec, behind_haproxy)
        stage("HAProxy listens" if behind_haproxy else "the HTTP proxy listens")
        serve.run(application, name=_APPLICATION, route_prefix="/")
        stage("the HTTP replicas run")
        _wait_until_ready(spec)
        ready(f"http://{_in_url(spec.host)}:{spec.port}")
        (stop or threading.Event()).wait()
    except RuntimeError as error:
        raise SkysiftError(_not_started(error, behind_haproxy)) from error
    finally:
        # Ray prints that its controller ended.
        with redirect_stdout(StringIO()):
            serve.shutdown()


def _start_proxy(spec: ServiceSpec, behind_haproxy: bool) -> None:
    serve.start(
        proxy_location="HeadOnly",
        http_options={
            "host": "127.0.0.1" if behind_haproxy else spec.host,
            "port": spec.port,
            "request_timeout_s": spec.request_timeout_s,
        },
        logging_config={"log_level": "ERROR", "enable_access_log": False},
    )


def _not_started(error: RuntimeError, behind_haproxy: bool) -> str:
    words = str(error).strip()
    if isinstance(error, RayError):  # the last line of a traceback
        words = words.splitlines()[-1]
    otherwise = " or with RAY_SERVE_ENABLE_HA_PROXY=0" if behind_haproxy else ""
    said = " ".join(words.split())[:200]
    return f"the service did not start ({said}); run again with --debug{otherwise}"


def _start_searching(configs: Mapping[str, BackendConfig], stage: Callable[[str], object]) -> None:
    """Start the search actors in a thread, while the HTTP replicas start; these find them."""
    from pipeline.search.searcher import Searcher

    def start(name: str, config: BackendConfig) -> None:
        with suppress(SkysiftError):  # the replicas meet it too, and /v1/ready answers it
            Searcher.connect(config.index, replicas=config.replicas)
            stage(f"the search actors have loaded {name}")

    for named in configs.items():
        threading.Thread(target=start, args=named, name="skysift-searching", daemon=True).start()


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

    configs, stated = from_recipe(Recipe.load(arguments.recipe))
    check_names(configs)
    spec = replace(stated, host="0.0.0.0")
    return _application(configs, spec, check_exposure(spec))


def _application(
    configs: Mapping[str, BackendConfig], spec: ServiceSpec, digests: tuple[str, ...]
) -> serve.Application:
    """Bind the deployment; only the digests of the tokens travel to the replicas."""
    hosts = LOOPBACK_HOSTS if is_loopback(spec.host) else None
    limits, map_config, tokens = spec.limits, spec.map_config, spec.tokens

    def build() -> "FastAPI":  # only the replicas import what answers
        from workflows.service.app import create_service
        from workflows.service.backend import IndexBackend
        from workflows.service.telemetry import log_to_stderr
        from workflows.service.tokens import Access

        log_to_stderr()
        _listen_at_the_node()
        backends = {name: IndexBackend(config) for name, config in configs.items()}
        for backend in backends.values():
            backend.prepare()
        return create_service(
            backends,
            Access(digests, tokens, list(configs)),
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


def _listen_at_the_node() -> None:
    """Open the port of calls between deployments, of which there is one, at the node's address.

    Ray Serve would open it on every interface; of a private Ray the address is the loopback's.
    """
    from ray.util import get_node_ip_address

    replica: Any = import_module("ray.serve._private.replica")
    add_port = replica.add_port_to_grpc_server
    address = f"{_in_url(get_node_ip_address())}:0"
    replica.add_port_to_grpc_server = lambda server, every: add_port(server, address)


def _wait_until_ready(spec: ServiceSpec) -> None:
    """Wait, at most some seconds, until the service is ready."""
    until = time.monotonic() + _LOADING_S
    while time.monotonic() < until:
        connection = HTTPConnection(spec.host, spec.port, timeout=_LOADING_S)
        with closing(connection), suppress(OSError, HTTPException):
            connection.request("GET", "/v1/ready")
            if connection.getresponse().status == HTTPStatus.OK:
                return
        time.sleep(_POLL_S)


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
