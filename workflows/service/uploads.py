"""The body of a search: JSON, or a form with a picture, within limits of time, parts and values.

Bodies are received by the event loop and parsed in threads. :mod:`workflows.service.decoding`
decodes the pictures.
"""

import base64
import binascii
import re
from typing import Any

from anyio import fail_after, to_thread
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from storage.errors import ConfigError
from workflows.service.schema import SearchBody

_MAX_PARTS, _MAX_FIELD_BYTES = 8, 8 * 1024 * 1024
_UTF8 = re.compile(r'charset="?utf-?8"?\s*(?=;|$)')  # a form is decoded by any codec that it names
_MAX_VALUES = 100_000
"""Values of one query, about: the longest vector, all names of a filter and a long polygon."""


async def read_query(request: Request, limit_s: float) -> tuple[SearchBody, bytes | None]:
    """Read a search: JSON, or a form with the parts ``image`` (a file) and ``query`` (JSON).

    Raises
    ------
    RequestValidationError
        The query does not follow the schema.
    HTTPException
        408: the body takes longer than ``limit_s`` to arrive. 415: the body is of another kind.
    ConfigError
        The form is damaged or lacks its image, the query is no JSON object or has too many
        values, or the base64 is not valid.
    """
    header = request.headers.get("content-type", "a body without Content-Type").lower()
    kind = header.partition(";")[0].strip()
    in_utf8 = "charset" not in _UTF8.sub("", header)
    if not in_utf8 or kind not in ("application/json", "multipart/form-data"):
        message = f"{header[:80]} is not taken; send JSON or multipart/form-data, in UTF-8"
        raise HTTPException(415, message)
    try:
        with fail_after(limit_s):
            if kind == "application/json":
                text, image = await request.body(), None
            else:
                text, image = await _form(request)
    except TimeoutError as error:
        raise HTTPException(408, f"the request did not arrive within {limit_s:g} s") from error
    body = await to_thread.run_sync(_parsed, text, image is not None)
    return body, await to_thread.run_sync(_decoded, body.image_base64) if image is None else image


async def _form(request: Request) -> tuple[bytes, bytes]:
    """Return the query and the image of a form."""
    try:
        async with request.form(
            max_files=_MAX_PARTS, max_fields=_MAX_PARTS, max_part_size=_MAX_FIELD_BYTES
        ) as form:
            image, query = form.get("image"), form.get("query", "{}")
            content = await image.read() if isinstance(image, UploadFile) else None
            text = await query.read() if isinstance(query, UploadFile) else query.encode()
    except HTTPException as error:
        if error.status_code != 400:
            raise  # 413 from the limit on the body, which is counted while the form is parsed
        raise ConfigError(
            f"the form cannot be read ({error.detail.rstrip('.')}); send multipart/form-data with "
            f"a boundary, at most {_MAX_PARTS} files and fields, {_MAX_FIELD_BYTES:,} bytes a field"
        ) from error
    if content is None:
        raise ConfigError("the form has no part `image` that is a file; send the file as `image`")
    return text, content


def _parsed(text: bytes, has_image: bool) -> SearchBody:
    where = "the part `query` of the form" if has_image else "the request"
    values = text.count(b",") + text.count(b":")
    if values > _MAX_VALUES:
        raise ConfigError(f"{where} has {values:,} values, at most {_MAX_VALUES:,} are taken")
    try:
        return SearchBody.model_validate_json(text, context=["image"] if has_image else None)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        if has_image and found[0]["type"] in ("json_invalid", "model_type"):
            fault = "valid JSON" if found[0]["type"] == "json_invalid" else "a JSON object"
            raise ConfigError(f"{where} is not {fault}: {found[0]['msg']}") from error
        errors: list[Any] = [{**part, "loc": ("body", *part["loc"])} for part in found]
        raise RequestValidationError(errors) from error


def _decoded(image_base64: str | None) -> bytes | None:
    if image_base64 is None:
        return None
    try:
        return base64.b64decode(image_base64, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ConfigError(f"`image_base64` is not valid base64: {error}") from error
