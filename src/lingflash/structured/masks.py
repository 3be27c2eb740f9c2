"""Which tokens may come next, as bits, for sequences that must follow a grammar."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

Mask = NDArray[np.uint32]


class TokenMatcher:
    """One sequence's place in its grammar; a function of the tokens that it has taken.

    Args:
        matcher: llguidance's, at the start.
        model_stop_ids: tokens that the matcher allows at a possible end.
    """

    __slots__ = ("_matcher", "_model_stop_ids", "_vocab_size", "num_consumed")

    def __init__(self, matcher: LLMatcher, vocab_size: int, model_stop_ids: Sequence[int]) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._model_stop_ids = tuple(model_stop_ids)
        self.num_consumed = 0

    def copy(self) -> TokenMatcher:
        """Another matcher at the same place."""
        other = TokenMatcher(self._matcher.deep_copy(), self._vocab_size, self._model_stop_ids)
        other.num_consumed = self.num_consumed
        return other

    @property
    def error(self) -> str | None:
        """What went wrong, if something did; the matcher is of no more use then."""
        return self._matcher.get_error() if self._matcher.is_error() else None

    @property
    def is_complete(self) -> bool:
        """Whether nothing but the end can follow."""
        return self._matcher.is_stopped()

    @property
    def may_end(self) -> bool:
        """Whether the text so far is a whole one."""
        return self._matcher.is_accepting()

    def consume(self, token_id: int) -> bool:
        """Take a token that the mask allowed; False if the grammar does not allow it."""
        if not self._matcher.consume_token(token_id):
            return False
        self.num_consumed += 1
        return True

    def rollback(self, num_tokens: int) -> None:
        """Go back by some tokens.

        Raises:
            ValueError: it has not taken so many.
        """
        if not 0 <= num_tokens <= self.num_consumed:
            raise ValueError(f"num_tokens is {num_tokens}; allowed: 0 to {self.num_consumed}")
        if num_tokens and self._matcher.rollback(num_tokens):
            self.num_consumed -= num_tokens

    def fill(self, row: Mask, stop_ids: Collection[int]) -> bool:
        """Write the mask of the next token.

        Args:
            row: uint32 [mask_words(vocab_size)], one bit per token, set where it is allowed.
            stop_ids: tokens that may end the sequence now, if the grammar may.

        Returns:
            Whether any token is allowed; if none is, the sequence is complete (or in error).
        """
        self._matcher.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)
        may_end = False
        for token_id in self._model_stop_ids:
            word, bit = token_id >> 5, np.uint32(1 << (token_id & 31))
            may_end |= bool(row[word] & bit)
            row[word] &= ~bit
        if may_end:
            for token_id in stop_ids:
                row[token_id >> 5] |= np.uint32(1 << (token_id & 31))
        return bool(row.any())


def mask_words(vocab_size: int) -> int:
    """Words of 32 bits that a mask has."""
    return (vocab_size + 31) // 32


def unpack_mask(masks: Mask, vocab_size: int) -> NDArray[np.bool_]:
    """One boolean per token.

    Args:
        masks: uint32 [R, mask_words(vocab_size)].
        vocab_size: V.

    Returns:
        bool [R, V].
    """
    bits = np.unpackbits(masks.view(np.uint8), axis=-1, count=vocab_size, bitorder="little")
    return bits.view(np.bool_)
