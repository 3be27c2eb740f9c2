"""/files: contents, streamed into and out of the jail without lying in between."""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from lingflash.core.errors import (
    InvalidRequestError,
    LingflashError,
    RequestTooLargeError,
    SandboxError,
    UnsupportedMediaError,
)
from lingflash.httpd.body import json_response
from lingflash.sandbox.box import Box, check_call
from lingflash.sandbox.e2b.access import check_user, outcome_of, sandbox_of, state_of
from lingflash.sandbox.e2b.fields import path_of
from lingflash.sandbox.process import End, Process

router = APIRouter()

_MAX_FILES = 1000
_MAX_BOUNDARY = 70  # RFC 2046's
_MAX_HEADER = 8192


@router.get("/files")
async def read(request: Request) -> Response:
    """A file's bytes."""
    try:
        check_user(request)
        path = path_of(dict(request.query_params))
        process = await sandbox_of(request).box.start_call("read", path=path)
        content = _content(process)
        size = await anext(content)
    except LingflashError as error:
        return failure(error)
    headers = {"content-length": size.decode()}
    return StreamingResponse(content, media_type="application/octet-stream", headers=headers)


async def _content(process: Process) -> AsyncGenerator[bytes, None]:
    """First the size in digits, then the bytes.

    Raises:
        SandboxError: it cannot be read.
    """
    errors = bytearray()
    head, has_size, rest = b"", False, 0
    try:
        async with contextlib.aclosing(process.events()) as events:
            async for event in events:
                if isinstance(event, End):
                    check_call(process, bytes(errors))
                    return
                if event.fd == 2:
                    errors += event.data
                    continue
                data = event.data
                if not has_size:
                    head += data
                    size, newline, data = head.partition(b"\n")
                    if len(size) > 20 or (newline and not size.isdigit()):
                        raise SandboxError("the sandbox sent no size")
                    if not newline:
                        continue
                    has_size, rest = True, int(size)
                    yield size
                data = data[:rest]  # more than was announced would break the answer
                rest -= len(data)
                if data:
                    yield data
    finally:
        if process.end is None:
            process.kill()


@router.post("/files")
async def write(request: Request) -> Response:
    """Write files: the body as one, or each part of a form."""
    try:
        check_user(request)
        box = sandbox_of(request).box
        kind, options = parse_options_header(request.headers.get("content-type"))
        path = request.query_params.get("path")
        upload = _Upload(box)
        try:
            if kind == b"multipart/form-data":
                await _take_form(request, upload, options.get(b"boundary", b""), path)
            elif kind == b"application/octet-stream":
                await upload.begin(path_of({"path": path}))
                async for data in _body(request):
                    await upload.add(data)
                await upload.finish()
            else:
                raise UnsupportedMediaError(
                    f"content-type is {kind.decode(errors='replace')[:60]!r}; allowed: "
                    "application/octet-stream, multipart/form-data."
                )
        except BaseException:
            upload.abort()
            raise
        return json_response([_written(entry) for entry in upload.entries])
    except LingflashError as error:
        return failure(error)


class _Upload:
    """Files on their way into a jail, one after the other."""

    def __init__(self, box: Box) -> None:
        self._box = box
        self._process: Process | None = None
        self._answering: asyncio.Task[Any] | None = None
        self.entries: list[Any] = []

    async def begin(self, path: str) -> None:
        if len(self.entries) >= _MAX_FILES:
            raise InvalidRequestError(f"More than {_MAX_FILES} files; send fewer at once.")
        self._process = await self._box.start_call("write", stdin=True, path=path)
        self._answering = asyncio.create_task(self._box.answer_of(self._process))

    async def add(self, data: bytes) -> None:
        assert self._process is not None
        if data:
            with contextlib.suppress(SandboxError):  # why is what the call answers
                await self._process.write(data)

    async def finish(self) -> None:
        assert self._process is not None
        assert self._answering is not None
        self._process.close_input()
        process, self._process = self._process, None
        assert process is not None
        self.entries.append(await self._answering)

    def abort(self) -> None:
        if self._process is not None:
            self._process.kill()
        if self._answering is not None and not self._answering.cancel():
            self._answering.exception()  # taken, so that nobody reports it

    @property
    def is_open(self) -> bool:
        return self._process is not None


async def _take_form(request: Request, upload: _Upload, boundary: bytes, path: str | None) -> None:
    if not 0 < len(boundary) <= _MAX_BOUNDARY:
        raise InvalidRequestError(f"The form's boundary has not 1 to {_MAX_BOUNDARY} characters.")
    steps: list[tuple[str, bytes]] = []
    name, value = bytearray(), bytearray()
    headers: dict[bytes, bytes] = {}

    def on_header_end() -> None:
        headers[bytes(name).lower()] = bytes(value)
        name.clear()
        value.clear()

    def on_headers_finished() -> None:
        _, options = parse_options_header(headers.get(b"content-disposition"))
        headers.clear()
        steps.append(("begin", options.get(b"filename", b"")))

    parser = MultipartParser(
        boundary,
        {
            "on_header_field": lambda data, start, end: name.extend(data[start:end]),
            "on_header_value": lambda data, start, end: value.extend(data[start:end]),
            "on_header_end": on_header_end,
            "on_headers_finished": on_headers_finished,
            "on_part_data": lambda data, start, end: steps.append(("add", data[start:end])),
            "on_part_end": lambda: steps.append(("finish", b"")),
        },
    )
    async for data in _body(request):
        try:
            parser.write(data)
            if len(name) + len(value) > _MAX_HEADER:
                raise InvalidRequestError("a header of a part is too long")
        except Exception as error:  # the parser's own class, or what a callback met in the form
            raise InvalidRequestError(f"The form cannot be read: {error}.") from None
        taken, steps[:] = list(steps), []
        for step, content in taken:
            if step == "begin":
                # With one file the query names it; with several each part does.
                own = content.decode("utf-8", "replace")
                await upload.begin(path_of({"path": path or own}))
            elif step == "add":
                await upload.add(content)
            else:
                await upload.finish()
    if upload.is_open:
        raise InvalidRequestError("The form ends within a file.")
    if not upload.entries:
        raise InvalidRequestError("The form holds no file.")


async def _body(request: Request) -> AsyncGenerator[bytes, None]:
    """The body, unpacked, within the limit on uploads, which holds for what was unpacked."""
    most = state_of(request).manager.config.max_upload_bytes
    encoding = request.headers.get("content-encoding", "identity")
    if encoding not in ("identity", "gzip"):
        raise UnsupportedMediaError(f"content-encoding is {encoding[:40]!r}; allowed: gzip.")
    unpacking = zlib.decompressobj(zlib.MAX_WBITS | 16) if encoding == "gzip" else None
    size = 0
    try:
        async for part in request.stream():
            while part:
                if unpacking is None:
                    data, part = part, b""
                else:
                    data = unpacking.decompress(part, 1 << 18)
                    part = unpacking.unconsumed_tail
                    if not data:
                        break
                size += len(data)
                if size > most:
                    raise RequestTooLargeError(
                        f"The upload is over {most} bytes; send less, or raise --max-upload-mb."
                    )
                yield data
    except ClientDisconnect:
        raise InvalidRequestError("The request body did not arrive.") from None
    except zlib.error as error:
        raise InvalidRequestError(f"The body is not what content-encoding says: {error}.") from None


def failure(error: LingflashError) -> Response:
    """An error as `/files` answers it."""
    status, _ = outcome_of(error)
    return json_response({"code": status, "message": error.message}, status=status)


def _written(entry: Any) -> dict[str, str]:
    try:
        return {"name": str(entry["name"]), "path": str(entry["path"]), "type": "file"}
    except (TypeError, KeyError):
        raise SandboxError("the sandbox told of a file what cannot be read") from None
