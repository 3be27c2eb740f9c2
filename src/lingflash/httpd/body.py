"""Reads a JSON body within the size limit and checks it against a request model."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
import pydantic
from fastapi import Request, Response
from starlette.requests import ClientDisconnect

from lingflash.core.errors import InvalidRequestError, RequestTooLargeError
from lingflash.httpd.context import context_of
from lingflash.protocol.fields import FieldTable, parse_request

# Deeper bodies would exhaust the stack of whatever walks them: templates, guards, encoders.
MAX_DEPTH = 128

ModelT = TypeVar("ModelT", bound=pydantic.BaseModel)


_NO_OTHERS = FieldTable(inert={}, refused={})


async def read_request(
    request: Request, model: type[ModelT], table: FieldTable = _NO_OTHERS
) -> ModelT:
    """Read and check the body of a request; its size is checked while it arrives.

    Raises:
        InvalidRequestError: it is no JSON, or not what the model says.
        RequestTooLargeError: it is over the limit.
    """
    max_bytes = context_of(request).max_body_bytes
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        raise _too_large(max_bytes)
    body = bytearray()
    try:
        async for part in request.stream():
            body += part
            if len(body) > max_bytes:
                raise _too_large(max_bytes)
    except ClientDisconnect:
        raise InvalidRequestError("The request body did not arrive.") from None
    return parse_request(model, decode_json(bytes(body)), table)


def decode_json(body: bytes) -> Any:
    """Decode JSON.

    Raises:
        InvalidRequestError: it is none, or nested too deeply.
    """
    try:
        value = msgspec.json.decode(body)
    except RecursionError:
        raise _too_deep() from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"The request body is not valid JSON: {error}.") from None
    # One pass over the bytes tells most bodies apart from those worth a walk.
    if body.count(b"{") + body.count(b"[") > MAX_DEPTH:
        _check_depth(value)
    return value


def json_response(
    value: Any, *, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """A JSON answer."""
    return Response(
        msgspec.json.encode(value),
        status_code=status,
        headers=headers,
        media_type="application/json",
    )


def _check_depth(value: Any) -> None:
    fields = value.items() if isinstance(value, dict) else ((None, value),)
    for name, field in fields:
        level = [field]
        for _ in range(MAX_DEPTH):
            following: list[Any] = []
            for item in level:
                if isinstance(item, dict):
                    following += item.values()
                elif isinstance(item, list):
                    following += item
            level = following
            if not level:
                break
        else:
            raise _too_deep(name)


def _too_deep(name: str | None = None) -> InvalidRequestError:
    return InvalidRequestError(
        f"{name or 'The request body'} is nested too deeply; at most {MAX_DEPTH} levels are "
        "allowed.",
        param=name,
    )


def _too_large(max_bytes: int) -> RequestTooLargeError:
    return RequestTooLargeError(
        f"The request body is over {max_bytes} bytes; send less, or raise --max-body-mb."
    )
