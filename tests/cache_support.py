"""Exact accounts of a cache: every block of either tier has one owner, and the sums agree."""

from __future__ import annotations

from lingflash.cache.manager import CacheManager
from lingflash.cache.memory_ops import HostCopy, StoreBlocks, StoreState


def check_cache(cache: CacheManager, pending: list[HostCopy] | None = None) -> None:
    """Hold at any time between two decisions.

    Args:
        cache: the books.
        pending: copies to the host tier that were begun and not reported; those of operations that
            wait are known.
    """
    nodes = list(cache._kept.tree)
    leases = list(cache._leases.values())
    detached = {id(n): n for lease in leases if lease.is_detached for n in lease.nodes}
    held = [b for lease in leases for b in lease.own_blocks]
    held += [n.block for n in detached.values()]
    held += [n.block for n in nodes if n.block is not None]
    ends = [end for n in nodes for end in n.ends.values()]
    held += [end.block for end in ends]
    holders = [*nodes, *ends]
    states = [b for h in holders if h.state is not None for b in h.state]
    free = [b for b in range(cache.num_blocks) if cache._kept.blocks._is_free[b]]
    assert sorted(held + states + free) == list(range(cache.num_blocks))
    assert len(free) == cache._kept.blocks.num_free
    assert len(states) == cache.num_checkpoint_blocks
    unowned = [n for n in nodes if n.block is not None and n.num_owners == 0]
    assert len(unowned) + len(ends) == cache.num_cached_blocks
    used = cache.bytes_by_use()
    host = used.pop("host")
    budget = cache.num_blocks * cache.block_bytes + cache.num_slots * cache.slot_bytes
    assert sum(used.values()) == budget
    slots = [lease.state_slot for lease in leases]
    lent = {h.slot: h for h in holders if h.slot is not None}
    assert lent == cache._kept.checkpoints.lent
    free = [s for s in range(cache.num_slots) if cache._kept.slots._is_free[s]]
    assert sorted([*slots, *lent, *free]) == list(range(cache.num_slots))
    assert len(slots) == cache.num_slots - cache.num_free_slots
    assert cache.num_checkpoints == sum(n.has_device_state for n in nodes) + len(ends)
    for end in ends:
        assert (end.state is None) != (end.slot is None)
        assert end.parent.block is not None
        assert end.parent.ends[end.tokens.tobytes()] is end
        assert 0 < len(end.tokens) < cache.block_size
        assert ("end", end) in cache._kept.offers.queue

    counted: dict[int, int] = {}
    for lease in leases:
        if not lease.is_detached:
            for node in lease.nodes:
                counted[id(node)] = counted.get(id(node), 0) + 1
    for node in nodes:
        assert node.num_owners == counted.get(id(node), 0)
        children = node.children.values()
        assert all(cache._kept.tree.get(c.key) is c for c in children)
        assert sum(c.block is not None for c in children) == node.num_device_children
        assert node.block is not None or node.host_block is not None, "a node that is nowhere"
        if node.block is not None:
            assert node.parent is None or node.parent.block is not None, "a chain with a gap"
        else:
            assert node.num_owners == 0
            assert not node.has_device_state
        assert node.state is None or node.slot is None
        is_leaf = node.block is not None and node.is_device_leaf
        assert (("block", node) in cache._kept.offers.queue) == (
            is_leaf and not node.has_device_state
        )
        assert (("slot", node) in cache._kept.offers.queue) == (is_leaf and node.slot is not None)
        assert (("state", node) in cache._kept.offers.queue) == (node.state is not None)

    tier = cache._kept.host
    copies = [c for n in nodes for c in (n.host_block, n.host_state) if c is not None]
    begun = list(pending or [])
    begun += [op.copy for op in cache._kept.ops if isinstance(op, StoreBlocks | StoreState)]
    assert all(c.is_complete or c in begun for c in copies)
    mine = {id(c): c for c in [*copies, *begun]}
    places = [b for c in mine.values() for b in c.blocks]
    free = [b for b in range(tier.num_blocks) if tier._pool._is_free[b]]
    assert sorted(places + free) == list(range(tier.num_blocks)), "host blocks do not add up"
    assert host == tier.num_used * cache.block_bytes


def check_idle(cache: CacheManager) -> None:
    """Hold when nothing runs and nothing is being copied; empties the cache."""
    check_cache(cache)
    assert cache.num_free_blocks == cache.num_blocks
    assert all(node.num_owners == 0 for node in cache._kept.tree)
    cache.take_ops()
    cache.reset()
    check_cache(cache)
    assert cache._kept.blocks.num_free == cache.num_blocks
    assert cache.num_checkpoints == cache._kept.host.num_used == len(cache._kept.tree) == 0
    assert len(cache._kept.offers.queue) == len(cache._kept.host._queue) == 0
