"""Kept connections: used again, replaced when closed, never after an answer that was not read."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from lingflash.link.connection_pool import ConnectionPool, ForbiddenPeer, is_public
from lingflash.link.http_client import Address, BadAnswer, Deadlines, TooSlow

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"


class Server:
    """Counts connections; answers every request with its number, `closes_after` of them on each."""

    def __init__(self, closes_after=1000, answer=None):
        self.connections = 0
        self.requests = 0
        self.gone = asyncio.Event()
        self.closes_after = closes_after
        self.answer = answer

    async def serve(self, reader, writer):
        self.connections += 1
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            for _ in range(self.closes_after):
                await reader.readuntil(b"\r\n\r\n")
                self.requests += 1
                number = HEAD + b"%02d" % self.requests
                writer.write(number if self.answer is None else self.answer)
            if self.answer is not None:
                await reader.read()
        self.gone.set()
        writer.close()


@contextlib.asynccontextmanager
async def serving(server):
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    pool = ConnectionPool()
    async with listener:
        yield pool, Address("127.0.0.1", listener.sockets[0].getsockname()[1])
        pool.close()
        await asyncio.sleep(0)


async def ask(pool, address, **options):
    async with pool.open(address, "GET", "/", **options) as answer:
        return await answer.read()


async def test_pool_when_answers_are_read_then_one_connection_serves_them_all():
    server = Server()
    async with serving(server) as (pool, address):
        assert [await ask(pool, address) for _ in range(5)] == [b"%02d" % i for i in range(1, 6)]
        assert server.connections == 1
        await asyncio.gather(*(ask(pool, address) for _ in range(8)))
        assert server.connections == 8


async def test_pool_when_the_server_has_closed_then_a_new_connection_serves():
    server = Server(closes_after=1)
    async with serving(server) as (pool, address):
        for i in range(1, 4):
            assert await ask(pool, address) == b"%02d" % i
        assert server.connections == server.requests == 3


async def test_pool_when_an_answer_is_left_unread_then_its_connection_is_closed():
    server = Server(answer=HEAD + b"1")
    async with serving(server) as (pool, address):
        async with pool.open(address, "GET", "/"):
            pass
        await asyncio.wait_for(server.gone.wait(), 5)
        assert server.connections == 1


@pytest.mark.parametrize(
    "answer",
    [
        HEAD + b"12HTTP/1.1 200 OK\r\n",  # more than was asked for
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n12",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n12",
    ],
)
async def test_pool_when_nothing_may_follow_an_answer_then_its_connection_is_not_kept(answer):
    server = Server(answer=answer)
    async with serving(server) as (pool, address):
        assert await ask(pool, address) == b"12"
        await asyncio.wait_for(server.gone.wait(), 5)


async def test_pool_when_a_kept_connection_is_silent_then_not_tried_again():
    server = Server(closes_after=2)
    async with serving(server) as (pool, address):
        await ask(pool, address)
        server.answer = b""
        with pytest.raises(TooSlow):
            await ask(pool, address, deadlines=Deadlines(first_byte_s=0.2))
        assert server.connections == 1


async def test_pool_when_a_kept_connection_ends_inside_an_answer_then_not_tried_again():
    server = Server(closes_after=2)
    async with serving(server) as (pool, address):
        await ask(pool, address)
        server.answer = b"HTTP/1.1 200"
        with pytest.raises((BadAnswer, TooSlow)):
            await ask(pool, address, deadlines=Deadlines(first_byte_s=0.5))
        assert server.connections == 1


async def test_pool_when_only_public_addresses_are_allowed_then_loopback_hears_nothing():
    server = Server()
    async with serving(server) as (pool, address):
        named = Address("localhost", address.port)
        with pytest.raises(ForbiddenPeer, match="localhost"):
            await ask(pool, named, is_public_only=True)
        assert server.requests == 0


@pytest.mark.parametrize(
    ("ip", "public"),
    [
        ("8.8.8.8", True), ("2606:4700::1111", True), ("127.0.0.1", False), ("10.1.2.3", False),
        ("169.254.169.254", False), ("::1", False), ("::ffff:127.0.0.1", False), ("0.0.0.0", False),
        ("fe80::1%eth0", False), ("100.64.0.1", False), ("224.0.0.1", False),
    ],
)  # fmt: skip
def test_address_when_private_then_known(ip, public):
    assert is_public(ip) is public
