"""Error responses: one JSON body, a message of one line and a status for each kind of error."""

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from storage.errors import (
    ConfigError,
    EncoderMismatchError,
    GridError,
    NotFoundError,
    PictureBandsError,
    SceneError,
    SearchUnavailableError,
    SkysiftError,
)
from workflows.service.schema import ErrorBody

logger = logging.getLogger(__name__)

_STATUS: tuple[tuple[type[SkysiftError], int], ...] = (
    (ConfigError, 422),
    (EncoderMismatchError, 422),
    (GridError, 422),
    (SceneError, 422),
    (NotFoundError, 404),
    (SearchUnavailableError, 503),
)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the entries of error responses with these statuses in the OpenAPI document."""
    return {status: {"model": ErrorBody} for status in sorted({*statuses, 400, 401, 403, 429})}


def error_response(
    status: int, name: str, message: str, headers: Any = None, *, bands: int | None = None
) -> JSONResponse:
    """Return an error response; ``bands`` are those of a picture that does not fit the encoder."""
    body = ErrorBody(error=name, message=" ".join(message.split()), bands=bands)
    return JSONResponse(body.model_dump(exclude_none=True), status, headers=headers)


def add_handlers(app: FastAPI) -> None:
    """Make an application answer every error in the same form."""
    app.add_exception_handler(SkysiftError, _skysift_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(Exception, _internal_error)


async def _skysift_error(request: Request, error: Exception) -> JSONResponse:
    status = next((code for kind, code in _STATUS if isinstance(error, kind)), 500)
    if status == 422:
        status = _refused(request)
    if status == 500:
        logger.error("%s %s: %s", request.method, request.url.path, error)
        return await _internal_error(request, error)
    bands = error.bands if isinstance(error, PictureBandsError) else None
    headers = {"Retry-After": "1"} if status == 503 else None
    return error_response(status, type(error).__name__, str(error), headers, bands=bands)


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return error_response(error.status_code, "HTTPError", str(error.detail), error.headers)


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first, *more = error.errors()
    where = ".".join(str(part) for part in first["loc"])
    also = f" (and {len(more)} more)" if more else ""
    message = f"{where}: {first['msg']}{also}"
    return error_response(_refused(request), "ValidationError", message)


def _refused(request: Request) -> int:
    """Return the status of a wrong parameter: 400 for layers, as OGC API and STAC API want."""
    return 400 if "layers" in getattr(request.scope.get("route"), "tags", ()) else 422


async def _internal_error(request: Request, error: Exception) -> JSONResponse:
    message = "the request failed inside the service; see its log"
    return error_response(500, "InternalError", message)
