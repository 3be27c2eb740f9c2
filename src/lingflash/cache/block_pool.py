"""A fixed number of equal things, handed out and taken back: cache blocks, state slots."""

from __future__ import annotations

import heapq
from collections.abc import Iterable


class IndexPool:
    """Integers 0 .. size - 1, each with at most one owner.

    The lowest free ones are handed out first, in ascending order: used memory stays compact, and
    blocks that follow each other can be read without a copy. What need not lie together is taken
    from the other end.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.num_free = size
        # Each index is in a heap at least as long as it is free; taken ones are skipped there.
        self._lowest = list(range(size))
        self._highest = [-index for index in reversed(range(size))]
        self._is_free = bytearray(b"\x01" * size)

    def take(self, count: int, *, highest: bool = False) -> list[int] | None:
        """Hand out `count` of them, or None (and nothing) if there are not so many.

        Args:
            highest: the highest free ones, in descending order.
        """
        if count > self.num_free:
            return None
        taken: list[int] = []
        heap = self._highest if highest else self._lowest
        while len(taken) < count:
            index = abs(heapq.heappop(heap))
            if self._is_free[index]:
                self._is_free[index] = 0
                taken.append(index)
        self.num_free -= count
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
            heapq.heappush(self._lowest, index)
            heapq.heappush(self._highest, -index)
        self.num_free += len(returned)
        if len(self._lowest) + len(self._highest) > 6 * self.size + 64:
            self._rebuild()

    def _rebuild(self) -> None:
        free = [index for index in range(self.size) if self._is_free[index]]
        self._lowest, self._highest = free, [-index for index in reversed(free)]
