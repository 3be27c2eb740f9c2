"""Why a prefix was not found, or not all of it.

Only what a salt's own requests left is looked at: a chain of keys starts from the salt, and so do
the tokens that are compared.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import islice

from lingflash.cache.prefix_tree import PrefixNode, PrefixTree
from lingflash.core.types import CacheReport

# Known continuations that are compared, newest first.
_COMPARED = 256
_MAX_GONE = 1 << 16


class GoneKeys:
    """Keys of blocks that were evicted, the newest of them.

    Args:
        num_blocks: of the cache; a few times as many keys are remembered.
    """

    def __init__(self, num_blocks: int) -> None:
        self._size = min(4 * num_blocks, _MAX_GONE)
        self._keys: OrderedDict[bytes, None] = OrderedDict()

    def __contains__(self, key: bytes) -> bool:
        return key in self._keys

    def add(self, key: bytes) -> None:
        """Remember an evicted block."""
        self._keys[key] = None
        self._keys.move_to_end(key)
        if len(self._keys) > self._size:
            self._keys.popitem(last=False)

    def discard(self, key: bytes) -> None:
        """It is known again."""
        self._keys.pop(key, None)

    def clear(self) -> None:
        """Remember nothing."""
        self._keys.clear()


def explain(
    tree: PrefixTree,
    gone: GoneKeys,
    keys: Sequence[bytes],
    hit: Sequence[PrefixNode],
    num_known_tokens: int,
    root: bytes,
    tokens: Callable[[int, int], Sequence[int]],
    block_size: int,
) -> CacheReport:
    """Say why not all of a sequence's blocks were found.

    Args:
        tree: what is known.
        gone: what was.
        keys: of the blocks that were looked up.
        hit: nodes that were found, with a state after the last.
        num_known_tokens: tokens whose blocks were known when they were looked up.
        root: key of the salt.
        tokens: gives the sequence's tokens from a position, so many.
        block_size: tokens in a block.
    """
    num_known = num_known_tokens // block_size
    if not keys:
        return CacheReport("too_short")
    if len(hit) == len(keys):
        return CacheReport("found")
    if num_known > len(hit):
        # Some may have been evicted since, to make room for this very sequence.
        known = [tree.get(key) for key in keys[len(hit) : num_known]]
        was_there = any(node is not None and node.lost_state for node in known)
        return CacheReport("checkpoint_evicted" if was_there else "no_checkpoint", num_known_tokens)
    if keys[num_known] in gone or tree.get(keys[num_known]) is not None:
        return CacheReport("blocks_evicted", num_known_tokens)
    mine = tokens(num_known_tokens, block_size)
    last = hit[-1] if hit else None
    known_next = islice(tree.continuations(last, root), _COMPARED)
    num_equal = max((_num_equal(mine, node.tokens) for node in known_next), default=None)
    if num_equal is None:
        return CacheReport("new_tokens" if hit else "no_prefix", num_known_tokens)
    position = num_known_tokens + num_equal
    return CacheReport("differs" if position else "no_prefix", position)


def _num_equal(a: Sequence[int], b: Sequence[int]) -> int:
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))
