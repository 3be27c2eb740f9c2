"""Token ids of text that was encoded before: a conversation sends all of itself with every turn.

Text between two special tokens is encoded on its own, whatever stands beside it, so its ids can be
looked up. What one owner sent makes nothing faster for another.
"""

from __future__ import annotations

import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable

_MOST_BYTES = 128 * 2**20
# Of an entry, beside its text and ids: the key, both objects, and their place in the dictionary.
_ENTRY_BYTES = 400


class RunMemo:
    """Keeps the ids of what was used last; may be used by several threads.

    Args:
        most_bytes: of memory, for texts and ids.
    """

    def __init__(self, most_bytes: int = _MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._entries: OrderedDict[tuple[str, str], array[int]] = OrderedDict()
        self._lock = threading.Lock()
        self.num_bytes = 0

    def encode(self, owner: str, text: str, encode: Callable[[str], list[int]]) -> array[int]:
        """The ids of a text, from memory or from `encode`.

        Args:
            owner: whose text it is; nobody else finds it.
            text: without special tokens.
        """
        key = owner, text
        with self._lock:
            found = self._entries.get(key)
            if found is not None:
                self._entries.move_to_end(key)
                return found
        ids = array("I", encode(text))
        size = _size(key, ids)
        if size > self._most_bytes // 2:  # not at the price of all others
            return ids
        with self._lock:
            if key not in self._entries:
                self._entries[key] = ids
                self.num_bytes += size
            while self.num_bytes > self._most_bytes:
                self.num_bytes -= _size(*self._entries.popitem(last=False))
        return ids


def _size(key: tuple[str, str], ids: array[int]) -> int:
    # A character takes one, two or four bytes, by the widest of its text: two are the mean.
    return _ENTRY_BYTES + 2 * len(key[1]) + ids.itemsize * len(ids)
