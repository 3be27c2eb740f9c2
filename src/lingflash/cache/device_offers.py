"""What the device may evict: blocks at the leaves, and checkpoints anywhere."""

from __future__ import annotations

from lingflash.cache.eviction import EvictionQueue
from lingflash.cache.prefix_tree import PrefixNode, SequenceEnd

Holder = PrefixNode | SequenceEnd
Item = tuple[str, Holder]


class DeviceOffers:
    """Keeps the eviction queue in step with the tree.

    An item is "state", a checkpoint in blocks; "slot", one in a lent slot, which gives no block but
    at a leaf keeps its blocks from going; "block", a leaf's latents once it has no checkpoint; or
    "end", a sequence's end, which goes with all that it holds.
    """

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self.queue: EvictionQueue[Item] = EvictionQueue(self._value)

    def pop(self) -> Item | None:
        """Take out what is least worth keeping; None if nothing may go."""
        return self.queue.pop()

    def add_state(self, node: PrefixNode) -> None:
        """Offer a checkpoint in blocks, as just used."""
        self.queue.offer(("state", node))
        self.update(node)

    def add_end(self, end: SequenceEnd) -> None:
        """Offer a sequence's end, as just used; its parent is no leaf any more."""
        self.queue.offer(("end", end))
        self.update(end.parent)

    def touch(self, node: PrefixNode) -> None:
        """A checkpoint was of use: keep it longer."""
        for item in (("state", node), ("slot", node)):
            if item in self.queue:
                self.queue.offer(item)

    def discard(self, kind: str, holder: Holder) -> None:
        """Take an offer back."""
        self.queue.discard((kind, holder))

    def update(self, node: PrefixNode) -> None:
        """Make the offers of a block and of a slot what the node's neighbours allow."""
        is_leaf = node.block is not None and node.is_device_leaf
        self._set(("block", node), is_leaf and not node.has_device_state)
        self._set(("slot", node), is_leaf and node.slot is not None)

    def _set(self, item: Item, may_go: bool) -> None:
        if not may_go:
            self.queue.discard(item)
        elif item not in self.queue:
            self.queue.offer(item)

    def _value(self, item: Item) -> float:
        """Tokens that would be computed again without an item, per block that it takes."""
        kind, node = item
        if kind == "block":
            return 0.0  # nothing after it can be continued; or the host tier has a copy
        saved = node.distance_to_state()
        blocks = len(node.state or ())
        if isinstance(node, SequenceEnd):
            blocks += 1
        elif node.is_device_leaf:  # the blocks before it serve nothing else
            blocks += saved // self._block_size
        return saved / blocks
