"""The masks of a step: which tokens the grammars of its sequences allow.

They are computed in a thread while the model runs; both give up the interpreter lock.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from lingflash.core.errors import InvalidRequestError
from lingflash.engine.schedule.sequence import Sequence
from lingflash.engine.schedule.step import StepResult
from lingflash.structured.masks import Mask, TokenMatcher, mask_words, unpack_mask

_mask_pool: ThreadPoolExecutor | None = None


def _pool() -> ThreadPoolExecutor:
    global _mask_pool
    if _mask_pool is None:
        _mask_pool = ThreadPoolExecutor(1, thread_name_prefix="masks")
    return _mask_pool


def fill_mask(mask: Mask, sequence: Sequence, matcher: TokenMatcher, num_more: int = 0) -> bool:
    """Write the mask of a sequence's next token; whether it allows any.

    Args:
        mask: uint32 [mask_words(vocab_size)].
        sequence: whose stop tokens may end it.
        matcher: its own, or a copy.
        num_more: tokens that the matcher has taken beyond the sequence's.
    """
    too_short = len(sequence.output_token_ids) + num_more < sequence.sampling.min_tokens
    return matcher.fill(mask, () if too_short else sequence.stop_token_ids)


class StepMasks:
    """The masks of one step, under way.

    Args:
        groups: sequences that follow a grammar, each with its first row of logits and its drafts,
            whose rows follow.
        vocab_size: V.
    """

    def __init__(self, groups: list[tuple[int, Sequence, Seq[int]]], vocab_size: int) -> None:
        self._groups = groups
        self._vocab_size = vocab_size
        self._rows = [first + i for first, _, drafts in groups for i in range(len(drafts) + 1)]
        self._masks: Mask = np.zeros((len(self._rows), mask_words(vocab_size)), np.uint32)
        self._allowed: dict[int, bool] = {}
        self._future: Future[dict[int, bool]] = _pool().submit(self._fill)

    @classmethod
    def start(
        cls, groups: Seq[tuple[int, Sequence, Seq[int]]], vocab_size: int
    ) -> StepMasks | None:
        """Begin to compute the masks; None if no sequence has a grammar."""
        constrained = [group for group in groups if group[1].matcher is not None]
        return cls(constrained, vocab_size) if constrained else None

    def _fill(self) -> dict[int, bool]:
        found: dict[int, bool] = {}
        masks = iter(self._masks)
        for first, sequence, drafts in self._groups:
            matcher = sequence.matcher
            assert matcher is not None
            mask = next(masks)
            found[first] = fill_mask(mask, sequence, matcher)
            taken = 0
            for i, token in enumerate(drafts, 1):
                # After a draft that is not allowed nothing is accepted: the masks stay empty. The
                # bit is asked first, since a matcher that refuses a token is of no more use.
                allowed = bool(mask[token >> 5] >> np.uint32(token & 31) & 1)
                allowed &= token not in sequence.stop_token_ids
                mask = next(masks)
                found[first + i] = False
                if allowed and taken == i - 1 and matcher.consume(token):
                    taken = i
                    found[first + i] = fill_mask(mask, sequence, matcher, i)
            matcher.rollback(taken)
        return found

    def settle(self) -> None:
        """Wait until no thread works on a matcher of this step any more, which has failed."""
        wait([self._future])

    def forbidden(self, device: torch.device) -> dict[int, Tensor]:
        """Wait for the masks.

        Returns:
            For each row that follows a grammar and is not complete: bool [V], True where no token
            is allowed.
        """
        self._allowed = self._future.result()
        refused = torch.from_numpy(~unpack_mask(self._masks, self._vocab_size)).to(device)
        return {row: refused[i] for i, row in enumerate(self._rows) if self._allowed[row]}

    def advance(self, row: int, sequence: Sequence, result: StepResult) -> StepResult:
        """Move a sequence's matcher on by the token sampled in a row.

        Returns:
            The result, which says now whether the sequence is complete.
        """
        matcher = sequence.matcher
        if result.error is not None or matcher is None:
            return result
        if not self._allowed[row]:
            result = StepResult(is_complete=True)
        elif result.token_id not in sequence.stop_token_ids:
            assert result.token_id is not None
            if matcher.consume(result.token_id):
                result = replace(result, is_complete=matcher.is_complete)
        if matcher.error is not None:
            return StepResult(
                error=InvalidRequestError(
                    "The grammar became too complex while the answer was written; make it simpler."
                )
            )
        return result
