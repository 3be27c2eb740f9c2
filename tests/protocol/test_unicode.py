"""Half surrogates become U+FFFD, alike in text and in JSON's escapes; all else stays."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lingflash.protocol.unicode import replace_escaped_surrogates, replace_surrogates

texts = st.text(st.characters() | st.characters(categories=["Cs"]) | st.sampled_from('\\u"d8'))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain ü 😀", "plain ü 😀"),
        ("a\ud83d", "a�"),
        ("\udc00\ud83dx", "��x"),
        ("\ud83d\ude00", "😀"),
        ("\ud83d\ud83d\ude00", "�😀"),
    ],
)
def test_replace_when_a_half_stands_alone_then_a_replacement_character(text, expected):
    assert replace_surrogates(text) == expected
    assert json.loads(replace_escaped_surrogates(json.dumps(text))) == expected


@given(texts)
def test_replace_when_any_text_is_given_then_utf8_holds_it_and_json_agrees(text):
    replaced = replace_surrogates(text)
    assert replaced.encode("utf-8").decode("utf-8") == replaced
    assert json.loads(replace_escaped_surrogates(json.dumps(text))) == replaced


@given(st.text())
def test_replace_when_there_is_no_half_then_the_same_text(text):
    assert replace_surrogates(text) == text
    assert replace_escaped_surrogates(json.dumps(text)) == json.dumps(text)
