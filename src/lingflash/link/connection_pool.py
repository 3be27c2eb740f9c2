"""Connections that are kept between requests, for whoever asks the same servers again and again.

    pool = ConnectionPool()
    async with pool.open(address, "POST", "/v1/chat/completions", body) as answer:
        async for events in answer.event_batches():

It is `http_client.open_request` but for one thing: a connection whose answer was read to its end
waits for the next request to the same server. Leaving the block before that closes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable
from typing import cast

from lingflash.link.http_client import (
    Address,
    Answer,
    BadAnswer,
    ClientConnection,
    Deadlines,
    TooSlow,
    connect,
    exchange,
    total_deadline,
)

_PATIENT = Deadlines()
_Place = tuple[str, int, bool, bool]


class ForbiddenPeer(OSError):
    """A server's name stands for an address that must not be spoken to."""


class ConnectionPool:
    """Kept connections by the place that they lead to.

    Args:
        max_idle: connections that wait, of one place.
        idle_s: those that have waited longer are closed. Less than servers keep theirs, or
            requests meet connections that are being closed.
    """

    def __init__(self, *, max_idle: int = 256, idle_s: float = 30.0) -> None:
        self._max_idle = max_idle
        self._idle_s = idle_s
        self._idle: dict[_Place, deque[_Idle]] = {}

    @contextlib.asynccontextmanager
    async def open(
        self,
        address: Address,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        headers: Iterable[tuple[str, str]] = (),
        deadlines: Deadlines = _PATIENT,
        is_public_only: bool = False,
    ) -> AsyncIterator[Answer]:
        """Send a request; gives the answer as soon as its head is there.

        A kept connection that turns out to be closed, without one byte of an answer, is replaced
        by a new one; nothing else is tried again.

        Args:
            is_public_only: refuse an address of a private network, whatever the host's name is;
                nothing of the request is sent to it.

        Raises:
            OSError: no connection, or it broke; TooSlow and ForbiddenPeer are such.
            BadAnswer: what came is no HTTP.
        """
        request = address.encode(method, path, body, headers, is_kept=True)
        place = _place(address, is_public_only)
        connection: ClientConnection | None = None
        async with total_deadline(deadlines):
            try:
                answer: Answer | None = None
                if (connection := self._take(place)) is not None:
                    with contextlib.suppress(_Stale):
                        answer = await _exchange_on_kept(connection, request, deadlines)
                if answer is None:
                    connection = ClientConnection()
                    await connect(connection, address, deadlines)
                    if is_public_only:
                        _require_public(connection, address)
                    answer = await exchange(connection, request, deadlines)
                yield answer
            finally:
                if connection is not None:
                    self._keep_or_close(place, connection)

    def close(self) -> None:
        """Close what waits; what is in use ends with its request."""
        for waiting in self._idle.values():
            for each in list(waiting):
                each.transport.abort()
        self._idle.clear()

    def _take(self, place: _Place) -> ClientConnection | None:
        waiting = self._idle.get(place)
        while waiting:
            idle = waiting.pop()  # the one that waited least
            is_fresh = time.monotonic() - idle.since_s < self._idle_s
            if is_fresh and not idle.transport.is_closing():
                connection = ClientConnection()
                connection.transport = idle.transport
                idle.transport.set_protocol(connection)
                return connection
            idle.transport.abort()
        return None

    def _keep_or_close(self, place: _Place, connection: ClientConnection) -> None:
        transport = connection.transport
        if transport is None:
            return
        waiting = self._idle.setdefault(place, deque())
        if not connection.is_reusable:
            transport.abort()
            return
        idle = _Idle(transport, waiting)
        transport.set_protocol(idle)
        waiting.append(idle)
        while waiting and (
            len(waiting) > self._max_idle or time.monotonic() - waiting[0].since_s > self._idle_s
        ):
            waiting.popleft().transport.abort()


class _Stale(Exception):
    """A kept connection had been closed by the other side."""


async def _exchange_on_kept(
    connection: ClientConnection, request: bytes, deadlines: Deadlines
) -> Answer:
    try:
        return await exchange(connection, request, deadlines)
    except TooSlow:
        raise
    except (BadAnswer, OSError):
        if not connection.is_silent:
            raise
        if connection.transport is not None:
            connection.transport.abort()
        raise _Stale from None


class _Idle(asyncio.Protocol):
    """The protocol of a connection that waits: whatever happens to it, it is of no more use."""

    def __init__(self, transport: asyncio.Transport, waiting: deque[_Idle]) -> None:
        self.transport = transport
        self.since_s = time.monotonic()
        self._waiting = waiting

    def data_received(self, data: bytes) -> None:
        self.transport.abort()
        self._forget()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()

    def _forget(self) -> None:
        with contextlib.suppress(ValueError):
            self._waiting.remove(self)


def _place(address: Address, is_public_only: bool) -> _Place:
    return (address.host, address.port, address.is_tls, is_public_only)


def is_public(ip: str) -> bool:
    """Whether an address is on the internet, and not of this machine or a private network."""
    address = ipaddress.ip_address(ip.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_global and not address.is_multicast


def _require_public(connection: ClientConnection, address: Address) -> None:
    transport = cast(asyncio.Transport, connection.transport)
    peer = transport.get_extra_info("peername")
    if not isinstance(peer, tuple) or not is_public(str(peer[0])):
        raise ForbiddenPeer(f"{address.host} stands for a private address")
