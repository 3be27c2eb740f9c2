"""Connect RPC with JSON bodies: one message, or frames of five bytes and a message.

https://connectrpc.com/docs/protocol says the rest; there is no compression and no protobuf.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
from collections.abc import AsyncGenerator, Callable
from typing import Any

from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect

from lingflash.core.errors import (
    InvalidRequestError,
    LingflashError,
    RequestTooLargeError,
    UnsupportedMediaError,
)
from lingflash.httpd.body import decode_json, json_response
from lingflash.sandbox.e2b.access import outcome_of

_HEAD = struct.Struct(">BI")
_COMPRESSED, _END = 1, 2
_MAX_MESSAGE = 4 << 20
_KEEPALIVE_S = 50.0

Message = dict[str, Any]


async def unary(request: Request) -> Message:
    """The message of a call that has one.

    Raises:
        InvalidRequestError: it is no JSON object.
        UnsupportedMediaError: it is protobuf.
    """
    _check_type(request, "application/json")
    body = bytearray()
    async for part in _parts(request):
        body += part
        if len(body) > _MAX_MESSAGE:
            raise RequestTooLargeError(f"The message is over {_MAX_MESSAGE} bytes.")
    return _object(bytes(body))


async def messages(request: Request) -> AsyncGenerator[Message, None]:
    """The messages of a call that streams them, as they come.

    Raises:
        InvalidRequestError: a frame is none.
        UnsupportedMediaError: they are protobuf, or compressed.
    """
    _check_type(request, "application/connect+json")
    buffer = bytearray()
    async for part in _parts(request):
        buffer += part
        while len(buffer) >= _HEAD.size:
            flags, size = _HEAD.unpack_from(buffer)
            if size > _MAX_MESSAGE:
                raise RequestTooLargeError(f"The message is over {_MAX_MESSAGE} bytes.")
            if len(buffer) < _HEAD.size + size:
                break
            body = bytes(buffer[_HEAD.size : _HEAD.size + size])
            del buffer[: _HEAD.size + size]
            if flags & _END:
                return
            if flags & _COMPRESSED:
                raise UnsupportedMediaError("Compressed messages are not read.")
            yield _object(body)
    if buffer:
        raise InvalidRequestError("The body ends within a message.")


async def streamed(
    request: Request,
    answers: Callable[[Message], AsyncGenerator[Message, None]],
    keepalive: Message | None = None,
) -> Response:
    """Answer a call that has one message by a stream of them; an error becomes the stream's end.

    Args:
        keepalive: sent while there is nothing else.
    """
    # Read before the answer begins: from then on only a disconnect is looked for.
    try:
        async with contextlib.aclosing(messages(request)) as given:
            async for message in given:
                return stream(answers(message), keepalive)
        raise InvalidRequestError("The call has no message.")
    except LingflashError as error:
        return stream(failing(error))


async def failing(error: LingflashError) -> AsyncGenerator[Message, None]:
    """Answers of a call that failed before it had any."""
    raise error
    yield {}


async def one(message: Message) -> AsyncGenerator[Message, None]:
    """The answers of a call that has a single one."""
    yield message


def answer(value: Message) -> Response:
    """The answer of a unary call."""
    return json_response(value)


def failure(error: LingflashError) -> Response:
    """The answer of a unary call that failed."""
    status, code = outcome_of(error)
    return json_response({"code": code, "message": error.message}, status=status)


def deadline_s(request: Request) -> float | None:
    """How long the caller waits, if it says so.

    Raises:
        InvalidRequestError: connect-timeout-ms is no number.
    """
    given = request.headers.get("connect-timeout-ms")
    if given is None:
        return None
    if not given.isascii() or not given.isdigit() or len(given) > 10:
        raise InvalidRequestError(f"connect-timeout-ms is {given[:20]!r}; allowed: digits.")
    return int(given) / 1000


def stream(answers: AsyncGenerator[Message, None], keepalive: Message | None = None) -> Response:
    """A stream of messages and its end."""
    return StreamingResponse(_framed(answers, keepalive), media_type="application/connect+json")


async def _framed(
    answers: AsyncGenerator[Message, None], keepalive: Message | None
) -> AsyncGenerator[bytes, None]:
    end: Message = {}
    pending: asyncio.Future[Message] | None = None
    try:
        while True:
            if pending is None:
                pending = asyncio.ensure_future(anext(answers))
            done, _ = await asyncio.wait((pending,), timeout=_KEEPALIVE_S if keepalive else None)
            if not done:
                assert keepalive is not None
                yield _frame(keepalive)
                continue
            taken, pending = pending, None
            yield _frame(taken.result())
    except StopAsyncIteration:
        pass
    except LingflashError as error:
        _, code = outcome_of(error)
        end = {"error": {"code": code, "message": error.message}}
    finally:
        if pending is not None:
            pending.cancel()
            await asyncio.gather(pending, return_exceptions=True)
        await answers.aclose()
    yield _frame(end, _END)


def _frame(message: Message, flags: int = 0) -> bytes:
    body = json.dumps(message).encode()
    return _HEAD.pack(flags, len(body)) + body


async def _parts(request: Request) -> AsyncGenerator[bytes, None]:
    try:
        async for part in request.stream():
            yield part
    except ClientDisconnect:
        raise InvalidRequestError("The request body did not arrive.") from None


def _check_type(request: Request, wanted: str) -> None:
    given = request.headers.get("content-type", "").partition(";")[0].strip()
    if given != wanted:
        raise UnsupportedMediaError(f"content-type is {given[:60]!r}; allowed: {wanted}.")
    if request.headers.get("content-encoding", "identity") != "identity":
        raise UnsupportedMediaError("Compressed messages are not read.")


def _object(body: bytes) -> Message:
    value = decode_json(body or b"{}")
    if not isinstance(value, dict):
        raise InvalidRequestError("The message must be a JSON object.")
    return value
