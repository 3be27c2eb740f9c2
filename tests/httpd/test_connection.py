"""What a client without a key can do to a connection, and what no client may notice."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn

from lingflash.httpd.connection import Connections
from lingflash.httpd.limits import ConnectionLimits

_begun, _left = asyncio.Event(), asyncio.Event()


async def _app(scope: Any, receive: Any, send: Any) -> None:
    """Echo the body's length and the method; /slow reads the body and waits, /stream has chunks,
    /until_left waits for its client to go."""
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message["body"]
        if not message["more_body"]:
            break
    if scope["path"] == "/until_left":
        _begun.set()
        await receive()
        _left.set()
        return
    if scope["path"] == "/slow":
        await asyncio.sleep(0.3)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if scope["path"] == "/stream":
        for _ in range(3):
            await send({"type": "http.response.body", "body": b"part ", "more_body": True})
    text = f"{scope['method']} {scope['path']} {len(body)}".encode()
    await send({"type": "http.response.body", "body": text})


class _Running:
    def __init__(self, port: int, connections: Connections, drops: list[str]) -> None:
        self.port = port
        self.connections = connections
        self.drops = drops

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def ask(self, data: bytes, *, wait_s: float = 5.0) -> bytes:
        """Everything that comes back until the server closes or says nothing for `wait_s`."""
        reader, writer = await self.open()
        with contextlib.suppress(ConnectionError):
            writer.write(data)
            await writer.drain()
        answer = b""
        with contextlib.suppress(TimeoutError, ConnectionError):
            while part := await asyncio.wait_for(reader.read(65536), wait_s):
                answer += part
        writer.close()
        return answer


@contextlib.asynccontextmanager
async def _serving(**limits: Any) -> AsyncIterator[_Running]:
    drops: list[str] = []
    connections = Connections(ConnectionLimits(**limits), drops.append)
    config = uvicorn.Config(
        _app, port=0, http=connections.protocol(), ws="none", lifespan="off", log_config=None
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)

    async def sweeps() -> None:
        while True:
            await asyncio.sleep(0.02)
            connections.sweep()

    sweeping = asyncio.create_task(sweeps())
    try:
        yield _Running(server.servers[0].sockets[0].getsockname()[1], connections, drops)
    finally:
        sweeping.cancel()
        server.should_exit = True
        await task


CLOSE = b"Host: x\r\nConnection: close\r\n"


async def test_request_when_plain_then_answered() -> None:
    async with _serving() as server:
        answer = await server.ask(b"POST / HTTP/1.1\r\n" + CLOSE + b"Content-Length: 3\r\n\r\nabc")
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"POST / 3" in answer
        assert not server.connections.idle


@pytest.mark.parametrize(
    "offer",
    [
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAA\r\n",
        b"Connection: Upgrade\r\nUpgrade: websocket\r\n",
        b"Connection: keep-alive, upgrade\r\nUpgrade: TLS/1.0, foo/2\r\n",
    ],
)
@pytest.mark.parametrize(
    ("framing", "body", "size"),
    [
        (b"Content-Length: 5\r\n", b"hello", 5),
        (b"Content-Length: 0\r\n", b"", 0),
        (b"Transfer-Encoding: chunked\r\n", b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", 5),
        (b"Content-Length: 100000\r\n", b"x" * 100_000, 100_000),
    ],
)
@pytest.mark.parametrize("apart", [False, True])
async def test_upgrade_when_offered_then_ignored_and_the_connection_goes_on(
    offer: bytes, framing: bytes, body: bytes, size: int, apart: bool
) -> None:
    async with _serving() as server:
        reader, writer = await server.open()
        writer.write(b"POST /a HTTP/1.1\r\nHost: x\r\n" + offer + framing + b"\r\n")
        if apart:
            await writer.drain()
            await asyncio.sleep(0.02)
        writer.write(body + b"GET /b HTTP/1.1\r\n" + CLOSE + b"\r\n")
        answer = await asyncio.wait_for(reader.read(), 5)
        writer.close()
        assert re.findall(rb"(?:POST|GET) /\w \d+", answer) == [b"POST /a %d" % size, b"GET /b 0"]


async def test_upgrade_when_offered_without_a_body_then_answered() -> None:
    async with _serving() as server:
        head = b"GET /a HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
        answer = await server.ask(head + b"GET /b HTTP/1.1\r\n" + CLOSE + b"\r\n")
        assert re.findall(rb"GET /\w \d+", answer) == [b"GET /a 0", b"GET /b 0"]


@pytest.mark.parametrize("path", [b"/stream", b"/"])
async def test_stream_when_http_1_0_then_ends_with_the_connection_and_has_no_chunks(
    path: bytes,
) -> None:
    async with _serving() as server:
        answer = await server.ask(b"GET " + path + b" HTTP/1.0\r\nHost: x\r\n\r\n")
        head, body = answer.split(b"\r\n\r\n", 1)
        assert b"chunked" not in head
        assert b"connection: close" in head
        assert body == (b"part " * 3 if path == b"/stream" else b"") + b"GET " + path + b" 0"


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: 1\r\n" % i for i in range(200)),
        b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: %s\r\n" % (i, b"a" * 2000) for i in range(50)),
        b"GET / HTTP/1.1\r\nX: " + b"a" * 300_000,
        b"GET /" + b"a" * 300_000,
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: " + b"a" * 300_000,
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
        + b"".join(b"X-%d: 1\r\n" % i for i in range(200)),
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"a" * 300_000,
    ],
    ids=["many", "large", "one line", "path", "trailer line", "trailers", "chunk extension"],
)
@pytest.mark.parametrize("is_second", [False, True])
async def test_head_when_too_large_then_refused_or_closed(head: bytes, is_second: bool) -> None:
    async with _serving() as server:
        first = b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n" if is_second else b""
        answer = await server.ask(first + head, wait_s=2)
        if not is_second and head.startswith(b"GET"):
            assert b" 431 " in answer.split(b"\r\n")[0]
        assert server.drops == ["too_large"]
        assert server.connections.num_open == 0


async def test_pipeline_when_a_few_then_all_answered_in_order() -> None:
    async with _serving() as server:
        many = b"".join(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % i for i in range(10))
        answer = await server.ask(many + b"GET /end HTTP/1.1\r\n" + CLOSE + b"\r\n")
        assert re.findall(rb"GET /(\w+) 0", answer) == [b"%d" % i for i in range(10)] + [b"end"]


async def test_pipeline_when_endless_then_closed() -> None:
    async with _serving() as server:
        await server.ask(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n" * 20_000, wait_s=2)
        assert server.drops == ["pipeline"]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "first_byte"),
        (b"\r\n" * 10, "first_byte"),
        (b"GET / HTTP/1.1\r\nX-A: ", "head"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc", "body"),
    ],
)
async def test_connection_when_it_stops_half_way_then_closed_in_time(
    data: bytes, reason: str
) -> None:
    async with _serving(first_byte_s=0.1, head_s=0.1, body_s=0.1) as server:
        answer = await server.ask(data, wait_s=5)
        assert server.drops == [reason]
        assert (b" 408 " in answer) == (reason == "head")


async def test_connection_when_unused_between_requests_then_closed_after_keep_alive() -> None:
    async with _serving(keep_alive_s=0.2) as server:
        assert b"GET / 0" in await server.ask(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", wait_s=5)
        assert server.connections.num_open == 0


async def test_answer_when_slow_then_no_deadline_of_the_connection_ends_it() -> None:
    async with _serving(first_byte_s=0.05, head_s=0.05, body_s=0.05, keep_alive_s=0.05) as server:
        answer = await server.ask(b"GET /slow HTTP/1.1\r\n" + CLOSE + b"\r\n")
        assert b"GET /slow 0" in answer


async def test_body_when_it_comes_slowly_then_taken() -> None:
    async with _serving(body_s=0.3) as server:
        reader, writer = await server.open()
        writer.write(b"POST / HTTP/1.1\r\n" + CLOSE + b"Content-Length: 8\r\n\r\n")
        for _ in range(8):
            await asyncio.sleep(0.1)
            writer.write(b"x")
        assert b"POST / 8" in await asyncio.wait_for(reader.read(), 5)
        writer.close()


async def test_connections_when_too_many_then_the_idle_one_goes_and_work_is_served() -> None:
    async with _serving(max_connections=20) as server:
        working = asyncio.create_task(server.ask(b"GET /slow HTTP/1.1\r\n" + CLOSE + b"\r\n"))
        await asyncio.sleep(0.1)
        silent = [await server.open() for _ in range(60)]
        assert b"GET / 0" in await server.ask(b"GET / HTTP/1.1\r\n" + CLOSE + b"\r\n")
        assert b"GET /slow 0" in await working
        assert set(server.drops) == {"limit"}
        assert server.connections.num_open <= 20
        for _, writer in silent:
            writer.close()


@pytest.mark.parametrize("data", [b"\x16\x03\x01 hello\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"])
async def test_request_when_not_http_then_400_as_json(data: bytes) -> None:
    async with _serving() as server:
        answer = await server.ask(data, wait_s=2)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b'"invalid_request_error"' in answer
        assert server.drops == ["malformed"]


async def test_request_when_its_client_leaves_with_more_sent_ahead_then_it_learns_of_it() -> None:
    async with _serving() as server:
        _, writer = await server.open()
        writer.write(b"GET /until_left HTTP/1.1\r\nHost: x\r\n\r\n" * 3)
        await asyncio.wait_for(_begun.wait(), 5)
        writer.transport.abort()
        await asyncio.wait_for(_left.wait(), 5)
