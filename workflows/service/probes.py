"""Routes of a service as a whole: probes, its indexes, its metrics."""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from fastapi import Depends, FastAPI, Request, Response

from storage.errors import NotFoundError, SearchUnavailableError, SkysiftError
from workflows.service.errors import documented
from workflows.service.guard import Authenticator
from workflows.service.indexes import NAMED, UNKNOWN
from workflows.service.schema import HealthAnswer, IndexesAnswer, NamedIndexBody, ReadyAnswer
from workflows.service.telemetry import Metrics

if TYPE_CHECKING:
    from workflows.service.backend import IndexBackend

logger = logging.getLogger(__name__)


def add_probes(
    app: FastAPI,
    name: str,
    backends: Mapping[str, "IndexBackend"],
    metrics: Metrics,
    door: Authenticator,
) -> None:
    """Add the routes of probes, of the list of indexes and of the metrics."""

    @app.get("/v1/health")
    async def health() -> HealthAnswer:  # needs no thread, so it answers when all are taken
        """Whether the process runs; needs no token."""
        return HealthAnswer()

    @app.get("/v1/ready", responses={503: documented(503)[503]})
    def ready(request: Request) -> ReadyAnswer:
        """Whether every index, or the named one, is loaded and searched; needs no token."""
        asked = [name] if request.scope.get(NAMED) else list(backends)
        return {index: _ready(index, backends) for index in asked}[name]

    any_right = [Depends(door.needing(""))]

    @app.get("/v1/indexes", dependencies=any_right, responses=documented())
    def indexes(request: Request) -> IndexesAnswer:
        """List the indexes that the token may read, the default first where it may be."""
        rights = {index: request.state.grant.right(index) for index in backends}
        found = [
            NamedIndexBody(name=index, right=right) for index, right in rights.items() if right
        ]
        return IndexesAnswer(indexes=found, default=next(iter(backends)))

    @app.api_route(
        UNKNOWN, methods=["GET", "POST"], dependencies=any_right, include_in_schema=False
    )
    def unknown(request: Request) -> None:
        asked, grant = request.scope.get(NAMED, "unknown"), request.state.grant
        known = ", ".join(index for index in backends if grant.right(index))
        raise NotFoundError(f"no index is named {asked!r}; this token may use {known or 'none'}")

    admin = [Depends(door.needing("admin"))]

    @app.get("/metrics", dependencies=admin, responses=documented(), response_class=Response)
    def metrics_text() -> Response:
        """Return the counters of the service in the Prometheus text format."""
        served = {index: of_index.served() for index, of_index in backends.items()}
        metrics.serving({index: one for index, one in served.items() if one})
        metrics.tokens(door.access.faulty)
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _ready(name: str, backends: Mapping[str, "IndexBackend"]) -> ReadyAnswer:
    try:
        return backends[name].ready()
    except Exception as error:  # a probe asks for the reason, whatever is broken
        which = f"index {name}: " if len(backends) > 1 else ""
        raise SearchUnavailableError(which + _reason(error)) from error


def _reason(error: Exception) -> str:
    """Return the first line of an error of the project, only the kind of any other error."""
    if isinstance(error, SkysiftError):
        return str(error)
    logger.error("the service is not ready", exc_info=error)
    return f"the index cannot be read or searched ({type(error).__name__}); see the service's log"
