"""Who owns which blocks and state slots: bookkeeping only, the tensors are the engine's.

A sequence holds a lease: a state slot and the blocks of its tokens. It gets all of what it asks
for or nothing, so a refused request leaves no trace. Blocks that are full are published in a
prefix tree; a later sequence with the same beginning (and the same salt) reads them instead of
computing them, up to the deepest point where a state checkpoint exists too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from lingflash.cache.block_pool import IndexPool
from lingflash.cache.prefix_tree import PrefixNode, PrefixTree


@dataclass(slots=True)
class Lease:
    """Memory of one running sequence.

    Args:
        state_slot: place of its recurrent state.
        blocks: its block table, in the order of its tokens.
        num_hit_tokens: tokens that were found computed; a multiple of the block size.
        hit_checkpoint: state slot that holds the states after them, to be copied to state_slot.
        branch_tokens: where the known blocks end, if that is beyond the hit: a checkpoint is worth
            taking there, since two conversations part at that place. Else 0.
        nodes: published nodes of the first blocks, all owned by this lease.
        own_blocks: blocks that are nobody else's: not yet full, or full but published by another
            first.
    """

    state_slot: int
    blocks: list[int] = field(default_factory=list)
    num_hit_tokens: int = 0
    hit_checkpoint: int | None = None
    branch_tokens: int = 0
    nodes: list[PrefixNode] = field(default_factory=list)
    own_blocks: set[int] = field(default_factory=set)


class CacheManager:
    """Leases over a pool of blocks and a pool of state slots.

    Args:
        num_blocks: blocks in the paged cache.
        block_size: tokens in a block.
        num_state_slots: sequences that can hold a state.
        num_checkpoints: further state slots, numbered after those, for checkpoints; 0 keeps none,
            so that nothing is ever found again.
    """

    def __init__(
        self, num_blocks: int, block_size: int, num_state_slots: int, num_checkpoints: int = 0
    ) -> None:
        self.block_size = block_size
        self._blocks = IndexPool(num_blocks)
        self._slots = IndexPool(num_state_slots)
        self._checkpoints = IndexPool(num_checkpoints)
        self._tree = PrefixTree()

    @property
    def num_free_blocks(self) -> int:
        """Blocks that no lease uses; what the prefix tree keeps can be had for the asking."""
        return self._blocks.num_free + self._tree.num_unowned

    @property
    def num_free_slots(self) -> int:
        """State slots without an owner."""
        return self._slots.num_free

    @property
    def num_blocks(self) -> int:
        """Blocks in all."""
        return self._blocks.size

    @property
    def num_slots(self) -> int:
        """State slots of running sequences in all."""
        return self._slots.size

    @property
    def num_checkpoints(self) -> int:
        """Checkpoint slots in use."""
        return self._checkpoints.size - self._checkpoints.num_free

    @property
    def num_cached_blocks(self) -> int:
        """Blocks in the prefix tree."""
        return len(self._tree)

    @property
    def keeps_prefixes(self) -> bool:
        """Whether anything can be found again."""
        return self._checkpoints.size > 0

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold this many tokens."""
        return -(-num_tokens // self.block_size)

    def admit(self, num_tokens: int, keys: Sequence[bytes] = ()) -> Lease | None:
        """Lease a slot and blocks for `num_tokens`, or None if either is short.

        Args:
            num_tokens: tokens that will be computed or found; the last one is always computed,
                since its logits are needed.
            keys: of the sequence's full blocks, from block_keys; none to look nothing up.
        """
        if not self._slots.num_free:
            return None
        matched = self._tree.match(keys[: (num_tokens - 1) // self.block_size])
        depth = next(
            (i for i in range(len(matched), 0, -1) if matched[i - 1].checkpoint is not None), 0
        )
        hit = matched[:depth]
        for node in hit:  # before anything is evicted to make room
            self._tree.own(node)
        fresh = self._take_blocks(self.blocks_for(num_tokens) - depth)
        if fresh is None:
            for node in reversed(hit):
                self._tree.disown(node)
            return None
        slots = self._slots.take(1)
        assert slots is not None
        if hit:
            self._tree.touch_checkpoint(hit[-1])
        return Lease(
            slots[0],
            [node.block for node in hit] + fresh,
            num_hit_tokens=depth * self.block_size,
            hit_checkpoint=hit[-1].checkpoint if hit else None,
            branch_tokens=len(matched) * self.block_size if len(matched) > depth else 0,
            nodes=hit,
            own_blocks=set(fresh),
        )

    def grow(self, lease: Lease, num_tokens: int) -> list[int] | None:
        """Add the blocks that `num_tokens` need; the new ones, or None if there are too few."""
        added = self._take_blocks(max(self.blocks_for(num_tokens) - len(lease.blocks), 0))
        if added is not None:
            lease.blocks.extend(added)
            lease.own_blocks.update(added)
        return added

    def publish(self, lease: Lease, keys: Sequence[bytes]) -> None:
        """Make a lease's computed full blocks known; `keys` are of all of them, in order."""
        while len(lease.nodes) < len(keys):
            index = len(lease.nodes)
            key, parent = keys[index], lease.nodes[-1] if lease.nodes else None
            node = self._tree.get(key)
            if node is None:
                block = lease.blocks[index]
                node = self._tree.insert(key, parent, block)
                lease.own_blocks.remove(block)
            else:
                # Computed by another sequence meanwhile: point to it, keep our copy until the end.
                self._tree.own(node)
            lease.nodes.append(node)

    def checkpoint(self, lease: Lease, num_tokens: int) -> int | None:
        """Reserve a slot for the states after the first `num_tokens` of a lease.

        Returns:
            The slot to copy them to; None if there is no such block boundary, a checkpoint exists,
            or none are kept.
        """
        index, rest = divmod(num_tokens, self.block_size)
        if rest or not 0 < index <= len(lease.nodes) or not self._checkpoints.size:
            return None
        node = lease.nodes[index - 1]
        if node.checkpoint is not None:
            self._tree.touch_checkpoint(node)
            return None
        slots = self._checkpoints.take(1)
        slot = self._tree.drop_oldest_checkpoint() if slots is None else slots[0] + self._slots.size
        if slot is not None:
            self._tree.set_checkpoint(node, slot)
        return slot

    def release(self, lease: Lease, *, keep_prefix: bool = True) -> None:
        """Take everything back; the lease is empty and must not be used again.

        Args:
            lease: of a sequence that has ended or lost its memory.
            keep_prefix: False forgets the published blocks that no other lease reads, because their
                content is in doubt.
        """
        self._blocks.give_back(sorted(lease.own_blocks))
        self._slots.give_back([lease.state_slot])
        for node in reversed(lease.nodes):
            self._tree.disown(node)
            if not keep_prefix and not node.num_owners and not node.num_children:
                self._reclaim(self._tree.remove(node))
        lease.blocks, lease.own_blocks, lease.nodes = [], set(), []
        lease.state_slot = -1

    def drop_checkpoints(self, slots: Iterable[int]) -> None:
        """Forget checkpoints whose copy was not made."""
        doomed = set(slots)
        for node in [n for n in self._tree if n.checkpoint in doomed]:
            slot = self._tree.drop_checkpoint(node)
            self._checkpoints.give_back([slot - self._slots.size])

    def forget_prefixes(self) -> None:
        """Empty the prefix tree, except for what running sequences read."""
        while self._evict():
            pass

    def _take_blocks(self, count: int) -> list[int] | None:
        if count > self.num_free_blocks:
            return None
        while self._blocks.num_free < count:
            if not self._evict():
                return None
        return self._blocks.take(count)

    def _evict(self) -> bool:
        node = self._tree.oldest_removable()
        if node is None:
            return False
        self._reclaim(self._tree.remove(node))
        return True

    def _reclaim(self, node: PrefixNode) -> None:
        self._blocks.give_back([node.block])
        if node.checkpoint is not None:
            self._checkpoints.give_back([node.checkpoint - self._slots.size])
