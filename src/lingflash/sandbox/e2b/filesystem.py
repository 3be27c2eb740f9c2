"""filesystem.Filesystem: entries of a sandbox's file system and changes of them."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from fastapi import APIRouter, Request, Response

from lingflash.core.errors import InvalidRequestError, LingflashError, NotFoundError, SandboxError
from lingflash.sandbox.box import check_call
from lingflash.sandbox.e2b import rpc
from lingflash.sandbox.e2b.access import check_user, sandbox_of
from lingflash.sandbox.e2b.fields import flag, number, path_of, text
from lingflash.sandbox.manager import Sandbox, Watcher
from lingflash.sandbox.process import End, Process

router = APIRouter(prefix="/filesystem.Filesystem")

_TYPES = {
    "file": "FILE_TYPE_FILE",
    "dir": "FILE_TYPE_DIRECTORY",
    "symlink": "FILE_TYPE_SYMLINK",
}
_MAX_DEPTH = 64
_MAX_EVENTS = 10_000
_MAX_WATCHERS = 32

_Work = Callable[[Sandbox, dict[str, Any]], Awaitable[dict[str, Any]]]


async def _stat(sandbox: Sandbox, message: dict[str, Any]) -> dict[str, Any]:
    return {"entry": entry_of(await sandbox.box.call("stat", path=path_of(message)))}


async def _list(sandbox: Sandbox, message: dict[str, Any]) -> dict[str, Any]:
    depth = number(message, "depth", 1, _MAX_DEPTH) or 1
    found = await sandbox.box.call("list", path=path_of(message), depth=depth)
    return {"entries": [entry_of(each) for each in _as_list(found)]}


async def _make(sandbox: Sandbox, message: dict[str, Any]) -> dict[str, Any]:
    return {"entry": entry_of(await sandbox.box.call("mkdir", path=path_of(message)))}


async def _move(sandbox: Sandbox, message: dict[str, Any]) -> dict[str, Any]:
    source, destination = path_of(message, "source"), path_of(message, "destination")
    moved = await sandbox.box.call("move", source=source, destination=destination)
    return {"entry": entry_of(moved)}


async def _remove(sandbox: Sandbox, message: dict[str, Any]) -> dict[str, Any]:
    await sandbox.box.call("remove", path=path_of(message))
    return {}


async def _create_watcher(sandbox: Sandbox, message: dict[str, Any]) -> dict[str, Any]:
    if len(sandbox.watchers) >= _MAX_WATCHERS:
        raise InvalidRequestError(f"A sandbox has at most {_MAX_WATCHERS} watchers; remove one.")
    changes = _changes(sandbox, message)
    await anext(changes)  # it watches from here on
    watcher_id = secrets.token_hex(16)
    watcher = sandbox.watchers[watcher_id] = Watcher()
    watcher.task = asyncio.create_task(_collect(changes, watcher))
    return {"watcherId": watcher_id}


async def _collect(changes: AsyncGenerator[dict[str, Any], None], watcher: Watcher) -> None:
    async for change in changes:
        if len(watcher.events) < _MAX_EVENTS:
            watcher.events.append(change)


async def _take_events(sandbox: Sandbox, message: dict[str, Any]) -> dict[str, Any]:
    watcher = _watcher(sandbox, message)
    events, watcher.events = watcher.events, []
    return {"events": events}


async def _remove_watcher(sandbox: Sandbox, message: dict[str, Any]) -> dict[str, Any]:
    watcher = _watcher(sandbox, message)
    del sandbox.watchers[text(message, "watcherId")]
    if watcher.task is not None:
        watcher.task.cancel()
    return {}


def _watcher(sandbox: Sandbox, message: dict[str, Any]) -> Watcher:
    watcher = sandbox.watchers.get(text(message, "watcherId"))
    if watcher is None:
        raise NotFoundError("watcherId is of no watcher.", param="watcherId")
    return watcher


_UNARY: dict[str, _Work] = {
    "Stat": _stat,
    "ListDir": _list,
    "MakeDir": _make,
    "Move": _move,
    "Remove": _remove,
    "CreateWatcher": _create_watcher,
    "GetWatcherEvents": _take_events,
    "RemoveWatcher": _remove_watcher,
}


@router.post("/WatchDir")
async def watch(request: Request) -> Response:
    """Stream the changes of a folder."""

    async def answers(message: rpc.Message) -> AsyncGenerator[rpc.Message, None]:
        check_user(request)
        sandbox = sandbox_of(request)
        async with contextlib.aclosing(_changes(sandbox, message)) as changes:
            async for change in changes:
                yield {"filesystem": change} if change else {"start": {}}

    return await rpc.streamed(request, answers, {"keepalive": {}})


@router.post("/{method}")
async def unary(request: Request, method: str) -> Response:
    """All that have one answer."""
    try:
        if method not in _UNARY:
            raise NotFoundError(f"filesystem.Filesystem has no {method[:40]!r} here.")
        message = await rpc.unary(request)
        check_user(request)
        return rpc.answer(await _UNARY[method](sandbox_of(request), message))
    except LingflashError as error:
        return rpc.failure(error)


async def _changes(
    sandbox: Sandbox, message: dict[str, Any]
) -> AsyncGenerator[dict[str, Any], None]:
    """An empty object once the folder is watched, then its changes."""
    process = await sandbox.box.start_call(
        "watch",
        path=path_of(message),
        recursive=flag(message, "recursive"),
        include_entry=flag(message, "includeEntry"),
    )
    try:
        async for line in _lines(process):
            told = json.loads(line)
            if not told:
                yield {}
                continue
            change: dict[str, Any] = {
                "name": str(told["name"]),
                "type": f"EVENT_TYPE_{str(told['kind']).upper()}",
            }
            if "entry" in told:
                change["entry"] = entry_of(told["entry"])
            yield change
    except (ValueError, KeyError, TypeError):
        raise SandboxError("the sandbox told of changes what cannot be read") from None
    finally:
        process.kill()


async def _lines(process: Process) -> AsyncGenerator[bytes, None]:
    buffers = {1: b"", 2: b""}
    async with contextlib.aclosing(process.events()) as events:
        async for event in events:
            if isinstance(event, End):
                check_call(process, buffers[2])
                return
            *lines, rest = (buffers[event.fd] + event.data).split(b"\n")
            if len(rest) > 1 << 20:
                raise ValueError("a line without an end")
            buffers[event.fd] = rest
            if event.fd == 1:
                for line in lines:
                    yield line


def entry_of(told: Any) -> dict[str, Any]:
    """An entry in the words of the API. It comes from a jail and may be anything.

    Raises:
        SandboxError: it is none.
    """
    try:
        modified = datetime.datetime.fromtimestamp(
            int(told["modified_ns"]) / 1e9, datetime.UTC
        ).isoformat()
        entry = {
            "name": str(told["name"]),
            "type": _TYPES.get(told["type"], "FILE_TYPE_UNSPECIFIED"),
            "path": str(told["path"]),
            "size": str(int(told["size"])),
            "mode": int(told["mode"]),
            "permissions": str(told["permissions"]),
            "owner": str(told["owner"]),
            "group": str(told["group"]),
            "modifiedTime": modified.replace("+00:00", "Z"),
        }
        if told.get("target") is not None:
            entry["symlinkTarget"] = str(told["target"])
        return entry
    except (KeyError, TypeError, ValueError, OverflowError, OSError, AttributeError):
        raise SandboxError("the sandbox told of an entry what cannot be read") from None


def _as_list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise SandboxError("the sandbox told of entries what cannot be read")
    return value
