"""Reads a JSON body within the size limit and checks it against a request model."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import ctypes
import json
import zlib
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
import pydantic
from fastapi import HTTPException, Request, Response
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect

from lingflash.core.errors import (
    InvalidRequestError,
    RequestTooLargeError,
    UnsupportedMediaError,
)
from lingflash.httpd.context import HttpContext, context_of
from lingflash.httpd.json_shape import Shape, deep_field, exceeded
from lingflash.protocol.fields import Dropped, FieldTable, parse_request
from lingflash.protocol.unicode import replace_escaped_surrogates

# Deeper bodies would exhaust the stack of whatever walks them: templates, guards, encoders.
MAX_DEPTH = 128
# Far above what fits a context, far below what would take all memory.
_SHAPE = Shape(depth=MAX_DEPTH, containers=250_000, values=4_000_000, strings=1_000_000)
# Parsing more than this would hold up the other streams.
_LARGE_BYTES = 2**20

ModelT = TypeVar("ModelT", bound=pydantic.BaseModel)


_NO_OTHERS = FieldTable()


async def read_request(
    request: Request,
    model: type[ModelT],
    table: FieldTable = _NO_OTHERS,
    dropped: Dropped | None = None,
) -> ModelT:
    """Read and check the body of a request; its size is checked while it arrives.

    Args:
        dropped: takes fields that say nothing.

    Raises:
        InvalidRequestError: it is no JSON, or not what the model says.
        RequestTooLargeError: it is over the limit.
    """
    body, value = await read_json(request)
    if len(body) < _LARGE_BYTES:
        return parse_request(model, value, table, dropped)
    return await asyncio.to_thread(parse_request, model, value, table, dropped)


async def read_json(request: Request) -> tuple[bytes, Any]:
    """Read the body of a request, and decode it; its size is checked while it arrives.

    Raises:
        InvalidRequestError: it is no JSON.
        RequestTooLargeError: it is over the limit.
    """
    whole = await read_body(request)
    if len(whole) < _LARGE_BYTES:
        return whole, decode_json(whole)
    request.state.was_large = True
    return whole, await asyncio.to_thread(decode_json, whole)


async def read_body(request: Request) -> bytes:
    """Read the body of a request, unpacked; its size is checked while it arrives.

    Raises:
        InvalidRequestError: it did not arrive, or cannot be unpacked.
        RequestTooLargeError: it is over the limit.
    """
    context = context_of(request)
    max_bytes = context.max_body_bytes
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and len(declared) < 20 and int(declared) > max_bytes:
        raise _too_large(context)
    unpack = _unpacker(request.headers.get("content-encoding", ""), max_bytes)
    body = bytearray()
    try:
        async for part in request.stream():
            body += unpack(part)
            if len(body) > max_bytes:
                raise _too_large(context)
    except ClientDisconnect:
        raise InvalidRequestError("The request body did not arrive.") from None
    except zlib.error as error:
        raise InvalidRequestError(f"The body is not what content-encoding says: {error}.") from None
    request.state.num_body_bytes = len(body)
    return bytes(body)


async def read_form_file(request: Request, name: str) -> tuple[str, bytes]:
    """The one file of a form: its name, and its bytes.

    Args:
        name: of its field.

    Raises:
        InvalidRequestError: the body is no form, or has no such file.
        RequestTooLargeError: it is over the limit.
    """
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise InvalidRequestError(
            f"A form (multipart/form-data) with the file {name!r} is needed.", param=name
        )
    whole = await read_body(request)

    async def again() -> dict[str, Any]:
        return {"type": "http.request", "body": whole, "more_body": False}

    try:
        form = await Request({**request.scope, "app": None}, again).form(max_files=1, max_fields=8)
    except (MultiPartException, HTTPException) as error:
        why = getattr(error, "message", None) or getattr(error, "detail", "")
        raise InvalidRequestError(f"The form cannot be read: {why}") from None
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(form.close)
        file = form.get(name)
        if not isinstance(file, UploadFile):
            raise InvalidRequestError(f"The form has no file {name!r}.", param=name)
        return file.filename or "", await file.read()


def give_memory_back() -> None:
    """Let the allocator return what it keeps, or large bodies would raise the server's size."""
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _unpacker(encoding: str, max_bytes: int) -> Callable[[bytes], bytes]:
    """What undoes a content-encoding, part by part, and never much past the limit.

    Raises:
        UnsupportedMediaError: it is another than gzip and deflate.
    """
    match encoding.strip().lower():
        case "" | "identity":
            return lambda part: part
        case "gzip" | "x-gzip":
            unpacking = zlib.decompressobj(zlib.MAX_WBITS | 16)
        case "deflate":
            unpacking = zlib.decompressobj()
        case other:
            raise UnsupportedMediaError(
                f"content-encoding is {other[:40]!r}; allowed: gzip, deflate, or none."
            )
    return lambda part: unpacking.decompress(part, max_bytes + 1)


def decode_json(body: bytes) -> Any:
    """Decode JSON.

    Raises:
        InvalidRequestError: it is none, or nested too deeply, or holds too much for its bytes.
    """
    body = body.removeprefix(codecs.BOM_UTF8)
    excess = exceeded(body, _SHAPE)
    if excess is not None:
        name = deep_field(body, MAX_DEPTH) if len(body) < _LARGE_BYTES else None
        what = "The request body" if name is None else name
        raise InvalidRequestError(f"{what} holds {excess}, which is too much.", param=name)
    try:
        return _decoded(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"The request body is not valid JSON: {error}.") from None


def _decoded(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except msgspec.DecodeError:
        # It may only spell a half surrogate, as an answer of another server may.
        repaired = replace_escaped_surrogates(body.decode()).encode()
        if repaired == body:
            raise
        return msgspec.json.decode(repaired)


def encode_json(value: Any) -> bytes:
    """JSON of a value; half surrogates in it, as names of files may have them, become U+FFFD."""
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return replace_escaped_surrogates(json.dumps(value)).encode()


def json_response(
    value: Any, *, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    return Response(
        encode_json(value),
        status_code=status,
        headers=headers,
        media_type="application/json",
    )


def _too_large(context: HttpContext) -> RequestTooLargeError:
    return RequestTooLargeError(
        f"The request body is over {context.max_body_bytes} bytes; send less, or raise "
        f"{context.max_body_name}."
    )
