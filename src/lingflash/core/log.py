"""Log lines as key=value pairs, one event each, without the text of prompts or answers.

    ts=2026-01-31T12:00:00.123Z level=info event=request_finished request_id=7f... status=200

Values are quoted where needed, so that a request id or path made by a client cannot forge a line.

Standard error is written by a thread of its own: where it is a pipe that nobody reads, lines are
dropped and counted, and whoever logged goes on.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import TextIO

LEVELS = ("debug", "info", "warning", "error")

_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.:/+@%,[]")


def log_event(
    logger: logging.Logger,
    event: str,
    fields: Mapping[str, object],
    *,
    level: int = logging.INFO,
) -> None:
    """Write one event.

    Args:
        logger: where to.
        event: a stable word, such as request_finished.
        fields: what is known about it. Never the text of a prompt, an answer or an API key.
        level: of logging.
    """
    if logger.isEnabledFor(level):
        logger.log(level, event, extra={"fields": dict(fields)})


class KeyValueFormatter(logging.Formatter):
    """Formats records of `log_event`, and of other libraries, as key=value."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line for one record."""
        millis = int(record.msecs)
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        parts = [f"ts={stamp}.{millis:03d}Z", f"level={record.levelname.lower()}"]
        fields: Mapping[str, object] | None = getattr(record, "fields", None)
        if fields is None:
            parts.append(f"event=log logger={record.name} message={_value(record.getMessage())}")
        else:
            parts.append(f"event={_value(record.msg)}")
            parts += [f"{k}={_value(v)}" for k, v in fields.items() if v is not None]
        if record.exc_info and record.exc_info[0] is not None:
            parts.append(f"traceback={_value(self.formatException(record.exc_info))}")
        return " ".join(parts)


class _ErrorWriter:
    """Writes lines to standard error from a thread, up to a limit on what may wait.

    Args:
        max_waiting_bytes: lines beyond are dropped; a line about their number follows.
    """

    def __init__(self, max_waiting_bytes: int = 2 * 2**20) -> None:
        self._max_waiting_bytes = max_waiting_bytes
        self._lines: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._unreported = 0
        self._is_idle = True
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self.num_dropped = 0

    def write(self, line: str) -> None:
        """Take a line to be written; never waits for who reads it."""
        data = line.encode("utf-8", "backslashreplace") + b"\n"
        with self._changed:
            if self._waiting_bytes + len(data) > self._max_waiting_bytes:
                self.num_dropped += 1
                self._unreported += 1
                return
            self._lines.append(data)
            self._waiting_bytes += len(data)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="log", daemon=True)
                self._thread.start()
                atexit.register(self.flush, 0.5)
            self._changed.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Wait until all lines are written; tell whether they are."""
        with self._changed:
            return self._changed.wait_for(lambda: self._is_idle and not self._lines, timeout_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._is_idle = True
                self._changed.notify_all()
                self._changed.wait_for(lambda: bool(self._lines))
                self._is_idle = False
                data = b"".join(self._lines)
                self._lines.clear()
            # Nobody may be there to read it, or the disk be full: that is no error of the server.
            with contextlib.suppress(OSError, ValueError):
                _write_all(data)
            with self._changed:
                self._waiting_bytes -= len(data)
                count, self._unreported = self._unreported, 0
            if count:
                self.write(_dropped_line(count))


def _dropped_line(count: int) -> str:
    record = logging.makeLogRecord(
        {"levelname": "WARNING", "msg": "log_lines_dropped", "fields": {"count": count}}
    )
    return KeyValueFormatter().format(record)


def _write_all(data: bytes) -> None:
    # What sys.stderr is now: it may have been replaced. Not through its buffer, whose lock would be
    # held by a blocked thread when the process ends.
    stream = sys.stderr
    try:
        number = stream.fileno()
    except (AttributeError, OSError):  # closed at start, or replaced by something in memory
        if stream is not None:
            stream.write(data.decode())
        return
    while data:
        data = data[os.write(number, data) :]


_errors = _ErrorWriter()


def tell(text: str) -> None:
    """Write something for people to standard error, without waiting for whoever reads it."""
    _errors.write(text)


def flush_logs(timeout_s: float = 1.0) -> bool:
    """Wait until what was logged is written; tell whether it is."""
    return _errors.flush(timeout_s)


def num_dropped_lines() -> int:
    """Lines that nobody could be found to read in time."""
    return _errors.num_dropped


class _StandardError(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        try:
            _errors.write(self.format(record))
        except Exception:
            self.handleError(record)


def setup_logging(level: str = "info", stream: TextIO | None = None) -> None:
    """Send this package's logs, and uvicorn's, to a stream.

    Args:
        level: one of LEVELS.
        stream: standard error if None.
    """
    handler = logging.StreamHandler(stream) if stream else _StandardError()
    handler.setFormatter(KeyValueFormatter())
    for name, threshold in (
        ("lingflash", level.upper()),
        # What uvicorn says at start and stop, the command line says better.
        ("uvicorn", "WARNING"),
        ("asyncio", "WARNING"),
    ):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(threshold)
        logger.propagate = False


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    if text and _PLAIN.issuperset(text):
        return text
    return json.dumps(text)
