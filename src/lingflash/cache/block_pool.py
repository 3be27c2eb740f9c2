"""A fixed number of equal things, handed out and taken back: cache blocks, state slots."""

from __future__ import annotations

import heapq
from collections.abc import Iterable


class IndexPool:
    """Integers 0 .. size - 1, each with at most one owner.

    The lowest free ones are handed out first, in ascending order: used memory stays compact, and
    blocks that follow each other can be read without a copy.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._free = list(range(size))
        self._is_free = bytearray(b"\x01" * size)

    @property
    def num_free(self) -> int:
        """How many have no owner."""
        return len(self._free)

    def take(self, count: int) -> list[int] | None:
        """Hand out `count` of them, or None (and nothing) if there are not so many."""
        if count > len(self._free):
            return None
        taken = [heapq.heappop(self._free) for _ in range(count)]
        for index in taken:
            self._is_free[index] = 0
        return taken

    def give_back(self, indices: Iterable[int]) -> None:
        """Take back what `take` handed out.

        Raises:
            ValueError: one of them has no owner; nothing is taken back then.
        """
        returned = list(indices)
        seen: set[int] = set()
        for index in returned:
            if not 0 <= index < self.size or self._is_free[index] or index in seen:
                raise ValueError(f"index {index} is given back but has no owner.")
            seen.add(index)
        for index in returned:
            self._is_free[index] = 1
            heapq.heappush(self._free, index)
