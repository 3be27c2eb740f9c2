"""What a running sequence holds."""

from __future__ import annotations

from dataclasses import dataclass, field

from lingflash.cache.prefix_tree import PrefixNode


@dataclass(slots=True)
class Lease:
    """Memory of one running sequence.

    Args:
        state_slot: place of its recurrent state.
        blocks: its block table, in the order of its tokens.
        num_hit_tokens: tokens that were found computed; a multiple of the block size, or those of a
            sequence's end.
        num_known_tokens: tokens whose blocks were known; more than were found where a checkpoint
            is missing.
        lost_checkpoint: there was one among the known blocks beyond the hit, and it was evicted.
        nodes: published nodes of the first blocks, all owned by this lease.
        own_blocks: blocks that are nobody else's: not yet full, or full but published by another
            first.
        is_detached: the cache was reset; nothing of this lease is published any more.
    """

    state_slot: int
    blocks: list[int] = field(default_factory=list)
    num_hit_tokens: int = 0
    num_known_tokens: int = 0
    lost_checkpoint: bool = False
    nodes: list[PrefixNode] = field(default_factory=list)
    own_blocks: set[int] = field(default_factory=set)
    is_detached: bool = False

    @property
    def branch_tokens(self) -> int:
        """Where the known blocks end, if that is beyond the hit, else 0.

        A checkpoint is worth taking there, since two conversations part at that place.
        """
        return self.num_known_tokens if self.num_known_tokens > self.num_hit_tokens else 0
