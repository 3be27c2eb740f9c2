"""The same API for sandboxes elsewhere: control by the caller's key, all other calls passed on."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Request, Response

from lingflash.core.errors import InvalidRequestError, LingflashError
from lingflash.httpd.auth import caller_of, require_key
from lingflash.httpd.body import json_response, read_json
from lingflash.sandbox.e2b.access import state_of
from lingflash.sandbox.e2b.files import failure
from lingflash.sandbox.remote import Remote

router = APIRouter(include_in_schema=False)
_keyed = [Depends(require_key)]
_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]
# What is in a sandbox; nothing else of the remote server is for callers.
_SERVICES = ("files", "execute", "contexts", "filesystem.Filesystem", "process.Process")
_BY_ID = ("contexts", "health")  # the SDKs send no token with these


def _remote(request: Request) -> Remote:
    state = state_of(request)
    state.require_ready()
    assert isinstance(state.backend, Remote)
    return state.backend


def _answer(status: int, told: Any) -> Response:
    return Response(status_code=status) if told is None else json_response(told, status=status)


async def _json(request: Request) -> Any:
    has_body = request.headers.get("content-length", "0") != "0"
    return (await read_json(request))[1] if has_body else None


@router.post("/v2/sandboxes", dependencies=_keyed)
@router.post("/sandboxes", dependencies=_keyed)
async def create(request: Request) -> Response:
    """Make a sandbox there."""
    remote = _remote(request)
    _, wanted = await read_json(request)
    status, told = await remote.create(caller_of(request), request.scope["path"], wanted)
    if status == 201 and await request.is_disconnected():
        await remote.kill(told["sandboxID"])  # nobody knows of it
        raise InvalidRequestError("The caller left.")
    return _answer(status, told)


@router.get("/v2/sandboxes", dependencies=_keyed)
@router.get("/sandboxes", dependencies=_keyed)
async def list_all(request: Request) -> Response:
    """The caller's."""
    path = f"{request.scope['path']}{_query(request)}"
    return _answer(*await _remote(request).all_of(caller_of(request), path))


@router.api_route("/v2/sandboxes/{rest:path}", methods=_METHODS, dependencies=_keyed)
@router.api_route("/sandboxes/{rest:path}", methods=_METHODS, dependencies=_keyed)
async def control(request: Request) -> Response:
    """Ask something of one of them."""
    remote, wanted = _remote(request), await _json(request)
    path, query = request.scope["path"], _query(request)
    return _answer(*await remote.control(caller_of(request), request.method, path, query, wanted))


async def inside(request: Request) -> Response:
    """A call into a sandbox."""
    service = request.scope["path"].split("/")[1]
    try:
        remote = _remote(request)
        rented = remote.sandbox_of(request.headers, id_is_enough=service in _BY_ID)
        return await remote.forward(request, rented)
    except LingflashError as error:
        return failure(error)


for _service in _SERVICES:
    router.add_api_route(f"/{_service}", inside, methods=_METHODS)
    router.add_api_route(f"/{_service}/{{rest:path}}", inside, methods=_METHODS)


def _query(request: Request) -> str:
    query = request.scope["query_string"].decode("latin-1")
    return f"?{query}" if query else ""
