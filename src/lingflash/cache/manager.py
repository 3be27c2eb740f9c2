"""Who owns which blocks and state slots: bookkeeping only, the tensors are the engine's.

A sequence holds a lease: a state slot and the blocks of its tokens. It gets all of what it asks
for or nothing, so a refused request leaves no trace. Blocks that are full are published in a
prefix tree; a later sequence with the same beginning (and the same salt) reads them instead of
computing them, up to the deepest point where a state checkpoint exists too.

A checkpoint is kept in blocks like those of latents, any of them, so that one pool serves both
and the split follows their use. What a lease does not read may go when memory is short
(`eviction.py`); with a host tier it is copied there first. A state slot that no sequence needs is
lent to a checkpoint (`checkpoints.py`).

Where a sequence ends its unfinished block and its states are kept as they are, for the one that
goes on from there; what ends like it has the last full block.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence

from lingflash.cache.kept_prefixes import KeptPrefixes
from lingflash.cache.lease import Lease
from lingflash.cache.memory_ops import (
    HostCopy,
    LoadBlocks,
    MemoryOp,
    StoreBlocks,
    StoreState,
    ZeroBlocks,
    ZeroSlot,
)
from lingflash.cache.miss import explain
from lingflash.cache.prefix_tree import PrefixNode, SequenceEnd
from lingflash.core.types import CacheReport

TokensAt = Callable[[int, int], Sequence[int]]


class CacheManager:
    """Leases over a pool of blocks and a pool of state slots.

    Args:
        num_blocks: blocks of the paged cache, for latents and checkpoints.
        num_state_slots: sequences that can hold a state.
        checkpoint_blocks: blocks that hold one state checkpoint; 0 keeps none, so that nothing is
            ever found again.
        num_host_blocks: blocks of the host tier; 0 has none.
        end_blocks: blocks that hold the states of a sequence's end; 0 keeps no unfinished blocks.
        block_bytes, slot_bytes: what one takes, for bytes_by_use.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        num_state_slots: int,
        checkpoint_blocks: int = 0,
        num_host_blocks: int = 0,
        *,
        end_blocks: int = 0,
        block_bytes: int = 0,
        slot_bytes: int = 0,
    ) -> None:
        self.block_size = block_size
        self.checkpoint_blocks = checkpoint_blocks
        self.keeps_ends = min(checkpoint_blocks, end_blocks) > 0
        self.block_bytes, self.slot_bytes = block_bytes, slot_bytes
        self._kept = KeptPrefixes(
            num_blocks,
            block_size,
            num_state_slots,
            checkpoint_blocks,
            num_host_blocks,
            end_blocks,
        )
        self._leases: dict[int, Lease] = {}  # by state slot

    @property
    def num_free_blocks(self) -> int:
        """Blocks that no lease uses; what the prefix tree keeps can be had for the asking."""
        return self._kept.num_free_blocks

    @property
    def num_free_slots(self) -> int:
        """State slots that no lease uses; those that are lent can be had for the asking."""
        return self._kept.slots.num_free + len(self._kept.checkpoints.lent)

    @property
    def num_blocks(self) -> int:
        return self._kept.blocks.size

    @property
    def num_slots(self) -> int:
        """State slots of running sequences in all."""
        return self._kept.slots.size

    @property
    def num_checkpoints(self) -> int:
        """State checkpoints on the device."""
        return self._kept.checkpoints.num_in_blocks + len(self._kept.checkpoints.lent)

    @property
    def num_checkpoint_blocks(self) -> int:
        """Blocks that hold checkpoints; some are in lent slots instead."""
        return self._kept.checkpoints.num_blocks_used

    @property
    def num_cached_blocks(self) -> int:
        """Blocks of latents that no lease reads."""
        return self._kept.num_unowned

    @property
    def keeps_prefixes(self) -> bool:
        """Whether anything can be found again."""
        return self.checkpoint_blocks > 0

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def bytes_by_use(self) -> dict[str, int]:
        """What the memory serves; all but "host" are parts of one budget and add up to it."""
        running = self.num_blocks - self.num_free_blocks
        blocks = {
            "running": running,
            "prefixes": self._kept.num_unowned,
            "checkpoints": self.num_checkpoint_blocks,
            "free": self._kept.blocks.num_free,
            "host": self._kept.host.num_used,
        }
        found = {use: count * self.block_bytes for use, count in blocks.items()}
        num_lent = len(self._kept.checkpoints.lent)
        found["checkpoints"] += num_lent * self.slot_bytes
        return found | {"state_slots": (self.num_slots - num_lent) * self.slot_bytes}

    def take_ops(self) -> list[MemoryOp]:
        """What must be done to the memory before the next forward pass, in this order."""
        ops = self._kept.ops[:]
        self._kept.ops.clear()
        return ops

    def admit(
        self, num_tokens: int, keys: Sequence[bytes] = (), tokens: TokensAt | None = None
    ) -> Lease | None:
        """Lease a slot and blocks for `num_tokens`, or None if either is short.

        Args:
            num_tokens: tokens that will be computed or found; the last one is always computed,
                since its logits are needed.
            keys: of the sequence's full blocks, from block_keys; none to look nothing up.
            tokens: gives the sequence's tokens from a position, so many; without it no unfinished
                block is looked up.
        """
        if not self._kept.free_slot():
            return None
        matched = self._kept.tree.match(keys[: (num_tokens - 1) // self.block_size])
        depth, end = self._deepest(matched, num_tokens, tokens)
        hit = matched[:depth]
        self._kept.own(hit)  # before anything is evicted to make room
        # Those on the device are closed towards the root.
        on_device = bisect_left(hit, True, key=lambda node: node.block is None)
        num_found = on_device + (end is not None)
        num_fresh = self.blocks_for(num_tokens) - num_found
        if num_fresh > self.num_free_blocks - (end is not None):
            self._kept.disown(reversed(hit))
            return None
        slot = self._take_slot(end, hit)
        num_hit_tokens = depth * self.block_size + (0 if end is None else len(end.tokens))
        lease = Lease(
            slot,
            num_hit_tokens=num_hit_tokens,
            num_known_tokens=max(len(matched) * self.block_size, num_hit_tokens),
            lost_checkpoint=any(node.lost_state for node in matched[depth:]),
            nodes=hit,
        )
        self._leases[slot] = lease
        fresh = self._kept.take_blocks(num_fresh)
        assert fresh is not None
        missing = hit[on_device:]
        if missing:
            sources = [b for node in missing if node.host_block for b in node.host_block.blocks]
            self._kept.ops.append(LoadBlocks(sources, fresh[: len(missing)]))
        for node, block in zip(missing, fresh, strict=False):
            self._kept.put(node, block)
        own = fresh[len(missing) :]
        self._zero(own)
        if end is not None:
            own.insert(0, end.block)
        lease.blocks = [node.block for node in hit if node.block is not None] + own
        lease.own_blocks = set(own)
        return lease

    def _deepest(
        self, matched: Sequence[PrefixNode], num_tokens: int, tokens: TokensAt | None
    ) -> tuple[int, SequenceEnd | None]:
        """How many of these nodes can be continued, and a sequence's end after them if there is."""
        size = self.block_size
        for depth in range(len(matched), 0, -1):
            node, start = matched[depth - 1], depth * size
            if node.ends and tokens is not None:
                end = node.longest_end(tokens(start, min(size, num_tokens - start) - 1))
                if end is not None:
                    return depth, end
            if node.has_state:
                return depth, None
        return 0, None

    def _take_slot(self, end: SequenceEnd | None, hit: Sequence[PrefixNode]) -> int:
        """A state slot with the states after what was found; before fresh blocks are taken.

        Those may be the checkpoint's own. A sequence's end is taken over, but for its block.
        """
        if end is not None:
            return self._kept.resume(end)
        slots = self._kept.slots.take(1)
        assert slots is not None
        self._kept.ops.append(ZeroSlot(slots[0]))
        if hit:
            self._kept.load_state(hit[-1], slots[0])
        return slots[0]

    def explain_miss(
        self, lease: Lease, keys: Sequence[bytes], root: bytes, tokens: TokensAt
    ) -> CacheReport:
        """Say why a lease did not find all of its prompt's full blocks.

        Args:
            lease: just admitted with these keys.
            root: key of the salt.
            tokens: gives the sequence's tokens from a position, so many.
        """
        return explain(self._kept.tree, self._kept.gone, keys, lease, root, tokens)

    def grow(self, lease: Lease, num_tokens: int) -> bool:
        """Add the blocks that `num_tokens` need, or nothing and False if there are too few."""
        added = self._kept.take_blocks(max(self.blocks_for(num_tokens) - len(lease.blocks), 0))
        if added is None:
            return False
        lease.blocks.extend(added)
        lease.own_blocks.update(added)
        self._zero(added)
        return True

    def publish(
        self,
        lease: Lease,
        keys: Sequence[bytes],
        root: bytes,
        tokens: TokensAt,
    ) -> None:
        """Make a lease's computed full blocks known; `keys` are of all of them, in order."""
        if lease.is_detached:
            return
        while len(lease.nodes) < len(keys):
            index = len(lease.nodes)
            key, parent = keys[index], lease.nodes[-1] if lease.nodes else None
            node = self._kept.tree.get(key)
            if node is None:
                ids = tokens(index * self.block_size, self.block_size)
                node = self._kept.tree.insert(key, parent, root, ids)
                self._kept.gone.discard(key)
            # Else computed by another sequence meanwhile: read that, keep our copy until the end.
            self._kept.own([node])
            if node.block is None:
                block = lease.blocks[index]
                lease.own_blocks.remove(block)
                self._kept.put(node, block)
            lease.nodes.append(node)

    def checkpoint(self, lease: Lease, num_tokens: int, slot: int | None = None) -> bool:
        """Keep the states after the first `num_tokens` of a lease, if there is room for them.

        Args:
            slot: that has them until the next step; the lease's own if None.

        Returns:
            Whether a copy will be made: not if there is no such block boundary, a checkpoint
            exists, or none are kept.
        """
        index, rest = divmod(num_tokens, self.block_size)
        if lease.is_detached or not self.keeps_prefixes:
            return False
        if rest or not 0 < index <= len(lease.nodes):
            return False
        node = lease.nodes[index - 1]
        if node.has_device_state:
            self._kept.checkpoints.touch(node)
        if node.has_device_state or node.host_state is not None:
            return False
        if not self._kept.checkpoints.keep(node, lease.state_slot if slot is None else slot):
            return False
        node.lost_state = False
        return True

    def release(
        self, lease: Lease, *, keep_prefix: bool = True, end_tokens: Sequence[int] = ()
    ) -> None:
        """Take everything back; the lease is empty and must not be used again.

        Args:
            lease: of a sequence that has ended or lost its memory.
            keep_prefix: False forgets the published blocks that no other lease reads, because their
                content is in doubt.
            end_tokens: computed tokens after the last published block, where the states in the slot
                are those after all of them; kept as a sequence's end.
        """
        del self._leases[lease.state_slot]
        if not self._keep_end(lease, end_tokens):
            self._kept.slots.give_back([lease.state_slot])
        self._kept.blocks.give_back(sorted(lease.own_blocks))
        if lease.is_detached:
            self._kept.give_up(lease.nodes)
        elif keep_prefix:
            self._kept.disown(reversed(lease.nodes))
        else:
            for node in reversed(lease.nodes):
                self._kept.disown([node])
                if node.is_device_leaf:
                    self._kept.forget(node)
        lease.blocks, lease.own_blocks, lease.nodes = [], set(), []
        lease.state_slot = -1

    def _keep_end(self, lease: Lease, tokens: Sequence[int]) -> bool:
        """Keep a lease's slot and unfinished block; False if there is no reason to."""
        index = len(lease.nodes)
        if not tokens or not index or not self.keeps_ends or lease.is_detached:
            return False
        block = lease.blocks[index]
        if not self._kept.add_end(lease.nodes[-1], tokens, block, lease.state_slot):
            return False
        lease.own_blocks.remove(block)
        return True

    def reset(self) -> tuple[int, int]:
        """Forget every prefix, in both tiers; running sequences keep what they read.

        Nothing that was computed before is found by a request that is admitted later.

        Returns:
            Blocks and checkpoints that were forgotten.
        """
        counts = len(self._kept.tree), self.num_checkpoints
        for lease in self._leases.values():
            lease.is_detached = True
        self._kept.clear()
        return counts

    def step_failed(self, ops: Iterable[MemoryOp]) -> None:
        """The operations before a step were not (all) made: what is cached is in doubt."""
        self.reset()
        for op in ops:
            if isinstance(op, StoreBlocks | StoreState):
                self.host_copied(op.copy, succeeded=False)

    def host_copied(self, copy: HostCopy, *, succeeded: bool = True) -> None:
        """A copy to the host tier was made, or was not; before this it counts for nothing."""
        self._kept.host_copied(copy, succeeded=succeeded)

    def _zero(self, blocks: list[int]) -> None:
        last = self._kept.ops[-1] if self._kept.ops else None
        if isinstance(last, ZeroBlocks):
            last.blocks += blocks
        elif blocks:
            self._kept.ops.append(ZeroBlocks(list(blocks)))
