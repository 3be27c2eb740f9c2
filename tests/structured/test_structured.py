"""Grammars: what they admit is valid and read back as itself; what cannot be kept is named."""

from __future__ import annotations

import itertools
import json
import random
import threading

import jsonschema
import pytest
from grammar_support import COMPILER, END, TOKENIZER, allowed, consumes, walk
from hypothesis import given, settings
from hypothesis import strategies as st

from lingflash.core.errors import InvalidRequestError
from lingflash.core.types import GrammarSpec
from lingflash.structured.answer_form import (
    answer_grammar,
    read_response_format,
    read_structured_outputs,
)
from lingflash.structured.grammar import check_grammar
from lingflash.text.answer import AnswerMessage, AnswerParser

SCHEMAS = [
    {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    {"type": "object", "properties": {"ü": {"const": 'q"\\'}}, "required": ["ü"]},
    {"type": "array", "items": {"type": "boolean"}, "maxItems": 4},
    {"enum": ["x", 1, None, {"a": [1.5]}]},
    {"anyOf": [{"type": "null"}, {"type": "string", "maxLength": 5}]},
    {"type": "string", "pattern": "^[a-f]{2}-[0-9]+$"},
    {"type": "string", "format": "date"},
    {"type": "number", "minimum": -1, "maximum": 2},
    {
        "type": "object",
        "properties": {"left": {"$ref": "#/$defs/node"}},
        "required": ["left"],
        "$defs": {
            "node": {
                "type": "object",
                "properties": {"v": {"type": "integer"}, "next": {"$ref": "#/$defs/node"}},
                "required": ["v"],
            }
        },
    },
]


@pytest.mark.parametrize("schema", SCHEMAS)
def test_json_schema_when_walked_at_random_then_valid_in_the_one_form(schema):
    spec = GrammarSpec("json_schema", json.dumps(schema))
    check_grammar(spec)
    rng, found = random.Random(1), 0
    for _ in range(30):
        tokens = walk(spec, rng)
        if tokens is None:
            continue
        text = TOKENIZER.decode(tokens)
        value = json.loads(text)
        jsonschema.validate(value, schema)
        assert ", " in text or "," not in text or '"' in text
        found += 1
    assert found >= 5


def test_mask_when_only_one_text_can_follow_then_the_tokenizers_own_tokens():
    text = "the weather in Zürich is fine"
    matcher = COMPILER.compile(GrammarSpec("choice", json.dumps([text])))
    taken = []
    while not matcher.is_complete:
        (token,) = allowed(matcher)
        taken.append(token)
        assert matcher.consume(token)
    assert taken == TOKENIZER.encode(text)


def test_mask_when_text_is_free_then_no_command_and_no_tag_in_letters():
    spec = answer_grammar(tools=[tool("f", {})], tool_choice="none")
    matcher = COMPILER.compile(spec)
    special = {TOKENIZER.token_id(s) for s in TOKENIZER.special_strings} - {END}
    assert not special & set(allowed(matcher))
    assert END in allowed(matcher)
    for token in TOKENIZER.encode("a <tool_call"):
        assert matcher.consume(token)
    assert TOKENIZER.encode(">")[0] not in allowed(matcher)


def test_mask_when_the_answer_may_end_then_the_given_stops_are_allowed_else_not():
    matcher = COMPILER.compile(GrammarSpec("regex", "a+"))
    stop = TOKENIZER.encode("z")[0]
    assert END not in allowed(matcher)
    assert stop not in allowed(matcher, (stop,))
    assert matcher.consume(TOKENIZER.encode("a")[0])
    assert stop in allowed(matcher, (stop,))
    assert END not in allowed(matcher, (stop,))
    assert END not in allowed(matcher, ())


def count_valid(matcher, token_ids):
    """How many of these could be consumed, one after the other; the place stays."""
    probe = matcher.copy()
    return sum(1 for _ in itertools.takewhile(probe.consume, token_ids))


@given(st.integers(0, 2**32), st.data())
@settings(max_examples=40, deadline=None)
def test_rollback_when_taken_back_then_as_if_never_taken(seed, data):
    spec = GrammarSpec("json_schema", json.dumps(SCHEMAS[8]))
    tokens = walk(spec, random.Random(seed), closing=0.6, max_tokens=120) or []
    matcher = COMPILER.compile(spec)
    masks = []
    for token in tokens:
        masks.append(allowed(matcher))
        assert matcher.consume(token)
    back = data.draw(st.integers(0, len(tokens)))
    matcher.rollback(back)
    assert matcher.num_consumed == len(tokens) - back
    if back:
        assert allowed(matcher) == masks[len(tokens) - back]
        assert count_valid(matcher, tokens[len(tokens) - back :]) == back
    for token in tokens[len(tokens) - back :]:
        assert matcher.consume(token)
    with pytest.raises(ValueError):
        matcher.rollback(len(tokens) + 1)


@pytest.mark.parametrize(
    ("form", "good", "bad"),
    [
        ("date", ["2024-02-29", "1999-12-31"], ["2023-02-29", "0000-01-01", "2024-04-31"]),
        ("time", ["10:00:00Z", "23:59:59.5+01:30"], ["24:00:00Z", "10:00:00"]),
        ("date-time", ["2024-05-17T14:30:00Z"], ["2024-02-30T14:30:00Z", "2024-05-17"]),
    ],
)
def test_json_schema_when_a_date_is_asked_for_then_only_real_ones(form, good, bad):
    spec = GrammarSpec("json_schema", json.dumps({"type": "string", "format": form}))
    assert [text for text in good if not consumes(spec, f'"{text}"')] == []
    assert [text for text in bad if consumes(spec, f'"{text}"')] == []


def tool(name, parameters, strict=None):
    function = {"name": name, "parameters": parameters}
    if strict is not None:
        function["strict"] = strict
    return {"type": "function", "function": function}


names = st.text('abc_-.9ü"\\', min_size=1, max_size=8)
leaves = st.sampled_from(
    [
        {"type": "integer"},
        {"type": "string", "maxLength": 6},
        {"type": "boolean"},
        {"enum": ["<tool_call>", "a\nb", 'q"', 2]},
        {"type": "array", "items": {"type": "null"}, "maxItems": 2},
    ]
)
parameters = st.dictionaries(names, leaves, max_size=3).map(
    lambda properties: {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
)


@given(
    st.lists(st.tuples(names, parameters), min_size=1, max_size=3, unique_by=lambda t: t[0]),
    st.booleans(),
    st.integers(0, 2**32),
)
@settings(max_examples=60, deadline=None)
def test_tool_grammar_when_walked_at_random_then_every_call_is_parsed_back_to_itself(
    defined, parallel, seed
):
    tools = [tool(name, schema) for name, schema in defined]
    spec = answer_grammar(tools=tools, tool_choice="required", parallel_tool_calls=parallel)
    check_grammar(spec)
    tokens = walk(spec, random.Random(seed), closing=0.5)
    if tokens is None:
        return
    text = TOKENIZER.decode(tokens)
    parser = AnswerParser(parse_tools=True, parse_reasoning=True)
    message = AnswerMessage()
    for token in text:
        message.add(parser.push(token))
    message.add(parser.finish())
    assert message.content == ""
    assert len(message.calls) >= 1
    assert parallel or len(message.calls) == 1
    schemas = dict(defined)
    for call in message.calls:
        assert call.is_complete
        jsonschema.validate(json.loads(call.arguments), schemas[call.name])
    assert "\n".join(call.raw for call in message.calls) == text
    written = [
        f'<tool_call>\n{{"name": {json.dumps(call.name, ensure_ascii=False)}, '
        f'"arguments": {call.arguments}}}\n</tool_call>'
        for call in message.calls
    ]
    assert "\n".join(written) == text


A = '<tool_call>\n{"name": "a", "arguments": {"x": 1}}\n</tool_call>'
B = '<tool_call>\n{"name": "b", "arguments": {"y": true}}\n</tool_call>'
EMPTY = '<tool_call>\n{"name": "a", "arguments": {}}\n</tool_call>'
WRONG = '<tool_call>\n{"name": "a", "arguments": {"x": "s"}}\n</tool_call>'
OTHER = '<tool_call>\n{"name": "b", "arguments": {"z": [2]}}\n</tool_call>'
TWO = [
    tool(
        "a", {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}, True
    ),
    tool("b", {"type": "object", "properties": {"y": {"type": "boolean"}}, "required": ["y"]}),
]
ONLY_B = {"type": "function", "function": {"name": "b"}}


def subset(mode):
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [ONLY_B]}}


@pytest.mark.parametrize(
    ("fields", "good", "bad"),
    [
        ({"tool_choice": "required"}, [A, B, A + "\n" + B], ["hi", WRONG, OTHER, A + B]),
        ({"tools": [tool("a", None)], "tool_choice": "required"}, [EMPTY], [A]),
        ({"tools": [tool("a", {"properties": {}})], "tool_choice": "required"}, [EMPTY], [A]),
        ({"tool_choice": "auto"}, ["hi", A, "hi\n" + A + " x", OTHER, A + "\n" + B], [WRONG]),
        ({"tool_choice": "none"}, ["hi", ""], [A, "x" + A]),
        ({"tool_choice": ONLY_B}, [B], [A, "hi", OTHER]),
        ({"tool_choice": subset("auto")}, [B, "hi", "hi\n" + OTHER], [A]),
        ({"tool_choice": subset("required")}, [B], [A, "hi", OTHER]),
        (
            {"tool_choice": "required", "parallel_tool_calls": False},
            [A, B],
            [A + "\n" + B, "hi"],
        ),
        ({"parallel_tool_calls": False}, [A, "x" + A, "x"], [A + "\n" + B, WRONG, A + " x"]),
        ({"response_format": {"type": "json_object"}}, [A, "{}", '{"a": [1, {}]}'], ["hi", "[]"]),
        (
            {"structured_outputs": {"choice": ["yes", "no"]}, "tool_choice": "none"},
            ["yes", "no"],
            ["maybe", A, "yesno"],
        ),
        (
            {"tool_choice": "required", "reasoning": True},
            [A],
            ["hi"],
        ),
    ],
)  # fmt: skip
def test_answer_grammar_when_tools_are_given_then_admits_what_the_choice_says(fields, good, bad):
    if fields.get("reasoning"):
        pytest.skip("the toy tokenizer has no thinking tokens; see tests/api")
    spec = answer_grammar(**{"tools": TWO, **fields})
    assert spec is not None
    assert [text for text in good if not consumes(spec, text)] == []
    assert [text for text in bad if consumes(spec, text)] == []


def test_answer_grammar_when_the_model_is_free_then_none():
    assert answer_grammar() is None
    assert answer_grammar(tools=TWO[1:]) is None
    assert answer_grammar(tools=TWO[1:], tool_choice="auto", parallel_tool_calls=True) is None
    assert answer_grammar(response_format={"type": "text"}) is None


REFUSED = [
    ({"not": {"type": "string"}}, "not"),
    ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    ({"properties": {"a": {"if": {}, "then": {}}}}, "if"),
    ({"type": "string", "pattern": "(?=a)b"}, "pattern"),
    ({"type": "string", "format": "zork"}, "format"),
    ({"$ref": "https://example.com/schema"}, "$ref"),
    ({"$ref": "#/$defs/missing"}, "$ref"),
    ({"type": "foo"}, "type"),
    ({"type": "string", "minLength": 10**9}, "minLength"),
    ({"type": "array", "items": {"minItems": -1}}, "minItems"),
    ({"type": "object", "x-guidance": {"lenient": True}}, "x-guidance"),
    ({"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 2}]}, "oneOf"),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "keyword"), REFUSED)
def test_check_grammar_when_a_keyword_cannot_be_enforced_then_it_is_named(schema, keyword):
    where = "response_format.json_schema.schema"
    with pytest.raises(InvalidRequestError, match=f"'{keyword.replace('$', '[$]')}'") as caught:
        check_grammar(GrammarSpec("json_schema", json.dumps(schema)), where)
    assert caught.value.param == where
    assert "start:" not in caught.value.message
    with pytest.raises(InvalidRequestError):
        COMPILER.compile(GrammarSpec("json_schema", json.dumps(schema)))
    tools = [tool("a", {"type": "object"}), tool("b", {"properties": {"p": schema}}, True)]
    with pytest.raises(InvalidRequestError, match=f"'{keyword.replace('$', '[$]')}'") as caught:
        check_grammar(answer_grammar(tools=tools))
    assert caught.value.param == "tools[1].function.parameters"


def nested(depth):
    schema = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


@pytest.mark.parametrize(
    "spec",
    [
        GrammarSpec("json_schema", json.dumps(nested(300))),
        GrammarSpec("json_schema", "[" * 100_000),
        GrammarSpec("json_schema", json.dumps({"enum": list(range(50_000))})),
        GrammarSpec("json_schema", json.dumps({"enum": ["x" * 300_000]})),
        GrammarSpec("regex", "(" * 5000),
        GrammarSpec("regex", "((a{1000}){1000}){1000}"),
        GrammarSpec("json_schema", json.dumps({"pattern": "((a{100}){100}){100}"})),
        GrammarSpec("regex", "(?=a)b"),
        GrammarSpec("regex", ""),
        GrammarSpec("choice", "[]"),
        GrammarSpec("choice", '["", "a"]'),
        GrammarSpec("choice", "[1]"),
        GrammarSpec("choice", json.dumps([str(i) for i in range(20_000)])),
        GrammarSpec("lark", "start: nothing"),
        GrammarSpec("lark", "((("),
    ],
)
def test_check_grammar_when_it_is_hostile_then_refused_soon(spec):
    done = []

    def work():
        try:
            check_grammar(spec)
        except InvalidRequestError as error:
            done.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(20)
    assert len(done) == 1
    assert len(done[0].message) < 600


@pytest.mark.parametrize(
    ("value", "param"),
    [
        ([], "structured_outputs"),
        ({}, "structured_outputs"),
        ({"regex": "a", "json": {}}, "structured_outputs"),
        ({"ebnf": "x"}, "structured_outputs.ebnf"),
        ({"json": 1}, "structured_outputs.json"),
        ({"choice": "yes"}, "structured_outputs.choice"),
        ({"regex": ""}, "structured_outputs.regex"),
    ],
)
def test_read_structured_outputs_when_malformed_then_named(value, param):
    with pytest.raises(InvalidRequestError) as caught:
        read_structured_outputs(value)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("value", "param"),
    [
        ({}, "response_format.type"),
        ({"type": "grammar"}, "response_format.type"),
        ({"type": "json_object", "schema": {}}, "response_format.schema"),
        ({"type": "json_schema"}, "response_format.json_schema"),
        (
            {"type": "json_schema", "json_schema": {"schema": {}}},
            "response_format.json_schema.name",
        ),
        (
            {"type": "json_schema", "json_schema": {"name": "x"}},
            "response_format.json_schema.schema",
        ),
        (
            {"type": "json_schema", "json_schema": {"name": "x", "schema": {}, "strict": 1}},
            "response_format.json_schema.strict",
        ),
    ],
)
def test_read_response_format_when_malformed_then_named(value, param):
    with pytest.raises(InvalidRequestError) as caught:
        read_response_format(value)
    assert caught.value.param == param
