"""Which tokens may come next, as bits, for sequences that must follow a grammar."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Sequence

import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

from lingflash.core.panics import is_panic

Mask = NDArray[np.uint32]


# A mask that takes longer is not made within a step any more, which others would wait for.
SLOW_MASK_S = 0.005
# Processor time of a sequence's masks: up to this much of each is expected, and so much more of all
# may be used.
_EXPECTED_MASK_S = 0.015
MASK_BUDGET_S = 1.0


class _Lexer:
    """What the copies of one compiled grammar share: while one makes a mask, the others wait."""

    __slots__ = ("is_slow",)

    def __init__(self) -> None:
        self.is_slow = False


class TokenMatcher:
    """One sequence's place in its grammar; a function of the tokens that it has taken.

    A place is used by one thread at a time. Who gives it to another sets `is_busy`, and leaves it
    alone until that thread has cleared it.

    Args:
        matcher: llguidance's, at the start.
        model_stop_ids: tokens that the matcher allows at a possible end.
    """

    __slots__ = (
        "_lexer",
        "_matcher",
        "_model_stop_ids",
        "_panic",
        "_prepared",
        "_spent_s",
        "_vocab_size",
        "is_busy",
        "num_consumed",
    )

    def __init__(
        self,
        matcher: LLMatcher,
        vocab_size: int,
        model_stop_ids: Sequence[int],
        lexer: _Lexer | None = None,
    ) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._model_stop_ids = tuple(model_stop_ids)
        self._lexer = lexer or _Lexer()
        self._prepared: Mask | None = None  # not written to: copies share it
        self._spent_s = 0.0
        self._panic: str | None = None
        self.is_busy = False
        self.num_consumed = 0

    def copy(self) -> TokenMatcher:
        """Another matcher at the same place."""
        other = TokenMatcher(
            self._matcher.deep_copy(), self._vocab_size, self._model_stop_ids, self._lexer
        )
        other.num_consumed = self.num_consumed
        other._prepared = self._prepared
        return other

    @property
    def lexer(self) -> object:
        """Equal for matchers that wait for each other."""
        return self._lexer

    @property
    def is_slow(self) -> bool:
        """Whether its grammar has taken too long for a mask before."""
        return self._lexer.is_slow

    def mark_slow(self) -> None:
        """Note that its grammar, of all copies, takes too long for masks within steps."""
        self._lexer.is_slow = True

    @property
    def is_spent(self) -> bool:
        """Whether its masks took more time in all than a sequence may use."""
        return self._spent_s > MASK_BUDGET_S

    @property
    def error(self) -> str | None:
        """What went wrong, if something did; the matcher is of no more use then."""
        return self._panic or self._matcher.get_error() if self._matcher.is_error() else None

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
        self._prepared = None
        try:
            if not self._matcher.consume_token(token_id):
                return False
        except BaseException as error:
            self._fail(error)
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
        self._prepared = None
        if num_tokens and self._matcher.rollback(num_tokens):
            self.num_consumed -= num_tokens

    def restore(self, num_tokens: int) -> None:
        """Forget what a step that failed has taken beyond so many tokens.

        A place that another thread keeps for longer than a sequence may use counts as spent.
        """
        end_s = time.monotonic() + 2 * MASK_BUDGET_S
        while self.is_busy and time.monotonic() < end_s:
            time.sleep(0.001)
        if self.is_busy:
            self.mark_slow()
            self._spent_s = math.inf
        else:
            self.rollback(max(self.num_consumed - num_tokens, 0))

    def fill(self, row: Mask, stop_ids: Collection[int]) -> bool:
        """Write the mask of the next token.

        Args:
            row: uint32 [mask_words(vocab_size)], one bit per token, set where it is allowed.
            stop_ids: tokens that may end the sequence now, if the grammar may.

        Returns:
            Whether any token is allowed; if none is, the sequence is complete (or in error).
        """
        if self._prepared is None:
            self._compute(row)
        else:
            row[:] = self._prepared
        may_end = False
        for token_id in self._model_stop_ids:
            word, bit = token_id >> 5, np.uint32(1 << (token_id & 31))
            may_end |= bool(row[word] & bit)
            row[word] &= ~bit
        if may_end:
            for token_id in stop_ids:
                row[token_id >> 5] |= np.uint32(1 << (token_id & 31))
        return bool(row.any())

    @property
    def is_prepared(self) -> bool:
        """Whether the next mask has been made."""
        return self._prepared is not None

    def prepare(self) -> None:
        """Make the mask that the next fill is to write."""
        row: Mask = np.zeros(mask_words(self._vocab_size), np.uint32)
        if not self._matcher.is_stopped():
            self._compute(row)
        self._prepared = row

    def _fail(self, error: BaseException) -> None:
        """Take a panic as this matcher's own error; anything else goes on."""
        if not is_panic(error):
            raise error
        self._panic = f"the grammar library failed: {error}"

    def charge(self, seconds: float) -> None:
        """Note the processor time that a mask has taken."""
        if seconds > SLOW_MASK_S:
            self._lexer.is_slow = True
            self._spent_s += max(seconds - _EXPECTED_MASK_S, 0.0)

    def _compute(self, row: Mask) -> None:
        try:
            self._matcher.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)
        except BaseException as error:
            self._fail(error)
            row[:] = 0


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
