"""The HTTP/1.1 client of everything that asks a server: one connection per request, streaming.

    async with open_request(address, "POST", "/v1/completions", body) as answer:
        async for data in answer.events():

Leaving the block closes the connection, which the server takes as the client's going away; so does
cancelling the task. Redirects are not followed and nothing is tried again: that is for who asks.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import ssl
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast
from urllib.parse import urlsplit

import httptools

from lingflash.core.errors import ConfigError
from lingflash.link.sse_reader import EventReader, event_data

_MAX_HEAD_BYTES = 1 << 18
_MAX_EVENT_BYTES = 1 << 24
# More of a body is not read from the socket before some was taken.
_MAX_WAITING_BYTES = 1 << 18


class BadAnswer(Exception):
    """The server's bytes are not the HTTP or the events that were expected."""


class TooSlow(TimeoutError):
    """A deadline has passed; `deadline` is its name in Deadlines."""

    def __init__(self, deadline: str, seconds: float) -> None:
        super().__init__(f"{deadline.removesuffix('_s')} took more than {seconds:g} s")
        self.deadline = deadline


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds that a server may take; None waits for ever.

    Args:
        connect_s: until the connection stands, TLS included.
        first_byte_s: from then until the answer's head is there.
        idle_s: until the next piece of the body, or the next whole event where events are read.
        total_s: for everything.
    """

    connect_s: float | None = None
    first_byte_s: float | None = None
    idle_s: float | None = None
    total_s: float | None = None


_PATIENT = Deadlines()


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens.

    Args:
        host, port: of its socket.
        api_key: sent as a bearer token if not None.
        is_tls: whether it speaks HTTPS.
        prefix: what comes before every path.
    """

    host: str
    port: int
    api_key: str | None = None
    is_tls: bool = False
    prefix: str = ""

    @classmethod
    def parse(cls, url: str, api_key: str | None = None) -> Address:
        """Read the base URL of a server that is measured: plain HTTP, no path.

        Raises:
            ConfigError: it is none.
        """
        address = _read_url(url, api_key, "http://127.0.0.1:8000")
        if address.is_tls or urlsplit(url).path not in ("", "/"):
            raise _bad_url(repr(url), "http://127.0.0.1:8000")
        return address

    @classmethod
    def parse_any(cls, url: str, api_key: str | None = None, flag: str = "--url") -> Address:
        """Read a base URL of an OpenAI-compatible server, with or without its last part, /v1.

        Args:
            flag: what an error calls it.

        Raises:
            ConfigError: it is none, or the key cannot be sent.
        """
        return _read_url(url, api_key, "http://127.0.0.1:8000/v1", flag)

    def encode(
        self,
        method: str,
        path: str,
        body: bytes | None,
        headers: Iterable[tuple[str, str]] = (),
        *,
        is_kept: bool = False,
    ) -> bytes:
        """The bytes of a request; a body is JSON, unless a header says otherwise.

        Args:
            is_kept: the connection may be used again.
        """
        host = f"[{self.host}]" if ":" in self.host else self.host
        lines = [
            f"{method} {self.prefix}{path} HTTP/1.1",
            f"Host: {host}:{self.port}",
            f"Connection: {'keep-alive' if is_kept else 'close'}",
        ]
        if self.api_key is not None:
            lines.append(f"Authorization: Bearer {self.api_key}")
        given = {"content-type": "application/json"} if body is not None else {}
        given.update((name.lower(), value) for name, value in headers)
        lines += [f"{name}: {value}" for name, value in given.items()]
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
        if not all(map(_is_sendable, lines)):
            raise ValueError("a header or the path holds what is no printable ASCII")
        return "\r\n".join([*lines, "", ""]).encode("ascii") + (body or b"")


def _read_url(url: str, api_key: str | None, example: str, flag: str = "--url") -> Address:
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").encode("idna").decode("ascii")
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        raise _bad_url(repr(url), example, flag) from None
    if parts.username is not None or parts.query or parts.fragment:
        # Not shown: it may hold a password. Passed over, the server would be asked without it.
        raise _bad_url("more than scheme, host, port and path", example, flag)
    path, sent = parts.path, host + parts.path
    if parts.scheme not in ("http", "https") or not host or not _is_sendable(sent) or " " in sent:
        raise _bad_url(repr(url), example, flag)
    if api_key is not None and not _is_sendable(api_key):
        raise ConfigError("--api-key has characters that no HTTP header holds.", param="api_key")
    prefix = path.rstrip("/").removesuffix("/v1")
    return Address(host, port, api_key, parts.scheme == "https", prefix)


def _is_sendable(text: str) -> bool:
    return text.isascii() and text.isprintable()


def _bad_url(shown: str, example: str, flag: str = "--url") -> ConfigError:
    return ConfigError(
        f"{flag} is {shown}; a base URL such as {example} is needed.",
        param=flag.lstrip("-").replace("-", "_"),
    )


class ClientConnection(asyncio.Protocol):
    """One answer as its bytes come; the callbacks named on_* are the parser's."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._head_bytes = 0
        self._parts: list[bytes] = []
        self._waiting_bytes = 0
        self._is_paused = False
        self._is_full = False  # what is sent is not taken
        self._is_whole = False
        self._may_be_kept = False
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._is_whole or self._error is not None:
            self._may_be_kept = False
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._may_be_kept = False
            if not self._is_whole:  # what comes behind a whole answer is nobody's
                self._fail(BadAnswer(f"no HTTP answer: {error}"))
        self._head_bytes += len(data)
        if not self.status and self._head_bytes > _MAX_HEAD_BYTES:
            self._fail(BadAnswer(f"no HTTP answer: a head of over {_MAX_HEAD_BYTES} bytes"))
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        has_length = "content-length" in self.headers or "transfer-encoding" in self.headers
        if self.status and not has_length and exc is None:
            self._is_whole = True
        elif not self._is_whole:
            where = "inside the body" if self.status else "before an answer"
            self._fail(exc or BadAnswer(f"the connection ended {where}"))
        self._wake()

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False
        self._wake()

    async def send(self, data: bytes) -> bool:
        """Send a piece of a body, no faster than it is taken; false if it is answered already."""
        while self._is_full and not self.status and self._error is None:
            await self._wait(None)
        if self.status or self._error is not None or self.transport is None:
            return False
        self.transport.write(data)
        return True

    def on_message_begin(self) -> None:
        if self._is_whole:  # bytes behind the answer that nobody asked for
            self._may_be_kept = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.status:
            self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:  # "go on" or hints: the answer follows
            self.headers.clear()
        elif not self.status:
            self.status = status

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)
        self._waiting_bytes += len(body)
        if self._waiting_bytes > _MAX_WAITING_BYTES and self.transport and not self._is_paused:
            self._is_paused = True
            self.transport.pause_reading()

    def on_message_complete(self) -> None:
        self._is_whole = bool(self.status)
        self._may_be_kept = self._is_whole and self._parser.should_keep_alive()

    @property
    def is_silent(self) -> bool:
        """Whether not one byte of an answer has come."""
        return not self._head_bytes

    @property
    def is_reusable(self) -> bool:
        """Whether the answer is whole, was taken, and another may follow it."""
        transport = self.transport
        return (
            self._may_be_kept
            and not self._parts
            and self._error is None
            and transport is not None
            and not transport.is_closing()
        )

    def _fail(self, error: Exception) -> None:
        if self._error is None:
            self._error = error
        if self.transport is not None:
            self.transport.abort()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait_for_head(self, due: Due | None = None) -> None:
        """Return when status and headers are there.

        Raises:
            BadAnswer, OSError: they will not come, or not in time.
        """
        while not self.status:
            if self._error is not None:
                raise self._error
            await self._wait(due)

    async def take(self, due: Due | None = None) -> bytes:
        """All bytes of the body that came since the last call; b"" is the end.

        Raises:
            BadAnswer, OSError: the body ends early, or nothing came in time.
        """
        while not self._parts:
            if self._is_whole:
                return b""
            if self._error is not None:
                raise self._error
            await self._wait(due)
        data = b"".join(self._parts) if len(self._parts) > 1 else self._parts[0]
        self._parts.clear()
        self._waiting_bytes = 0
        if self._is_paused and self.transport is not None:
            self._is_paused = False
            self.transport.resume_reading()
        return data

    async def _wait(self, due: Due | None) -> None:
        # A timer of the waiter's own: asyncio.timeout() would cost more than a token's event.
        loop = asyncio.get_running_loop()
        waiter = self._waiter = loop.create_future()
        timer = None if due is None else loop.call_at(due.at_s, _give_up, waiter, due)
        try:
            await waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()


class Due(NamedTuple):
    """A deadline that has begun: its name in Deadlines, its seconds, and when it ends."""

    name: str
    seconds: float
    at_s: float

    @classmethod
    def begin(cls, name: str, seconds: float | None) -> Due | None:
        """One that begins now, on the running loop's clock; None waits for ever."""
        if seconds is None:
            return None
        return cls(name, seconds, asyncio.get_running_loop().time() + seconds)


def _give_up(waiter: asyncio.Future[None], due: Due) -> None:
    if not waiter.done():
        waiter.set_exception(TooSlow(due.name, due.seconds))


class Answer:
    """An answer whose head is there; the body is read once, with one of parts, read and events."""

    def __init__(self, connection: ClientConnection, idle_s: float | None = None) -> None:
        self.status = connection.status
        self.headers = connection.headers
        self._connection = connection
        self._idle_s = idle_s

    @classmethod
    def of_bytes(cls, raw: bytes) -> Answer:
        """One whose bytes were all kept, to be read now.

        Raises:
            BadAnswer: they have no whole head.
        """
        connection = ClientConnection()
        connection.data_received(raw)
        connection.connection_lost(None)
        if not connection.status:
            raise BadAnswer(f"no HTTP answer: {raw[:80]!r}")
        return cls(connection)

    async def parts(self) -> AsyncIterator[bytes]:
        """The body as it arrives.

        Raises:
            BadAnswer, OSError: it ends early; TooSlow is one of the latter.
        """
        while part := await self._connection.take(Due.begin("idle_s", self._idle_s)):
            yield part

    async def read(self) -> bytes:
        """The whole body. See parts for what it raises."""
        return b"".join([part async for part in self.parts()])

    async def events(self) -> AsyncIterator[str]:
        """The data of each server-sent event, "[DONE]" included. See parts for what it raises."""
        async for event in self.raw_events():
            try:
                data = event_data(event)
            except ValueError as error:
                raise BadAnswer(f"an event is no UTF-8: {error}") from None
            if data is not None:
                yield data

    async def raw_events(self) -> AsyncIterator[bytes]:
        """Each server-sent event as it came, comments too. See parts for what it raises."""
        async for events in self.event_batches():
            for event in events:
                yield event

    async def event_batches(self) -> AsyncIterator[list[bytes]]:
        """The events as bytes, those that came together at once. See parts for what it raises."""
        reader = EventReader()
        due = Due.begin("idle_s", self._idle_s)
        while part := await self._connection.take(due):
            if events := reader.feed(part):
                yield events
                due = Due.begin("idle_s", self._idle_s)
            elif len(reader.rest) > _MAX_EVENT_BYTES:
                raise BadAnswer(f"an event has more than {_MAX_EVENT_BYTES} bytes")
        if reader.rest.strip():
            raise BadAnswer("the stream ended inside an event")


@contextlib.asynccontextmanager
async def _deadline(name: str, seconds: float | None) -> AsyncIterator[None]:
    scope = asyncio.timeout(seconds)
    try:
        async with scope:
            yield
    except TimeoutError:
        if seconds is not None and scope.expired():
            raise TooSlow(name, seconds) from None
        raise


@functools.cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


def total_deadline(deadlines: Deadlines) -> contextlib.AbstractAsyncContextManager[None]:
    """What everything of one request happens within."""
    return _deadline("total_s", deadlines.total_s)


async def connect(connection: ClientConnection, address: Address, deadlines: Deadlines) -> None:
    """Connect to a server, TLS included."""
    tls = _tls() if address.is_tls else None
    connecting = asyncio.get_running_loop().create_connection(
        lambda: connection, address.host, address.port, ssl=tls
    )
    async with _deadline("connect_s", deadlines.connect_s):
        await connecting


async def exchange(
    connection: ClientConnection,
    request: bytes,
    deadlines: Deadlines,
    parts: AsyncIterable[bytes] | None = None,
) -> Answer:
    """Send a request on a connection that stands; the answer as soon as its head is there.

    `parts` are of a body that is sent in chunks as they come, as the request's headers say.
    """
    assert connection.transport is not None
    connection.transport.write(request)
    if parts is not None:
        async for part in parts:
            if part and not await connection.send(b"%x\r\n%b\r\n" % (len(part), part)):
                break
        else:
            await connection.send(b"0\r\n\r\n")
    await connection.wait_for_head(Due.begin("first_byte_s", deadlines.first_byte_s))
    return Answer(connection, deadlines.idle_s)


@contextlib.asynccontextmanager
async def open_request(
    address: Address,
    method: str,
    path: str,
    body: bytes | AsyncIterable[bytes] | None = None,
    *,
    headers: Iterable[tuple[str, str]] = (),
    deadlines: Deadlines = _PATIENT,
) -> AsyncIterator[Answer]:
    """Send a request, its body whole or as it comes; gives the answer once its head is there.

    Raises:
        OSError: no connection, or it broke; TooSlow is one.
        BadAnswer: what came is no HTTP.
    """
    whole, parts = (body, None) if isinstance(body, bytes | None) else (None, body)
    if parts is not None:
        headers = [*headers, ("transfer-encoding", "chunked")]
    request = address.encode(method, path, whole, headers)
    connection = ClientConnection()
    async with total_deadline(deadlines):
        try:
            await connect(connection, address, deadlines)
            yield await exchange(connection, request, deadlines, parts)
        finally:
            if connection.transport is not None:
                connection.transport.abort()


async def call(address: Address, method: str, path: str, payload: Any = None) -> tuple[int, bytes]:
    """A whole request and answer: status and body; a payload is sent as JSON."""
    body = None if payload is None else json.dumps(payload).encode()
    async with open_request(address, method, path, body) as answer:
        return answer.status, await answer.read()
