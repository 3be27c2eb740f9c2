"""/v1/containers and their files: OpenAI's API over the sandboxes that code runs in."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from lingflash.api.code.containers import IDLE_S, Container, Containers
from lingflash.api.code.outputs import Outputs, text_of
from lingflash.api.plain.pages import PAGE_NAMES, PAGE_QUERY, Page, read_query
from lingflash.api.state import state_of
from lingflash.core.errors import InvalidRequestError, NotFoundError
from lingflash.httpd.auth import caller_of
from lingflash.httpd.body import json_response, read_form_file, read_request
from lingflash.httpd.client_gone import until_client_gone
from lingflash.httpd.openapi import json_body, query_parameters
from lingflash.link.http_client import Answer
from lingflash.link.sandbox_server import HOME
from lingflash.protocol.containers import (
    CODE_TABLE,
    CONTAINER_TABLE,
    CodeToRun,
    NewContainer,
    container_object,
)

router = APIRouter(prefix="/v1/containers")

# Folders below the home that are looked into for files.
_DEPTH = 8
_MAX_NAME_BYTES = 255
_PAGES = query_parameters(**PAGE_QUERY)
_LISTED = query_parameters(**PAGE_QUERY, name={"type": "string"})


@router.post("", openapi_extra=json_body(NewContainer))
async def create_container(request: Request) -> Response:
    """Make a container and its sandbox."""
    containers, owner = _containers(request), caller_of(request)
    body = await read_request(request, NewContainer, CONTAINER_TABLE)
    idle_s = IDLE_S if body.expires_after is None else body.expires_after.minutes * 60.0
    container = containers.add(owner, name=body.name, is_auto=False, idle_s=idle_s)
    try:
        async with containers.open(container):
            pass
    except BaseException:
        containers.forget(container)
        raise
    return json_response(_object(container))


@router.get("", openapi_extra=_LISTED)
async def list_containers(request: Request) -> Response:
    """List the caller's containers, page by page."""
    query = read_query(request, *PAGE_NAMES, "name")
    found = _containers(request).all_of(caller_of(request))
    name = query.get("name")
    wanted = [_object(each) for each in found if name in (None, each.name)]
    return json_response(Page.of(query).cut(wanted))


@router.get("/{container_id}")
async def retrieve_container(container_id: str, request: Request) -> Response:
    """Read one."""
    return json_response(_object(_container(request, container_id)))


@router.delete("/{container_id}")
async def delete_container(container_id: str, request: Request) -> Response:
    """End one, with its files and whatever runs in it."""
    container = _container(request, container_id)
    _containers(request).forget(container)
    return json_response({"id": container.id, "object": "container.deleted", "deleted": True})


@router.post("/{container_id}/run", openapi_extra=json_body(CodeToRun))
async def run_code(container_id: str, request: Request) -> Response:
    """Run Python in it, as a call of code_interpreter would; OpenAI's API has no such path."""
    containers, container = _containers(request), _container(request, container_id)
    body = await read_request(request, CodeToRun, CODE_TABLE)
    work = _run(containers, container, body.code)
    status, outputs = await until_client_gone(work, request.receive)
    return json_response(
        {
            "object": "container.run",
            "container_id": container.id,
            "status": status,
            "outputs": outputs,
            "text": text_of(outputs, state_of(request).engine.info.max_model_len),
        }
    )


async def _run(
    containers: Containers, container: Container, code: str
) -> tuple[str, list[dict[str, Any]]]:
    """What code gave, and whether it came to its end."""
    outputs = Outputs()
    try:
        async with container.busy, containers.open(container) as sandbox:
            running = containers.sandboxes.execute(sandbox, code)
            async with asyncio.timeout(containers.run_s), contextlib.aclosing(running):
                async for event in running:
                    outputs.add(event)
    except TimeoutError:
        outputs.note(f"[stopped after {containers.run_s:g} s]")
        return "incomplete", outputs.whole()
    return "completed", outputs.whole()


@router.post("/{container_id}/files", openapi_extra={"requestBody": {"content": {
    "multipart/form-data": {"schema": {"type": "object", "required": ["file"], "properties": {
        "file": {"type": "string", "format": "binary"}}}}}, "required": True}})  # fmt: skip
async def create_file(container_id: str, request: Request) -> Response:
    """Put a file into the folder in which code begins."""
    containers, container = _containers(request), _container(request, container_id)
    name, content = await read_form_file(request, "file")
    name = name.rpartition("/")[2]
    path = f"{HOME}/{name}"
    if not name or not _is_shown(path) or "\0" in name or len(name.encode()) > _MAX_NAME_BYTES:
        raise InvalidRequestError(
            f"The file's name is {name[:80]!r}; a name of 1 to {_MAX_NAME_BYTES} bytes of UTF-8 is "
            "needed, without a dot at its beginning.",
            param="file",
        )
    async with containers.open(container) as sandbox:
        there = await containers.sandboxes.entry(sandbox, path)
        if there is not None and not _is_file(there):
            raise InvalidRequestError(
                f"The container has {name[:80]!r} already, and it is no regular file; choose "
                "another name.",
                param="file",
            )
        await containers.sandboxes.write_file(sandbox, path, content)
        made = await containers.sandboxes.entry(sandbox, path)
    if made is None:  # by code that runs in it
        raise InvalidRequestError(f"The file {name[:80]!r} was removed at once.", param="file")
    container.uploaded.add(path)
    return json_response(_file_object(container, made))


@router.get("/{container_id}/files", openapi_extra=_PAGES)
async def list_files(container_id: str, request: Request) -> Response:
    """List the files below that folder, without hidden ones, links and names beyond UTF-8."""
    page = Page.of(read_query(request, *PAGE_NAMES))
    containers, container = _containers(request), _container(request, container_id)
    return json_response(page.cut(await _files(containers, container)))


@router.get("/{container_id}/files/{file_id}")
async def retrieve_file(container_id: str, file_id: str, request: Request) -> Response:
    """Read what is known of a file."""
    containers, container = _containers(request), _container(request, container_id)
    return json_response(await _file(containers, container, file_id))


@router.get("/{container_id}/files/{file_id}/content")
async def retrieve_content(container_id: str, file_id: str, request: Request) -> Response:
    """A file's bytes."""
    containers, container = _containers(request), _container(request, container_id)
    file = await _file(containers, container, file_id)
    stack = contextlib.AsyncExitStack()
    async with stack:
        sandbox = await stack.enter_async_context(containers.open(container))
        opened = containers.sandboxes.read_file(sandbox, file["path"])
        answer = await stack.enter_async_context(opened)
        return _Content(answer, stack.pop_all())


@router.delete("/{container_id}/files/{file_id}")
async def delete_file(container_id: str, file_id: str, request: Request) -> Response:
    """Remove a file."""
    containers, container = _containers(request), _container(request, container_id)
    file = await _file(containers, container, file_id)
    async with containers.open(container) as sandbox:
        await containers.sandboxes.remove_file(sandbox, file["path"])
    return json_response({"id": file_id, "object": "container.file.deleted", "deleted": True})


class _Content(StreamingResponse):
    """A file as it comes out of its sandbox; `kept` is closed with it, whoever ends it."""

    def __init__(self, answer: Answer, kept: contextlib.AsyncExitStack) -> None:
        size = answer.headers.get("content-length")
        headers = None if size is None else {"content-length": size}
        super().__init__(answer.parts(), media_type="application/octet-stream", headers=headers)
        self._kept = kept

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._kept:
            await super().__call__(scope, receive, send)


def _containers(request: Request) -> Containers:
    """The containers of this server.

    Raises:
        NotFoundError: it has none.
    """
    containers = state_of(request).containers
    if containers is None:
        raise NotFoundError(
            "There are no containers here; start the server with --sandbox URL to have them."
        )
    return containers


def _container(request: Request, container_id: str) -> Container:
    return _containers(request).get(caller_of(request), container_id)


async def _files(containers: Containers, container: Container) -> list[dict[str, Any]]:
    """A container's files, the oldest first. Their names come from a jail and may be anything."""
    async with containers.open(container) as sandbox:
        entries = await containers.sandboxes.list_files(sandbox, HOME, _DEPTH)
    found = [
        _file_object(container, entry)
        for entry in entries
        if _is_file(entry) and _is_shown(str(entry.get("path", "")))
    ]
    found.sort(key=lambda each: (each["created_at"], each["path"]))
    return found


def _is_file(entry: Mapping[str, Any]) -> bool:
    return entry.get("type") == "FILE_TYPE_FILE" and "symlinkTarget" not in entry


def _is_shown(path: str) -> bool:
    """Whether no part of it is hidden, and it is what the jail has: its name could be asked for
    again. Bytes that are no UTF-8 have become U+FFFD."""
    return "/." not in path.removeprefix(HOME) and "\ufffd" not in path


def _file_object(container: Container, entry: Mapping[str, Any]) -> dict[str, Any]:
    path = str(entry.get("path", ""))
    return {
        "id": _file_id(container, path),
        "object": "container.file",
        "container_id": container.id,
        "path": path,
        "bytes": int(entry.get("size", 0)),
        "created_at": _seconds(str(entry.get("modifiedTime", ""))),
        "source": "user" if path in container.uploaded else "assistant",
    }


async def _file(containers: Containers, container: Container, file_id: str) -> dict[str, Any]:
    for file in await _files(containers, container):
        if file["id"] == file_id:
            return file
    raise NotFoundError(
        f"There is no file {file_id[:80]!r} in the container {container.id}.", param="file_id"
    )


def _file_id(container: Container, path: str) -> str:
    """The same for the same path, so that none need be kept."""
    digest = hashlib.blake2b(f"{container.id}{path}".encode("utf-8", "replace"), digest_size=24)
    return "cfile_" + digest.hexdigest()


def _seconds(moment: str) -> int:
    try:
        return int(datetime.fromisoformat(moment).timestamp())
    except (ValueError, OverflowError):
        return 0


def _object(container: Container) -> dict[str, Any]:
    return container_object(
        container.id,
        name=container.name,
        created_at=container.created_at,
        last_active_at=container.last_active_at,
        idle_s=container.idle_s,
    )
