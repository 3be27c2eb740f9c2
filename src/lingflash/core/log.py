"""Log lines as key=value pairs, one event each, without the text of prompts or answers.

    ts=2026-01-31T12:00:00.123Z level=info event=request_finished request_id=7f... status=200

Values are quoted where needed, so that a request id or path made by a client cannot forge a line.
"""

from __future__ import annotations

import json
import logging
import sys
import time
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
        return " ".join(parts)


class _StandardError(logging.StreamHandler[TextIO]):
    """Writes to what sys.stderr is now: it may have been replaced, and the old one closed."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # pyright: ignore[reportIncompatibleVariableOverride]
        return sys.stderr


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
