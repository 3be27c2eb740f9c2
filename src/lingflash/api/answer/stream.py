"""Streams an answer as server-sent events.

What is ready together is written together. A reader that falls behind makes `send` wait, and
meanwhile its events gather in its own queue, so it slows nobody else. After the first byte an
error can only be an event, in the form of the endpoint, such as `data: {"error": ...}`; then comes
the end, without `[DONE]`.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from lingflash.api.answer.generation import Answering, Deltas
from lingflash.core.errors import LingflashError
from lingflash.httpd.body import json_response
from lingflash.httpd.client_gone import ClientGone, until_client_gone
from lingflash.httpd.error_map import envelope
from lingflash.protocol.sse import progress_comment, sse_event

# A reader that takes nothing for so long is given up; else it would hold its answer for ever.
STALL_TIMEOUT_S = 60.0
# Proxies and clients end a connection that is silent for 60 s or less, as a long prompt would be.
PING_AFTER_S = 10.0


class AnswerWriter(ABC):
    """Turns deltas into the bytes of chunks, or all of them into one body; one per answer."""

    def begin(self) -> bytes:
        """What comes before the first chunk; nothing, unless overridden."""
        return b""

    def ping(self) -> bytes:
        """What tells a waiting client that its answer is still being made."""
        return b": ping\n\n"

    @abstractmethod
    def write(self, deltas: Deltas) -> bytes:
        """The chunks for these deltas, perhaps none."""

    @abstractmethod
    def end(self) -> bytes:
        """What ends a whole answer, with the last mark."""

    def fail(self, error: LingflashError) -> bytes:
        """The one event that ends an answer that cannot be finished."""
        return sse_event(envelope(error))

    async def finished(self) -> None:  # noqa: B027 (most have nothing to do)
        """Called once, before the last bytes are sent, however the answer ended."""

    @abstractmethod
    async def collect(self) -> None:
        """Read the whole answer."""

    @abstractmethod
    def whole(self) -> dict[str, Any]:
        """The body of an answer that is not streamed."""

    def has_body_after(self, error: LingflashError) -> bool:
        """Whether `whole` tells of what ended the answer; else the error is the answer."""
        return False


class EventStreamResponse(Response):
    """An answer that is written while it is generated.

    Args:
        generation: already accepted by the engine.
    """

    media_type = "text/event-stream"

    def __init__(
        self, generation: Answering, writer: AnswerWriter, headers: Mapping[str, str]
    ) -> None:
        # Not super().__init__: it would set a content-length.
        self.status_code = 200
        self.background = None
        self.raw_headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
            *((name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()),
        ]
        self._generation = generation
        self._writer = writer
        self._sending_since: float | None = None
        self._sent_at = time.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write the answer; abort it if the client goes away."""
        generation = self._generation
        reason: BaseException | None = None
        pinging = asyncio.create_task(self._ping(send))
        try:
            await send(
                {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                }
            )
            await until_client_gone(
                self._write_chunks(send),
                receive,
                is_stalled=self._is_stalled,
                check_every_s=STALL_TIMEOUT_S / 4,
            )
        except ClientGone as gone:
            reason = gone
            return
        except LingflashError as error:
            reason = error
            last = self._writer.fail(error)
        except Exception as error:
            reason = error
            failed = LingflashError("The server failed while streaming this answer.")
            last = self._writer.fail(failed)
            pinging.cancel()
            await _send_body(send, last, more=False)
            raise
        else:
            last = self._writer.end()
        finally:
            pinging.cancel()
            await generation.close(reason)
            await self._writer.finished()
        await _send_body(send, last, more=False)

    async def _write_chunks(self, send: Send) -> None:
        first = self._writer.begin()
        if first:
            await _send_body(send, first, more=True)
        async for deltas in self._generation.deltas():
            chunks = self._writer.write(deltas)
            if (progress := self._generation.take_progress()) is not None:
                chunks = progress_comment(progress) + chunks
            if chunks:
                self._sending_since = time.monotonic()
                await _send_body(send, chunks, more=True)
                self._sent_at, self._sending_since = self._sending_since, None

    async def _ping(self, send: Send) -> None:
        while True:
            await asyncio.sleep(max(self._sent_at + PING_AFTER_S - time.monotonic(), 0.01))
            now = time.monotonic()
            if now - self._sent_at >= PING_AFTER_S:
                self._sent_at = now
                if self._sending_since is None:  # else its reader is behind, not waiting
                    await _send_body(send, self._writer.ping(), more=True)

    def _is_stalled(self) -> bool:
        since = self._sending_since
        return since is not None and time.monotonic() - since > STALL_TIMEOUT_S


async def send_answer(
    generation: Answering,
    answer: AnswerWriter,
    request: Request,
    *,
    stream: bool,
    headers: Mapping[str, str],
) -> Response:
    """The response of a generation that the engine has accepted: a stream, or one body.

    Raises:
        LingflashError: the engine failed before there was a body.
    """
    if stream:
        return EventStreamResponse(generation, answer, headers)
    failure: BaseException | None = None
    try:
        await until_client_gone(answer.collect(), request.receive)
    except ClientGone:
        return Response(status_code=499)  # for the log; nobody reads it
    except BaseException as error:
        failure = error
        if not isinstance(error, LingflashError) or not answer.has_body_after(error):
            raise
    finally:
        await generation.close(failure)
        await answer.finished()
    return json_response(answer.whole(), headers=dict(headers))


async def _send_body(send: Send, body: bytes, *, more: bool) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})
