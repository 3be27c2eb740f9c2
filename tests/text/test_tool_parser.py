"""Tool calls: the same result however the text is cut, and no part of a tag ever leaks."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lingflash.text.call_scanner import CallScanner
from lingflash.text.tool_parser import (
    CLOSE_TAG,
    OPEN_TAG,
    CallBroken,
    CallDelta,
    CallEnd,
    CallStart,
    ToolCall,
    ToolParser,
)


def parse_call(body):
    """Name and arguments' text of a whole block's body, or None if it is no call."""
    scanner = CallScanner()
    scanner.text = body + CLOSE_TAG
    if scanner.scan() != "closed" or scanner.position != len(scanner.text):
        return None
    if scanner.arguments_start is None:
        return scanner.name, "{}"
    return scanner.name, body[scanner.arguments_start : scanner.arguments_end]


def parse_events(chunks, is_cut_off=False):
    counter = itertools.count()
    parser = ToolParser(make_id=lambda: f"call_{next(counter)}")
    events = []
    for chunk in chunks:
        events += parser.push(chunk)
    events += parser.finish(is_cut_off=is_cut_off)
    check_events(events)
    return events, parser


def check_events(events):
    """The laws of deltas: one start with the name, pieces in order, one end, no index twice."""
    open_call, last = None, -1
    for event in events:
        match event:
            case str():
                assert event
                assert open_call is None
            case CallStart(index, call_id, name):
                assert open_call is None
                assert index == last + 1
                assert call_id == f"call_{index}"
                assert name
                open_call = last = index
            case CallDelta(index, arguments):
                assert index == open_call
                assert arguments
            case CallEnd(index) | CallBroken(index):
                assert index == open_call
                open_call = None


def parse(chunks, is_cut_off=False):
    events, parser = parse_events(chunks, is_cut_off)
    merged: list[str | ToolCall] = []
    for event in events:
        match event:
            case str() if merged and isinstance(merged[-1], str):
                merged[-1] += event
            case str():
                merged.append(event)
            case CallStart(index, call_id, name):
                merged.append(ToolCall(index, call_id, name))
            case CallDelta(_, arguments):
                merged[-1].arguments += arguments
            case CallEnd():
                merged[-1].is_complete = True
            case CallBroken():
                merged.pop()
    # What a withdrawn call stood between is one text.
    joined = []
    for part in merged:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        else:
            joined.append(part)
    return joined, parser


def call(name, arguments, index=0):
    return ToolCall(index, f"call_{index}", name, arguments, is_complete=True)


BLOCK = '<tool_call>\n{"name": "f", "arguments": {"a":  1.50, "b": "ü\\n"}}\n</tool_call>'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", ["plain"]),
        (BLOCK, [call("f", '{"a":  1.50, "b": "ü\\n"}')]),
        ("hi\n" + BLOCK, ["hi", call("f", '{"a":  1.50, "b": "ü\\n"}')]),
        ("hi\n\n" + BLOCK, ["hi\n", call("f", '{"a":  1.50, "b": "ü\\n"}')]),
        (
            BLOCK + "\n" + BLOCK + "\n",
            [call("f", '{"a":  1.50, "b": "ü\\n"}'), call("f", '{"a":  1.50, "b": "ü\\n"}', 1)],
        ),
        (BLOCK + "\n more ", [call("f", '{"a":  1.50, "b": "ü\\n"}'), "\n more"]),
        ('<tool_call>{"name":"f"}</tool_call>', [call("f", "{}")]),
        ('<tool_call>{"name":"f","arguments":{}}</tool_call>', [call("f", "{}")]),
        ('<tool_call>{"arguments": {}, "name": "f"}</tool_call>', [call("f", "{}")]),
        ("a <tool", ["a <tool"]),
        ("a\n", ["a\n"]),
        ("<tool_call>\n{nope}\n</tool_call>", ["<tool_call>\n{nope}\n</tool_call>"]),
        ("x\n<tool_call>nope</tool_call>", ["x\n<tool_call>nope</tool_call>"]),
        ('<tool_call>{"name": "f", "arg', ['<tool_call>{"name": "f", "arg']),
        (
            '<tool_call>{"name": "f", "arguments": {"x": "</tool_call>"}}</tool_call>',
            [call("f", '{"x": "</tool_call>"}')],
        ),
        (
            '<tool_call>{"name": "f}</tool_call>' + BLOCK,
            ['<tool_call>{"name": "f}</tool_call>', call("f", '{"a":  1.50, "b": "ü\\n"}')],
        ),
        (BLOCK + "\n<tool_call>bad</tool_call>", None),
    ],
)
def test_parse_when_text_is_given_whole_or_by_character_then_expected_events(text, expected):
    whole, _ = parse([text])
    by_character, _ = parse(list(text))
    assert whole == by_character
    if expected is not None:
        assert whole == expected


@pytest.mark.parametrize(
    "body",
    [
        "",
        "[]",
        "{}",
        '{"name": 1}',
        '{"name": ""}',
        '{"name": "f", "arguments": "{}"}',
        '{"name": "f", "arguments": []}',
        '{"name": "f", "arguments": {"x": NaN}}',
        '{"name": "f",}',
        '{"name": "f"} x',
        '{"name": "f" "arguments": {}}',
        '{"name": "f", "arguments": {"x": "a\nb"}}',
        '{"name": "f", "arguments": ' + '{"a":' * 100_000,
        '{"name": "f", "arguments": {"x": ' + "9" * 5000 + "}}",
    ],
)
def test_parse_call_when_it_is_no_call_then_none(body):
    assert parse_call(body) is None


fragments = st.lists(
    st.one_of(
        st.sampled_from(
            [
                *(OPEN_TAG, CLOSE_TAG, BLOCK, BLOCK[:60], "\n", "<", "<tool_", '"', "{", "}", " "),
                *('{"name": "g"}', '{"name": "g", "arguments": {', '"x": "y"', "}}", "[1]", ":"),
            ]
        ),
        st.text(max_size=4),
    ),
    max_size=12,
)


@given(fragments, st.data())
def test_push_when_text_is_cut_anywhere_then_same_events(parts, data):
    text = "".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    bounds = [0, *cuts, len(text)]
    chunks = [text[a:b] for a, b in itertools.pairwise(bounds)]
    cut = data.draw(st.booleans())
    assert parse(chunks, cut)[0] == parse([text], cut)[0] == parse(list(text), cut)[0]


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)
objects = st.dictionaries(st.text(max_size=6), json_values, max_size=4)


@given(
    st.lists(st.tuples(st.text(min_size=1, max_size=8), objects), min_size=1, max_size=3),
    st.booleans(),
)
def test_parse_when_calls_are_written_as_the_template_does_then_arguments_are_exact(
    calls, ascii_only
):
    written = [json.dumps(arguments, ensure_ascii=ascii_only) for _, arguments in calls]
    text = "\n".join(
        "<tool_call>\n"
        + '{"name": '
        + json.dumps(name, ensure_ascii=False)
        + ', "arguments": '
        + arguments
        + "}"
        + "\n</tool_call>"
        for (name, _), arguments in zip(calls, written, strict=True)
    )
    events, parser = parse(list(text))
    assert events == [call(name, written[i], i) for i, (name, _) in enumerate(calls)]
    assert parser.num_calls == len(calls)
    assert not parser.was_cut_off


@given(fragments)
def test_push_when_streamed_then_content_and_calls_lose_nothing_but_the_form(parts):
    events, _ = parse(list("".join(parts)))
    content = "".join(event for event in events if isinstance(event, str))
    if not any(isinstance(event, ToolCall) for event in events):
        assert content == "".join(parts)


def test_finish_when_the_limit_cuts_a_call_then_it_stays_with_what_it_has():
    text = 'x\n<tool_call>\n{"name": "f", "arguments": {"a": "b'
    events, parser = parse(list(text), is_cut_off=True)
    assert events == ["x", ToolCall(0, "call_0", "f", '{"a": "b')]
    assert parser.was_cut_off
    assert parser.num_calls == 0


def test_finish_when_the_limit_cuts_the_name_then_content():
    text = 'x\n<tool_call>\n{"name": "f'
    events, parser = parse([text], is_cut_off=True)
    assert events == [text]
    assert parser.was_cut_off


def test_finish_when_the_model_ends_inside_a_call_then_content():
    text = 'x\n<tool_call>\n{"name": "f", "arguments": {"a": "b'
    events, parser = parse([text])
    assert events == [text]
    assert not parser.was_cut_off


def test_push_when_arguments_come_in_pieces_then_passed_on_as_they_come():
    parser = ToolParser(make_id=lambda: "call_0")
    assert parser.push('<tool_call>\n{"name": "f", "argu') == []
    assert parser.push('ments": {"a"') == [CallStart(0, "call_0", "f"), CallDelta(0, '{"a"')]
    assert parser.push(":  1") == [CallDelta(0, ":  1")]
    assert parser.push("}") == [CallDelta(0, "}")]
    assert parser.push("}\n</tool_") == []
    assert parser.push("call>") == [CallEnd(0)]
    assert parser.finish(is_cut_off=False) == []


def test_push_when_a_reported_call_breaks_then_withdrawn_and_content():
    parser = ToolParser(make_id=lambda: "call_0")
    block = '<tool_call>{"name": "f", "arguments": {"a": 01}}</tool_call>'
    events = parser.push(block) + parser.finish(is_cut_off=False)
    kinds = [type(event) for event in events]
    assert kinds[:3] == [CallStart, CallDelta, CallBroken]
    assert "".join(event for event in events if isinstance(event, str)) == block
    assert parser.num_calls == 0


@pytest.mark.parametrize("value", ["01", "1.", ".5", "+1", "tru", "nul", "1e", "-", "'x'", '"\\x"'])
def test_parse_call_when_a_value_is_not_json_then_none(value):
    assert parse_call('{"name": "f", "arguments": {"x": ' + value + "}}") is None


@given(objects, st.integers(0, 3), st.booleans())
def test_parse_call_when_json_is_formatted_anyhow_then_the_exact_arguments(
    value, indent, ascii_only
):
    arguments = json.dumps(value, indent=indent or None, ensure_ascii=ascii_only)
    assert parse_call(f'{{"name": "f",\n"arguments":{arguments} }}') == ("f", arguments)
    assert parse_call(f'{{"arguments":{arguments}, "name": "f"}}') == ("f", arguments)
