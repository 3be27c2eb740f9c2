"""A small HTTP/1.1 client on asyncio streams, for load: one connection per request, streaming.

It exists so that measuring needs no HTTP library, adds little time of its own, and can misbehave.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from lingflash.core.errors import ConfigError

_MAX_LINE = 1 << 20
_JSON_TYPE = "application/json"


class BadAnswer(Exception):
    """The server's bytes are not the HTTP or the events that were expected."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens.

    Args:
        host, port: of its socket.
        api_key: sent as a bearer token if not None.
    """

    host: str
    port: int
    api_key: str | None = None

    @classmethod
    def parse(cls, url: str, api_key: str | None = None) -> Address:
        """Read a URL such as http://127.0.0.1:8000.

        Raises:
            ConfigError: it is none, or not plain HTTP.
        """
        parts = urlsplit(url)
        try:
            port = parts.port or 80
        except ValueError:
            port = 0
        if parts.scheme != "http" or not parts.hostname or parts.path not in ("", "/") or not port:
            raise ConfigError(
                f"--url is {url!r}; a base URL such as http://127.0.0.1:8000 is needed.",
                param="url",
            )
        return cls(parts.hostname, port, api_key)

    def encode(self, method: str, path: str, body: bytes | None) -> bytes:
        """The bytes of a request."""
        lines = [
            f"{method} {path} HTTP/1.1",
            f"Host: {self.host}:{self.port}",
            "Connection: close",
        ]
        if self.api_key is not None:
            lines.append(f"Authorization: Bearer {self.api_key}")
        if body is not None:
            lines += [f"Content-Type: {_JSON_TYPE}", f"Content-Length: {len(body)}"]
        return "\r\n".join([*lines, "", ""]).encode("ascii") + (body or b"")


@dataclass(slots=True)
class Answer:
    """The head of an answer; its body is read with `read` or `events`."""

    status: int
    headers: dict[str, str]
    reader: asyncio.StreamReader

    async def parts(self) -> AsyncIterator[bytes]:
        """The body as it arrives.

        Raises:
            BadAnswer: it ends early.
        """
        try:
            if self.headers.get("transfer-encoding") == "chunked":
                while size := int(await self.reader.readline() or b"", 16):
                    yield (await self.reader.readexactly(size + 2))[:-2]
                await self.reader.readline()
            elif "content-length" in self.headers:
                yield await self.reader.readexactly(int(self.headers["content-length"]))
            else:
                while part := await self.reader.read(1 << 16):
                    yield part
        except (ValueError, asyncio.IncompleteReadError) as error:
            raise BadAnswer(f"the body ended early: {error}") from None

    async def read(self) -> bytes:
        """The whole body."""
        return b"".join([part async for part in self.parts()])

    async def events(self) -> AsyncIterator[str]:
        """The data of each server-sent event, "[DONE]" included."""
        rest = b""
        async for part in self.parts():
            *whole, rest = (rest + part).split(b"\n\n")
            for event in whole:
                for line in event.split(b"\n"):
                    if line.startswith(b"data: "):
                        yield line[6:].decode("utf-8")
        if rest.strip():
            raise BadAnswer("the stream ended inside an event")


@contextlib.asynccontextmanager
async def connect(
    address: Address,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection that is closed at the end without waiting for the other side."""
    reader, writer = await asyncio.open_connection(address.host, address.port, limit=_MAX_LINE)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def read_head(reader: asyncio.StreamReader) -> Answer:
    """Read status and headers.

    Raises:
        BadAnswer: the connection ended, or it is no HTTP.
    """
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        status = int(first.split(" ", 2)[1])
        pairs = (line.partition(":") for line in lines if line)
        headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    except (asyncio.IncompleteReadError, ValueError, IndexError) as error:
        raise BadAnswer(f"no HTTP answer: {error}") from None
    return Answer(status, headers, reader)


@contextlib.asynccontextmanager
async def open_request(
    address: Address, method: str, path: str, body: bytes | None = None
) -> AsyncIterator[Answer]:
    """Send a request; gives the answer's head as soon as it is there."""
    async with connect(address) as (reader, writer):
        writer.write(address.encode(method, path, body))
        await writer.drain()
        yield await read_head(reader)


async def call(address: Address, method: str, path: str, payload: Any = None) -> tuple[int, bytes]:
    """A whole request and answer: status and body; a payload is sent as JSON."""
    body = None if payload is None else json.dumps(payload).encode()
    async with open_request(address, method, path, body) as answer:
        return answer.status, await answer.read()


async def read_metrics(address: Address) -> dict[str, float]:
    """The series of /metrics that have no labels, without the lingflash_ prefix.

    Raises:
        BadAnswer: there are none.
    """
    status, body = await call(address, "GET", "/metrics")
    if status != 200:
        raise BadAnswer(f"/metrics answered {status}")
    found: dict[str, float] = {}
    for line in body.decode().splitlines():
        name, _, value = line.rpartition(" ")
        if name.startswith("lingflash_") and "{" not in name:
            found[name.removeprefix("lingflash_")] = float(value)
    return found
