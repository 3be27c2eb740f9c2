"""The second tier: blocks in host memory, for what the device had to give up.

A copy is begun when the device evicts, and counts for nothing until it is reported complete. What
comes back to the device stays here too, as long as there is room, so that it need not be copied
twice.
"""

from __future__ import annotations

from collections.abc import Callable

from lingflash.cache.block_pool import IndexPool
from lingflash.cache.eviction import EvictionQueue
from lingflash.cache.memory_ops import HostCopy
from lingflash.cache.prefix_tree import PrefixNode

Item = tuple[str, PrefixNode]


class HostTier:
    """Which host blocks hold what.

    Args:
        num_blocks: size; 0 keeps nothing.
        on_evict: told of a copy that was given up, "state" or "block", and its node.
    """

    def __init__(
        self,
        num_blocks: int,
        on_evict: Callable[[str, PrefixNode], None],
    ) -> None:
        self.num_blocks = num_blocks
        self._pool = IndexPool(num_blocks)
        self._on_evict = on_evict
        self._queue: EvictionQueue[Item] = EvictionQueue(self._value)

    @property
    def num_used(self) -> int:
        """Blocks that hold a copy or wait for one."""
        return self._pool.size - self._pool.num_free

    def reserve(self, count: int, node: PrefixNode) -> HostCopy | None:
        """Make room for a copy of something of a node; None if that cannot be."""
        if count > self.num_blocks:
            return None
        while self._pool.num_free < count:
            item = self._queue.pop()
            if item is None:
                return None  # the rest is still being copied, or read
            self._evict(*item)
        places = self._pool.take(count)
        assert places is not None
        return HostCopy(places, node)

    def settle(self, copy: HostCopy, succeeded: bool) -> None:
        """Note that a copy was made or was not."""
        copy.is_settled = True
        copy.is_complete = succeeded and not copy.is_cancelled
        if not copy.is_complete:
            self._pool.give_back(copy.blocks)

    def touch(self, item: Item) -> None:
        """A hit used it: keep it longer."""
        if item in self._queue:
            self._queue.offer(item)

    def update(self, node: PrefixNode) -> None:
        """Offer a node's copies for eviction, or take the offer back."""
        state = node.host_state
        self._set_offer(("state", node), state is not None and state.is_complete)
        block = node.host_block
        is_double = node.block is not None
        is_leaf = not node.children and node.num_owners == 0 and state is None
        may_go = block is not None and block.is_complete and (is_double or is_leaf)
        self._set_offer(("block", node), may_go)

    def drop(self, node: PrefixNode) -> None:
        """Give up a node's copies, those under way too."""
        for kind, copy in (("state", node.host_state), ("block", node.host_block)):
            self._queue.discard((kind, node))
            if copy is not None and copy.is_complete:
                self._pool.give_back(copy.blocks)
            elif copy is not None:
                copy.is_cancelled = True
        node.host_state = node.host_block = None

    def _set_offer(self, item: Item, may_go: bool) -> None:
        if not may_go:
            self._queue.discard(item)
        elif item not in self._queue:
            self._queue.offer(item)

    def _evict(self, kind: str, node: PrefixNode) -> None:
        copy = node.host_state if kind == "state" else node.host_block
        assert copy is not None
        assert copy.is_complete
        self._pool.give_back(copy.blocks)
        if kind == "state":
            node.host_state = None
        else:
            node.host_block = None
        self._on_evict(kind, node)

    def _value(self, item: Item) -> float:
        """Tokens that would be computed again without a copy, per block that it takes."""
        kind, node = item
        if kind == "block" or node.has_device_state or node.host_state is None:
            return 0.0  # a double, or a leaf that nothing can be continued after
        saved = node.distance_to_state()
        blocks = len(node.host_state.blocks)
        if not node.children:
            blocks += saved // len(node.tokens)
        return saved / blocks
