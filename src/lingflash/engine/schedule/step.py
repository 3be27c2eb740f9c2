"""What passes between the scheduler and the model: a step's work, and what came of it."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from lingflash.cache.memory_ops import MemoryOp
from lingflash.core.errors import LingflashError
from lingflash.core.types import TokenLogprob
from lingflash.engine.schedule.sequence import Sequence


# The next two are made per sequence and step; frozen ones would take three times as long.
@dataclass(slots=True)
class ScheduledSequence:
    """Tokens of one sequence in a step.

    Args:
        start: position of the first.
        num_tokens: how many, drafts included.
        wants_token: whether the last one's logits give the next token.
        draft_tokens: guesses at the next tokens, to be verified; the last of num_tokens.
        save: a position within its tokens at which its states are left in a slot, too, and that
            slot.
    """

    sequence: Sequence
    start: int
    num_tokens: int
    wants_token: bool
    draft_tokens: Seq[int] = ()
    save: tuple[int, int] | None = None

    @property
    def num_certain(self) -> int:
        """Tokens that are no drafts."""
        return self.num_tokens - len(self.draft_tokens)


@dataclass(slots=True)
class SchedulerOutput:
    """One step's work.

    Args:
        scheduled: sequences in it, in the order of the batch.
        memory_ops: what to do to the memory before anything else, in this order.
        num_draft_tokens: drafts to make for the next step; 0 does not speculate.
        has_drafts: whether any sequence has some to verify.
    """

    scheduled: list[ScheduledSequence] = field(default_factory=list)
    memory_ops: list[MemoryOp] = field(default_factory=list)
    num_draft_tokens: int = 0
    has_drafts: bool = False

    @property
    def num_tokens(self) -> int:
        return sum(item.num_tokens for item in self.scheduled)


@dataclass(slots=True)
class StepResult:
    """What the model said about one scheduled sequence.

    Args:
        token_id: the next token, if one was wanted and could be sampled.
        logprob: of it, if asked for.
        prompt_logprobs: of the prompt tokens that this step's logits predict, if asked for.
        error: ends this sequence alone.
        is_complete: its grammar allows nothing after this token, or not even a token.
        following: what it said after each accepted draft, as if in steps of their own.
        is_late: the error is that a mask was not there in time: the sequence is computed again.
    """

    token_id: int | None = None
    logprob: TokenLogprob | None = None
    prompt_logprobs: Seq[TokenLogprob] = ()
    error: LingflashError | None = None
    is_complete: bool = False
    following: Seq[StepResult] = ()
    is_late: bool = False


class PendingStep:
    """A step that was launched.

    Args:
        wait: returns its results, one per scheduled sequence, in order.
        is_under_way: the device may still compute it, so that another can be launched behind it.
    """

    __slots__ = ("_wait", "is_under_way")

    def __init__(self, wait: Callable[[], list[StepResult]], *, is_under_way: bool) -> None:
        self._wait, self.is_under_way = wait, is_under_way

    @classmethod
    def done(cls, results: list[StepResult]) -> PendingStep:
        """A step that was computed when it was launched."""
        return cls(lambda: results, is_under_way=False)

    def results(self) -> list[StepResult]:
        """Wait for this step alone; what the model said of each sequence."""
        return self._wait()
