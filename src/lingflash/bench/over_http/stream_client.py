"""A client of streamed answers that does next to nothing per token, so that the server is measured.

It keeps the bytes and the times they came; they are read as HTTP, events and JSON when all is over.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from lingflash.bench.over_http.chunks import read_chunks
from lingflash.link.http_client import Address, Answer


@dataclass(slots=True)
class Stream:
    """One answer as it came.

    Args:
        started_s: when the connection was opened, on the clock of perf_counter.
        first_s: when the first event with text was complete; 0 before.
        num_reads: how many times bytes came.
    """

    started_s: float
    first_s: float = 0.0
    ended_s: float = 0.0
    num_reads: int = 0
    raw: bytearray = field(default_factory=bytearray)

    async def read_texts(self) -> list[str]:
        """The text of every event with any, in order.

        Raises:
            BadAnswer: it is not a whole, successful answer.
        """
        texts: list[str] = []
        async for chunk in read_chunks(Answer.of_bytes(bytes(self.raw))):
            texts += [c["delta"]["content"] for c in chunk["choices"] if c["delta"].get("content")]
        return texts


class _Reader(asyncio.Protocol):
    def __init__(self, request: bytes, ended: asyncio.Future[None]) -> None:
        self.stream = Stream(time.perf_counter())
        self._request, self._ended = request, ended

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.WriteTransport, transport).write(self._request)

    def data_received(self, data: bytes) -> None:
        stream = self.stream
        stream.raw += data
        stream.num_reads += 1
        # The event with the role has an empty text; the next one is a token.
        if not stream.first_s and stream.raw.count(b'"content":') > 1:
            stream.first_s = time.perf_counter()

    def connection_lost(self, exc: Exception | None) -> None:
        self.stream.ended_s = time.perf_counter()
        if not self._ended.done():
            self._ended.set_result(None)


_QUESTION = ({"role": "user", "content": "How is the weather, and when does it leave?"},)


async def stream_chat(
    address: Address,
    num_tokens: int,
    model: str | None = None,
    messages: Sequence[Mapping[str, str]] = _QUESTION,
) -> Stream:
    """Ask for an answer of num_tokens tokens and take it in.

    Raises:
        OSError: the connection failed.
    """
    body: dict[str, Any] = {
        "messages": messages,
        "max_tokens": num_tokens,
        "stream": True,
    }
    if model is not None:
        body["model"] = model
    request = address.encode("POST", "/v1/chat/completions", json.dumps(body).encode())
    loop = asyncio.get_running_loop()
    ended = loop.create_future()
    _, reader = await loop.create_connection(
        lambda: _Reader(request, ended), address.host, address.port
    )
    await ended
    return reader.stream
