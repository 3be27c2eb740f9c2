"""Log probabilities in the two forms that OpenAI's endpoints have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lingflash.core.types import TokenLogprob
from lingflash.text.tokenizer import Tokenizer

# JSON has no infinity; OpenAI writes this for "practically impossible".
_LOWEST_LOGPROB = -9999.0


def token_text(tokenizer: Tokenizer | None, token_id: int) -> str:
    """A token as text; bytes that are no whole characters are spelt out, as OpenAI does."""
    if tokenizer is None:
        return f"token_id:{token_id}"
    data = tokenizer.token_bytes(token_id)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def chat_logprobs(tokenizer: Tokenizer | None, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
    """The `logprobs` object of a chat choice."""

    def entry(token_id: int, logprob: float) -> dict[str, Any]:
        return {
            "token": token_text(tokenizer, token_id),
            "logprob": max(logprob, _LOWEST_LOGPROB),
            "bytes": None if tokenizer is None else list(tokenizer.token_bytes(token_id)),
        }

    return {
        "content": [
            {
                **entry(item.token_id, item.logprob),
                "top_logprobs": [entry(token_id, value) for token_id, value in item.top],
            }
            for item in logprobs
        ],
        "refusal": None,
    }


class CompletionLogprobs:
    """Builds the `logprobs` object of a text completion, with running text offsets.

    Args:
        tokenizer: None in token-id mode.
    """

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer
        self._offset = 0

    def build(
        self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprob | None]
    ) -> dict[str, Any]:
        """The object for the next tokens; None stands for the prompt's first token."""
        tokens: list[str] = []
        values: list[float | None] = []
        tops: list[dict[str, float] | None] = []
        offsets: list[int] = []
        for token_id, item in zip(token_ids, logprobs, strict=True):
            text = token_text(self._tokenizer, token_id)
            tokens.append(text)
            offsets.append(self._offset)
            self._offset += len(text)
            if item is None:
                values.append(None)
                tops.append(None)
                continue
            values.append(max(item.logprob, _LOWEST_LOGPROB))
            top: dict[str, float] = {}
            for other, value in (*item.top, (token_id, item.logprob)):
                spelling = token_text(self._tokenizer, other)
                # Two tokens may have one spelling; the likelier one is meant.
                top[spelling] = max(top.get(spelling, _LOWEST_LOGPROB), value)
            tops.append(top)
        return {
            "tokens": tokens,
            "token_logprobs": values,
            "top_logprobs": tops,
            "text_offset": offsets,
        }
