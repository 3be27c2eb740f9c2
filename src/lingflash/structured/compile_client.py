"""Asks a compile server, and starts it again when it is gone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable

import msgspec

from lingflash.core.errors import CapacityError, InvalidRequestError, LingflashError
from lingflash.core.priority import lower_priority
from lingflash.core.types import GrammarSpec
from lingflash.structured.compile_server import (
    CPU_LIMIT_S,
    LENGTH,
    PID,
    TIME_LIMIT_S,
    Job,
    Outcome,
    VocabularyMessage,
)
from lingflash.structured.grammar import PARAMS

_START_TIMEOUT_S = 60.0
_RETRY_S = 0.05
# Children that take long give way to all others.
_NICE_LATER = 15


class _NotBegunError(Exception):
    """The server is gone, or could not fork."""


class GrammarTooLargeError(InvalidRequestError):
    """A grammar did not compile within the limits, on a machine as busy as it was."""


class CompileServer:
    """A process that checks grammars within limits; started when it is first needed.

    Args:
        vocabulary: called at each start; None checks grammars without one.
    """

    def __init__(self, vocabulary: Callable[[], VocabularyMessage] | None) -> None:
        self._vocabulary = vocabulary
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._starting = asyncio.Lock()

    @property
    def pid(self) -> int | None:
        """Process id, None while there is none."""
        return None if self._process is None else self._process.pid

    async def check(
        self,
        spec: GrammarSpec,
        param: str | None,
        is_slow: Callable[[], None],
        slice_s: float | None,
    ) -> GrammarSpec:
        """Have one grammar checked; it is given up when this is cancelled.

        Args:
            spec: what is asked for.
            param: the request field that it came in, for messages.
            is_slow: called once it has used `slice_s` of processor time; what it raises ends the
                work.
            slice_s: None begins at a low priority, and is not called.

        Returns:
            The grammar to use.

        Raises:
            GrammarTooLargeError: it cannot be compiled within the limits.
            InvalidRequestError: it cannot be compiled at all.
            CapacityError: no process could be had for it.
        """
        for _ in range(2):
            await self._start()
            ours, theirs = socket.socketpair()
            try:
                assert self._control is not None
                socket.send_fds(self._control, [b"\1"], [theirs.fileno()])
            except OSError:  # the server is gone
                ours.close()
                self.close()
                continue
            finally:
                theirs.close()
            try:
                return _result(
                    await self._ask(ours, Job(spec, param), is_slow, slice_s), spec, param
                )
            except _NotBegunError:
                await asyncio.sleep(_RETRY_S)
        raise CapacityError("No process could be had to check the grammar; try again.")

    async def _ask(
        self,
        sock: socket.socket,
        job: Job,
        is_slow: Callable[[], None],
        slice_s: float | None,
    ) -> Outcome | None:
        """The child's answer; None if it ended without one.

        Raises:
            _NotBegunError: there was no child.
        """
        sock.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=sock)
        pid: int | None = None
        reading: asyncio.Task[bytes] | None = None
        try:
            try:
                child: int = PID.unpack(await reader.readexactly(PID.size))[0]
            except (ConnectionError, asyncio.IncompleteReadError):
                raise _NotBegunError from None
            pid = child
            with contextlib.suppress(ConnectionError):
                if slice_s is None:
                    lower_priority(_NICE_LATER, child)
                writer.write(msgspec.msgpack.encode(job))
                writer.write_eof()
                reading = asyncio.create_task(reader.read())
                while slice_s is not None:
                    await asyncio.wait((reading,), timeout=slice_s)
                    if reading.done():
                        break
                    # By its own time: on a busy machine everything takes long.
                    if _cpu_time_s(child) >= slice_s:
                        is_slow()
                        lower_priority(_NICE_LATER, child)
                        break
                # The child ends by its own limits; this is for one that cannot even end.
                await asyncio.wait((reading,), timeout=2 * TIME_LIMIT_S)
                answer = reading.result() if reading.done() else b""
                return msgspec.msgpack.decode(answer, type=Outcome) if answer else None
            return None
        finally:
            # While the socket is open its process is not reaped, and the id is its own.
            if pid is not None and (reading is None or not reading.done()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if reading is not None:
                reading.cancel()
            writer.close()

    def _is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    async def _start(self) -> None:
        async with self._starting:
            if self._control is not None and self._is_alive():
                return
            self.close()
            ours, theirs = socket.socketpair()
            with theirs:
                self._process = subprocess.Popen(
                    [
                        *(sys.executable, "-m", "lingflash.structured.compile_server"),
                        str(theirs.fileno()),
                    ],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
                )
            ours.setblocking(False)
            self._control = ours
            loop = asyncio.get_running_loop()
            body = b""
            if self._vocabulary is not None:
                body = await asyncio.to_thread(
                    lambda make: msgspec.msgpack.encode(make()), self._vocabulary
                )
            try:
                await loop.sock_sendall(ours, LENGTH.pack(len(body)) + body)
                ready = await asyncio.wait_for(loop.sock_recv(ours, 1), _START_TIMEOUT_S)
            except (OSError, TimeoutError):
                ready = b""
            except BaseException:
                self.close()
                raise
            if not ready:
                self.close()
                raise CapacityError("The process that checks grammars does not start; try again.")

    def close(self) -> None:
        """End the process; what it is doing ends by its own limits."""
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def _cpu_time_s(pid: int) -> float:
    """Processor time that a process has used."""
    try:
        # Linux' clock of another process: its id, inverted, and the kind of clock.
        return time.clock_gettime(~pid << 3 | 2)
    except OSError:
        return 0.0


def _result(outcome: Outcome | None, spec: GrammarSpec, param: str | None) -> GrammarSpec:
    param = param or PARAMS[spec.kind]
    if outcome is None:
        raise GrammarTooLargeError(
            f"{param} takes over {CPU_LIMIT_S:g} s or too much memory to compile. Make it simpler: "
            "fewer alternatives, smaller counts, a smaller multipleOf.",
            param=param,
        )
    if outcome.spec is not None:
        return outcome.spec
    if outcome.code == InvalidRequestError.code:
        raise InvalidRequestError(outcome.message, param=outcome.param)
    raise LingflashError(outcome.message, param=outcome.param)
