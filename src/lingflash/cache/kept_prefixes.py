"""What is kept in the memory that no lease uses, and what goes when that is short.

Nodes of the prefix tree with their latents and checkpoints, and sequences' ends. What a lease reads
it owns; the rest may be evicted (`eviction.py`), to the host tier if there is one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lingflash.cache.block_pool import IndexPool
from lingflash.cache.checkpoints import Checkpoints, Holder
from lingflash.cache.device_offers import DeviceOffers
from lingflash.cache.host_tier import HostTier
from lingflash.cache.memory_ops import HostCopy, LoadState, MemoryOp, StoreBlocks, StoreState
from lingflash.cache.miss import GoneKeys
from lingflash.cache.prefix_tree import PrefixNode, PrefixTree, SequenceEnd


class KeptPrefixes:
    """The prefix tree on both tiers, and the pools that it shares with the leases.

    Args:
        num_blocks, num_state_slots, num_host_blocks: see CacheManager.
        checkpoint_blocks, end_blocks: blocks that the states of a node, and of an end, take.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        num_state_slots: int,
        checkpoint_blocks: int,
        num_host_blocks: int,
        end_blocks: int,
    ) -> None:
        self.blocks = IndexPool(num_blocks)
        self.slots = IndexPool(num_state_slots)
        self.tree = PrefixTree()
        self.offers = DeviceOffers(block_size)
        self.gone = GoneKeys(num_blocks)
        self.ops: list[MemoryOp] = []  # to be done to the memory, in order
        self.checkpoints = Checkpoints(
            self.blocks,
            self.slots,
            self.offers,
            self.ops,
            lambda count: self.take_blocks(count, highest=True),
            (checkpoint_blocks, end_blocks),
        )
        self.host = HostTier(num_host_blocks, self._on_host_evicts)
        self.num_unowned = 0  # blocks of nodes on the device that no lease reads, and of ends
        self._checkpoint_blocks = checkpoint_blocks

    @property
    def num_free_blocks(self) -> int:
        """Blocks that no lease uses; what is kept can be had for the asking."""
        return self.blocks.num_free + self.num_unowned + self.checkpoints.num_blocks_used

    def free_slot(self) -> bool:
        """See that a state slot is idle; False if sequences have them all."""
        return self.slots.num_free > 0 or self.checkpoints.free_slot(self._evict_checkpoint)

    def take_blocks(self, count: int, *, highest: bool = False) -> list[int] | None:
        """Take so many blocks, evicting what is least worth keeping; None if leases have too many.

        Args:
            highest: see IndexPool.take.
        """
        if count > self.num_free_blocks:
            return None
        while self.blocks.num_free < count:
            item = self.offers.pop()
            assert item is not None, "blocks that count as free cannot be evicted"
            kind, holder = item
            if kind == "block":
                assert isinstance(holder, PrefixNode)
                self._evict_block(holder)
            else:
                self._evict_checkpoint(holder)
        return self.blocks.take(count, highest=highest)

    def own(self, nodes: Iterable[PrefixNode]) -> None:
        """A lease reads these nodes from now on."""
        for node in nodes:  # thousands, most of them in the middle of a chain
            node.num_owners += 1
            if node.num_owners == 1:
                if node.block is not None:
                    self.num_unowned -= 1
                if not node.num_device_children:
                    self._on_owner_change(node)

    def disown(self, nodes: Iterable[PrefixNode]) -> None:
        """A lease reads these nodes no more; the last of a chain first."""
        for node in nodes:
            node.num_owners -= 1
            if node.num_owners == 0:
                if node.block is not None:
                    self.num_unowned += 1
                if not node.num_device_children:
                    self._on_owner_change(node)

    def give_up(self, nodes: Iterable[PrefixNode]) -> None:
        """A lease reads these no more, and they were forgotten before."""
        for node in nodes:
            node.num_owners -= 1
            if not node.num_owners and node.block is not None:
                self.blocks.give_back([node.block])

    def put(self, node: PrefixNode, block: int) -> None:
        """Say that an owned node's latents are in a block of the device."""
        node.block = block
        if node.parent is not None:
            node.parent.num_device_children += 1
            self.offers.update(node.parent)
        self._update_host(node)

    def load_state(self, node: PrefixNode, slot: int) -> None:
        """Copy a node's checkpoint, wherever it is, to a sequence's slot."""
        self.checkpoints.touch(node)
        if node.has_device_state:
            self.checkpoints.load(node, slot)
            return
        assert node.host_state is not None
        self.host.touch(("state", node))
        self.ops.append(LoadState(list(node.host_state.blocks), slot, from_host=True))

    def add_end(self, parent: PrefixNode, tokens: Sequence[int], block: int, slot: int) -> bool:
        """Keep a sequence's block and slot as its end; False if the same is kept already."""
        end = SequenceEnd(parent, tokens, block)
        key = end.tokens.tobytes()
        if key in parent.ends:
            return False
        parent.ends[key] = end
        self.num_unowned += 1
        self.checkpoints.lend(end, slot)
        self.offers.add_end(end)
        return True

    def resume(self, end: SequenceEnd) -> int:
        """Give a sequence's end to one that goes on there: its slot, and its block."""
        slot = self.checkpoints.resume(end)
        self._take_out(end)
        return slot

    def forget(self, node: PrefixNode) -> None:
        """Take an unowned node out of the tree, and what continues it in the host tier."""
        doomed = [node]
        for each in doomed:
            doomed += each.children.values()
        for each in reversed(doomed):
            node.lost_state |= each.lost_state or each.has_state
            self._drop_ends(each)
            self._drop_state(each)
            if each.block is not None:
                self._take_off_device(each)
            self._free_copies(each)
            self.gone.add(each.key)
            self.tree.remove(each)
        if node.parent is not None:
            # Of what is still known it is the end now: its checkpoint was evicted with this one.
            node.parent.lost_state |= node.lost_state
            self._update_host(node.parent)

    def clear(self) -> None:
        """Forget everything; what leases read stays theirs."""
        for node in self.tree.clear():
            self._free_copies(node)
            if node.num_owners == 0 and node.block is not None:
                self.blocks.give_back([node.block])
            node.children = {}
        self.num_unowned = 0
        self.gone.clear()

    def host_copied(self, copy: HostCopy, *, succeeded: bool = True) -> None:
        """A copy to the host tier was made, or was not; before this it counts for nothing."""
        if copy.is_settled:
            return
        node: PrefixNode = copy.holder
        self.host.settle(copy, succeeded)
        if copy.is_cancelled:
            return
        if not succeeded:
            if node.host_state is copy:
                node.host_state, node.lost_state = None, True
            else:
                node.host_block = None
                if node.block is None:
                    self.forget(node)
                    return
        self._update_host(node)

    def _evict_checkpoint(self, holder: Holder) -> None:
        if isinstance(holder, SequenceEnd):
            self._evict_end(holder)
        else:
            self._evict_state(holder)

    def _evict_state(self, node: PrefixNode) -> None:
        if node.host_state is None:
            copy = self.host.reserve(self._checkpoint_blocks, node)
            node.host_state = copy
            if copy is not None and node.state is not None:
                self.ops.append(StoreBlocks(list(node.state), copy))
            elif copy is not None and node.slot is not None:
                self.ops.append(StoreState(node.slot, copy))
        node.lost_state |= node.host_state is None
        self._drop_state(node)
        self._update_host(node)

    def _drop_state(self, node: PrefixNode) -> None:
        if node.has_device_state:
            self.checkpoints.free(node)
            self.offers.update(node)

    def _evict_block(self, node: PrefixNode) -> None:
        assert node.block is not None
        assert not node.has_device_state
        is_wanted = node.host_state is not None or bool(node.children)
        if is_wanted and node.host_block is None:
            node.host_block = self.host.reserve(1, node)
            if node.host_block is not None:
                self.ops.append(StoreBlocks([node.block], node.host_block))
        if node.host_block is None:
            self.forget(node)
            return
        self._take_off_device(node)
        self._update_host(node)

    def _take_off_device(self, node: PrefixNode) -> None:
        assert node.block is not None
        self.blocks.give_back([node.block])
        node.block = None
        self.num_unowned -= 1
        self.offers.discard("block", node)
        if node.parent is not None:
            node.parent.num_device_children -= 1
            self.offers.update(node.parent)

    def _on_owner_change(self, node: PrefixNode) -> None:
        """Of a node with none after it on the device: others are not offered in either case."""
        self.offers.update(node)
        if not node.children:
            self._update_host(node)

    def _update_host(self, node: PrefixNode) -> None:
        if self.host.num_blocks:
            self.host.update(node)

    def _on_host_evicts(self, kind: str, node: PrefixNode) -> None:
        """The host tier gave up a copy; what hung on it goes too."""
        if kind == "state":
            node.lost_state |= not node.has_device_state
        elif node.block is None:
            self.forget(node)
            return
        self._update_host(node)

    def _drop_ends(self, node: PrefixNode) -> None:
        for end in list(node.ends.values()):
            self._evict_end(end)

    def _free_copies(self, node: PrefixNode) -> None:
        """Give up a node's checkpoint, its ends and host copies, but not its block."""
        self._drop_ends(node)
        self.checkpoints.free(node)
        self.offers.discard("block", node)
        self.host.drop(node)

    def _take_out(self, end: SequenceEnd) -> None:
        """Forget a sequence's end; its block is the caller's."""
        del end.parent.ends[end.tokens.tobytes()]
        self.num_unowned -= 1
        self.offers.discard("end", end)
        self.offers.update(end.parent)

    def _evict_end(self, end: SequenceEnd) -> None:
        self.checkpoints.free(end)
        self._take_out(end)
        self.blocks.give_back([end.block])
