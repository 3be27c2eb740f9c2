"""One jail from outside: started, spoken to over a socket pair, ended."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import signal
import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lingflash.core.errors import SandboxError, SandboxGoneError
from lingflash.core.log import log_event
from lingflash.sandbox.jail.argv import Interpreter, environment, jail_argv, late_binds
from lingflash.sandbox.jail.limits import Limits
from lingflash.sandbox.jail.seccomp import filter_bytes
from lingflash.sandbox.process import End, Hearer, Output, Process

logger = logging.getLogger("lingflash.sandbox")

_LENGTHS = struct.Struct("<II")
# A jail whose supervisor sends more at once is not ours any more.
_MAX_FRAME = 1 << 20
_START_TIMEOUT_S = 20.0
_ENTER = 'n=$1; shift; while [ $n -gt 0 ]; do echo 0 > "$1"; shift; n=$((n-1)); done; exec "$@"'
_END_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class JailKind:
    """What all jails of a server share.

    Args:
        counts_memory: they are in memory cgroups, so nobody else has to look.
    """

    bwrap: str
    interpreter: Interpreter
    limits: Limits
    network: bool = False
    counts_memory: bool = False


class Box:
    """A jail that runs. Nothing of it is left on the host when its bubblewrap process is gone."""

    def __init__(self, kind: JailKind) -> None:
        self._kind = kind
        self.processes: dict[int, Process] = {}
        self._numbers = itertools.count(1)
        self._replies: list[asyncio.Future[dict[str, Any]]] = []
        self._jail: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self.gone = asyncio.Event()
        self.output_bytes = 0  # all that has come out of it

    @classmethod
    async def start(cls, kind: JailKind, cgroup: Sequence[str] = ()) -> Box:
        """Start a jail.

        Args:
            cgroup: `cgroup.procs` of the groups that it is to be in.

        Raises:
            SandboxGoneError: it did not come up; the message has what was said about it.
        """
        box = cls(kind)
        ours, theirs = socket.socketpair()
        try:
            os.set_inheritable(theirs.fileno(), True)
            argv = jail_argv(kind.bwrap, kind.interpreter, theirs.fileno(), network=kind.network)
            if cgroup:  # before bubblewrap forks, or its children would be left outside
                argv = ["/bin/sh", "-c", _ENTER, "sh", str(len(cgroup)), *cgroup, *argv]
            try:
                box._jail = await asyncio.create_subprocess_exec(
                    *argv,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=asyncio.subprocess.PIPE,
                    pass_fds=(theirs.fileno(),),
                    env={},
                    cwd="/",
                    start_new_session=True,
                )
            except OSError as error:
                raise SandboxGoneError(f"{kind.bwrap} cannot be run: {error}") from None
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                reader, box._writer = await asyncio.open_connection(sock=ours, limit=2 * _MAX_FRAME)
                box._configure()
                await box._wait_ready(reader)
        except (TimeoutError, OSError) as error:
            await box.end()
            raise SandboxGoneError(
                f"a sandbox did not start: {str(error) or 'no answer in time'}"
            ) from None
        except BaseException:
            await box.end()
            raise
        box._reading = asyncio.create_task(box._read(reader))
        return box

    def _configure(self) -> None:
        limits = self._kind.limits
        config = {
            "disk_bytes": limits.disk_bytes,
            "disk_inodes": limits.disk_inodes,
            "late_binds": late_binds(self._kind.interpreter),
            "memory_bytes": limits.memory_bytes,
            "watch_memory": not self._kind.counts_memory,
            "processes": limits.processes,
            "output_bytes": limits.output_bytes,
            "rlimits": {
                "RLIMIT_NPROC": limits.processes,
                "RLIMIT_DATA": limits.memory_bytes,
                "RLIMIT_CPU": limits.cpu_s,
                "RLIMIT_FSIZE": limits.disk_bytes,
                "RLIMIT_NOFILE": limits.open_files,
                "RLIMIT_CORE": 0,
                "RLIMIT_MEMLOCK": 0,
            },
        }
        self.send(config, filter_bytes(counts_memory=self._kind.counts_memory))

    async def _wait_ready(self, reader: asyncio.StreamReader) -> None:
        try:
            head, _ = await _receive(reader)
        except (asyncio.IncompleteReadError, ConnectionError, ValueError):
            head = {}
        if head.get("ev") != "ready":
            assert self._jail is not None
            assert self._jail.stderr is not None
            said = (await self._jail.stderr.read(4096)).decode(errors="replace").strip()
            raise SandboxGoneError(f"a sandbox did not start: {said or 'it said nothing'}")

    def send(self, head: Mapping[str, Any], body: bytes = b"") -> None:
        """Send a frame to the supervisor; nothing happens if it is gone."""
        if self._writer is not None and not self.gone.is_set():
            packed = json.dumps(head).encode()
            self._writer.write(_LENGTHS.pack(len(packed), len(body)) + packed + body)

    async def spawn(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        stdin: bool = False,
        is_unlimited: bool = False,
        heard: Hearer | None = None,
    ) -> Process:
        """Start a program in the jail.

        Args:
            is_unlimited: the limit on output does not hold for it; its reader has one.
            heard: told all that it writes, whoever listens to it or not.

        Raises:
            SandboxError: it is not there, may not be run, or there are too many.
            SandboxGoneError: the jail is gone.
        """
        what = {"argv": list(argv), "unlimited": is_unlimited}
        return await self._start(what, env, cwd, stdin, heard)

    async def _start(
        self,
        what: dict[str, Any],
        env: Mapping[str, str] | None,
        cwd: str | None,
        stdin: bool,
        heard: Hearer | None = None,
    ) -> Process:
        if self.gone.is_set():
            raise SandboxGoneError("the sandbox is gone")
        process = Process(self, next(self._numbers), heard)
        self.processes[process.number] = process
        variables = {**environment(self._kind.interpreter), **(env or {})}
        head = {"op": "start", "id": process.number, "env": variables, "cwd": cwd, "stdin": stdin}
        self.send({**head, **what})
        await process.wait_started()
        return process

    async def call(self, name: str, data: bytes | None = None, **arguments: Any) -> Any:
        """Run one of `inside/file_calls.py` and give its answer.

        Args:
            data: its input.

        Raises:
            SandboxError: it failed; `errno` says why.
        """
        process = await self.start_call(name, stdin=data is not None, **arguments)
        if data is not None:
            with contextlib.suppress(SandboxError):  # its own error says more
                await process.write(data)
            process.close_input()
        return await self.answer_of(process)

    async def start_call(self, name: str, *, stdin: bool = False, **arguments: Any) -> Process:
        """Start one of the calls of the supervisor, to be read from or written to."""
        return await self._start({"call": name, "args": arguments}, None, None, stdin)

    async def answer_of(self, process: Process) -> Any:
        """The JSON that a call ends with.

        Raises:
            SandboxError: it failed.
            SandboxGoneError: the jail is gone.
        """
        parts: dict[int, bytearray] = {1: bytearray(), 2: bytearray()}
        async for event in process.events():
            if isinstance(event, Output):
                parts[event.fd] += event.data
                if len(parts[event.fd]) > 32 * _MAX_FRAME:
                    process.kill()
                    raise SandboxError("the answer is too long")
        check_call(process, bytes(parts[2]))
        try:
            return json.loads(parts[1])
        except ValueError:
            raise SandboxError("the sandbox answered nothing that can be read") from None

    async def usage(self) -> dict[str, Any]:
        """Memory, CPU time, processes and disk now."""
        return await self._ask("usage")

    async def kill_all(self) -> None:
        """End all processes; the files stay."""
        await self._ask("killall")

    async def _ask(self, op: str) -> dict[str, Any]:
        if self.gone.is_set():
            raise SandboxGoneError("the sandbox is gone")
        reply: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._replies.append(reply)
        self.send({"op": op})
        return await reply

    async def _read(self, reader: asyncio.StreamReader) -> None:
        """Take what the supervisor sends; what it may not send ends the jail."""
        try:
            while True:
                head, body = await _receive(reader)
                self._on_frame(head, body)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        except (
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            asyncio.InvalidStateError,
        ) as error:
            fields = {"error": type(error).__name__}
            log_event(logger, "sandbox_broke_protocol", fields, level=logging.WARNING)
        finally:
            self._is_gone()
            if self._jail is not None and self._jail.returncode is None:
                _kill(self._jail)

    def _on_frame(self, head: dict[str, Any], body: bytes) -> None:
        kind = head["ev"]
        if kind in ("usage", "killed"):
            reply = self._replies.pop(0)
            if not reply.done():
                reply.set_result(head)
            return
        number = head["id"]
        process = self.processes[number]
        if kind == "out":
            self.output_bytes += len(body)
            process.on_output(Output(2 if head["fd"] == 2 else 1, body))
        elif kind == "took":
            process.on_took(int(head["count"]), bool(head.get("gone")))
        elif kind == "started":
            process.on_started(int(head["pid"]))
        elif kind == "failed":
            del self.processes[number]
            error = SandboxError(str(head["message"])[:1000], errno=_as_int(head.get("errno")))
            process.on_end(End(127, 0), error)
        elif kind == "end":
            del self.processes[number]
            process.on_end(End(int(head["code"]), int(head["signal"]), int(head["dropped"])))

    def _is_gone(self) -> None:
        self.gone.set()
        error = SandboxGoneError("the sandbox is gone")
        for process in list(self.processes.values()):
            process.on_end(End(0, signal.SIGKILL), error)
        self.processes.clear()
        for reply in self._replies:
            if not reply.done():
                reply.set_exception(error)
                reply.exception()
        self._replies.clear()

    async def end(self) -> None:
        """Kill everything in the jail and wait until it is gone."""
        jail = self._jail
        if jail is not None and jail.returncode is None:
            _kill(jail)
        if self._writer is not None:
            self._writer.close()
        if jail is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_END_TIMEOUT_S):
                    await jail.wait()
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        self._is_gone()


def _kill(jail: asyncio.subprocess.Process) -> None:
    # Not its own kill(): that also looks whether it has ended, behind the event loop's back.
    with contextlib.suppress(ProcessLookupError):
        os.kill(jail.pid, signal.SIGKILL)


def check_call(process: Process, errors: bytes) -> None:
    """See how a call has ended.

    Raises:
        SandboxError: it failed.
        SandboxGoneError: its jail is gone.
    """
    end = process.end
    assert end is not None
    if end.code == 0 and end.signal == 0:
        return
    if end.signal:
        raise SandboxGoneError(f"the sandbox ended the call by signal {end.signal}")
    try:
        said = json.loads(errors)
        message, number = str(said["message"])[:1000], _as_int(said["errno"])
    except (ValueError, KeyError, TypeError):
        message, number = "it failed and said nothing that can be read", None
    raise SandboxError(message, errno=number)


def _as_int(value: object) -> int | None:
    return value if isinstance(value, int) else None


async def _receive(reader: asyncio.StreamReader) -> tuple[dict[str, Any], bytes]:
    head_size, body_size = _LENGTHS.unpack(await reader.readexactly(_LENGTHS.size))
    if head_size + body_size > _MAX_FRAME:
        raise ValueError("a frame over the limit")
    data = await reader.readexactly(head_size + body_size)
    return json.loads(data[:head_size]), data[head_size:]
