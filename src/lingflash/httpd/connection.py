"""One HTTP/1.1 connection: uvicorn's protocol with limits that hold against whoever has no key.

uvicorn's own has none: headers of any size are joined piece by piece, pipelined requests are queued
without end, and a connection that says nothing is kept for ever. It also takes an `Upgrade: h2c`
offer, which Java's HttpClient makes with every first request, for the end of HTTP.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Any, Literal

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from lingflash.core.log import log_event
from lingflash.httpd.limits import ConnectionLimits

logger = logging.getLogger("lingflash.httpd")

_PIECE_BYTES = 16_384
"""Heads are parsed in pieces of this size, so that one cannot grow far before it is weighed."""

_MAX_OVERHEAD = 8
"""Chunked bodies may spend this many bytes of framing on each byte of content."""

_WARN_EVERY_S = 10.0
_LAST_WORDS_S = 2.0

_Phase = Literal["first_byte", "head", "body", "answer", "between", "closed"]


class Connections:
    """The connections of one server: who is idle, and what was done against those that were.

    Args:
        limits: of each connection, and of their number.
        on_drop: told why a connection was closed: "first_byte", "head", "body", "limit",
            "too_large", "pipeline", "malformed".
    """

    def __init__(
        self, limits: ConnectionLimits, on_drop: Callable[[str], None] = lambda reason: None
    ) -> None:
        self.limits = limits
        # Those without a whole request, the one that has been so for longest first.
        self.idle: dict[Connection, float] = {}
        self.num_open = 0
        self._on_drop = on_drop
        self._warned_s = float("-inf")

    def protocol(self) -> type[HttpToolsProtocol]:
        """A protocol class for uvicorn's `http` setting, whose instances belong here."""
        connections = self

        class Bound(Connection):
            shared = connections

        return Bound

    def opened(self, connection: Connection) -> None:
        """Count a new connection; make room for it if there are too many."""
        self.num_open += 1
        self.idle[connection] = time.monotonic()
        if self.num_open > self.limits.max_connections:
            self._warn()
            next(iter(self.idle)).drop("limit")

    def dropped(self, reason: str) -> None:
        """Count a connection that was closed against its client's will."""
        self._on_drop(reason)

    def sweep(self) -> None:
        """Close what is past its deadline; called about once a second."""
        now = time.monotonic()
        for connection, since in list(self.idle.items()):
            connection.check_deadline(now, since)

    def _warn(self) -> None:
        now = time.monotonic()
        if now - self._warned_s >= _WARN_EVERY_S:
            self._warned_s = now
            fields = {"open": self.num_open, "limit": self.limits.max_connections}
            log_event(logger, "too_many_connections", fields, level=logging.WARNING)


class _Refused(Exception):
    """Stops the parser from one of its callbacks; says what is answered before the end."""

    def __init__(self, status: int, message: str, reason: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


class Connection(HttpToolsProtocol):
    """A connection that is bounded in what it sends, in time and in requests ahead."""

    shared: Connections

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._limits = self.shared.limits
        self.timeout_keep_alive = self._limits.keep_alive_s
        self._reading: Literal["head", "body", "nothing"] = "nothing"
        self._phase: _Phase = "first_byte"
        self._head_bytes = 0  # of the request that is being read, or of its trailers
        self._num_fields = 0
        self._field_bytes = 0
        self._body_bytes = 0
        self._overhead_bytes = 0  # of a body's framing
        self._is_resuming = False
        self._is_offer = False  # the request in hand offers to upgrade; its body is still to come
        self._running: RequestResponseCycle | None = None  # the others were sent ahead of it

    # How a connection begins and ends

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]  # as uvicorn has it
        """Begin; another connection may have to go for it."""
        super().connection_made(transport)
        self.shared.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """End; the request that runs learns that nobody reads its answer.

        uvicorn would tell only the one that came last, which may be waiting behind it.
        """
        self.shared.num_open -= 1
        self._enter("closed")
        super().connection_lost(exc)
        if self._running is not None:
            self._running.disconnected = True
            self._running.message_event.set()

    def drop(self, reason: str) -> None:
        """Close the connection against its client's will, unsent bytes and all."""
        self.shared.dropped(reason)
        self._enter("closed")
        self.transport.abort()

    def timeout_keep_alive_handler(self) -> None:
        """End a connection that nobody uses; what its client has not read by now is lost."""
        if not self.transport.is_closing():
            self._enter("closed")
            self.transport.abort()

    def check_deadline(self, now_s: float, since_s: float) -> None:
        """Close the connection if what it waits for is overdue."""
        limits = self._limits
        match self._phase:
            case "first_byte":
                allowed_s = limits.first_byte_s
            case "head":
                allowed_s = limits.head_s
            case "body":
                if self.flow.read_paused:
                    return  # what has come was not taken yet, so the client is not at fault
                allowed_s = limits.body_s
            case "between":
                allowed_s = limits.keep_alive_s
            case "answer" | "closed":
                return
        if now_s - since_s > allowed_s:
            if self._phase == "head":
                self._refuse(_Refused(408, f"The headers took over {allowed_s:g} s.", "head"))
            else:
                self.drop(self._phase)

    def _enter(self, phase: _Phase) -> None:
        self._phase = phase
        self.shared.idle.pop(self, None)
        if phase not in ("answer", "closed"):
            self.shared.idle[self] = time.monotonic()

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    # What comes in

    def data_received(self, data: bytes) -> None:
        """Parse what came, in pieces while it is a head."""
        self._unset_keepalive_if_required()
        rest = data
        try:
            while rest and self._phase != "closed":
                size = len(rest) if self._reading == "body" else _PIECE_BYTES
                rest = self._feed(rest[:size]) + rest[size:]
        except httptools.HttpParserError as error:
            cause = (
                error.__context__ if isinstance(error, httptools.HttpParserCallbackError) else None
            )
            if not isinstance(cause, _Refused):
                cause = _Refused(400, "The request is not HTTP/1.1.", "malformed")
            self._refuse(cause)
        except _Refused as refused:
            self._refuse(refused)

    def _feed(self, piece: bytes) -> bytes:
        """Give the parser one piece; return what of it is still to be parsed."""
        before, was_reading = self._body_bytes, self._reading
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade as upgrade:
            # Only the head was parsed. What follows belongs to the same request: no other protocol
            # is spoken here, so the offer means nothing (RFC 9110, 7.8).
            self._resume_after_offer()
            return piece[upgrade.args[0] :]
        if self._reading == "head":
            self._head_bytes += len(piece)
            if self._head_bytes > self._limits.head_bytes + _PIECE_BYTES:
                raise self._too_large("request line and headers")
        elif self._reading == "body" == was_reading:
            self.shared.idle[self] = time.monotonic()
            self._overhead_bytes += len(piece) - (self._body_bytes - before)
            if self._overhead_bytes > self._limits.head_bytes + _MAX_OVERHEAD * self._body_bytes:
                raise self._too_large("chunk framing and trailers")
        return b""

    def _resume_after_offer(self) -> None:
        """Go on with a parser that never saw the offer, at the body of the request in hand."""
        framing = [
            name + b": " + value + b"\r\n"
            for name, value in self.headers
            if name in (b"content-length", b"transfer-encoding")
        ]
        self.parser = httptools.HttpRequestParser(self)
        self._is_offer = False
        if not framing:
            self.on_message_complete()
            return
        self._is_resuming = True
        try:
            self.parser.feed_data(b"POST / HTTP/1.1\r\nhost: x\r\n" + b"".join(framing) + b"\r\n")
        finally:
            self._is_resuming = False
        if framing == [b"content-length: 0\r\n"]:
            self.on_message_complete()

    def _too_large(self, what: str) -> _Refused:
        limits = self._limits
        return _Refused(
            431,
            f"The {what} are too large; allowed are {limits.head_bytes} bytes and "
            f"{limits.head_fields} fields.",
            "too_large",
        )

    def _refuse(self, refused: _Refused) -> None:
        """Say why, unless an answer is under way, and close."""
        if self.transport.is_closing():
            return
        if self._is_answering():
            self.drop(refused.reason)
            return
        self.shared.dropped(refused.reason)
        self._enter("closed")
        self.transport.write(_error_answer(refused.status, str(refused)))
        self.transport.close()
        # Whoever does not read even this is not waited for.
        self.loop.call_later(_LAST_WORDS_S, self.transport.abort)

    # The parser's callbacks

    def on_message_begin(self) -> None:
        if self._is_resuming:
            return
        if len(self.pipeline) >= self._limits.pipelined:
            allowed = self._limits.pipelined
            raise _Refused(400, f"More than {allowed} requests were sent ahead.", "pipeline")
        self._reading = "head"
        self._head_bytes = self._num_fields = self._field_bytes = 0
        self._body_bytes = self._overhead_bytes = 0
        if not self._is_answering():
            self._enter("head")
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Take a part of the request's path."""
        if not self._is_resuming:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; a trailer is only weighed, since nothing here reads one."""
        if self._is_resuming:
            return
        self._num_fields += 1
        self._field_bytes += len(name) + len(value)
        limits = self._limits
        if self._num_fields > limits.head_fields or self._field_bytes > limits.head_bytes:
            raise self._too_large("headers")
        if self._reading == "head":
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start the answer; the body comes while it is being made."""
        if self._is_resuming:
            return
        self._is_offer = self.parser.should_upgrade()
        self._reading = "body"
        self._num_fields = self._field_bytes = 0  # trailers have an account of their own
        super().on_headers_complete()
        if self.scope["http_version"] == "1.0":
            # The task that calls `send` has not begun.
            self.cycle.send = partial(_send_until_close, self.cycle, self.cycle.send)
        self._enter("body")

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request; from here on its client waits for the server."""
        if self._is_offer or self._is_resuming:
            return  # the parser takes an offer for the end; the body follows, if there is one
        self._reading = "nothing"
        super().on_message_complete()
        self._enter("answer" if self._is_answering() else "between")

    def on_response_complete(self) -> None:
        """Go on with the next request that was sent ahead, or wait for one."""
        super().on_response_complete()
        if self._phase == "answer" and not self.pipeline:
            self._enter("between" if self._reading == "nothing" else self._reading)


def _error_answer(status: int, message: str) -> bytes:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    body = json.dumps({"error": error}).encode()
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body


async def _send_until_close(
    cycle: RequestResponseCycle, send: Callable[[Any], Any], message: Any
) -> None:
    """Send to an HTTP/1.0 client, who knows no chunks: the end of the connection ends the body."""
    if message["type"] == "http.response.start":
        names = {name.lower() for name, _ in message.get("headers", ())}
        if b"content-length" not in names:
            cycle.chunked_encoding = False
            cycle.expected_content_length = -1
    elif cycle.expected_content_length <= 0 and cycle.scope["method"] != "HEAD":
        cycle.expected_content_length = len(message.get("body", b""))
    await send(message)
