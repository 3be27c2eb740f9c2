"""An upstream that plays its part: good answers in each dialect, and the faults of one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from itertools import chain

PROMPT_TOKENS, CACHED_TOKENS = 10, 4


def texts(count):
    return [f"w{i} " for i in range(count)]


def usage_of(dialect, count):
    if dialect in ("chat", "completions"):
        return {
            "prompt_tokens": PROMPT_TOKENS,
            "completion_tokens": count,
            "total_tokens": PROMPT_TOKENS + count,
            "prompt_tokens_details": {"cached_tokens": CACHED_TOKENS},
        }
    if dialect == "responses":
        return {
            "input_tokens": PROMPT_TOKENS,
            "input_tokens_details": {"cached_tokens": CACHED_TOKENS},
            "output_tokens": count,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": PROMPT_TOKENS + count,
        }
    return {
        "input_tokens": PROMPT_TOKENS - CACHED_TOKENS,
        "cache_read_input_tokens": CACHED_TOKENS,
        "output_tokens": count,
    }


def whole_body(dialect, words, usage=..., reason="stop"):
    text = "".join(words)
    usage = usage_of(dialect, len(words)) if usage is ... else usage
    more = {} if usage is None else {"usage": usage}
    if dialect == "chat":
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": reason}
        head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "up"}
        return {**head, "choices": [choice], **more}
    if dialect == "completions":
        choice = {"index": 0, "text": text, "finish_reason": reason}
        head = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "up"}
        return {**head, "choices": [choice], **more}
    if dialect == "responses":
        content = [{"type": "output_text", "text": text, "annotations": []}]
        item = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
                "content": content}  # fmt: skip
        status = "failed" if reason == "error" else "completed"
        return {"id": "resp_1", "object": "response", "created_at": 1, "model": "up",
                "status": status, "output": [item], **more}  # fmt: skip
    if reason == "error":
        return {"type": "error", "error": {"type": "api_error", "message": "it broke"}}
    return {"id": "msg_1", "type": "message", "role": "assistant", "model": "up",
            "content": [{"type": "text", "text": text}], "stop_reason": "end_turn",
            "stop_sequence": None, **more}  # fmt: skip


def data_event(value, name=None):
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(value, ensure_ascii=False)}\n\n".encode()


def stream_parts(dialect, words, usage=..., reason="stop"):
    """The events of a stream: before content, the content, after it, and the end."""
    usage = usage_of(dialect, len(words)) if usage is ... else usage
    if dialect in ("chat", "completions"):
        is_chat = dialect == "chat"
        head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "up"}

        def chunk(delta, finish=None):
            choice = {"index": 0, **({"delta": delta} if is_chat else {"text": delta})}
            return data_event({**head, "choices": [{**choice, "finish_reason": finish}]})

        before = [b": waiting\n\n"] + ([chunk({"role": "assistant"})] if is_chat else [])
        content = [chunk({"content": each} if is_chat else each) for each in words]
        after = [chunk({} if is_chat else "", reason)]
        if usage is not None:
            after.append(data_event({**head, "choices": [], "usage": usage}))
        return before, content, after, [b"data: [DONE]\n\n"]
    if dialect == "responses":
        response = {"id": "resp_1", "object": "response", "created_at": 1, "model": "up",
                    "status": "in_progress", "output": []}  # fmt: skip
        number = iter(range(10**6))

        def event(kind, **fields):
            value = {"type": kind, "sequence_number": next(number), **fields}
            return data_event(value, kind)

        before = [event("response.created", response=response)]
        place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
        content = [event("response.output_text.delta", delta=each, **place) for each in words]
        done = whole_body(dialect, words, usage, reason)
        kind = "response.failed" if reason == "error" else "response.completed"
        return before, content, [], [event(kind, response=done)]
    start = {"id": "msg_1", "type": "message", "role": "assistant", "model": "up", "content": [],
             "stop_reason": None, "usage": {**(usage or {}), "output_tokens": 0}}  # fmt: skip
    if usage is None:
        del start["usage"]
    block = {"type": "text", "text": ""}

    def event(kind, **fields):
        return data_event({"type": kind, **fields}, kind)

    before = [event("message_start", message=start), event("ping"),
              event("content_block_start", index=0, content_block=block)]  # fmt: skip
    content = [
        event("content_block_delta", index=0, delta={"type": "text_delta", "text": each})
        for each in words
    ]
    if reason == "error":
        error = {"type": "api_error", "message": "it broke"}
        return before, content, [event("error", error=error)], []
    after = [event("content_block_stop", index=0)]
    delta = {"stop_reason": "end_turn", "stop_sequence": None}
    more = {} if usage is None else {"usage": {"output_tokens": usage["output_tokens"]}}
    after.append(event("message_delta", delta=delta, **more))
    return before, content, after, [event("message_stop")]


DIALECT_OF = {
    "/chat/completions": "chat",
    "/completions": "completions",
    "/responses": "responses",
    "/messages": "messages",
    "/messages/count_tokens": "count",
}


_FIELDS_OF_CHAT = {
    *("model", "messages", "stream", "stream_options", "stream_options.include_usage", "tools"),
    *("tool_choice", "temperature", "top_p", "max_tokens", "stop", "seed", "response_format"),
}


def _head(status, kind, length=None, **headers):
    lines = [f"HTTP/1.1 {status} X", f"Content-Type: {kind}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    lines.append("Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _chunk(data):
    return b"%x\r\n%b\r\n" % (len(data), data)


class ScriptedUpstream:
    """A server that answers as it is told.

    Args:
        fault: the name of a method `fault_NAME`, or "" for a good answer.
        words: of each answer.
    """

    def __init__(self, fault="", words=5, pause_s=0.0):
        self.fault = fault
        self.words = words
        self.pause_s = pause_s
        self.requests = []  # (path, headers, body)
        self.sent_tokens = 0
        self.gone = threading.Event()
        self.connections = 0
        self.port = 0
        self._listener = None
        self._writers = {}

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/v1"

    async def start(self):
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def stop(self):
        self._listener.close()
        for writer in list(self._writers):
            writer.transport.abort()
        await asyncio.sleep(0)

    async def _serve(self, reader, writer):
        self.connections += 1
        self._writers[writer] = reader
        try:
            while await self._one(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._writers.pop(writer, None)
            self.gone.set()
            writer.close()

    async def _one(self, reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _ = head[0].split(" ")
        headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in head[1:-2])}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        value = json.loads(body) if body else {}
        self.requests.append((path, headers, value))
        dialect = DIALECT_OF.get(path.removeprefix("/v1").partition("?")[0])
        if dialect is None or method != "POST":
            await self._json(writer, {"id": path.rpartition("/")[2], "object": "response"})
            return True
        if dialect == "count":
            await self._json(writer, {"input_tokens": PROMPT_TOKENS})
            return True
        fault = getattr(self, f"fault_{self.fault}") if self.fault else self.good
        is_streamed = bool(value.get("stream"))
        await fault(writer, dialect, is_streamed)
        return not self.fault

    async def _json(self, writer, value, status=200, **headers):
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        kind = headers.pop("kind", "application/json")
        writer.write(_head(status, kind, len(body), **headers) + body)
        await writer.drain()

    async def _events(self, writer, events, *, ends=True, pause_s=0.0):
        for event in events:
            self.sent_tokens += b"response.failed" not in event and any(
                mark in event for mark in (b'"content": "w', b'"text": "w', b'"delta": "w')
            )
            writer.write(_chunk(event))
            await writer.drain()
            if pause_s:
                await asyncio.sleep(pause_s)
        if ends:
            writer.write(b"0\r\n\r\n")
            await writer.drain()

    async def good(self, writer, dialect, is_streamed, **options):
        words = texts(self.words)
        if not is_streamed:
            await self._json(writer, whole_body(dialect, words, **options))
            return
        writer.write(_head(200, "text/event-stream"))
        parts = stream_parts(dialect, words, **options)
        await self._events(writer, list(chain(*parts)), pause_s=self.pause_s)

    # The faults of section A4

    async def fault_hang(self, writer, dialect, is_streamed):
        await self._writers[writer].read()  # until the other side leaves

    async def fault_401(self, writer, dialect, is_streamed):
        sent = self.requests[-1][1].get("authorization", "")
        error = {"error": {"message": f"Incorrect API key provided: {sent}", "code": "bad"}}
        await self._json(writer, error, 401)

    async def fault_402(self, writer, dialect, is_streamed):
        await self._json(writer, {"error": {"message": "no money left"}}, 402)

    async def fault_429(self, writer, dialect, is_streamed):
        await self._json(writer, {"error": {"message": "slow down"}}, 429)

    async def fault_429_with_retry_after(self, writer, dialect, is_streamed):
        await self._json(writer, {"error": {"message": "slow down"}}, 429, Retry_After=7)

    async def fault_500(self, writer, dialect, is_streamed):
        await self._json(writer, {"error": {"message": "oh"}}, 500)

    async def fault_502_html(self, writer, dialect, is_streamed):
        await self._json(writer, b"<html><h1>502</h1></html>", 502, kind="text/html")

    async def fault_503(self, writer, dialect, is_streamed):
        await self._json(writer, {"error": {"message": "overloaded"}}, 503)

    async def fault_redirect(self, writer, dialect, is_streamed):
        await self._json(writer, b"", 307, Location=f"{self.url}/elsewhere")

    async def fault_error_first(self, writer, dialect, is_streamed):
        error = {"type": "error", "error": {"type": "api_error", "message": "it broke"}}
        if not is_streamed:
            await self._json(writer, error)
            return
        writer.write(_head(200, "text/event-stream"))
        before, *_ = stream_parts(dialect, texts(1))
        await self._events(writer, [*before, data_event(error, "error")])

    async def fault_empty(self, writer, dialect, is_streamed):
        if not is_streamed:
            await self._json(writer, b"")
            return
        writer.write(_head(200, "text/event-stream"))
        before, *_ = stream_parts(dialect, texts(1))
        await self._events(writer, [*before, b"data: [DONE]\n\n"])

    async def fault_cut(self, writer, dialect, is_streamed):
        if not is_streamed:
            body = json.dumps(whole_body(dialect, texts(5))).encode()
            writer.write(_head(200, "application/json", len(body)) + body[:20])
            await writer.drain()
            return
        writer.write(_head(200, "text/event-stream"))
        before, content, *_ = stream_parts(dialect, texts(5))
        await self._events(writer, before + content[:3], ends=False)

    async def fault_stall(self, writer, dialect, is_streamed):
        await self.fault_cut(writer, dialect, is_streamed)
        await self.fault_hang(writer, dialect, is_streamed)

    async def fault_malformed(self, writer, dialect, is_streamed):
        if not is_streamed:
            await self._json(writer, b'{"choices": [')
            return
        writer.write(_head(200, "text/event-stream"))
        before, content, *_ = stream_parts(dialect, texts(5))
        await self._events(writer, [*before, *content[:3], b'data: {"choices": [\n\n'])

    async def fault_split_utf8(self, writer, dialect, is_streamed):
        words = ["列", "é", "🙂 "]
        if not is_streamed:
            body = json.dumps(whole_body(dialect, words), ensure_ascii=False).encode()
            pieces = [_head(200, "application/json", len(body))]
        else:
            body = b"".join(list(chain(*stream_parts(dialect, words))))
            pieces = [_head(200, "text/event-stream")]
        for i in range(len(body)):
            pieces.append(body[i : i + 1] if not is_streamed else _chunk(body[i : i + 1]))
        pieces.append(b"0\r\n\r\n" if is_streamed else b"")
        for i, piece in enumerate(pieces):
            writer.write(piece)
            if i % 50 == 0:
                await asyncio.sleep(0)

    async def fault_no_usage(self, writer, dialect, is_streamed):
        await self.good(writer, dialect, is_streamed, usage=None)

    async def fault_null_usage(self, writer, dialect, is_streamed):
        nulls = dict.fromkeys(usage_of(dialect, 1))
        await self.good(writer, dialect, is_streamed, usage=nulls)

    async def fault_usage_twice(self, writer, dialect, is_streamed):
        if not is_streamed or dialect not in ("chat", "completions"):
            await self.good(writer, dialect, is_streamed)
            return
        writer.write(_head(200, "text/event-stream"))
        before, content, after, end = stream_parts(dialect, texts(self.words))
        await self._events(writer, [*before, *content, *after, after[-1], *end])

    async def fault_large_frame(self, writer, dialect, is_streamed):
        words = ["w" + "x" * (10 << 20), "w "]
        if not is_streamed:
            await self._json(writer, whole_body(dialect, words))
            return
        writer.write(_head(200, "text/event-stream"))
        await self._events(writer, list(chain(*stream_parts(dialect, words))))

    async def fault_done_twice(self, writer, dialect, is_streamed):
        if not is_streamed:
            await self.good(writer, dialect, is_streamed)
            return
        writer.write(_head(200, "text/event-stream"))
        parts = stream_parts(dialect, texts(self.words))
        await self._events(writer, [*chain(*parts), *parts[-1]])

    async def fault_wrong_type(self, writer, dialect, is_streamed):
        await self._json(writer, b"<html>hello</html>", kind="text/html")

    async def fault_finish_error(self, writer, dialect, is_streamed):
        await self.good(writer, dialect, is_streamed, reason="error")

    async def fault_unknown_fields(self, writer, dialect, is_streamed):
        """As a vendor that refuses what OpenAI's API does not have."""
        body = self.requests[-1][2]
        given = {*body, *(f"stream_options.{name}" for name in body.get("stream_options") or ())}
        unknown = sorted(given - _FIELDS_OF_CHAT)
        if unknown:
            message = f"Unrecognized request argument supplied: {', '.join(unknown)}"
            await self._json(writer, {"error": {"message": message}}, 400)
            return
        await self.good(writer, dialect, is_streamed)

    async def fault_slow_loris(self, writer, dialect, is_streamed):
        kind = "text/event-stream" if is_streamed else "application/json"
        writer.write(_head(200, kind))
        while True:
            writer.write(_chunk(b" "))
            await writer.drain()
            await asyncio.sleep(0.05)


@contextlib.contextmanager
def upstream_in_a_thread(**options):
    """A scripted upstream for a gateway in another process."""
    upstream, loop = ScriptedUpstream(**options), asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(upstream.start(), loop).result(10)
    try:
        yield upstream
    finally:
        asyncio.run_coroutine_threadsafe(upstream.stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
