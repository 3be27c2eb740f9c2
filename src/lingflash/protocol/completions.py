"""Wire schema of /v1/completions."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from lingflash.core.errors import InvalidRequestError
from lingflash.protocol.chat import SamplingFields


class CompletionRequest(SamplingFields):
    """Body of POST /v1/completions."""

    prompt: Any = Field(
        description="a text, token ids, or a list of either; special tokens in texts are read"
    )
    max_tokens: int | None = Field(None, description="default 16; 0 is allowed with echo")
    echo: bool | None = Field(None, description="begin the answer with the prompt")
    logprobs: int | None = Field(None, description="likeliest tokens to report at each position")
    add_special_tokens: bool | None = Field(
        None, description="apply the tokenizer's post-processor to texts (default true)"
    )


def split_prompts(prompt: Any) -> list[str | list[int]]:
    """Read the four forms of `prompt` into a list of texts or token id lists.

    Raises:
        InvalidRequestError: it has none of the forms.
    """
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt, list) and prompt:
        if is_token_ids(prompt):
            return [prompt]
        if all(isinstance(item, str) for item in prompt):
            return list(prompt)
        if all(isinstance(item, list) and item and is_token_ids(item) for item in prompt):
            return list(prompt)
    raise InvalidRequestError(
        "prompt must be a string, a list of strings, a list of token ids or a list of such lists, "
        "and none of them empty.",
        param="prompt",
    )


def is_token_ids(items: list[Any]) -> bool:
    """Whether every item is an integer (JSON's true and false are not)."""
    return all(type(item) is int for item in items)
