"""Uploaded images, read from a request; `storage.raster.picture` checks and decodes them."""

import base64
import binascii
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from storage.errors import ConfigError
from storage.raster.picture import read_picture
from workflows.service.schema import SearchBody

_MAX_PARTS, _MAX_FIELD_BYTES = 8, 8 * 1024 * 1024


async def read_query(request: Request) -> tuple[SearchBody, bytes | None]:
    """Read a search: JSON, or a form with the parts ``image`` (a file) and ``query`` (JSON).

    Raises
    ------
    RequestValidationError
        The query does not follow the schema.
    HTTPException
        415: the body is of another kind.
    ConfigError
        The form is damaged or lacks its image, or the base64 is not valid.
    """
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip()
    if kind.lower() == "application/json":
        body = _parsed(await request.body())
        return body, _decoded(body.image_base64)
    if kind.lower() != "multipart/form-data":
        raise HTTPException(415, f"{kind[:80]} is not taken; send JSON or multipart/form-data")
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
    return _parsed(_with_image(text)), content


def decode(image: bytes, most_px: int) -> npt.NDArray[np.float32]:
    """Decode an uploaded file after checking its header.

    Returns
    -------
    ndarray
        float32 (bands, h, w), NaN where invalid.

    Raises
    ------
    ConfigError
        The file is not of a kind that is decoded, or has too many pixels.
    SceneError
        The file cannot be decoded.
    """
    handle, path = tempfile.mkstemp(prefix="skysift-upload-")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(image)
        return read_picture(path, most_px=most_px, name="the image").values
    finally:
        Path(path).unlink()


def _parsed(text: bytes) -> SearchBody:
    try:
        return SearchBody.model_validate_json(text)
    except ValidationError as error:
        errors = [{**part, "loc": ("body", *part["loc"])} for part in error.errors()]
        raise RequestValidationError(errors) from error


def _with_image(query: bytes) -> bytes:
    """Mark a form's query as an image query, for the schema."""
    try:
        values = json.loads(query)
    except ValueError as error:
        raise ConfigError("the part `query` of the form is not valid JSON") from error
    if not isinstance(values, dict):
        raise ConfigError("the part `query` of the form is not a JSON object")
    return json.dumps({**values, "image_base64": ""}).encode()


def _decoded(image_base64: str | None) -> bytes | None:
    if image_base64 is None:
        return None
    try:
        return base64.b64decode(image_base64, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ConfigError(f"`image_base64` is not valid base64: {error}") from error
