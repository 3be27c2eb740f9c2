"""Schemas: of a tool, what can be enforced is, the rest is named; a promise is kept or refused."""

from __future__ import annotations

import json
import random

import jsonschema
import pytest
from grammar_support import TOKENIZER, consumes, walk
from hypothesis import given, settings
from hypothesis import strategies as st

from lingflash.core.errors import InvalidRequestError
from lingflash.core.types import GrammarSpec
from lingflash.structured.answer_form import answer_grammar
from lingflash.structured.grammar import check_grammar
from lingflash.structured.one_of import are_disjoint
from lingflash.structured.relax import relax_schema

WHERE = "tools[0].function.parameters"


def forced(parameters, strict=None):
    function = {"name": "f", "parameters": parameters}
    if strict is not None:
        function["strict"] = strict
    tools = [{"type": "function", "function": function}]
    return answer_grammar(tools=tools, tool_choice="required", parallel_tool_calls=False)


def prop(schema, **more):
    return {"type": "object", "properties": {"a": schema}, "required": ["a"], **more}


def arguments(text):
    body = text.removeprefix("<tool_call>\n").removesuffix("\n</tool_call>")
    return json.loads(body)["arguments"]


def call(value):
    body = json.dumps({"name": "f", "arguments": value}, ensure_ascii=False)
    return f"<tool_call>\n{body}\n</tool_call>"


LIST = {"type": "array", "items": {"type": "string"}}


@pytest.mark.parametrize(
    ("schema", "dropped"),
    [
        (prop({**LIST, "uniqueItems": False}), []),
        (prop({**LIST, "uniqueItems": True}), ["properties.a.uniqueItems"]),
        (prop({"type": "string", "format": "path"}), ["properties.a.format"]),
        (prop({"type": "string", "format": "uuid4"}), ["properties.a.format"]),
        (prop({"type": "string", "format": "uri-reference"}), ["properties.a.format"]),
        (prop({"type": "string", "format": "date"}), []),
        (prop({"type": "integer", "format": "int32"}), []),
        (
            prop({"anyOf": [{"type": "number"}, {"type": "string", "pattern": "^(?!x)a*$"}]}),
            ["properties.a.anyOf[1].pattern"],
        ),
        ({"type": "object", "properties": {"a": {"type": "string"}}, "required": ["b"]}, []),
        (prop({"type": "string"}, required=["a", "b"], additionalProperties=False), ["required"]),
        (prop({"not": {"type": "null"}}), ["properties.a.not"]),
        (prop({"type": "any"}), ["properties.a.type"]),
        (prop({"$ref": "https://example.com/x"}), ["properties.a.$ref"]),
        (prop({"$ref": "#/$defs/missing"}), ["properties.a.$ref"]),
        (
            prop({"$ref": "#/$defs/d"}, **{"$defs": {"d": {"anyOf": [{"$ref": "#/$defs/d"}]}}}),
            ["$defs.d.anyOf[0].$ref"],
        ),
        (prop({"type": "integer", "multipleOf": 100_000_007}), ["properties.a.multipleOf"]),
        (prop({"type": "string", "maxLength": 10**9}), ["properties.a.maxLength"]),
        (prop({"oneOf": [{"type": "string"}, {"const": "x"}]}), ["properties.a.oneOf"]),
        (prop({"oneOf": [{"type": "string"}, {"type": "integer"}]}), []),
        (prop({"type": "string", "pattern": "a["}), ["properties.a.pattern"]),
        (prop({"type": "string", "minLength": 5, "maxLength": 2}), None),
        ({"type": ["object", "null"], "properties": {}}, []),
    ],
)
def test_forced_call_when_a_tool_is_not_strict_then_what_is_left_out_is_named(schema, dropped):
    spec = check_grammar(forced(schema))
    if dropped is not None:
        assert list(spec.dropped) == [f"{WHERE}.{path}" for path in dropped]
    else:
        assert spec.dropped
    relaxed, _ = relax_schema({**schema, "type": "object"}, WHERE)
    for seed in range(3):
        tokens = walk(spec, random.Random(seed), closing=0.5)
        if tokens is not None and dropped is not None and "a[" not in str(relaxed):
            jsonschema.validate(arguments(TOKENIZER.decode(tokens)), relaxed)


@pytest.mark.parametrize(
    "schema",
    [
        prop({**LIST, "uniqueItems": True}),
        prop({"type": "string", "format": "path"}),
        prop({"type": "string", "pattern": "^(?!x)a*$"}),
        prop({"type": "string"}, required=["a", "b"], additionalProperties=False),
        prop({"oneOf": [{"type": "string"}, {"const": "x"}]}),
        prop({"$ref": "#/$defs/d"}, **{"$defs": {"d": {"anyOf": [{"$ref": "#/$defs/d"}]}}}),
    ],
)
def test_forced_call_when_a_tool_is_strict_then_refused_by_name(schema):
    with pytest.raises(InvalidRequestError) as caught:
        check_grammar(forced(schema, strict=True))
    assert caught.value.param == WHERE


def test_forced_call_when_one_tool_fails_in_a_way_nobody_foresaw_then_the_other_is_enforced():
    good = prop({"type": "boolean"})
    tools = [
        {"type": "function", "function": {"name": "bad", "parameters": {"allOf": [{"$ref": 5}]}}},
        {"type": "function", "function": {"name": "f", "parameters": good}},
    ]
    spec = check_grammar(answer_grammar(tools=tools, tool_choice="required"))
    assert spec.dropped
    assert all(path.startswith("tools[0].function.parameters") for path in spec.dropped)
    assert consumes(spec, call({"a": True}))
    assert not consumes(spec, call({"a": 1}))


def test_required_when_a_name_is_not_in_properties_then_it_is_written():
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["b"]}
    for spec in (forced(schema), forced(schema, strict=True)):
        spec = check_grammar(spec)
        assert consumes(spec, call({"b": 1}))
        assert not consumes(spec, call({"a": "x"}))


def test_choice_when_there_are_ten_thousand_then_each_is_admitted():
    choices = [f"answer {i * 7919 % 10007}" for i in range(10_000)]
    spec = check_grammar(GrammarSpec("choice", json.dumps(choices)))
    assert consumes(spec, choices[0])
    assert consumes(spec, choices[-1])
    assert not consumes(spec, "answer 10007")


KIND = {
    "type": "object",
    "properties": {"k": {"const": "a"}, "x": {"type": "integer"}},
    "required": ["k"],
}
OTHER_KIND = {**KIND, "properties": {"k": {"enum": ["b", "c"]}, "y": {"type": "boolean"}}}


@pytest.mark.parametrize(
    ("branches", "expected"),
    [
        ([{"type": "string"}, {"type": "integer"}, {"type": "null"}], True),
        ([{"type": "integer"}, {"type": "number"}], False),
        ([{"const": 1}, {"const": 2}], True),
        ([{"const": 1}, {"const": 1.0}], False),
        ([{"const": True}, {"const": 1}], True),
        ([{"const": "1"}, {"type": "integer"}], True),
        ([{"enum": ["a", "b"]}, {"enum": ["b", "c"]}], False),
        ([{"enum": ["a"]}, {"type": "string"}], False),
        ([KIND, OTHER_KIND], True),
        ([{"$ref": "#/$defs/k"}, {"$ref": "#/$defs/o"}], True),
        ([{"$ref": "#/$defs/k"}, {"$ref": "#/$defs/k"}], False),
        ([KIND, {k: v for k, v in OTHER_KIND.items() if k != "type"}], True),
        ([{"properties": KIND["properties"]}, {"properties": OTHER_KIND["properties"]}], False),
        (
            [
                {"type": "object", "required": ["p"]},
                {"type": "object", "properties": {"q": {}}, "additionalProperties": False},
            ],
            True,
        ),
        ([{"anyOf": [{"const": 1}, {"const": 2}]}, {"const": 3}], True),
        ([{}, {"type": "string"}], False),
        ([False, {"type": "string"}], True),
        ([{"$ref": "#/$defs/loop"}, {"type": "string"}], False),
    ],
)
def test_one_of_when_branches_are_compared_then_disjoint_only_if_they_are(branches, expected):
    root = {"$defs": {"k": KIND, "o": OTHER_KIND, "loop": {"$ref": "#/$defs/loop"}}}
    assert are_disjoint(branches, root) is expected


def test_one_of_when_branches_are_references_then_exact_in_a_promised_form():
    schema = {
        "oneOf": [{"$ref": "#/$defs/k"}, {"$ref": "#/$defs/o"}],
        "$defs": {"k": KIND, "o": OTHER_KIND},
    }
    spec = check_grammar(GrammarSpec("json_schema", json.dumps(schema)))
    assert consumes(spec, '{"k": "a", "x": 1}')
    assert consumes(spec, '{"k": "c", "y": true}')
    assert not consumes(spec, '{"k": "a", "y": true}')


values = st.sampled_from([None, True, 0, 1, 2.5, "a", "b", [1], {"k": "a"}])
scalars = st.one_of(
    st.just({}),
    st.builds(lambda t: {"type": t}, st.sampled_from(["string", "integer", "boolean", "null"])),
    st.builds(lambda v: {"const": v}, values),
    st.builds(lambda v: {"enum": v}, st.lists(values, min_size=1, max_size=3)),
    st.builds(
        lambda low, more: {"type": "string", "minLength": low, "maxLength": low + more},
        st.integers(0, 3),
        st.integers(0, 3),
    ),
    st.builds(
        lambda low, more: {"type": "integer", "minimum": low, "maximum": low + more},
        st.integers(-20, 20),
        st.integers(0, 50),
    ),
    st.builds(lambda m: {"type": "integer", "multipleOf": m}, st.integers(1, 12)),
    st.builds(
        lambda p: {"type": "string", "pattern": p},
        st.sampled_from(["^a{1,3}$", "^[a-c]+-[0-9]$", "(?=a)b", r"^(a)\1$", "^x?$"]),
    ),
    st.builds(
        lambda f: {"type": "string", "format": f},
        st.sampled_from(["date", "uuid", "path", "uri-reference", "zork", "ipv4", "regex"]),
    ),
)


def _nest(schemas):
    names = st.sampled_from(["a", "b", "k"])
    return st.one_of(
        st.builds(
            lambda properties, required, closed: {
                "type": "object",
                "properties": properties,
                "required": required,
                **({} if closed is None else {"additionalProperties": closed}),
            },
            st.dictionaries(names, schemas, max_size=3),
            st.lists(names, max_size=2, unique=True),
            st.sampled_from([None, True, False]),
        ),
        st.builds(
            lambda items, most, unique: {
                "type": "array",
                "items": items,
                "maxItems": most,
                **({} if unique is None else {"uniqueItems": unique}),
            },
            schemas,
            st.integers(0, 3),
            st.sampled_from([None, True, False]),
        ),
        st.builds(lambda v: {"anyOf": v}, st.lists(schemas, min_size=1, max_size=3)),
        st.builds(lambda v: {"oneOf": v}, st.lists(schemas, min_size=1, max_size=3)),
        st.builds(lambda v: {"allOf": v}, st.lists(schemas, min_size=1, max_size=2)),
        st.builds(lambda v: {"not": v}, schemas),
        st.builds(lambda a, b: {"if": a, "then": b}, schemas, schemas),
    )


references = st.sampled_from([{"$ref": "#/$defs/d"}, {"$ref": "#/$defs/missing"}])
definitions = st.recursive(scalars, _nest, max_leaves=4)
generated = st.recursive(st.one_of(scalars, scalars, references), _nest, max_leaves=6)


@given(generated, definitions, st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_schema_when_generated_then_never_refused_where_no_promise_was_asked_for(
    schema, definition, seed
):
    parameters = prop(schema, **{"$defs": {"d": definition}})
    spec = check_grammar(forced(parameters))
    tools = json.loads(spec.text)["tools"]
    tokens = walk(spec, random.Random(seed), closing=0.5, max_tokens=150)
    if tokens is not None:
        enforced = tools[0]["parameters"]
        # Without a look at the schema itself: a definition that nothing refers to may be no schema.
        jsonschema.Draft202012Validator(
            {"type": "object"} if enforced is None else enforced
        ).validate(arguments(TOKENIZER.decode(tokens)))


@given(generated, definitions, st.integers(0, 2**32), st.booleans())
@settings(max_examples=150, deadline=None)
def test_schema_when_a_promise_is_asked_for_then_kept_or_refused(
    schema, definition, seed, is_strict
):
    schema = prop(schema, **{"$defs": {"d": definition}})
    try:
        spec = GrammarSpec("json_schema", json.dumps(schema))
        spec = forced(schema, strict=True) if is_strict else spec
        assert check_grammar(spec) == spec
    except InvalidRequestError:
        return  # a refusal is an answer, too
    assert not spec.dropped
    tokens = walk(spec, random.Random(seed), closing=0.5, max_tokens=150)
    if tokens is not None:
        text = TOKENIZER.decode(tokens)
        value = arguments(text) if is_strict else json.loads(text)
        checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
        jsonschema.Draft202012Validator(schema, format_checker=checker).validate(value)
