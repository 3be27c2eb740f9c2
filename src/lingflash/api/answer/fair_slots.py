"""A limited number of places at a time, shared between owners by turns."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, OrderedDict, deque

from lingflash.core.errors import QueueFullError


class FairSlots:
    """Places that are given to owners in turn, none of whom can hold all; of one event loop.

    Args:
        total: places in all.
        per_owner: places of one owner.
        max_waiting: of one owner; one more is refused.
        what: is being done in them, for messages.
    """

    def __init__(self, total: int, per_owner: int, max_waiting: int, what: str) -> None:
        self._free = total
        self._per_owner = per_owner
        self._max_waiting = max_waiting
        self._what = what
        self._held: Counter[str] = Counter()
        # Owners in the order of their turns.
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    def try_acquire(self, owner: str) -> bool:
        """Take a place if one is free and nobody waits for it."""
        if self._free <= 0 or self._held[owner] >= self._per_owner or owner in self._waiting:
            return False
        self._take(owner)
        return True

    async def acquire(self, owner: str) -> None:
        """Wait for a place.

        Raises:
            QueueFullError: too many of the same owner wait already.
        """
        if self.try_acquire(owner):
            return
        queue = self._waiting.setdefault(owner, deque())
        if len(queue) >= self._max_waiting:
            raise QueueFullError(f"{len(queue)} {self._what} already; try again later.")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.append(turn)
        try:
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled():
                self.release(owner)  # it was given one, and leaves
            else:
                with contextlib.suppress(ValueError):
                    queue.remove(turn)
                if not queue and self._waiting.get(owner) is queue:
                    del self._waiting[owner]
            raise

    def release(self, owner: str) -> None:
        """Give a place back."""
        self._free += 1
        self._held[owner] -= 1
        if not self._held[owner]:
            del self._held[owner]
        self._serve()

    def _take(self, owner: str) -> None:
        self._free -= 1
        self._held[owner] += 1

    def _serve(self) -> None:
        while self._free > 0:
            owner = next((o for o in self._waiting if self._held[o] < self._per_owner), None)
            if owner is None:
                return
            queue = self._waiting.pop(owner)
            turn = queue.popleft()
            if queue:
                self._waiting[owner] = queue  # at the end: the others' turns come first
            if not turn.done():
                self._take(owner)
                turn.set_result(None)
