"""The vocabulary as llguidance wants it: the bytes of every token, and which are commands."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import llguidance


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """All that grammars need to know of a tokenizer and a model.

    Args:
        token_bytes: of every token, by id.
        special_ids: tokens that are commands; no text of a grammar can produce them, only their
            name in angle brackets.
        stop_ids: the model's own stop tokens, at least one; they are special too.
        size: rows of the logits; ids past `token_bytes` are never allowed.
        encode: text to token ids, reading no special tokens. Where a grammar leaves one text only,
            it is written in the tokens that the tokenizer would choose.
    """

    token_bytes: Sequence[bytes]
    special_ids: Collection[int]
    stop_ids: Sequence[int]
    size: int
    encode: Callable[[str], list[int]]

    def build(self) -> llguidance.LLTokenizer:
        """Index the tokens; takes a second or so for a large vocabulary."""
        padding = [b""] * max(self.size - len(self.token_bytes), 0)
        source = _Source([*self.token_bytes[: self.size], *padding], self)
        return llguidance.LLTokenizer(source, eos_token=list(self.stop_ids))  # pyright: ignore


class _Source:
    """The attributes that llguidance reads of a tokenizer."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokens: list[bytes], vocabulary: Vocabulary) -> None:
        self.tokens = tokens
        self.eos_token_id = vocabulary.stop_ids[0]
        self.special_token_ids = sorted({*vocabulary.special_ids, *vocabulary.stop_ids})
        self._encode = vocabulary.encode

    def __call__(self, text: Any) -> list[int]:
        if isinstance(text, bytes):
            text = text.decode("utf-8", "replace")
        return self._encode(text)
