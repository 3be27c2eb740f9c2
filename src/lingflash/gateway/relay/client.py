"""The caller's end of one answer: what was sent there, and when."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping

from starlette.types import Send

# A reader that takes nothing for so long is given up.
_STALL_S = 60.0
KEEP_ALIVE = b": keep-alive\n\n"


class Client:
    """Sends an answer, from whichever task has something to send.

    Args:
        keep_alive_s: a stream that was silent for so long gets a comment; 0 sends none.
        has_head: the client has status and headers; an error can only be told behind them.
        is_over: nothing more may be sent.
    """

    def __init__(self, send: Send, keep_alive_s: float) -> None:
        self._send = send
        self._keep_alive_s = keep_alive_s
        self._opening = asyncio.Lock()
        self._sent_s = time.monotonic()
        self._sending_since: float | None = None
        self.has_head = False
        self.is_over = False

    @property
    def check_every_s(self) -> float:
        """How often is_stalled and keep_alive want to be asked."""
        return min(_STALL_S / 4, self._keep_alive_s / 2 or math.inf)

    def is_stalled(self) -> bool:
        """Whether the client has stopped reading."""
        since = self._sending_since
        return since is not None and time.monotonic() - since > _STALL_S

    async def begin(self, headers: Mapping[str, str]) -> None:
        """Send status and headers, unless that was done; an end that was refused has none."""
        async with self._opening:
            if self.has_head or self.is_over:
                return
            raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
            await self._send({"type": "http.response.start", "status": 200, "headers": raw})
            self.has_head = True

    async def send(self, data: bytes, *, more: bool) -> None:
        """Send a piece of the body."""
        self._sent_s = self._sending_since = time.monotonic()
        self.is_over = not more
        await self._send({"type": "http.response.body", "body": data, "more_body": more})
        self._sending_since = None

    async def keep_alive(self, headers: Mapping[str, str]) -> None:
        """Send a comment if the stream was silent for long; it is no content, and decides nothing.

        Its client and what stands between then do not take it for dead while a prompt is read.
        """
        is_silent = time.monotonic() - self._sent_s >= self._keep_alive_s > 0
        if not is_silent or self._sending_since is not None:
            return
        await self.begin(headers)
        if not self.is_over:
            await self.send(KEEP_ALIVE, more=True)

    async def refuse(self) -> bool:
        """Whether an error can be the whole answer; from then on none begins here."""
        async with self._opening:
            self.is_over = not self.has_head
        return self.is_over
