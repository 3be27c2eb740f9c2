"""A server that answers as it is told, well or badly, and files to ask it about."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable

from lingflash.link.http_client import Address

USAGE = {
    "prompt_tokens": 10, "completion_tokens": 4,
    "prompt_tokens_details": {"cached_tokens": 6},
    "completion_tokens_details": {"reasoning_tokens": 1},
}  # fmt: skip


def event(**chunk):
    return f"data: {json.dumps(chunk)}\n\n".encode()


def stream(text, usage=USAGE, end="stop"):
    """Events of a whole answer; without an end it is cut."""
    parts = [
        event(choices=[{"delta": {"content": text[i : i + 3]}}]) for i in range(0, len(text), 3)
    ]
    if end is None:
        return b"".join(parts)
    parts.append(event(choices=[{"delta": {}, "finish_reason": end}]))
    if usage is not None:
        parts.append(event(choices=[], usage=usage))
    return b"".join([*parts, b"data: [DONE]\n\n"])


def answer(body, status=200, content_type="text/event-stream", **headers):
    lines = [f"HTTP/1.1 {status} X", f"Content-Type: {content_type}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def error(status, message, **headers):
    body = json.dumps({"error": {"message": message}}).encode()
    return answer(body, status, "application/json", Content_Length=len(body), **headers)


def models(*names):
    body = json.dumps({"data": [{"id": name} for name in names]}).encode()
    return answer(body, 200, "application/json", Content_Length=len(body))


class OddServer:
    """Answers chat requests with what `reply` makes of their body and number."""

    def __init__(self, reply: Callable[[dict, int], bytes], listed=("toy",)):
        self.reply, self.listed = reply, listed
        self.asked: list[dict] = []
        self.in_flight = self.most_in_flight = 0
        self.delay_s = 0.0
        self._server = None
        self.port = 0

    @property
    def address(self):
        return Address("127.0.0.1", self.port)

    async def start(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self):
        self._server.close()

    async def _serve(self, reader, writer):
        with contextlib.suppress(OSError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            if head.startswith("GET /v1/models"):
                writer.write(models(*self.listed))
            else:
                length = int(head.lower().split("content-length: ")[1].split("\r\n")[0])
                body = json.loads(await reader.readexactly(length))
                self.asked.append(body)
                self.in_flight += 1
                self.most_in_flight = max(self.most_in_flight, self.in_flight)
                try:
                    await asyncio.sleep(self.delay_s)
                    writer.write(self.reply(body, len(self.asked)))
                finally:
                    self.in_flight -= 1
            await writer.drain()
            writer.close()


def write_choices(path, count):
    """A file of the kind choice whose answers are A, B, A, B, ..."""
    rows = [
        {
            "id": f"q{i}", "category": f"c{i % 3}", "question": f"Question {i}?",
            "choices": ["yes", "no"], "answer": "AB"[i % 2],
        }
        for i in range(count)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
