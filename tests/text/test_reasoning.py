"""Thinking is split off the same way however the text is cut, and never swallows a call."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lingflash.text.answer import AnswerMessage, AnswerParser
from lingflash.text.tool_parser import ToolCall

BLOCK = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
CALL = ToolCall(0, "call_x", "f", '{"a": 1}', is_complete=True)


def parse(chunks):
    parser = AnswerParser(parse_tools=True, parse_reasoning=True, make_id=lambda: "call_x")
    message = AnswerMessage()
    for chunk in chunks:
        message.add(parser.push(chunk))
    message.add(parser.finish())
    return message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", AnswerMessage("plain")),
        ("\n<think>\na\nb\n</think>\n\nhi", AnswerMessage("hi", "a\nb")),
        ("<think>a</think>hi", AnswerMessage("hi", "a")),
        ("<think></think>hi", AnswerMessage("hi")),
        ("<think>\na", AnswerMessage("", "a")),
        ("<think>a <b", AnswerMessage("", "a <b")),
        ("<think>a\n" + BLOCK, AnswerMessage("", "a", [CALL])),
        ("<think>a\n" + BLOCK + "\n</think>\n", AnswerMessage("", "a", [CALL])),
        ("<think>\n" + BLOCK + "</think>\n\nhi", AnswerMessage("hi", "", [CALL])),
        (
            "<think>a" + BLOCK + "\nb\n</think>\nc</think>",
            AnswerMessage("\nbc</think>", "a", [CALL]),
        ),
        ("<think>a" + BLOCK + "\nb <i", AnswerMessage("\nb <i", "a", [CALL])),
        ("<think>a\n<tool_call>b\n</think>c", AnswerMessage("c", "a\n<tool_call>b")),
        ('<think>a <tool_call>{"x</think>c', AnswerMessage("c", 'a <tool_call>{"x')),
        ("<think>a" + BLOCK[:-13], AnswerMessage("", "a", [CALL])),
        ("<think>a" + BLOCK[:-14], AnswerMessage("", "a" + BLOCK[:-14])),
        ("<think>a</think>\n\n" + BLOCK, AnswerMessage("", "a", [CALL])),
        ("hi <think>a</think>", AnswerMessage("hi <think>a</think>")),
        (" \n<thin", AnswerMessage(" \n<thin")),
        ("", AnswerMessage()),
    ],
)
def test_parse_when_text_is_given_whole_or_by_character_then_expected_message(text, expected):
    assert parse([text]) == parse(list(text)) == expected


@given(
    st.lists(
        st.sampled_from(
            [
                *("<think>", "</think>", BLOCK, BLOCK[:-12], "\n", "<", "a", " "),
                *("<tool_", "</th", "<tool_call>", '{"', "}"),
            ]
        ),
        max_size=9,
    ),
    st.data(),
)
def test_parse_when_cut_anywhere_then_same_message(parts, data):
    text = "".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    chunks = [text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])]
    assert parse(chunks) == parse([text]) == parse(list(text))


@given(st.lists(st.sampled_from([BLOCK, "\n", "a ", "</think>\n"]), max_size=5))
def test_parse_when_a_call_ends_thinking_then_the_first_end_tag_after_it_is_nowhere(parts):
    rest = "".join(parts)
    message = parse(list("<think>hm" + BLOCK + rest))
    assert message.reasoning == "hm"
    assert message.content.count("</think>") == max(0, rest.count("</think>") - 1)
    assert len(message.calls) == 1 + rest.count(BLOCK)
