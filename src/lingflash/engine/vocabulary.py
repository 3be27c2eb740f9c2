"""A checkpoint's tokenizer as grammars see it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lingflash.core.errors import InvalidRequestError
from lingflash.structured.vocabulary import Vocabulary
from lingflash.text.tokenizer import Piece, Tokenizer


def load_vocabulary(folder: Path | None, vocab_size: int, stop_ids: Sequence[int]) -> Vocabulary:
    """Read a checkpoint's tokenizer for grammars.

    Raises:
        InvalidRequestError: there is none.
    """
    tokenizer = None if folder is None else Tokenizer.from_folder(folder)
    if tokenizer is None or not stop_ids:
        raise InvalidRequestError(
            "This model has no tokenizer or no stop token, so its answers cannot follow a grammar.",
            param="structured_outputs",
        )
    return vocabulary_of(tokenizer, vocab_size, stop_ids)


def vocabulary_of(tokenizer: Tokenizer, vocab_size: int, stop_ids: Sequence[int]) -> Vocabulary:
    """What grammars need of a tokenizer."""
    special = {tokenizer.token_id(content) for content in tokenizer.special_strings}
    return Vocabulary(
        token_bytes=tokenizer.vocabulary(),
        special_ids=tokenizer.special_ids | {i for i in special if i is not None},
        stop_ids=list(stop_ids),
        size=vocab_size,
        encode=lambda text: tokenizer.encode_guarded([Piece(text, is_literal=True)]),
    )
