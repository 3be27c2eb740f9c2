"""The database of responses in a process of its own, and the caller's side of it.

A thread that waits for a disk that hangs cannot be ended, and neither can its process. This one can
be left behind.
"""

from __future__ import annotations

import contextlib
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec

from lingflash.api.responses.database import ResponseDatabase
from lingflash.core import errors
from lingflash.core.errors import ConfigError, LingflashError
from lingflash.link.frames import frame, read_frame

_START_S = 15.0
_CLOSE_S = 1.0


class RemoteDatabase:
    """Makes ResponseDatabase's calls in a child process, which is started again if it ends.

    Args:
        path: of the file.
        max_bytes: limit on what is stored.
        max_age_s: older responses are dropped.

    Raises:
        ConfigError: the file cannot be used, or its disk does not answer.
    """

    def __init__(self, path: Path, *, max_bytes: int, max_age_s: float) -> None:
        self._arguments = [str(path.absolute()), max_bytes, max_age_s]
        self._path = path
        self._process: subprocess.Popen[bytes] | None = None
        self._stream: socket.socket | None = None
        self._start()

    def call(self, method: str, *arguments: Any) -> Any:
        """Make one call and wait for its result, for as long as it takes.

        Raises:
            LingflashError: what the call raised.
            OSError: the child is gone, or what the disk said.
        """
        if self._stream is None:
            self._start()
        stream = self._stream
        assert stream is not None
        try:
            _send(stream, [method, *arguments])
            kind, value = _receive(stream)
        except (OSError, EOFError):
            self._leave()
            raise OSError("its process has ended") from None
        if kind == "result":
            return value
        if kind == "disk":
            raise OSError(value)
        name, message, param = value
        raise getattr(errors, name)(message, param=param)

    def close(self) -> None:
        """End the child; one that waits for its disk is left to itself."""
        process = self._process
        self._leave()
        if process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_CLOSE_S)
                return
            process.kill()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # left behind, it must not hold the server's open
                start_new_session=True,  # Ctrl-C is for the server, which closes this in its turn
            )
        self._stream = ours
        ours.settimeout(_START_S)
        try:
            _send(ours, self._arguments)
            kind, value = _receive(ours)
        except (OSError, EOFError) as error:
            self._leave()
            raise ConfigError(
                f"--responses-db {str(self._path)!r} cannot be used: its disk did not answer "
                f"within {_START_S:g} s ({error or type(error).__name__}).",
                param="responses_db",
            ) from None
        ours.settimeout(None)
        if kind != "result":
            self._leave()
            raise ConfigError(value[1], param=value[2])

    def _leave(self) -> None:
        # Two threads may come here at once: the one that closes, and the one whose call ends by it.
        stream, self._stream, self._process = self._stream, None, None
        if stream is not None:
            # A thread that waits for an answer wakes up with an error.
            with contextlib.suppress(OSError):
                stream.shutdown(socket.SHUT_RDWR)
            stream.close()


def _send(stream: socket.socket, message: list[Any]) -> None:
    stream.sendall(frame(msgspec.msgpack.encode(message)))


def _receive(stream: socket.socket) -> list[Any]:
    body = read_frame(stream)
    if body is None:
        raise EOFError
    return msgspec.msgpack.decode(body)


def _serve(stream: socket.socket) -> None:
    database: ResponseDatabase | None = None
    while True:
        try:
            method, *arguments = _receive(stream)
        except (EOFError, OSError):
            break
        try:
            if database is None:
                database = ResponseDatabase(
                    Path(method), max_bytes=arguments[0], max_age_s=arguments[1]
                )
                result = None
            else:
                result = getattr(database, method)(*arguments)
            answer = ["result", result]
        except LingflashError as error:
            answer = ["error", [type(error).__name__, error.message, error.param]]
        except (sqlite3.Error, OSError) as error:
            answer = ["disk", str(error)]
        try:
            _send(stream, answer)
        except OSError:
            break
    if database is not None:
        database.close()


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
