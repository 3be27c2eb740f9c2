"""The tokens of a step: which row of its logits is whose, and what comes of it."""

from __future__ import annotations

from collections.abc import Sequence as Seq

from torch import Tensor

from lingflash.engine.run.sampler import Sampled, sample
from lingflash.engine.run.speculation import accept_drafts
from lingflash.engine.run.step_masks import StepMasks
from lingflash.engine.schedule.sequence import DraftedSequence, Sequence
from lingflash.engine.schedule.step import ScheduledSequence, StepResult


class StepSampling:
    """Sampling of one step; a context. Masks are begun at once, to be computed beside the model.

    Args:
        items: those of the step that want a token, in the order of their logits.
        vocab_size: V.
        has_drafts: whether any of them has drafts, each of which has a row of its own.
    """

    def __init__(
        self, items: Seq[ScheduledSequence], vocab_size: int, *, has_drafts: bool = False
    ) -> None:
        self._has_drafts = has_drafts
        self._rows: list[Sampled] = [item.sequence for item in items]
        # Each sequence's first row, itself and its drafts, whose rows follow.
        self._groups: list[tuple[int, Sequence, Seq[int]]] = [
            (i, item.sequence, ()) for i, item in enumerate(items)
        ]
        if has_drafts:
            self._rows, self._groups = _rows_with_drafts(items)
        self._masks = StepMasks.start(self._groups, vocab_size)

    def __enter__(self) -> StepSampling:
        return self

    def __exit__(self, *exc: object) -> None:
        """Leave no thread at work on the sequences' matchers, if the step has failed."""
        if self._masks is not None:
            self._masks.settle()

    def results(self, logits: Tensor) -> list[StepResult]:
        """One per item, from float32 logits [R, V]."""
        masks = self._masks
        if masks is None:
            sampled = sample(logits, self._rows)
            if not self._has_drafts:
                return sampled
        else:
            sampled = sample(logits, self._rows, masks.forbidden(logits.device))
        return [accept_drafts(sampled, group, masks) for group in self._groups]


def _rows_with_drafts(
    items: Seq[ScheduledSequence],
) -> tuple[list[Sampled], list[tuple[int, Sequence, Seq[int]]]]:
    """Rows and groups: a sequence, then it with its first draft, with its first two, ..."""
    rows: list[Sampled] = []
    groups: list[tuple[int, Sequence, Seq[int]]] = []
    for item in items:
        groups.append((len(rows), item.sequence, item.draft_tokens))
        rows.append(item.sequence)
        for i in range(len(item.draft_tokens)):
            rows.append(DraftedSequence(item.sequence, [*item.draft_tokens[: i + 1]]))
    return rows, groups


def wants_prompt_logprobs(item: ScheduledSequence) -> bool:
    """Whether a step is to score an item's prompt tokens."""
    sequence = item.sequence
    return (
        sequence.sampling.prompt_logprobs is not None
        and sequence.choice == 0
        and not sequence.output_token_ids
    )
