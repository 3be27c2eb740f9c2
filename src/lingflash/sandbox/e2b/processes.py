"""process.Process: programs in a sandbox, started, joined, fed and signalled."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from fastapi import APIRouter, Request, Response

from lingflash.core.errors import (
    DeadlineExceededError,
    InvalidRequestError,
    LingflashError,
    NotFoundError,
    refuse,
)
from lingflash.sandbox.e2b import rpc
from lingflash.sandbox.e2b.access import check_user, sandbox_of
from lingflash.sandbox.e2b.fields import child, flag, number, path_of, text, text_map, texts
from lingflash.sandbox.manager import Sandbox
from lingflash.sandbox.process import End, Output, Process

router = APIRouter(prefix="/process.Process")

_KEEPALIVE = {"event": {"keepalive": {}}}
_MAX_PID = 2**31 - 1
_SIGNALS = {
    "SIGNAL_SIGTERM": signal.SIGTERM,
    "SIGNAL_SIGKILL": signal.SIGKILL,
    15: signal.SIGTERM,
    9: signal.SIGKILL,
}
_Work = Callable[[Sandbox, dict[str, Any]], Awaitable[dict[str, Any]]]


@router.post("/Start")
async def start(request: Request) -> Response:
    """Start a program and stream what it writes. It outlives the stream, but not its deadline."""

    async def answers(message: rpc.Message) -> AsyncGenerator[rpc.Message, None]:
        check_user(request)
        deadline_s = rpc.deadline_s(request)
        sandbox = sandbox_of(request)
        process = await _started(sandbox, message)
        async with contextlib.aclosing(_told(process, deadline_s, kills=True)) as told:
            async for event in told:
                yield event

    return await rpc.streamed(request, answers, _KEEPALIVE)


@router.post("/Connect")
async def connect(request: Request) -> Response:
    """Stream what a program writes from now on."""

    async def answers(message: rpc.Message) -> AsyncGenerator[rpc.Message, None]:
        deadline_s = rpc.deadline_s(request)
        process = _selected(sandbox_of(request), message)
        async with contextlib.aclosing(_told(process, deadline_s, kills=False)) as told:
            async for event in told:
                yield event

    return await rpc.streamed(request, answers, _KEEPALIVE)


@router.post("/StreamInput")
async def stream_input(request: Request) -> Response:
    """Feed a program while the caller has something for it."""

    process: Process | None = None
    try:
        async for message in rpc.messages(request):
            if "start" in message:
                process = _selected(sandbox_of(request), child(message, "start"))
            elif "data" in message:
                if process is None:
                    raise InvalidRequestError("The first message must say which process.")
                await process.write(_input(child(message, "data")))
    except LingflashError as error:
        return rpc.stream(rpc.failing(error))
    return rpc.stream(rpc.one({}))


async def _list(sandbox: Sandbox, message: dict[str, Any]) -> dict[str, Any]:
    found = []
    for process in sandbox.box.processes.values():
        told = sandbox.tags.get(process.number)
        if told is not None and process.pid:
            tag = {} if told["tag"] is None else {"tag": told["tag"]}
            found.append({"config": told["config"], "pid": process.pid, **tag})
    return {"processes": found}


async def _send_input(sandbox: Sandbox, message: dict[str, Any]) -> dict[str, Any]:
    await _selected(sandbox, message).write(_input(message))
    return {}


async def _close_stdin(sandbox: Sandbox, message: dict[str, Any]) -> dict[str, Any]:
    _selected(sandbox, message).close_input()
    return {}


async def _send_signal(sandbox: Sandbox, message: dict[str, Any]) -> dict[str, Any]:
    process = _selected(sandbox, message)
    wanted = message.get("signal")
    if not isinstance(wanted, str | int) or wanted not in _SIGNALS:
        refuse("signal", f"is {wanted!r}; allowed: SIGNAL_SIGTERM, SIGNAL_SIGKILL")
    process.kill(_SIGNALS[wanted])
    return {}


_UNARY: dict[str, _Work] = {
    "List": _list,
    "SendInput": _send_input,
    "CloseStdin": _close_stdin,
    "SendSignal": _send_signal,
}


@router.post("/{method}")
async def unary(request: Request, method: str) -> Response:
    """All that have one answer."""
    try:
        if method == "Update":
            raise InvalidRequestError("Terminals (pty) are not supported by this sandbox server.")
        if method not in _UNARY:
            raise NotFoundError(f"process.Process has no {method[:40]!r} here.")
        message = await rpc.unary(request)
        return rpc.answer(await _UNARY[method](sandbox_of(request), message))
    except LingflashError as error:
        return rpc.failure(error)


async def _started(sandbox: Sandbox, message: dict[str, Any]) -> Process:
    if message.get("pty") is not None:
        raise InvalidRequestError(
            "Terminals (pty) are not supported by this sandbox server.", param="pty"
        )
    config = child(message, "process")
    cwd = path_of(config, "cwd") if config.get("cwd") else None
    env = text_map(config, "envs")
    command, arguments = path_of(config, "cmd"), texts(config, "args")
    tag = text(message, "tag") if message.get("tag") is not None else None
    process = await sandbox.box.spawn(
        [command, *arguments],
        env={**sandbox.env, **env},
        cwd=cwd,
        stdin=flag(message, "stdin", default=True),
        heard=sandbox.journal.of_process([command, *arguments]),
    )
    _forget_ended(sandbox)
    told = {"cmd": command, "args": arguments, "envs": env, **({} if cwd is None else {"cwd": cwd})}
    sandbox.tags[process.number] = {"tag": tag, "config": told}
    return process


def _forget_ended(sandbox: Sandbox) -> None:
    for number_ in [each for each in sandbox.tags if each not in sandbox.box.processes]:
        del sandbox.tags[number_]


async def _told(
    process: Process, deadline_s: float | None, *, kills: bool
) -> AsyncGenerator[dict[str, Any], None]:
    """What a process does, in the words of the API.

    Raises:
        DeadlineExceededError: the time is up; if `kills`, the process is ended.
    """
    loop = asyncio.get_running_loop()
    ends_at = None if deadline_s is None else loop.time() + deadline_s
    async with contextlib.aclosing(process.events()) as events:
        yield {"event": {"start": {"pid": process.pid}}}
        try:
            while True:
                async with asyncio.timeout_at(ends_at):
                    event = await anext(events)
                if isinstance(event, Output):
                    name = "stdout" if event.fd == 1 else "stderr"
                    data = base64.b64encode(event.data).decode()
                    yield {"event": {"data": {name: data}}}
                else:
                    if event.dropped:
                        note = f"\n[{event.dropped} bytes of output over the limit are left out]\n"
                        data = base64.b64encode(note.encode()).decode()
                        yield {"event": {"data": {"stderr": data}}}
                    yield {"event": {"end": _end(event)}}
                    return
        except TimeoutError:
            if kills:
                process.kill()
            raise DeadlineExceededError(
                f"The process ran into the caller's limit of {deadline_s:g} s"
                + (" and was ended." if kills else ".")
            ) from None


def _end(end: End) -> dict[str, Any]:
    if end.signal:
        name = signal.strsignal(end.signal) or f"signal {end.signal}"
        status = f"signal: {name.lower()}"
        return {"exitCode": -1, "exited": False, "status": status, "error": status}
    told: dict[str, Any] = {"exitCode": end.code, "exited": True}
    told["status"] = f"exit status {end.code}"
    return told if end.code == 0 else {**told, "error": told["status"]}


def _selected(sandbox: Sandbox, message: dict[str, Any]) -> Process:
    selector = child(message, "process")
    if "tag" in selector:
        return sandbox.process(None, text(selector, "tag"))
    return sandbox.process(number(selector, "pid", 0, _MAX_PID), None)


def _input(message: dict[str, Any]) -> bytes:
    given = child(message, "input")
    if "pty" in given:
        raise InvalidRequestError("Terminals (pty) are not supported by this sandbox server.")
    try:
        return base64.b64decode(text(given, "stdin", ""), validate=True)
    except binascii.Error:
        refuse("input.stdin", "must be base64")
