"""What the scheduler counts."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from lingflash.cache.manager import CacheManager
from lingflash.core.types import EngineStats
from lingflash.engine.schedule.prefix_keeper import PrefixKeeper
from lingflash.engine.schedule.sequence import Sequence


@dataclass(slots=True)
class Counters:
    """They only grow."""

    steps: int = 0
    preemptions: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    drafted: int = 0
    accepted: int = 0

    def stats(
        self,
        cache: CacheManager,
        prefixes: PrefixKeeper,
        running: Collection[Sequence],
        waiting: Collection[Sequence],
    ) -> EngineStats:
        """These and the gauges as of now."""
        every = [*running, *waiting]
        return EngineStats(
            num_running=len(running),
            num_waiting=len(waiting),
            tokens_in_flight=sum(each.num_tokens for each in every),
            queued_prompt_tokens=sum(
                max(len(each.prompt_token_ids) - each.num_computed, 0) for each in every
            ),
            free_blocks=cache.num_free_blocks,
            num_blocks=cache.num_blocks,
            free_state_slots=cache.num_free_slots,
            num_state_slots=cache.num_slots,
            num_steps=self.steps,
            num_preemptions=self.preemptions,
            prompt_tokens=self.prompt_tokens,
            generated_tokens=self.generated_tokens,
            cached_blocks=cache.num_cached_blocks,
            state_checkpoints=cache.num_checkpoints,
            prefix_queried_tokens=prefixes.queried_tokens,
            prefix_hit_tokens=prefixes.hit_tokens,
            prefix_resets=prefixes.num_resets,
            prefix_results=dict(prefixes.results),
            cache_bytes=cache.bytes_by_use(),
            draft_tokens=self.drafted,
            accepted_draft_tokens=self.accepted,
        )
