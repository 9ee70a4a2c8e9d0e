"""The body of a query: JSON, or a form with a picture, within limits of time, parts and values.

Bodies are received by the event loop and parsed by threads. :mod:`workflows.service.decoding`
decodes the pictures.
"""

import base64
import binascii
import re
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser

from storage.errors import ConfigError
from workflows.service.schema import AskBody

Asked = TypeVar("Asked", bound=AskBody)

_MAX_PARTS, _MAX_FIELD_BYTES = 8, 8 * 1024 * 1024
_UTF8 = re.compile(r'charset="?utf-?8"?\s*(?=;|$)')  # a form is decoded by any codec that it names
_MAX_VALUES = 100_000
"""Values of one query, about: the longest vector, all names of a filter and a long polygon."""


@dataclass(frozen=True, slots=True)
class Received:
    """A body as it arrived, and its Content-Type."""

    content_type: str
    body: bytes

    @property
    def is_form(self) -> bool:
        """Whether the body is a form; else it is JSON."""
        return _kind(self.content_type) == "multipart/form-data"


async def receive(request: Request, limit_s: float) -> Received:
    """Receive the body of a query.

    Raises
    ------
    HTTPException
        408: the body takes longer than ``limit_s`` to arrive. 415: the body is neither JSON nor a
        form, or not in UTF-8.
    """
    given = request.headers.get("content-type", "a body without Content-Type")
    in_utf8 = "charset" not in _UTF8.sub("", given.lower())
    if not in_utf8 or _kind(given) not in ("application/json", "multipart/form-data"):
        message = f"{given[:80]} is not taken; send JSON or multipart/form-data, in UTF-8"
        raise HTTPException(415, message)
    try:
        with anyio.fail_after(limit_s):
            return Received(given, await request.body())
    except TimeoutError as error:
        raise HTTPException(408, f"the request did not arrive within {limit_s:g} s") from error


def read_query(received: Received, kind: type[Asked]) -> tuple[Asked, bytes | None]:
    """Read a query of a kind: JSON, or a form with the parts ``image`` (a file), ``query`` (JSON).

    A form that is made to be slow takes about half a second for each megabyte.

    Raises
    ------
    RequestValidationError
        The query does not follow the schema.
    ConfigError
        The form is damaged or lacks its image, the query is no JSON object or has too many
        values, or the base64 is not valid.
    """
    if not received.is_form:
        body = _parsed(received.body, kind, has_image=False)
        return body, _decoded(body.image_base64)
    try:
        query, image = anyio.run(_form, received)
    except MultiPartException as error:
        raise ConfigError(
            f"the form cannot be read ({error.message.rstrip('.')}); send multipart/form-data with "
            f"a boundary, at most {_MAX_PARTS} files and fields, {_MAX_FIELD_BYTES:,} bytes a field"
        ) from error
    if image is None:
        raise ConfigError("the form has no part `image` that is a file; send the file as `image`")
    return _parsed(query, kind, has_image=True), image


async def _form(received: Received) -> tuple[bytes, bytes | None]:
    """Return the query and the image of a form."""

    async def whole() -> AsyncGenerator[bytes]:
        yield received.body

    parser = MultiPartParser(
        Headers({"content-type": received.content_type}),
        whole(),
        max_files=_MAX_PARTS,
        max_fields=_MAX_PARTS,
        max_part_size=_MAX_FIELD_BYTES,
    )
    parser.spool_max_size = len(received.body)  # nothing is written to a disk
    form = await parser.parse()
    try:
        image, query = form.get("image"), form.get("query", "{}")
        text = await query.read() if isinstance(query, UploadFile) else query.encode()
        return text, await image.read() if isinstance(image, UploadFile) else None
    finally:
        await form.close()


def _kind(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def _parsed(text: bytes, kind: type[Asked], has_image: bool) -> Asked:
    where = "the part `query` of the form" if has_image else "the request"
    values = text.count(b",") + text.count(b":")
    if values > _MAX_VALUES:
        raise ConfigError(f"{where} has {values:,} values, at most {_MAX_VALUES:,} are taken")
    try:
        return kind.model_validate_json(text, context=["image"] if has_image else None)
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
