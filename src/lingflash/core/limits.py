"""What an engine of given sizes can never serve; asked by the server and by the engine itself."""

from __future__ import annotations

from collections.abc import Collection

from lingflash.core.errors import ContextLengthError, InvalidRequestError


def check_token_ids(token_ids: Collection[int], vocab_size: int, param: str) -> None:
    """Refuse ids outside the vocabulary.

    Raises:
        InvalidRequestError: one is.
    """
    if token_ids and not (min(token_ids) >= 0 and max(token_ids) < vocab_size):
        bad = next(i for i in token_ids if not 0 <= i < vocab_size)
        raise InvalidRequestError(
            f"{param} holds {bad}; allowed: token ids from 0 to {vocab_size - 1}.", param=param
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
            f"The prompt has {num_prompt_tokens} tokens and the context is {max_model_len}; "
            "shorten it.",
            param=param,
        )
    if max_tokens is not None and max_tokens > room:
        raise ContextLengthError(
            f"The prompt has {num_prompt_tokens} tokens and {max_tokens_param} is {max_tokens}, "
            f"together over the context of {max_model_len}; it can be at most {room}.",
            param=max_tokens_param,
        )
