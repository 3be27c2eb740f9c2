"""A process in a jail, with those who listen to it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lingflash.core.errors import LingflashError, SandboxError

if TYPE_CHECKING:
    from lingflash.sandbox.box import Box

_CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class Output:
    """Bytes that a process wrote to 1 or 2."""

    fd: int
    data: bytes


@dataclass(frozen=True, slots=True)
class End:
    """A process has ended; `dropped` bytes of its output were over the limit."""

    code: int
    signal: int
    dropped: int = 0


Hearer = Callable[[Output | End], None]
"""Told everything at once, without being waited for."""


class Process:
    """A process in a jail, with those who listen to it."""

    def __init__(self, box: Box, number: int, heard: Hearer | None = None) -> None:
        self._box = box
        self._heard = heard
        self.number = number
        self.pid = 0
        self.end: End | None = None
        # The first listener hears everything, also what was written before it came to listen.
        self._first: asyncio.Queue[Output | End] | None = asyncio.Queue()
        self._listeners: set[asyncio.Queue[Output | End]] = {self._first}
        self._started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._took: list[asyncio.Future[None]] = []
        self._untaken: dict[int, int] = {}

    async def events(self) -> AsyncGenerator[Output | End, None]:
        """What it writes, for all but the first listener from now on, then its end.

        The process waits for a slow listener.
        """
        queue, self._first = self._first, None
        if queue is None:
            if self.end is not None:
                yield self.end
                return
            queue = asyncio.Queue()
            self._listeners.add(queue)
        try:
            while True:
                event = await queue.get()
                yield event
                if isinstance(event, End):
                    return
                self._release(event)
        finally:
            self._listeners.discard(queue)
            while not queue.empty():
                event = queue.get_nowait()
                if isinstance(event, Output):
                    self._release(event)

    async def write(self, data: bytes) -> None:
        """Give it input; returns when it is in its pipe.

        Raises:
            SandboxError: its input is closed, or it has ended.
        """
        for start in range(0, len(data), _CHUNK):
            if self.end is not None:
                raise SandboxError("the process has ended; nothing reads its input")
            await self.write_soon(data[start : start + _CHUNK])

    def write_soon(self, data: bytes) -> asyncio.Future[None]:
        """Give it a small piece of input; done when that is in its pipe."""
        taken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._took.append(taken)
        self._box.send({"op": "stdin", "id": self.number}, data)
        return taken

    def close_input(self) -> None:
        """Let it read the end of its input."""
        self._box.send({"op": "eof", "id": self.number})

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Signal its process group; SIGKILL also goes to all that it has started."""
        self._box.send({"op": "signal", "id": self.number, "signal": number})

    def _release(self, event: Output) -> None:
        left = self._untaken[id(event)] - 1
        if left:
            self._untaken[id(event)] = left
        else:
            del self._untaken[id(event)]
            self._ack(len(event.data))

    def _ack(self, size: int) -> None:
        if self.end is None:
            self._box.send({"op": "ack", "id": self.number, "size": size})

    def on_output(self, event: Output) -> None:
        """For the box: pass on what came."""
        if self._heard is not None:
            self._heard(event)
        if not self._listeners:
            self._ack(len(event.data))
            return
        self._untaken[id(event)] = len(self._listeners)
        for queue in self._listeners:
            queue.put_nowait(event)

    def on_end(self, end: End, error: LingflashError | None = None) -> None:
        """For the box: it has ended, or the box has."""
        self.end = end
        if self._heard is not None:
            self._heard(end)
        for queue in self._listeners:
            queue.put_nowait(end)
        for future in (self._started, *self._took):
            if not future.done():
                future.set_exception(error or SandboxError("the process has ended"))
                future.exception()  # nobody may wait for it
        self._took.clear()

    def on_started(self, pid: int) -> None:
        """For the box: it runs."""
        self.pid = pid
        self._started.set_result(None)

    def on_took(self, count: int, gone: bool) -> None:
        """For the box: pieces of input are with the process, or its end is closed."""
        for future in self._took[:count]:
            if gone and not future.done():
                future.set_exception(SandboxError("the process takes no input"))
                future.exception()
            elif not future.done():
                future.set_result(None)
        del self._took[:count]

    async def wait_started(self) -> None:
        """Return when it runs.

        Raises:
            SandboxError: it could not be started.
        """
        await self._started
