"""Runs code in contexts: a Jupyter kernel for each Python one, a fresh program for the others.

A process of the jail like any other, so neither its messages nor those of the kernels reach the
server unread: it speaks lines of JSON on 0 and 1. To it: `create {id, context, language, cwd}`,
`execute {id, context, code, env}`, `interrupt {context}`, `delete {id, context}`. From it, with the
same id: events as `/execute` streams them (`type` stdout, stderr, result, error,
number_of_executions), then `{"id", "done": true}` or `{"id", "failed": why}`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

Emit = Callable[[dict[str, Any]], None]

_MIME = {
    "text/plain": "text",
    "text/html": "html",
    "text/markdown": "markdown",
    "image/svg+xml": "svg",
    "image/png": "png",
    "image/jpeg": "jpeg",
    "application/pdf": "pdf",
    "text/latex": "latex",
    "application/json": "json",
    "application/javascript": "javascript",
}
_LINE_LIMIT = 64 << 20
_KERNEL_START_S = 60
# The kernel itself drops messages that come in thousands at once, the last one, too.
_LOST = "\n[the end of the output is lost: too much came at once]\n"
# What sets variables for one execution, and what takes them back.
_SET_ENV = "import os as _o; _saved_env = dict(_o.environ); _o.environ.update({env!r}); del _o"
_RESET_ENV = (
    "import os as _o; _o.environ.clear(); _o.environ.update(_saved_env); del _saved_env, _o"
)


class KernelContext:
    """A context of Python."""

    def __init__(self, cwd: str) -> None:
        from jupyter_client.manager import AsyncKernelManager

        # The name of a socket may have some hundred bytes at most.
        self._folder = tempfile.mkdtemp(prefix="k", dir="/tmp")
        self._manager = AsyncKernelManager(kernel_name="python3", transport="ipc")
        self._manager.connection_file = os.path.join(self._folder, "kernel.json")
        self._manager.ip = os.path.join(self._folder, "s")
        self._cwd = cwd
        self._client: Any = None
        self._busy = asyncio.Lock()
        self._interrupting: asyncio.Future[None] | None = None  # held, or it may be collected

    async def start(self) -> None:
        """Return when the kernel answers."""
        # Its environment is ours, without history files or anything else that it would keep.
        await self._manager.start_kernel(
            cwd=self._cwd, extra_arguments=["--HistoryManager.enabled=False"]
        )
        await self._connect()

    async def _connect(self) -> None:
        self._client = self._manager.client()
        # Or what code writes faster than it is read here would be lost without a word, beyond a
        # thousand messages. The jail's memory is what bounds them.
        self._client.context.rcvhwm = 0  # no limit
        self._client.start_channels()
        await self._client.wait_for_ready(timeout=_KERNEL_START_S)

    async def _begin_anew(self) -> None:
        # It left, or was ended for its memory; who ran that code was told.
        self._client.stop_channels()
        await self._manager.restart_kernel(now=True)
        await self._connect()

    async def execute(self, code: str, env: dict[str, str], emit: Emit) -> None:
        """Run code after what runs already; say what it does."""
        async with self._busy:
            if not await self._manager.is_alive():
                await self._begin_anew()
            if env:
                await self._run(_SET_ENV.format(env=env), lambda event: None, silent=True)
            try:
                await self._run(code, emit)
            finally:
                if env:
                    await self._run(_RESET_ENV, lambda event: None, silent=True)

    async def _run(self, code: str, emit: Emit, *, silent: bool = False) -> None:
        client = self._client
        request = client.execute(code, silent=silent, store_history=not silent, allow_stdin=False)
        while True:
            try:
                message = await client.get_iopub_msg(timeout=1)
            except Exception as error:  # queue.Empty of whichever module; anything else shows below
                if not await self._manager.is_alive():
                    raise RuntimeError("the kernel has ended; its variables are lost") from error
                if await self._has_answered(request):
                    emit(_text("stderr", _LOST))
                    return
                continue
            if message["parent_header"].get("msg_id") != request:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "status" and content["execution_state"] == "idle":
                return
            for event in _events(kind, content):
                emit(event)

    async def _has_answered(self, request: str) -> bool:
        """Whether code has ended: its answer comes another way than what it wrote."""
        with contextlib.suppress(Exception):  # queue.Empty, as above
            while True:
                answer = await self._client.get_shell_msg(timeout=0)
                if answer["parent_header"].get("msg_id") == request:
                    return True
        return False

    def interrupt(self) -> None:
        """Raise KeyboardInterrupt in what runs."""
        if self._busy.locked():
            self._interrupting = asyncio.ensure_future(self._manager.interrupt_kernel())

    async def close(self) -> None:
        """End the kernel."""
        if self._client is not None:
            self._client.stop_channels()
        with contextlib.suppress(Exception):
            await self._manager.shutdown_kernel(now=True)


class ProgramContext:
    """A context of a language that is run by a program, which keeps nothing between two runs."""

    def __init__(self, argv: list[str], cwd: str) -> None:
        self._argv = argv
        self._cwd = cwd
        self._running: asyncio.subprocess.Process | None = None
        self._count = 0
        self._busy = asyncio.Lock()

    async def start(self) -> None:
        """Nothing is to be started before there is code."""

    async def execute(self, code: str, env: dict[str, str], emit: Emit) -> None:
        """Run code in the folder of the context; say what it writes."""
        async with self._busy:
            pipe = asyncio.subprocess.PIPE
            self._running = await asyncio.create_subprocess_exec(
                *self._argv,
                code,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=pipe,
                stderr=pipe,
                cwd=self._cwd,
                env={**os.environ, **env},
                start_new_session=True,
            )
            assert self._running.stdout is not None
            assert self._running.stderr is not None
            await asyncio.gather(
                _pump(self._running.stdout, "stdout", emit),
                _pump(self._running.stderr, "stderr", emit),
            )
            code_number = await self._running.wait()
            self._running = None
            self._count += 1
            emit({"type": "number_of_executions", "execution_count": self._count})
            if code_number:
                value = f"exit status {code_number}"
                emit({"type": "error", "name": "ExitError", "value": value, "traceback": value})

    def interrupt(self) -> None:
        """End what runs."""
        if self._running is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._running.pid, signal.SIGKILL)

    async def close(self) -> None:
        """End what runs."""
        self.interrupt()


async def _pump(reader: asyncio.StreamReader, kind: str, emit: Emit) -> None:
    while data := await reader.read(1 << 16):
        emit(_text(kind, data.decode("utf-8", "replace")))


def _text(kind: str, text: str) -> dict[str, Any]:
    return {"type": kind, "text": text, "timestamp": time.time_ns()}


def _events(kind: str, content: dict[str, Any]) -> list[dict[str, Any]]:
    """A kernel's message as what `/execute` streams."""
    if kind == "stream":
        return [_text(content["name"], content["text"])]
    if kind in ("display_data", "execute_result"):
        result: dict[str, Any] = {"type": "result", "is_main_result": kind == "execute_result"}
        extra = {}
        for mime, value in content["data"].items():
            if mime in _MIME:
                result[_MIME[mime]] = value.strip() if mime.startswith("image/") else value
            else:
                extra[mime] = value
        return [{**result, **({"extra": extra} if extra else {})}]
    if kind == "error":
        trace = "\n".join(content["traceback"])
        error = {"type": "error", "name": content["ename"], "value": content["evalue"]}
        return [{**error, "traceback": trace}]
    if kind == "execute_input":
        return [{"type": "number_of_executions", "execution_count": content["execution_count"]}]
    return []


class Agent:
    """All contexts of a sandbox."""

    def __init__(self) -> None:
        self._contexts: dict[str, KernelContext | ProgramContext] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def take(self, order: dict[str, Any]) -> None:
        """Begin what a line asks for."""
        if order["op"] == "interrupt":
            if context := self._contexts.get(order["context"]):
                context.interrupt()
            return
        task = asyncio.ensure_future(self._do(order))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _do(self, order: dict[str, Any]) -> None:
        number = order["id"]
        try:
            await getattr(self, f"_{order['op']}")(order)
        except Exception as error:  # one order's failure is its own answer
            _say({"id": number, "failed": f"{type(error).__name__}: {error}"[:1000]})
        else:
            _say({"id": number, "done": True})

    async def _create(self, order: dict[str, Any]) -> None:
        cwd = order["cwd"]
        if not os.path.isdir(cwd):
            raise NotADirectoryError(f"{cwd} is no folder")
        argv = order["argv"]
        context = ProgramContext(argv, cwd) if argv else KernelContext(cwd)
        await context.start()
        self._contexts[order["context"]] = context

    async def _execute(self, order: dict[str, Any]) -> None:
        def emit(event: dict[str, Any]) -> None:
            _say({"id": order["id"], "event": event})

        await self._contexts[order["context"]].execute(order["code"], order["env"], emit)

    async def _delete(self, order: dict[str, Any]) -> None:
        if context := self._contexts.pop(order["context"], None):
            await context.close()


def _say(line: dict[str, Any]) -> None:
    data = memoryview(json.dumps(line).encode() + b"\n")
    while data:
        data = data[os.write(_out, data) :]


async def _serve() -> None:
    reader = asyncio.StreamReader(limit=_LINE_LIMIT)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(_in, "rb", buffering=0)
    )
    agent = Agent()
    while line := await reader.readline():
        agent.take(json.loads(line))


_in = _out = -1


def main() -> None:
    """Serve the lines of 0 until its end. Kernels get neither 0 nor 1: they would be in the way."""
    global _in, _out
    _in, _out = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(2, 1)
    asyncio.run(_serve())
    sys.exit(0)
