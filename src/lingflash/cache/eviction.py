"""What goes first when memory is short: the oldest, unless it saves more than the younger.

GreedyDual-Size (Cao and Irani, 1997): an item's priority is a clock's value at its last use plus
what it saves per unit of its size; the lowest goes first and sets the clock to its priority. Of
equal items the longest unused goes first; one that saves more stays for as much longer.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

ItemT = TypeVar("ItemT", bound=Hashable)


class EvictionQueue(Generic[ItemT]):
    """Items that may go, least worth keeping first.

    Args:
        value: what an item saves per unit of size, as of now. It is asked again before the item
            goes, since what an item saves changes as others come and go.
    """

    def __init__(self, value: Callable[[ItemT], float]) -> None:
        self._value = value
        self._heap: list[tuple[float, int, ItemT]] = []
        self._entries: dict[ItemT, tuple[int, float]] = {}  # newest count, clock at its last use
        self._count = itertools.count()
        self._clock = 0.0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, item: ItemT) -> bool:
        return item in self._entries

    def offer(self, item: ItemT) -> None:
        """Say that an item may go and was used just now."""
        count = next(self._count)
        self._entries[item] = count, self._clock
        heapq.heappush(self._heap, (self._clock + self._value(item), count, item))
        if len(self._heap) > 2 * len(self._entries) + 64:
            self._heap = [e for e in self._heap if self._is_newest(e)]
            heapq.heapify(self._heap)

    def discard(self, item: ItemT) -> None:
        """Say that an item may not go, or is gone."""
        self._entries.pop(item, None)

    def pop(self) -> ItemT | None:
        """Take out the item least worth keeping; None if there is none."""
        while self._heap:
            entry = self._heap[0]
            priority, count, item = entry
            if not self._is_newest(entry):
                heapq.heappop(self._heap)
                continue
            current = self._entries[item][1] + self._value(item)
            if current > priority:
                heapq.heapreplace(self._heap, (current, count, item))
                continue
            heapq.heappop(self._heap)
            del self._entries[item]
            self._clock = max(self._clock, priority)
            return item
        return None

    def _is_newest(self, entry: tuple[float, int, ItemT]) -> bool:
        known = self._entries.get(entry[2])
        return known is not None and known[0] == entry[1]


def checkpoint_interval(num_tokens: int, checkpoint_tokens: float, block_size: int) -> int:
    """Tokens between the state checkpoints inside a long sequence.

    A later sequence that parts from this one at some place computes half an interval again, N / 2
    tokens. Each checkpoint takes memory that would hold the latents of `checkpoint_tokens` others,
    which are computed again when they are missed: num_tokens / N x checkpoint_tokens. (The time of
    the copy itself is far below either.) The sum is smallest where both terms are equal, at
    N = sqrt(2 x num_tokens x checkpoint_tokens): few in long sequences, none where that is longer
    than the sequence itself.

    Args:
        num_tokens: length of the sequence.
        checkpoint_tokens: tokens whose latents take as much memory as a checkpoint.
        block_size: the result is a multiple of it.
    """
    best = (2.0 * num_tokens * checkpoint_tokens) ** 0.5
    return max(round(best / block_size), 1) * block_size
