"""Incremental detokenization equals decoding the whole, and never shows half a character."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as HfTokenizer

from lingflash.core.errors import ModelLoadError
from lingflash.text import detokenizer as detokenizer_module
from lingflash.text.detokenizer import Detokenizer
from lingflash.text.tokenizer import Tokenizer
from toy_text import ORDINARY, toy_definition

DEFINITION = toy_definition()
TOKENIZER = Tokenizer(DEFINITION)
HF = HfTokenizer.from_str(DEFINITION)
token_lists = st.lists(st.integers(0, TOKENIZER.vocab_size - 1), max_size=40)


@given(token_lists)
def test_push_when_tokens_are_arbitrary_then_text_equals_decode_of_the_whole(token_ids):
    detokenizer = Detokenizer(TOKENIZER)
    text = "".join(detokenizer.push(i) for i in token_ids) + detokenizer.finish()
    assert text == TOKENIZER.decode(token_ids) == HF.decode(token_ids, skip_special_tokens=False)


@given(token_lists)
def test_push_when_special_tokens_are_hidden_then_text_equals_decode_without_them(token_ids):
    detokenizer = Detokenizer(TOKENIZER, hidden_ids=TOKENIZER.hidden_ids)
    text = "".join(detokenizer.push(i) for i in token_ids) + detokenizer.finish()
    assert text == TOKENIZER.decode(token_ids, skip_special_tokens=True)


@given(st.text(max_size=60))
def test_push_when_tokens_encode_text_then_no_replacement_character_is_shown(text):
    detokenizer = Detokenizer(TOKENIZER)
    shown = [detokenizer.push(i) for i in TOKENIZER.encode(text)] + [detokenizer.finish()]
    assert "".join(shown) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in shown)


def test_push_when_a_character_is_split_then_it_appears_with_its_last_byte():
    token_ids = TOKENIZER.encode("🦊")
    assert len(token_ids) > 1
    detokenizer = Detokenizer(TOKENIZER)
    pieces = [detokenizer.push(i) for i in token_ids]
    assert pieces == [""] * (len(token_ids) - 1) + ["🦊"]


def test_finish_when_a_character_is_unfinished_then_one_replacement_character():
    detokenizer = Detokenizer(TOKENIZER)
    assert detokenizer.push(TOKENIZER.encode("🦊")[0]) == ""
    assert detokenizer.finish() == "\ufffd"


def test_decode_when_skipping_special_tokens_then_tool_tags_stay():
    token_ids = TOKENIZER.encode("a<tool_call>b</tool_call><|role_end|>")
    assert TOKENIZER.decode(token_ids, skip_special_tokens=True) == "a<tool_call>b</tool_call>"


def test_token_bytes_when_id_is_unknown_then_empty():
    assert TOKENIZER.token_bytes(10**6) == b""
    assert TOKENIZER.token_bytes(-1) == b""


def test_vocabulary_then_covers_every_id_and_added_tokens():
    vocabulary = TOKENIZER.vocabulary()
    assert len(vocabulary) == TOKENIZER.vocab_size
    assert set(ORDINARY) <= {token.decode("utf-8", "replace") for token in vocabulary}


@pytest.mark.parametrize("definition", ["", "{", "[]", '{"model": {"type": "BPE"}}'])
def test_tokenizer_when_file_is_damaged_then_model_load_error(definition):
    with pytest.raises(ModelLoadError, match="cannot be read as a tokenizer"):
        Tokenizer(definition)


def test_tokenizer_when_not_byte_level_then_model_load_error():
    spec = json.loads(DEFINITION)
    spec["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    with pytest.raises(ModelLoadError, match="WordPiece"):
        Tokenizer(json.dumps(spec))


def test_bundled_tokenizer_then_decodes_and_counts_as_the_reference_does():
    path = Path(detokenizer_module.__file__).parents[1] / "assets/ling-nano/tokenizer.json"
    if not path.is_file():
        pytest.skip("ling-nano has no tokenizer.json")
    ours, reference = Tokenizer(path.read_text("utf-8")), HfTokenizer.from_file(str(path))
    rng = random.Random(1)
    for _ in range(300):
        token_ids = [rng.randrange(ours.vocab_size) for _ in range(rng.randint(0, 30))]
        detokenizer = Detokenizer(ours)
        text = "".join(detokenizer.push(i) for i in token_ids) + detokenizer.finish()
        assert text == reference.decode(token_ids, skip_special_tokens=False)
        assert ours.encode(text) == reference.encode(text).ids
    assert ours.vocab_size == reference.get_vocab_size(with_added_tokens=True)
