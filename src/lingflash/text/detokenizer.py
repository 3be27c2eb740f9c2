"""Tokens to text, one at a time, without ever showing half a character.

A token of a byte-level vocabulary is a run of bytes and may end inside a character. The bytes go
through an incremental UTF-8 decoder, which keeps an unfinished character until its last byte
comes. The text therefore equals the decoding of all bytes at once, whatever the chunks, at a cost
that does not grow with the answer.
"""

from __future__ import annotations

import codecs
from collections.abc import Set

from lingflash.text.tokenizer import Tokenizer

_Decoder = codecs.getincrementaldecoder("utf-8")


class Detokenizer:
    """Turns one sequence's tokens into text.

    Args:
        hidden_ids: tokens that leave no text.
    """

    __slots__ = ("_decoder", "_hidden_ids", "_token_bytes")

    def __init__(self, tokenizer: Tokenizer, *, hidden_ids: Set[int] = frozenset()) -> None:
        self._token_bytes = tokenizer.token_bytes
        self._hidden_ids = hidden_ids
        self._decoder = _Decoder("replace")

    def push(self, token_id: int) -> str:
        """Take one token; return the text it completes, perhaps none."""
        if token_id in self._hidden_ids:
            return ""
        return self._decoder.decode(self._token_bytes(token_id))

    def finish(self) -> str:
        """End the sequence; return U+FFFD if it stops inside a character, else nothing."""
        return self._decoder.decode(b"", True)
