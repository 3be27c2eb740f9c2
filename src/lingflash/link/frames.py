"""Messages over a socket between processes of our own: a length, then so many bytes."""

from __future__ import annotations

import asyncio
import socket
import struct

_LENGTH = struct.Struct("<Q")
HEADER_BYTES = _LENGTH.size


def frame(body: bytes) -> bytes:
    """A message with its length before it."""
    return _LENGTH.pack(len(body)) + body


def read_frame(sock: socket.socket) -> bytes | None:
    """The next message from a blocking socket, None at its end."""
    header = _read_exactly(sock, HEADER_BYTES)
    return None if header is None else _read_exactly(sock, _LENGTH.unpack(header)[0])


async def receive_frame(reader: asyncio.StreamReader) -> bytes:
    """The next message.

    Raises:
        asyncio.IncompleteReadError: the other side has hung up.
    """
    return await reader.readexactly(_LENGTH.unpack(await reader.readexactly(HEADER_BYTES))[0])


def _read_exactly(sock: socket.socket, count: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < count:
        part = sock.recv(min(count - len(parts), 1 << 20))
        if not part:
            return None
        parts += part
    return bytes(parts)
