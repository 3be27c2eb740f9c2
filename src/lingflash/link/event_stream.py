"""The iterator that EngineClient.submit returns: a queue of one request's events.

Shared by the engine clients. It can also hand over everything that has arrived
(`take_ready`), so that a server writes several tokens at once to a reader that fell behind.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from lingflash.core.types import TokenEvent


class EventStream:
    """Events of one request, in order, until each of its choices has ended.

    Args:
        request_id: whose events.
        num_choices: how many finish reasons end it.
        on_leave: called with the request id if the reader leaves before the end.
    """

    __slots__ = ("_events", "_on_leave", "_open_choices", "_waiter", "request_id")

    def __init__(self, request_id: str, num_choices: int, on_leave: Callable[[str], None]) -> None:
        self.request_id = request_id
        self._events: deque[TokenEvent] = deque()
        self._open_choices = num_choices  # not yet handed to the reader as finished
        self._waiter: asyncio.Future[None] | None = None
        self._on_leave = on_leave

    def put(self, event: TokenEvent) -> None:
        """Append an event; called on the loop that reads."""
        if self._open_choices <= 0:
            return  # the reader left, or all choices have ended
        self._events.append(event)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> TokenEvent:
        while not self._events:
            if self._open_choices <= 0:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            except asyncio.CancelledError:
                await self.aclose()
                raise
            finally:
                self._waiter = None
        return self._taken(self._events.popleft())

    def take_ready(self) -> list[TokenEvent]:
        """Return what has arrived, without waiting."""
        ready = [self._taken(event) for event in self._events]
        self._events.clear()
        return ready

    async def aclose(self) -> None:
        """Leave; the request is aborted if it still runs."""
        if self._open_choices > 0:
            self._open_choices = 0
            self._events.clear()
            self._on_leave(self.request_id)

    def _taken(self, event: TokenEvent) -> TokenEvent:
        if event.finish_reason is not None:
            self._open_choices -= 1
        return event
