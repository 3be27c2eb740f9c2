"""A real PostgreSQL and a real Redis of Debian's, started for the tests and without systemd."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def wait_for_port(port: int, process: subprocess.Popen[bytes], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        assert process.poll() is None, f"{process.args} ended with {process.returncode}"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise AssertionError(f"nothing listens on port {port}")


def require(program: str | None, package: str) -> str:
    """A program's path; without it the test is skipped, in CI it fails."""
    if program is None:
        reason = f"Debian's {package} is not installed: tests/install-debian.sh"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return program


class Postgres:
    """A cluster of its own in a new folder; fsync is off, nothing outlives the tests."""

    def __init__(self, folder: Path, bin: Path) -> None:
        self._folder = folder
        self._bin = bin
        self._as = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        if os.getuid() != 0:
            self._as = []
        else:
            user = pwd.getpwnam("postgres")
            os.chown(folder, user.pw_uid, user.pw_gid)
        self.port = free_port()
        self._call("initdb", "-D", str(folder / "data"), "-U", "ling", "--auth=trust", "-N")
        options = [
            *("-D", str(folder / "data"), "-p", str(self.port), "-k", str(folder)),
            *("-h", "127.0.0.1", "-c", "fsync=off", "-c", "max_connections=60"),
        ]
        self._server = subprocess.Popen(
            [*self._as, str(bin / "postgres"), *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder,
        )
        wait_for_port(self.port, self._server)
        deadline = time.monotonic() + 30
        while subprocess.run(
            [bin / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)], check=False
        ).returncode:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def _call(self, program: str, *arguments: str) -> str:
        done = subprocess.run(
            [*self._as, str(self._bin / program), *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=self._folder,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def new_database(self) -> str:
        """An empty database; its URL."""
        name = f"d{secrets.token_hex(6)}"
        address = ("-h", "127.0.0.1", "-p", str(self.port), "-U", "ling")
        self._call("createdb", *address, name)
        return f"postgresql://ling@127.0.0.1:{self.port}/{name}"

    def dump(self, url: str) -> str:
        """All of a database as SQL."""
        return self._call("pg_dump", url)

    def stop(self) -> None:
        self._server.send_signal(signal.SIGINT)  # does not wait for clients to leave
        self._server.wait(30)


@contextlib.contextmanager
def postgres_server() -> Iterator[Postgres]:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    program = require(str(found[-1]) if found else None, "postgresql")
    # Not under pytest's folder, which the user postgres may not enter.
    folder = Path(tempfile.mkdtemp(prefix="ling-pg-"))
    server = Postgres(folder, Path(program).parent)
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


class Redis:
    """A server without a disk, that can be killed and come back on its port."""

    def __init__(self, program: str) -> None:
        self._program = program
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.start()

    def start(self) -> None:
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", "/tmp"]
        self._server = subprocess.Popen(
            [self._program, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_for_port(self.port, self._server)

    def pause(self) -> None:
        """Let it take connections and answer none."""
        self._server.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._server.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self._server.kill()
        self._server.wait(30)


@contextlib.contextmanager
def redis_server() -> Iterator[Redis]:
    server = Redis(require(shutil.which("redis-server"), "redis-server"))
    try:
        yield server
    finally:
        server.kill()
