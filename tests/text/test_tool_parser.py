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
    repaired = scanner.repaired_arguments
    if repaired is not None:
        return scanner.name, repaired
    return scanner.name, body[scanner.arguments_start : scanner.arguments_end]


def parse_events(chunks):
    counter = itertools.count()
    parser = ToolParser(make_id=lambda: f"call_{next(counter)}")
    events = []
    for chunk in chunks:
        events += parser.push(chunk)
    events += parser.finish()
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
            case CallEnd(index):
                assert index == open_call
                open_call = None
    assert open_call is None


def parse(chunks):
    events, parser = parse_events(chunks)
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
    return merged, parser


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
        '{"name": "f", "arguments": "[]"}',
        '{"name": "f", "arguments": "{} {}"}',
        '{"name": "f", "arguments": "{}, \\"x\\": {}"}',
        '{"name": "f", "arguments": "{\'a\': 1}"}',
        '{"name": "f", "arguments": "Rome"}',
        '{"name": "f", "arguments": "\\"{}\\""}',
        '{"name": "f", "arguments": []}',
        '{"name": "f", "arguments": true}',
        '{"name": "f", "arguments": {"x": True}}',
        '{"name": "f", "arguments": {"x": 1,}}',
        '{"name": "f", "arguments": {}}}',
        '{"arguments": {}}',
        '{"name": "f", "arguments": {"x": NaN}}',
        '{"name": "f",}',
        '{"name": "f"} x',
        '{"name": "f" "arguments": {}}',
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
                *(BLOCK[:-12], "\n<tool_call>", "\\", "\\ud83d", "null", '"{}"'),
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
    assert parse(chunks)[0] == parse([text])[0] == parse(list(text))[0]


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


@given(fragments)
def test_push_when_streamed_then_content_and_calls_lose_nothing_but_the_form(parts):
    events, _ = parse(list("".join(parts)))
    content = "".join(event for event in events if isinstance(event, str))
    if not any(isinstance(event, ToolCall) for event in events):
        assert content == "".join(parts)


@pytest.mark.parametrize(
    "block",
    ['{"name": "f', '{"name": "f", "arguments": {"a": "b', '{"name": "f", "arguments": {"a": 1}'],
)
def test_finish_when_the_answer_ends_inside_a_call_then_its_text_is_content(block):
    text = "x\n<tool_call>\n" + block
    assert parse(list(text))[0] == parse([text])[0] == [text]


@pytest.mark.parametrize("end", ["", "\n", "\n<", "\n</tool_", "\n</tool_call>\n"])
def test_finish_when_only_the_closing_tag_is_missing_then_a_call(end):
    text = 'x\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}' + end
    assert parse(list(text))[0] == parse([text])[0] == ["x", call("f", '{"a": 1}')]


def test_push_when_a_call_opens_before_the_last_was_closed_then_two_calls():
    text = BLOCK.removesuffix(CLOSE_TAG) + BLOCK
    arguments = '{"a":  1.50, "b": "ü\\n"}'
    assert parse(list(text))[0] == [call("f", arguments), call("f", arguments, 1)]


REPAIRED = [
    ('{"a": "x\ny\tz\x00"}', r'{"a": "x\ny\tz\u0000"}'),
    ('{"a\n":\n"\\"\n"}', '{"a\\n":\n"\\"\\n"}'),
    (r'{"a": "\ud83d"}', r'{"a": "\ufffd"}'),
    (r'{"\uDC00": ["\ud83d\ude00\\ud83d"]}', r'{"\ufffd": ["\ud83d\ude00\\ud83d"]}'),
    (r'"{\"a\": 1.50}"', '{"a": 1.50}'),
    (r'"{\"a\": \"x\ny\", \"b\": \"\\ud800\ud800\"}"', r'{"a": "x\ny", "b": "\ufffd�"}'),
    ('"{}"', "{}"),
    ('""', "{}"),
    ("null", "{}"),
]


@pytest.mark.parametrize(("written", "expected"), REPAIRED)
def test_parse_when_arguments_are_plainly_meant_then_repaired(written, expected):
    assert json.loads(expected) is not None
    for order in (f'"name": "f", "arguments": {written}', f'"arguments": {written}, "name": "f"'):
        text = "<tool_call>\n{" + order + "}\n</tool_call>"
        assert parse(list(text))[0] == parse([text])[0] == [call("f", expected)]


def test_parse_when_a_name_has_half_a_surrogate_then_a_replacement_character():
    assert parse_call(r'{"name": "\ud800x\ud83d\ude00"}') == ("�x😀", "{}")


def test_parse_when_a_call_is_deeper_than_a_request_may_be_then_content():
    for depth, is_call in ((98, True), (99, False)):
        text = '{"name": "f", "arguments": {"a": ' + "[" * depth + "]" * depth + "}}"
        assert (parse_call(text) is not None) == is_call


def test_push_when_arguments_come_in_pieces_then_the_same_pieces_once_the_call_is_whole():
    parser = ToolParser(make_id=lambda: "call_0")
    for piece in ('<tool_call>\n{"name": "f", "argu', 'ments": {"a"', ":  1", "}", "}\n</tool_"):
        assert parser.push(piece) == []
    deltas = [CallDelta(0, piece) for piece in ('{"a"', ":  1", "}")]
    assert parser.push("call>") == [CallStart(0, "call_0", "f"), *deltas, CallEnd(0)]
    assert parser.finish() == []


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
