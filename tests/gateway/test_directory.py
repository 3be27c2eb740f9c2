"""Every directory keeps the same promises, and a watch keeps what the last one said."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest

from lingflash.gateway.directory.directory import DirectoryError
from lingflash.gateway.directory.static import StaticDirectory
from lingflash.gateway.directory.watch import Watch
from lingflash.protocol.replicas import Replica

LOAD = {"model": "ling-nano", "capacity": 8, "tokens_in_flight": 120, "sessions": 3}


class Server:
    """A server that says on any path what it is told to."""

    def __init__(self):
        self.status, self.body = 200, {"status": "ready", **LOAD}
        self.asked = []  # request heads

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, *exc):
        self._server.close()

    async def _answer(self, reader, writer):
        self.asked.append((await reader.readuntil(b"\r\n\r\n")).decode())
        body = self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()
        head = f"HTTP/1.1 {self.status} X\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        writer.close()


def unused_url():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{sock.getsockname()[1]}"


async def test_static_when_servers_differ_then_each_is_told_as_it_is():
    async with Server() as ready, Server() as draining, Server() as other:
        draining.status, draining.body = 503, {"status": "not ready", "draining": True}
        other.body = b"<html>"
        gone = unused_url()
        directory = StaticDirectory([ready.url, draining.url, other.url, gone])
        assert await directory.replicas() == [
            Replica(url=ready.url, model="ling-nano", capacity=8, tokens_in_flight=120, ready=True),
            Replica(url=draining.url, draining=True),
            Replica(url=other.url),
            Replica(url=gone),
        ]


class Told:
    """A directory that says what the test does."""

    def __init__(self):
        self.next = [Replica(url="http://a:1", ready=True)]

    async def replicas(self):
        if isinstance(self.next, Exception):
            raise self.next
        return self.next


async def test_watch_when_its_directory_falls_silent_then_the_last_answer_stays():
    told = Told()
    watch = Watch("fleet", told)
    assert (watch.replicas, watch.problem) == ((), "it was not asked yet")
    await watch.refresh()
    known = watch.replicas
    assert (known, watch.problem) == ((Replica(url="http://a:1", ready=True),), None)
    told.next = DirectoryError("gone")
    await watch.refresh()
    assert (watch.replicas, watch.problem) == (known, "gone")
    told.next = []
    await watch.refresh()
    assert (watch.replicas, watch.problem) == ((), None)


async def test_watch_when_it_runs_then_it_sees_changes_by_itself():
    told = Told()
    watch = Watch("fleet", told, every_s=0.01)
    running = asyncio.create_task(watch.run())
    async with asyncio.timeout(10):
        while not watch.replicas:
            await asyncio.sleep(0.001)
        told.next = [Replica(url="http://b:1")]
        while watch.replicas[0].url != "http://b:1":
            await asyncio.sleep(0.001)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
