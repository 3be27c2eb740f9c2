"""Answers walked at random through a grammar, over the toy tokenizer."""

from __future__ import annotations

import numpy as np

from lingflash.engine.vocabulary import vocabulary_of
from lingflash.structured.grammar import GrammarCompiler
from lingflash.structured.masks import mask_words, unpack_mask
from toy_text import toy_tokenizer

TOKENIZER = toy_tokenizer()
END = TOKENIZER.token_id("<|role_end|>")
SIZE = TOKENIZER.vocab_size + 7  # the model has more rows than the tokenizer has tokens
COMPILER = GrammarCompiler(lambda: vocabulary_of(TOKENIZER, SIZE, [END]))


def allowed(matcher, stop_ids=(END,)):
    """Ids that may come next."""
    row = np.zeros(mask_words(SIZE), np.uint32)
    any_allowed = matcher.fill(row, stop_ids)
    ids = np.flatnonzero(unpack_mask(row[None], SIZE)[0])
    assert any_allowed == bool(len(ids))
    return ids.tolist()


def walk(spec, rng, *, max_tokens=400, closing=0.2):
    """A random answer, or None if it does not end; prefers tokens that close something."""
    matcher = COMPILER.compile(spec)
    taken = []
    for _ in range(max_tokens):
        if matcher.is_complete:
            return taken
        ids = allowed(matcher)
        assert ids
        assert max(ids) < TOKENIZER.vocab_size
        if END in ids and rng.random() < 0.5:
            return taken
        ids = [i for i in ids if i != END]
        ends = [i for i in ids if TOKENIZER.token_bytes(i) in (b'"', b"}", b"]", b",")]
        token = rng.choice(ends if ends and rng.random() < closing else ids)
        assert matcher.consume(token)
        taken.append(token)
    return None


def consumes(spec, text):
    """Whether a grammar admits a text, as the tokenizer writes it; and whether it may end there."""
    matcher = COMPILER.compile(spec)
    for token in TOKENIZER.encode(text):
        if token not in allowed(matcher):
            return False
        assert matcher.consume(token)
    return matcher.may_end
