"""Why a prefix was not found, or not all of it.

Only what a salt's own requests left is looked at: a chain of keys starts from the salt, and so do
the tokens that are compared.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import islice

from lingflash.cache.lease import Lease
from lingflash.cache.prefix_tree import PrefixTree
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
    lease: Lease,
    root: bytes,
    tokens: Callable[[int, int], Sequence[int]],
) -> CacheReport:
    """Say why not all of a sequence's blocks were found.

    Args:
        lease: what was found; some of what was known then may have made room for it since.
        root: key of the salt.
        tokens: gives the sequence's tokens from a position, so many.
    """
    if not keys:
        return CacheReport("too_short")
    if len(lease.nodes) == len(keys):
        return CacheReport("found")
    known = lease.num_known_tokens
    if known > lease.num_hit_tokens:
        return CacheReport(
            "checkpoint_evicted" if lease.lost_checkpoint else "no_checkpoint", known
        )
    key = keys[len(lease.nodes)]
    if key in gone or tree.get(key) is not None:
        return CacheReport("blocks_evicted", known)
    last = lease.nodes[-1] if lease.nodes else None
    mine: Sequence[int] = ()
    num_equal = None
    for node in islice(tree.continuations(last, root), _COMPARED):
        mine = mine or tokens(known, len(node.tokens))
        num_equal = max(num_equal or 0, _num_equal(mine, node.tokens))
    if num_equal is None:
        return CacheReport("new_tokens" if known else "no_prefix", known)
    position = known + num_equal
    return CacheReport("differs" if position else "no_prefix", position)


def _num_equal(a: Sequence[int], b: Sequence[int]) -> int:
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))
