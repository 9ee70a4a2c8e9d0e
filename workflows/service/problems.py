"""How a request that cannot be answered is answered: one JSON body, one line, a fitting status."""

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from storage.errors import (
    ConfigError,
    GridError,
    NotFoundError,
    SceneError,
    SearchUnavailableError,
    SkysiftError,
)
from workflows.service.schema import ErrorBody

logger = logging.getLogger(__name__)

_STATUS: tuple[tuple[type[SkysiftError], int], ...] = (
    (ConfigError, 422),
    (GridError, 422),
    (SceneError, 422),
    (NotFoundError, 404),
    (SearchUnavailableError, 503),
)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return what OpenAPI says of refusals with these statuses."""
    return {status: {"model": ErrorBody} for status in sorted({*statuses, 400, 401, 429})}


def problem(status: int, name: str, message: str, headers: Any = None) -> JSONResponse:
    """Return a refusal."""
    body = ErrorBody(error=name, message=" ".join(message.split()))
    return JSONResponse(body.model_dump(), status, headers=headers)


def add_handlers(app: FastAPI) -> None:
    """Let an application answer every error in the same form."""
    app.add_exception_handler(SkysiftError, _skysift_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(Exception, _internal_error)


async def _skysift_error(request: Request, error: Exception) -> JSONResponse:
    status = next((code for kind, code in _STATUS if isinstance(error, kind)), 500)
    if status == 500:
        logger.error("%s %s: %s", request.method, request.url.path, error)
        return await _internal_error(request, error)
    return problem(status, type(error).__name__, str(error))


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return problem(error.status_code, "HTTPError", str(error.detail), error.headers)


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first, *more = error.errors()
    where = ".".join(str(part) for part in first["loc"])
    also = f" (and {len(more)} more)" if more else ""
    return problem(422, "ValidationError", f"{where}: {first['msg']}{also}")


async def _internal_error(request: Request, error: Exception) -> JSONResponse:
    return problem(500, "InternalError", "the request failed inside the service; see its log")
