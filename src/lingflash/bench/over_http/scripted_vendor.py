"""A vendor that streams the same words to everybody, to measure what stands before it.

    python -m lingflash.bench.over_http.scripted_vendor PORT STEP_MS

It speaks just enough HTTP/1.1 for the house's clients. A stream's tokens come STEP_MS apart by the
clock, however long each took to write; with 0 a whole answer comes at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Iterator

from lingflash.httpd.server import bind_socket

HOST = "127.0.0.1"
WORD = "word "
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_READY = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok"


def events(num_tokens: int) -> Iterator[bytes]:
    """The events of an answer: role, tokens, finish, usage, end."""
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "up"}

    def event(delta: dict[str, str], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return b"data: " + json.dumps({**head, "choices": [choice]}).encode() + b"\n\n"

    yield event({"role": "assistant", "content": ""})
    token = event({"content": WORD})
    for _ in range(num_tokens):
        yield token
    yield event({}, "stop")
    usage = {
        "prompt_tokens": 20,
        "completion_tokens": num_tokens,
        "total_tokens": 20 + num_tokens,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    yield b"data: " + json.dumps({**head, "choices": [], "usage": usage}).encode() + b"\n\n"
    yield b"data: [DONE]\n\n"


async def serve_vendor(port: int, step_s: float) -> None:
    """Serve for ever."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while await _answer(reader, writer, step_s):
                pass
        writer.close()

    with bind_socket(HOST, port) as sock:
        server = await asyncio.start_server(serve, sock=sock)
        await server.serve_forever()


async def _answer(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, step_s: float
) -> bool:
    """Answer one request; whether another may follow."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    is_kept = b"connection: close" not in head
    if head.startswith(b"get "):
        writer.write(_READY)
        return is_kept
    length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
    body = json.loads(await reader.readexactly(length))
    writer.write(_HEAD)
    now = asyncio.get_running_loop().time
    due_s = now()
    for event in events(body["max_tokens"]):
        writer.write(b"%x\r\n%b\r\n" % (len(event), event))
        due_s += step_s
        if step_s:
            await asyncio.sleep(due_s - now())
    writer.write(b"0\r\n\r\n")
    await writer.drain()
    return is_kept


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve_vendor(int(sys.argv[1]), float(sys.argv[2]) * 1e-3))
