"""What a sequence takes from the prefix cache and leaves in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from lingflash.cache.eviction import checkpoint_interval
from lingflash.cache.lease import Lease
from lingflash.cache.manager import CacheManager
from lingflash.cache.prefix_tree import KeyMemo
from lingflash.core.anchors import last_anchor
from lingflash.core.types import CacheReport
from lingflash.engine.schedule.sequence import Sequence


class PrefixKeeper:
    """The scheduler's hand in the prefix cache, and its counters."""

    def __init__(self, cache: CacheManager) -> None:
        self._cache = cache
        self._memo = KeyMemo(cache.block_size)
        self.queried_tokens = self.hit_tokens = self.num_resets = 0
        self.results: Counter[str] = Counter()

    def admit(self, sequence: Sequence) -> Lease | None:
        """Lease memory for a waiting sequence, with what is known of its beginning."""
        cache = self._cache
        keys = self._keys(sequence)
        lease = cache.admit(sequence.num_tokens, keys, sequence.tokens)
        if lease is None:
            return None
        sequence.lease = lease
        sequence.num_computed = sequence.last_checkpoint = lease.num_hit_tokens
        sequence.anchor = last_anchor(lease.num_hit_tokens)
        sequence.mtp_end, sequence.draft_tokens = -1, []
        if not sequence.num_preemptions:
            prompt_len = len(sequence.prompt_token_ids)
            hit = min(lease.num_hit_tokens, prompt_len)
            sequence.num_cached_tokens = hit
            self.queried_tokens += prompt_len
            self.hit_tokens += hit
            sequence.cache_report = self._report(sequence, lease, keys)
            self.results[sequence.cache_report.result] += 1
        return lease

    def _keys(self, sequence: Sequence) -> list[bytes]:
        # Prompt log probabilities need the logits of every prompt token, found ones have none.
        if not self._cache.keeps_prefixes or sequence.sampling.prompt_logprobs is not None:
            return []
        if not sequence.keys:
            sequence.keys = self._memo.keys(sequence.root, sequence.tokens(0, sequence.num_tokens))
        return sequence.keys_to(sequence.num_tokens, self._cache.block_size)

    def _report(self, sequence: Sequence, lease: Lease, keys: list[bytes]) -> CacheReport:
        if not self._cache.keeps_prefixes:
            return CacheReport("caching_off")
        if sequence.sampling.prompt_logprobs is not None:
            return CacheReport("prompt_logprobs")
        # The last token is always computed, so its block is not looked up if it ends it.
        looked_up = keys[: (sequence.num_tokens - 1) // self._cache.block_size]
        return self._cache.explain_miss(lease, looked_up, sequence.root, sequence.tokens)

    def can_share_soon(self, sequence: Sequence, running: Iterable[Sequence]) -> bool:
        """Whether a running sequence is just computing the block that this one needs next."""
        keys = self._keys(sequence)
        if not keys:
            return False
        for other in running:
            lease = other.lease
            if lease is None or lease.is_detached or other.num_tokens - other.num_computed <= 1:
                continue
            place = len(lease.nodes)
            if place < min(len(keys), len(other.keys)) and keys[place] == other.keys[place]:
                return True
        return False

    def cuts(self, sequence: Sequence) -> tuple[int, ...]:
        """Positions where the states of a sequence will be of use to others."""
        if sequence.lease is None or not self._cache.keeps_prefixes:
            return ()
        # An exact repeat of this prompt needs the states of a block's end before its last token.
        size = self._cache.block_size
        before_last = (len(sequence.prompt_token_ids) - 1) // size * size
        return sequence.lease.branch_tokens, before_last

    def keep(
        self, sequence: Sequence, *, checkpoint: bool, saved: tuple[int, int] | None = None
    ) -> None:
        """Publish a sequence's full blocks, and keep its states if they are at a block's end.

        Args:
            sequence: whose tokens up to num_computed are computed.
            checkpoint: keep the states wherever that is; else only every so often.
            saved: a place before, and the slot that has the states there; they are kept, too.
        """
        cache, lease, size = self._cache, sequence.lease, self._cache.block_size
        if lease is None or not cache.keeps_prefixes or lease.is_detached:
            return
        num_full = sequence.num_computed // size
        if num_full > len(lease.nodes):
            keys = sequence.keys_to(num_full * size, size)
            cache.publish(lease, keys, sequence.root, sequence.tokens)
        if saved is not None:
            cache.checkpoint(lease, saved[0], slot=saved[1])
            sequence.last_checkpoint = saved[0]
        # The state has been folded up to here; it can be kept if this is a block's end too.
        place = sequence.anchor
        in_flight = sequence.num_in_flight
        if in_flight and last_anchor(sequence.num_computed + in_flight) != place:
            # What is decided now is carried out behind the step under way, which folds the state
            # further; the next commit finds it there.
            return
        distance = place - sequence.last_checkpoint
        if place % size or distance <= 0:
            return
        if not checkpoint:
            as_tokens = cache.checkpoint_blocks * size
            if distance < checkpoint_interval(sequence.num_tokens, as_tokens, size):
                return
        cache.checkpoint(lease, place)
        sequence.last_checkpoint = place

    def end_tokens(self, sequence: Sequence) -> list[int]:
        """What an ended sequence computed after its last full block, for the next to go on there.

        Its states must be in its slot as they are after the last of these tokens.
        """
        lease, size = sequence.lease, self._cache.block_size
        num_full, rest = divmod(sequence.num_computed, size)
        if lease is None or num_full != len(lease.nodes):
            return []
        return sequence.tokens(num_full * size, rest)

    def reset(self) -> tuple[int, int]:
        """Forget every prefix; blocks and checkpoints that were forgotten."""
        self.num_resets += 1
        return self._cache.reset()
