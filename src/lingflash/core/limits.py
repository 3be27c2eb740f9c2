"""What an engine of given sizes can never serve; asked by the server and by the engine itself."""

from __future__ import annotations

from array import array
from collections.abc import Collection

import numpy as np

from lingflash.core.errors import ContextLengthError, InvalidRequestError, RequestTooLargeError


def check_token_ids(token_ids: Collection[int], vocab_size: int, param: str) -> None:
    """Refuse ids outside the vocabulary.

    Raises:
        InvalidRequestError: one is.
    """
    if token_ids and not _are_below(token_ids, vocab_size):
        bad = next(i for i in token_ids if not 0 <= i < vocab_size)
        raise InvalidRequestError(
            f"{param} holds {bad}; allowed: token ids from 0 to {vocab_size - 1}.", param=param
        )


def _are_below(numbers: Collection[int], limit: int) -> bool:
    """Whether all are 0 or more and below a limit: a third of the time of min() and max()."""
    try:
        return int(np.frombuffer(array("I", numbers), dtype=np.uint32).max()) < limit
    except OverflowError:
        return False


_LEAST_TEXT_BYTES = 2**20
_BYTES_PER_TOKEN = 16


def check_countable(num_bytes: int, max_model_len: int, *, param: str) -> None:
    """Refuse to count the tokens of a text far longer than any context: they take memory.

    Raises:
        RequestTooLargeError: it is.
    """
    allowed = max(_LEAST_TEXT_BYTES, _BYTES_PER_TOKEN * max_model_len)
    if num_bytes > allowed:
        raise RequestTooLargeError(
            f"The text has {num_bytes} bytes; at most {allowed} are tokenized at once, "
            f"{_BYTES_PER_TOKEN} for each token of the context. Send it in parts.",
            param=param,
        )


def check_lengths(
    num_prompt_tokens: int,
    max_tokens: int | None,
    max_model_len: int,
    *,
    param: str,
    max_tokens_param: str = "max_tokens",
) -> None:
    """Refuse what the context cannot hold.

    Args:
        max_tokens: asked for; None takes what is left.
        max_model_len: most tokens of prompt and answer together.
        param: the field that holds the prompt.
        max_tokens_param: the field that max_tokens came from.

    Raises:
        ContextLengthError: the prompt, or prompt and answer, are too long.
        InvalidRequestError: the prompt is empty.
    """
    if num_prompt_tokens == 0:
        raise InvalidRequestError(f"{param} has no tokens; at least one is needed.", param=param)
    room = max_model_len - num_prompt_tokens
    if room < (0 if max_tokens == 0 else 1):
        raise ContextLengthError(
            f"This model's maximum context length is {max_model_len} tokens, but the prompt has "
            f"{num_prompt_tokens}; shorten it.",
            param=param,
            num_tokens=num_prompt_tokens,
            limit=max_model_len,
        )
    if max_tokens is not None and max_tokens > room:
        raise ContextLengthError(
            f"This model's maximum context length is {max_model_len} tokens, but the prompt has "
            f"{num_prompt_tokens} and {max_tokens_param} is {max_tokens}; at most {room} are left.",
            param=max_tokens_param,
        )
