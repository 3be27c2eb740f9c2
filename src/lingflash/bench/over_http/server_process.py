"""A `ling serve` of our own on a free port of this machine, for load and soak runs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from lingflash.core.errors import EngineError
from lingflash.core.extras import require_engine
from lingflash.link.http_client import Address, BadAnswer, call
from lingflash.records.machine import anonymous_bytes
from lingflash.records.record import require

_START_TIMEOUT_S = 300.0
_STOP_TIMEOUT_S = 60.0
_HOST = "127.0.0.1"
_MAIN = "import lingflash.cli as cli; cli.main()"


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as sock:
        sock.bind((_HOST, 0))
        return sock.getsockname()[1]


class ServerProcess:
    """The server and where it listens; stop() ends it as an operator would."""

    def __init__(self, address: Address, command: Sequence[str]) -> None:
        self.address = address
        self._log = tempfile.TemporaryFile(mode="w+b")  # noqa: SIM115  (closed with the object)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,  # a Ctrl-C is for the clients, which then stop the server
        )

    @classmethod
    def ling_serve(cls, model: str, flags: Sequence[str] = ()) -> ServerProcess:
        """`ling serve MODEL` with further flags, on a free port."""
        require_engine()
        address = Address(_HOST, free_port())
        where = ["--host", _HOST, "--port", str(address.port)]
        return cls(address, [sys.executable, "-c", _MAIN, "serve", model, *where, *flags])

    @classmethod
    def ling_sandbox(cls, flags: Sequence[str] = ()) -> ServerProcess:
        """`ling sandbox` on a free port; root becomes nobody."""
        address = Address(_HOST, free_port())
        where = ["--host", _HOST, "--port", str(address.port)]
        user = ["--user", "nobody"] if os.getuid() == 0 else []
        return cls(address, [sys.executable, "-c", _MAIN, "sandbox", *where, *user, *flags])

    async def wait_ready(self) -> None:
        """Return when it can serve.

        Raises:
            EngineError: it ended, or was not ready in time; its last lines are in the message.
        """
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise EngineError(
                    f"The server ended with code {self._process.returncode}:\n{self.log_tail()}"
                )
            with contextlib.suppress(OSError, BadAnswer):
                if (await call(self.address, "GET", "/ready"))[0] == 200:
                    return
            await asyncio.sleep(0.1)
        raise EngineError(f"The server was not ready in time:\n{self.log_tail()}")

    def memory_bytes(self) -> int:
        """Anonymous memory of the server and its children."""
        return self._sum_over_processes(anonymous_bytes)

    def cpu_s(self) -> float:
        """Processor time of the server and its children so far."""
        return self._sum_over_processes(_ticks) / os.sysconf("SC_CLK_TCK")

    def num_fds(self) -> int:
        """Open files of the server and its children."""
        return self._sum_over_processes(lambda pid: len(os.listdir(f"/proc/{pid}/fd")))

    def _sum_over_processes(self, count: Callable[[int], int]) -> int:
        total = 0
        for pid in [self._process.pid, *_children(self._process.pid)]:
            with contextlib.suppress(OSError):
                total += count(pid)
        return total

    def log_tail(self, num_bytes: int = 4000) -> str:
        """The last bytes that it printed."""
        size = os.fstat(self._log.fileno()).st_size
        self._log.seek(max(size - num_bytes, 0))
        return self._log.read().decode("utf-8", "replace")

    def stop(self) -> int:
        """SIGTERM, which drains; returns the exit code. Kills it if it does not end in time."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        return self._process.returncode


def _ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])  # of itself, in programs and in the kernel


def _children(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    except OSError:
        return []
    direct = [int(word) for word in text.split()]
    return direct + [grandchild for child in direct for grandchild in _children(child)]


@contextlib.asynccontextmanager
async def running(server: ServerProcess) -> AsyncIterator[ServerProcess]:
    """A server once it is ready; it ends with the block.

    Raises:
        EngineError: it did not start.
    """
    try:
        await server.wait_ready()
        yield server
    finally:
        server.stop()


@contextlib.asynccontextmanager
async def server_at(
    url: str | None, model: str, api_key: str | None, flags: Sequence[str] = ()
) -> AsyncIterator[tuple[Address, ServerProcess | None]]:
    """The server at a URL, or one of our own that ends with the block."""
    if url is not None:
        require(
            not flags, "--serve-flag", list(flags), "none with --url, whose server runs already"
        )
        yield Address.parse(url, api_key), None
        return
    async with running(ServerProcess.ling_serve(model, flags)) as server:
        yield server.address, server
