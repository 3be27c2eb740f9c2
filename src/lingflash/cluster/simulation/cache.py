"""What a replica keeps of the prompts that it has read: the engine's cache without its tensors.

`cache.manager` decides on numbers of blocks and slots alone, so that it can be asked here as the
engine asks it, with checkpoints at the same places (`engine/schedule/prefix_keeper.py`). Tokens
come in grains: the bookkeeping of a large cluster need not know each of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from lingflash.cache.eviction import checkpoint_interval
from lingflash.cache.lease import Lease
from lingflash.cache.manager import CacheManager
from lingflash.cache.prefix_tree import root_key

_ROOT = root_key("")


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheShape:
    """How much a replica keeps.

    Args:
        tokens: whose latents fit, and checkpoints beside them.
        max_num_seqs: sequences that run at once.
        checkpoint_tokens: tokens whose latents take as much as the states of a sequence.
        block_tokens: of a block.
        chunk_tokens: of a prompt that one step reads.
        grain: tokens that are counted as one; divides block_tokens.
    """

    tokens: int
    max_num_seqs: int
    checkpoint_tokens: int
    block_tokens: int = 16
    chunk_tokens: int = 2048
    grain: int = 1


@dataclass(slots=True)
class Text:
    """The prompt and answers of a session so far, by what its blocks are known as.

    Args:
        number: of the session.
        shared: name and tokens of its beginning.
    """

    number: int
    shared: str
    shared_tokens: int
    tokens: int = 0
    version: int = 0
    _keys: list[bytes] = field(default_factory=list[bytes])

    def keys(self, num_blocks: int, block_tokens: int) -> list[bytes]:
        """Of its first blocks; those inside the shared beginning are the same for all."""
        keys, common = self._keys, self.shared_tokens // block_tokens
        for i in range(len(keys), num_blocks):
            owner = f"s{self.shared}" if i < common else f"{self.number}.{self.version}"
            keys.append(f"{owner}/{i}".encode())
        return keys[:num_blocks]

    def rewrite(self, num_tokens: int, block_tokens: int) -> None:
        """What comes after so many tokens is not as it was generated."""
        self.version += 1
        del self._keys[num_tokens // block_tokens :]

    def tokens_at(self, start: int, count: int) -> Sequence[int]:
        """Tokens, which nobody looks at but to compare the ends of two texts."""
        return [(self.number << 8) + self.version % 256] * max(count, 0)


class SimulatedCache:
    """The cache of one replica."""

    def __init__(self, shape: CacheShape) -> None:
        self._grain, self._block = shape.grain, shape.block_tokens
        self._chunk = max(shape.chunk_tokens // shape.grain, 1)
        self._size = shape.block_tokens // shape.grain  # of a block, in grains
        checkpoint = -(-shape.checkpoint_tokens // shape.block_tokens)
        self._checkpoint = checkpoint
        self._manager = CacheManager(
            max(shape.tokens // shape.block_tokens, 1),
            self._size,
            shape.max_num_seqs,
            checkpoint,
            end_blocks=checkpoint,
        )

    def admit(self, text: Text, num_tokens: int) -> Lease | None:
        """Memory for a prompt, with what is known of it; None if there is none now."""
        count = max(num_tokens // self._grain, 1)
        keys = text.keys(count // self._size, self._block)
        return self._manager.admit(count, keys, text.tokens_at)

    def found_tokens(self, lease: Lease, num_tokens: int) -> int:
        """How much of a prompt needs no computing."""
        return min(lease.num_hit_tokens * self._grain, num_tokens)

    def read(self, lease: Lease, text: Text, num_tokens: int) -> None:
        """A prompt was computed: its blocks are known, and its states kept where they may be."""
        count = max(num_tokens // self._grain, 1)
        self._publish(lease, text, count // self._size)
        cuts = {lease.branch_tokens, (count - 1) // self._size * self._size}
        every = checkpoint_interval(count, self._checkpoint * self._size, self._size)
        last = lease.num_hit_tokens
        # States are there where a step ends: at the cuts, and after every chunk of a long prompt.
        for place in sorted(cuts | set(range(last + self._chunk, count, self._chunk))):
            if place > lease.num_hit_tokens and (place in cuts or place - last >= every):
                self._manager.checkpoint(lease, place // self._size * self._size)
                last = place

    def end(self, lease: Lease, text: Text, num_tokens: int) -> None:
        """An answer is whole; all but its last token were computed."""
        count = max((num_tokens - 1) // self._grain, 1)
        tail: Sequence[int] = ()
        if self._manager.grow(lease, count):
            self._publish(lease, text, count // self._size)
            tail = text.tokens_at(0, count % self._size)
        self._manager.release(lease, end_tokens=tail)
        self._manager.take_ops()

    def _publish(self, lease: Lease, text: Text, num_blocks: int) -> None:
        keys = text.keys(num_blocks, self._block)
        self._manager.publish(lease, keys, _ROOT, text.tokens_at)
        self._manager.take_ops()
