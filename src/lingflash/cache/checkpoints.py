"""Where the states that are kept lie on the device: in blocks, or in a state slot that is idle.

A slot that no sequence needs is lent, so that a copy to blocks, and back, is made only when slots
are short. The holders are nodes of the prefix tree and sequences' ends.
"""

from __future__ import annotations

from collections.abc import Callable

from lingflash.cache.block_pool import IndexPool
from lingflash.cache.device_offers import DeviceOffers
from lingflash.cache.memory_ops import CopyState, LoadState, MemoryOp, SaveState
from lingflash.cache.prefix_tree import PrefixNode, SequenceEnd

Holder = PrefixNode | SequenceEnd
TakeBlocks = Callable[[int], list[int] | None]


class Checkpoints:
    """Gives checkpoints a place, and takes it back.

    Args:
        blocks, slots: the device's pools.
        offers: told of what may be evicted.
        ops: what is to be done to the memory, in order; added to.
        take_blocks: takes so many blocks for a checkpoint, evicting others if need be.
        num_blocks: that a node's checkpoint takes, and a sequence's end, whose tails are not empty.
    """

    def __init__(
        self,
        blocks: IndexPool,
        slots: IndexPool,
        offers: DeviceOffers,
        ops: list[MemoryOp],
        take_blocks: TakeBlocks,
        num_blocks: tuple[int, int],
    ) -> None:
        self._blocks, self._slots, self._offers, self._ops = blocks, slots, offers, ops
        self._take_blocks = take_blocks
        self._sizes = num_blocks
        self.lent: dict[int, Holder] = {}  # slots that hold one, longest unused first
        self.num_in_blocks = 0  # checkpoints that lie in blocks
        self.num_blocks_used = 0

    def keep(self, node: PrefixNode, slot: int) -> bool:
        """Copy the states of a running sequence's slot for a node, if there is room."""
        idle = self._slots.take(1, highest=True)
        if idle is not None:
            self._ops.append(CopyState(slot, idle[0]))
            self.lend(node, idle[0])
            return True
        blocks = self._take(node)
        if blocks is None:
            return False
        self._put(node, slot, blocks)
        return True

    def lend(self, holder: Holder, slot: int) -> None:
        """Let a slot that has the states be their place."""
        holder.slot = slot
        self.lent[slot] = holder

    def free_slot(self, evict: Callable[[Holder], None]) -> bool:
        """Make the slot lent longest ago idle; its states move to blocks if there is room."""
        if not self.lent:
            return False
        slot, holder = next(iter(self.lent.items()))
        blocks = self._take(holder)
        if holder.slot != slot:  # evicted meanwhile
            if blocks is not None:
                self._blocks.give_back(blocks)
        elif blocks is None:
            evict(holder)
        else:
            self._return(holder)
            self._put(holder, slot, blocks)
        return True

    def load(self, node: PrefixNode, slot: int) -> None:
        """Copy a node's checkpoint on the device to a sequence's slot."""
        if node.slot is not None:
            self._ops.append(CopyState(node.slot, slot))
        else:
            assert node.state is not None
            self._ops.append(LoadState(list(node.state), slot))

    def resume(self, end: SequenceEnd) -> int:
        """Give the states of a sequence's end to one that goes on there; its slot.

        They are the end's no longer. A slot must be idle if they lie in blocks.
        """
        if end.slot is not None:
            del self.lent[end.slot]
            slot, end.slot = end.slot, None
            return slot
        slots = self._slots.take(1)
        assert slots is not None
        assert end.state is not None
        self._ops.append(LoadState(list(end.state), slots[0], with_tail=True))
        self.free(end)
        return slots[0]

    def touch(self, node: PrefixNode) -> None:
        """A node's checkpoint was of use: keep it longer."""
        if node.slot is not None:
            self.lent[node.slot] = self.lent.pop(node.slot)
        self._offers.touch(node)

    def free(self, holder: Holder) -> None:
        """Take the place back."""
        self._return(holder)
        if holder.state is not None:
            self._blocks.give_back(holder.state)
            self.num_in_blocks -= 1
            self.num_blocks_used -= len(holder.state)
            holder.state = None
            self._offers.discard("state", holder)

    def _take(self, holder: Holder) -> list[int] | None:
        # It need not lie beside anything: latents keep the low end, where they are read in place.
        return self._take_blocks(self._sizes[holder.has_tail])

    def _put(self, holder: Holder, slot: int, blocks: list[int]) -> None:
        self._ops.append(SaveState(slot, list(blocks), with_tail=holder.has_tail))
        holder.state = blocks
        self.num_in_blocks += 1
        self.num_blocks_used += len(blocks)
        if isinstance(holder, PrefixNode):  # an end is offered as a whole
            self._offers.add_state(holder)

    def _return(self, holder: Holder) -> None:
        if holder.slot is not None:
            del self.lent[holder.slot]
            self._slots.give_back([holder.slot])
            holder.slot = None
            self._offers.discard("slot", holder)
