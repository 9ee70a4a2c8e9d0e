"""Uploaded pictures: how they arrive, and what is checked before a decoder sees them.

A file's kind is told by its first bytes, its size in pixels by its header; only PNG, JPEG and
GeoTIFF are decoded, each by its own decoder alone.
"""

import base64
import binascii
import json
import os
import tempfile
from email.message import Message
from email.parser import BytesParser
from email.policy import HTTP
from pathlib import Path

import numpy as np
import numpy.typing as npt
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from PIL import Image, UnidentifiedImageError
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from storage.errors import ConfigError, SceneError, SkysiftError
from storage.location import Location
from storage.raster.geotiff import environment, opened
from storage.raster.reader import read_image
from workflows.service.schema import SearchBody

_MAGIC = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"II*\x00": ".tif", b"MM\x00*": ".tif"}
_DECODERS = {".png": ("PNG",), ".jpg": ("JPEG",)}


async def read_query(request: Request) -> tuple[SearchBody, bytes | None]:
    """Read a search: JSON, or a form with the parts ``image`` (a file) and ``query`` (JSON).

    Raises
    ------
    RequestValidationError
        The query is not one.
    HTTPException
        415: the body is of another kind.
    ConfigError
        A part is missing, or the base64 is none.
    """
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip()
    if kind.lower() == "application/json":
        body = _parsed(await request.body())
        return body, _decoded(body.image_base64)
    if kind.lower() != "multipart/form-data":
        raise HTTPException(415, f"{kind[:80]} is not taken; send JSON or multipart/form-data")
    parts = _parts(request.headers["content-type"], await request.body())
    if "image" not in parts:
        raise ConfigError("the form has no part `image`; send the file under that name")
    return _parsed(_with_image(parts.get("query", b"{}"))), parts["image"]


def decode(image: bytes, most_px: int) -> npt.NDArray[np.float32]:
    """Decode an uploaded file, after a look at its header.

    Returns
    -------
    ndarray
        float32 (bands, h, w), NaN where invalid.

    Raises
    ------
    ConfigError
        It is none of the kinds that are decoded, or has too many pixels.
    SceneError
        It cannot be decoded.
    """
    suffix = image_suffix(image)
    handle, path = tempfile.mkstemp(suffix=suffix, prefix="skysift-upload-")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(image)
        _check_size(path, most_px)
        return read_image(path)
    except SkysiftError as error:
        raise type(error)(str(error).replace(path, "the image")) from error
    finally:
        Path(path).unlink()


def image_suffix(image: bytes) -> str:
    """Tell the kind of an uploaded file from its first bytes, never from its name.

    Raises
    ------
    ConfigError
        It is none of the kinds that are decoded.
    """
    for magic, suffix in _MAGIC.items():
        if image.startswith(magic):
            return suffix
    raise ConfigError(f"the image ({len(image):,} bytes) is no PNG, JPEG or GeoTIFF file")


def _parsed(text: bytes) -> SearchBody:
    try:
        return SearchBody.model_validate_json(text)
    except ValidationError as error:
        errors = [{**one, "loc": ("body", *one["loc"])} for one in error.errors()]
        raise RequestValidationError(errors) from error


def _with_image(query: bytes) -> bytes:
    """Say in a form's query that the picture asks."""
    try:
        values = json.loads(query)
    except ValueError as error:
        raise ConfigError("the part `query` of the form is no JSON") from error
    if not isinstance(values, dict):
        raise ConfigError("the part `query` of the form is no JSON object")
    return json.dumps({**values, "image_base64": ""}).encode()


def _parts(content_type: str, body: bytes) -> dict[str, bytes]:
    """Return the parts of a form by name; bytes stay as they are."""
    head = f"Content-Type: {content_type}\r\n\r\n".encode("latin-1")
    form: Message = BytesParser(policy=HTTP).parsebytes(head + body)
    if not form.is_multipart():
        raise ConfigError("the form cannot be read; send multipart/form-data with a boundary")
    parts = {}
    for part in form.get_payload():
        assert isinstance(part, Message)
        name = part.get_param("name", header="content-disposition")
        content = part.get_payload(decode=True)
        if isinstance(name, str) and isinstance(content, bytes):
            parts[name] = content
    return parts


def _decoded(image_base64: str | None) -> bytes | None:
    if image_base64 is None:
        return None
    try:
        return base64.b64decode(image_base64, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ConfigError(f"image_base64 is no base64: {error}") from error


def _check_size(path: str, most_px: int) -> None:
    """Refuse a picture that would decode to far more than it weighs."""
    suffix = Path(path).suffix
    if suffix == ".tif":
        file = Location(path)
        with environment(file), opened(file, georeferenced=False) as dataset:
            width, height, bands = dataset.width, dataset.height, dataset.count
    else:
        try:
            with Image.open(path, formats=_DECODERS[suffix]) as picture:
                (width, height), bands = picture.size, len(picture.getbands())
        except (UnidentifiedImageError, Image.DecompressionBombError, OSError) as error:
            raise SceneError(f"{path} cannot be decoded ({type(error).__name__})") from error
    if width * height > most_px or width * height * bands > 4 * most_px:
        raise ConfigError(
            f"the image has {width} x {height} pixels in {bands} bands, at most {most_px:,} "
            "are taken (in 4 bands); send the part that is meant"
        )
