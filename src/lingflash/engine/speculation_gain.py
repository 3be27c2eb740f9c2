"""Whether speculation pays, found out by doing both: tokens per second with and without.

Judged per batch size, in powers of two: drafts that are nearly free for one sequence cost a large
batch its full price. Both ways are tried for a few steps; the faster one is kept, and the other
tried again only when what the last trial cost is a hundredth of the time since.

    trial of on -> trial of off -> the faster ........ -> trial of the other -> the faster ....
"""

from __future__ import annotations

from dataclasses import dataclass, field

# Steps of a trial, after a few that pay for the change (first drafts, rows to catch up).
_TRIAL_STEPS = 24
_SETTLE_STEPS = 3
# On must be this much faster to be kept: near a tie the simpler way wins.
_MARGIN = 1.02
# A trial may cost this part of the time until the next.
_TRIAL_COST = 0.01
_MIN_STEPS_BETWEEN = 1000
# Sums are halved after this many steps, so that what was measured long ago fades.
_MEMORY_STEPS = 512


@dataclass(slots=True)
class _Rate:
    """Tokens and seconds of one way to decode."""

    steps: int = 0
    tokens: float = 0.0
    seconds: float = 0.0

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / max(self.seconds, 1e-9)

    def add(self, tokens: int, seconds: float) -> None:
        if self.steps >= _MEMORY_STEPS:
            self.steps, self.tokens, self.seconds = (
                self.steps // 2,
                self.tokens / 2,
                self.seconds / 2,
            )
        self.steps += 1
        self.tokens += tokens
        self.seconds += seconds


@dataclass(slots=True)
class _BatchSize:
    """What is known of one range of batch sizes.

    Args:
        is_on: how it decodes now.
        trials_left: ways that must still be tried before one is kept.
        settling: steps that do not count yet.
        wait_s: seconds until the other way is tried again, and steps likewise.
    """

    is_on: bool = True
    trials_left: int = 2
    settling: int = _SETTLE_STEPS
    wait_s: float = 0.0
    wait_steps: int = 0
    rates: dict[bool, _Rate] = field(default_factory=lambda: {True: _Rate(), False: _Rate()})

    def observe(self, tokens: int, seconds: float) -> None:
        self.wait_s -= seconds
        self.wait_steps -= 1
        if self.settling:
            self.settling -= 1
            return
        rate = self.rates[self.is_on]
        rate.add(tokens, seconds)
        if self.trials_left:
            if rate.steps >= _TRIAL_STEPS:
                self._end_trial(rate)
        elif self.wait_s <= 0.0 and self.wait_steps <= 0:
            self.trials_left = 1
            self._change()

    def _change(self) -> None:
        self.is_on = not self.is_on
        self.settling = _SETTLE_STEPS
        self.rates[self.is_on] = _Rate()

    def _end_trial(self, tried: _Rate) -> None:
        self.trials_left -= 1
        if self.trials_left:
            self._change()
            return
        on, off = self.rates[True].tokens_per_s, self.rates[False].tokens_per_s
        best = on > off * _MARGIN
        # What the tokens of the slower way's trial would have taken the other way.
        slower = self.rates[not best]
        lost_s = max(slower.seconds - slower.tokens / max(on, off, 1e-9), 0.0)
        self.wait_s = lost_s / _TRIAL_COST
        self.wait_steps = _MIN_STEPS_BETWEEN
        if best != self.is_on:
            self.is_on = best
            self.settling = _SETTLE_STEPS


class SpeculationGain:
    """Decides for each step whether to speculate.

    Args:
        num_tokens: drafts when it does.
        is_adaptive: False always does.
    """

    def __init__(self, num_tokens: int, *, is_adaptive: bool = True) -> None:
        self._num_tokens = num_tokens
        self.is_adaptive = is_adaptive
        self._sizes: dict[int, _BatchSize] = {}

    def num_draft_tokens(self, num_seqs: int) -> int:
        """Drafts to make of each sequence in a step of this batch size."""
        if not self.is_adaptive or self._of(num_seqs).is_on:
            return self._num_tokens
        return 0

    def observe(self, num_seqs: int, num_tokens: int, seconds: float) -> None:
        """Take in a step in which all sequences decoded.

        Args:
            num_seqs: in the step.
            num_tokens: that they got.
            seconds: that it took.
        """
        if self.is_adaptive:
            self._of(num_seqs).observe(num_tokens, seconds)

    def _of(self, num_seqs: int) -> _BatchSize:
        return self._sizes.setdefault(max(num_seqs - 1, 0).bit_length(), _BatchSize())
