"""The engine's process and the connection to it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from typing import Any

from lingflash.link import frames
from lingflash.link.messages import FromEngine, frame, from_engine_decoder
from lingflash.link.restarts import describe_exit

_WORKER = "lingflash.engine.process.worker"
_END_TIMEOUT_S = 5.0
_KILL_TIMEOUT_S = 5.0
_POLL_S = 0.01


class EngineProcess:
    """Made by launch()."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._process, self._reader, self._writer = process, reader, writer
        self._complaint: str | None = None

    @classmethod
    async def launch(cls) -> EngineProcess:
        """Start a process that waits for its first message.

        Raises:
            OSError: there are no descriptors, processes or memory for it.
        """
        ours, theirs = socket.socketpair()
        environment = dict(os.environ)
        # Idle OpenMP threads that spin steal the second core from the server.
        environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        try:
            with theirs:
                process = subprocess.Popen(
                    [sys.executable, "-m", _WORKER, str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    env=environment,
                )
            ours.setblocking(False)
            # Without `theirs` the process ends by itself if this fails.
            reader, writer = await asyncio.open_connection(sock=ours, limit=1 << 22)
        except BaseException:
            ours.close()
            raise
        return cls(process, reader, writer)

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: Any) -> None:
        """Send a message, if the connection still takes any."""
        self.send_frame(frame(message))

    def send_frame(self, encoded: bytes) -> None:
        """The same for one that is encoded."""
        if not self._writer.is_closing():
            self._writer.write(encoded)

    async def receive(self) -> FromEngine:
        """The next message.

        Raises:
            asyncio.IncompleteReadError, ConnectionError: it has hung up.
            msgspec.MsgspecError: it cannot be decoded.
        """
        return from_engine_decoder.decode(await frames.receive_frame(self._reader))

    def kill(self, complaint: str) -> None:
        """End it at once.

        Args:
            complaint: why, to go on after "The engine process".
        """
        self._complaint = complaint
        self._process.kill()

    def why_ended(self) -> str:
        """What happened to it, a sentence without its full stop."""
        return f"The engine process {self._complaint or describe_exit(self._process.poll())}"

    async def end(self) -> None:
        """Close the connection, which ends it; kill it if it does not listen, or if cancelled."""
        # uvloop raises RuntimeError on a connection that the engine's death has closed.
        with contextlib.suppress(ConnectionError, RuntimeError):
            self._writer.write_eof()
        try:
            if await self._has_ended(_END_TIMEOUT_S):
                return
            self._process.kill()
            # One that hangs in the kernel does not even end by that; nobody is to wait for it.
            await self._has_ended(_KILL_TIMEOUT_S)
        finally:
            self._process.kill()  # does nothing to one that has ended
            self._writer.close()

    async def _has_ended(self, timeout_s: float) -> bool:
        deadline = asyncio.get_running_loop().time() + timeout_s
        while self._process.poll() is None:
            if asyncio.get_running_loop().time() > deadline:
                return False
            await asyncio.sleep(_POLL_S)
        return True
