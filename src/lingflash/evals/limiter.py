"""How many requests may be in flight: halved by a 429, one more for each round of good answers."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator


class Limiter:
    """Additive increase, multiplicative decrease, as TCP does it.

    Args:
        most: never more in flight.

    Attributes:
        now: how many may be in flight.
        least: the lowest that `now` has been.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.now = float(most)
        self.least = most
        self._in_flight = 0
        self._paused_until = 0.0
        self._cut_at = 0.0
        self._changed = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def slot(self) -> AsyncIterator[float]:
        """Wait for a place; gives the time it was had, which `cut` wants."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._in_flight < int(self.now))
            self._in_flight += 1
        try:
            while (wait := self._paused_until - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            yield time.monotonic()
        finally:
            self._in_flight -= 1
            async with self._changed:
                self._changed.notify_all()

    def cut(self, started_at: float, pause_s: float) -> None:
        """The server wants less, and nothing for `pause_s`.

        Requests that were under way when it was cut last say nothing new.
        """
        moment = time.monotonic()
        self._paused_until = max(self._paused_until, moment + pause_s)
        if started_at >= self._cut_at:
            self._cut_at = moment
            self.now = max(1.0, self.now / 2)
            self.least = min(self.least, int(self.now))

    def grow(self) -> None:
        """An answer was good."""
        self.now = min(float(self.most), self.now + 1 / self.now)
