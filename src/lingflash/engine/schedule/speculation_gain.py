"""Whether speculation pays, found out by doing both: tokens per second with and without.

Judged per batch size, between powers of two: drafts that are nearly free for one sequence cost a
large batch their full price. Both ways take turns of a few steps; the faster one is kept, and they
are compared again only when what the comparison cost is a hundredth of the time since.

    on, off, on, off -> the faster ................. -> the other, the faster, ... -> the faster
"""

from __future__ import annotations

from dataclasses import dataclass, field

# Turns of on, off, on, off in a comparison, so that a passing load hits both; steps of each, after
# a few that pay for the change (first drafts, rows to catch up).
_TRIALS = 4
_TRIAL_STEPS = 8
_SETTLE_STEPS = 2
# On must be this much faster to be kept: near a tie the simpler way wins.
_MARGIN = 1.02
# A comparison may cost this part of the time until the next, and comes no sooner than after this
# many steps: on is doubted sooner, since a wrong on may cost much and a wrong off only the gain.
_TRIAL_COST = 0.01
_STEPS_BETWEEN = {True: 256, False: 1000}


@dataclass(slots=True)
class _Rate:
    """Tokens and seconds of one way to decode, in one comparison."""

    tokens: float = 0.0
    seconds: float = 0.0

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / max(self.seconds, 1e-9)


@dataclass(slots=True)
class _BatchSize:
    """What is known of one range of batch sizes.

    Args:
        is_on: how it decodes now.
        trials_left: turns of a few steps until one way is kept; none between comparisons.
        settling: steps that do not count yet.
        steps_left: of this turn, or until the next comparison may begin.
        wait_s: seconds until then, likewise.
    """

    is_on: bool = True
    trials_left: int = _TRIALS
    settling: int = _SETTLE_STEPS
    steps_left: int = _TRIAL_STEPS
    wait_s: float = 0.0
    rates: dict[bool, _Rate] = field(default_factory=lambda: {True: _Rate(), False: _Rate()})

    def observe(self, tokens: int, seconds: float) -> None:
        self.wait_s -= seconds
        if self.settling:
            self.settling -= 1
            return
        self.steps_left -= 1
        if self.trials_left:
            rate = self.rates[self.is_on]
            rate.tokens += tokens
            rate.seconds += seconds
            if self.steps_left <= 0:
                self.trials_left -= 1
                if self.trials_left:
                    self._turn(not self.is_on)
                else:
                    self._judge()
        elif self.steps_left <= 0 and self.wait_s <= 0.0:
            self.trials_left = _TRIALS
            self.rates = {True: _Rate(), False: _Rate()}
            self._turn(not self.is_on)

    def _turn(self, is_on: bool) -> None:
        self.is_on, self.settling, self.steps_left = is_on, _SETTLE_STEPS, _TRIAL_STEPS

    def _judge(self) -> None:
        on, off = self.rates[True].tokens_per_s, self.rates[False].tokens_per_s
        is_on = on > off * _MARGIN
        # What the slower way's turns took beyond what their tokens would have taken the other way.
        slower = self.rates[not is_on]
        lost_s = slower.seconds - slower.tokens / max(on, off, 1e-9)
        self.wait_s = max(lost_s, 0.0) / _TRIAL_COST
        if is_on != self.is_on:
            self._turn(is_on)
        self.steps_left = _STEPS_BETWEEN[is_on]


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
        """Take in a step in which all sequences decoded."""
        if self.is_adaptive:
            self._of(num_seqs).observe(num_tokens, seconds)

    def _of(self, num_seqs: int) -> _BatchSize:
        size = max(num_seqs - 1, 0).bit_length()
        if size not in self._sizes:
            # Until it is judged itself, a size does as its nearest neighbour that was.
            judged = [s for s, known in self._sizes.items() if not known.trials_left]
            nearest = min(judged, key=lambda s: abs(s - size), default=None)
            is_on = nearest is None or self._sizes[nearest].is_on
            self._sizes[size] = _BatchSize(is_on=is_on)
        return self._sizes[size]
