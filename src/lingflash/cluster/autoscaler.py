"""How many replicas there should be, by the time that a new request would wait for its first token.

    predicted = prompt tokens that wait / prompt tokens per second that replicas take from the queue

Both count a prompt as if no cache had any of it: how much is cached is known only when it is taken,
and then it is in the rate. Times are given, so that nothing here has a clock.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from lingflash.cluster.config import ScaleTable
from lingflash.protocol.replicas import Health

# The newest measurement counts so much; a second of a busy replica says a lot of its rate.
_WEIGHT = 0.3
# Fewer replicas must leave half of the target free, and a fifth of the places, or they would soon
# be too few again.
_CALM = 0.5
_FULL = 0.8


class PromptRate:
    """Prompt tokens per second that one replica takes while some wait.

    Args:
        per_s: None until it was seen at work.
    """

    def __init__(self) -> None:
        self.per_s: float | None = None
        self._last: tuple[float, int] | None = None

    def note(self, now_s: float, health: Health) -> None:
        """Take in what the replica says now."""
        taken, last = health.taken_prompt_tokens, self._last
        self._last = (now_s, taken) if health.queued_prompt_tokens else None
        if last is None or now_s <= last[0] or taken < last[1]:
            return  # it had nothing to do, or was started again
        rate = (taken - last[1]) / (now_s - last[0])
        if self.per_s is None:
            self.per_s = rate or None  # a long first step is not yet a rate
        else:
            self.per_s += _WEIGHT * (rate - self.per_s)


def predicted_first_token_s(
    healths: Collection[Health], rates: Collection[float | None]
) -> float | None:
    """How long a request that came now would wait; None if no rate was ever seen.

    Args:
        rates: of the same replicas; one that was not seen at work counts as the others do.
    """
    queued = sum(each.queued_prompt_tokens for each in healths)
    if queued == 0:
        return 0.0
    seen = [rate for rate in rates if rate]
    return queued / (sum(seen) / len(seen) * len(healths)) if seen else None


@dataclass(slots=True)
class Autoscaler:
    """Decides by what is seen now, and for how long that has been so.

    Args:
        wanted: the number that was decided last.
    """

    scale: ScaleTable
    wanted: int
    _calm_since_s: float | None = None

    def decide(self, now_s: float, healths: Mapping[str, Health], predicted_s: float | None) -> int:
        """The number of replicas that there should be.

        Args:
            healths: of those that are ready.
            predicted_s: see predicted_first_token_s.
        """
        self.wanted = min(max(self.wanted, self.scale.min), self.scale.most)
        ready = len(healths)
        if ready < self.wanted or predicted_s is None:
            self._calm_since_s = None  # what was decided is still under way, or nothing is known
        elif predicted_s > self.scale.first_token_s:
            self._calm_since_s = None
            enough = math.ceil(ready * predicted_s / self.scale.first_token_s)
            self.wanted = min(max(enough, self.wanted + 1), 2 * self.wanted, self.scale.most)
        elif not self._would_be_calm(healths, predicted_s):
            self._calm_since_s = None
        elif self._calm_since_s is None:
            self._calm_since_s = now_s
        elif now_s - self._calm_since_s >= self.scale.cooldown_s and self.wanted > self.scale.min:
            self.wanted -= 1
            self._calm_since_s = None
        return self.wanted

    def _would_be_calm(self, healths: Mapping[str, Health], predicted_s: float) -> bool:
        """Whether one replica fewer would do with room to spare."""
        fewer = len(healths) - 1
        if fewer < 1:
            return False
        places = sum(each.capacity for each in healths.values()) * fewer / len(healths)
        sequences = sum(each.sequences for each in healths.values())
        is_fast = predicted_s * len(healths) / fewer <= self.scale.first_token_s * _CALM
        return is_fast and sequences <= places * _FULL
