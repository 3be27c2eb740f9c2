"""ling-nano at temperature 1: every answer that was not cut off is what was asked for."""

from __future__ import annotations

import json

import jsonschema
import pytest

from lingflash import LLM, SamplingParams
from lingflash.text.answer import AnswerMessage, AnswerParser
from schemas import SCHEMAS

MAX_TOKENS = 256
CHECKER = jsonschema.Draft202012Validator.FORMAT_CHECKER
ASKED = [
    "What is the weather in Rome?",
    "Hello there!",
    "Create it for Anna Miller, 34, with the color green.",
    "Remind me on 2024-05-17 at 14:30 to call Ben.",
    "Send 12.5 to KLM-4410, please.",
]


@pytest.fixture(scope="module")
def llm():
    return LLM(max_num_seqs=32, seed=0)


def arguments_schema(schema):
    is_object = schema.get("type") == "object" or "$ref" in schema
    return schema if is_object else {"type": "object", "properties": {"value": schema}}


def tools_of(index):
    """Three tools, the first with the schema of this index."""
    tools = []
    for i in (index, index + 7, index + 19):
        schema = arguments_schema(SCHEMAS[i % len(SCHEMAS)])
        function = {"name": f"tool_{i}", "description": "Does it", "parameters": schema}
        tools.append({"type": "function", "function": function})
    return tools


def conversation(i):
    return [{"role": "user", "content": ASKED[i % len(ASKED)]}]


def check_schemas(llm, count):
    """How many of so many answers under json_schema were cut off; the others are valid."""
    cut = 0
    schemas = [SCHEMAS[i % len(SCHEMAS)] for i in range(count)]
    outputs = llm.chat(
        [conversation(i) for i in range(count)],
        [SamplingParams(temperature=1.0, seed=i, max_tokens=MAX_TOKENS) for i in range(count)],
        structured_outputs=[{"json": schema} for schema in schemas],
    )
    for schema, output in zip(schemas, outputs, strict=True):
        answer = output.outputs[0]
        if answer.finish_reason == "length":
            cut += 1
            continue
        assert answer.finish_reason == "stop", answer
        jsonschema.validate(json.loads(answer.text), schema, format_checker=CHECKER)
    return cut


def check_calls(llm, count):
    """The same of calls under tool_choice required."""
    cut = 0
    for index in range(min(count, len(SCHEMAS))):
        tools = tools_of(index)
        seeds = range(index, count, len(SCHEMAS))
        outputs = llm.chat(
            [conversation(seed) for seed in seeds],
            [SamplingParams(temperature=1.0, seed=seed, max_tokens=MAX_TOKENS) for seed in seeds],
            tools=tools,
            tool_choice="required",
        )
        schemas = {t["function"]["name"]: t["function"]["parameters"] for t in tools}
        for output in outputs:
            answer = output.outputs[0]
            parser = AnswerParser(parse_tools=True, parse_reasoning=True)
            message = AnswerMessage()
            message.add(parser.push(answer.text))
            message.add(parser.finish())
            whole = [call for call in message.calls if call.is_complete]
            for call in whole:
                jsonschema.validate(json.loads(call.arguments), schemas[call.name])
            if answer.finish_reason == "length":
                cut += 1
                continue
            assert answer.finish_reason == "stop", answer
            assert message.calls == whole
            assert whole
            assert message.content == ""
    return cut


def test_answers_when_a_schema_or_a_call_is_required_then_valid(llm):
    assert len(SCHEMAS) >= 50
    assert check_schemas(llm, 30) + check_calls(llm, 15) <= 4


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_answers_when_a_thousand_are_asked_for_then_valid_and_few_are_cut(llm):
    cut = check_schemas(llm, 500) + check_calls(llm, 500)
    print(f"{cut} of 1000 were cut off")
    assert cut < 50
