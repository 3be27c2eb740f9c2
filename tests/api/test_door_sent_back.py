"""Every answer, dumped in every way its official client knows, is accepted when it is sent back.

And its prompt continues the one before, and what was generated then, token for token.
"""

from __future__ import annotations

import json

import openai
import pytest
from openai.types.chat import ParsedChatCompletion

from api_support import CALL
from clients_support import client_package

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
FUNCTION = {"name": "get_weather", "parameters": PARAMETERS, "strict": True}
TEXTS = {
    "call": CALL,
    "call and text": "Let me see.\n" + CALL,
    "thinking and call": "<think>\nRome?\n</think>\n\n" + CALL,
    "custom": '<tool_call>\n{"name": "get_weather", "arguments": '
    '{"input": "in \\"Rome\\"\\n\\u00e9"}}\n</tool_call>',
    "namespace": '<tool_call>\n{"name": "mcp__weather.get_weather", "arguments": {"city": "Rome"}}'
    "\n</tool_call>",
    "namespace, short": CALL,
}


def says_more(messages, text):
    """Whether there is a third turn to look at: after it the template leaves thinking out."""
    messages.append({"role": "user", "content": "Thanks."})
    return "thinking" not in text


# How a client's object becomes what is sent.
DUMPS = {
    "object": lambda value: value,
    "model_dump": lambda value: value.model_dump(),
    "model_dump, by alias": lambda value: value.model_dump(by_alias=True),
    "without null": lambda value: value.model_dump(exclude_none=True),
    "without unset": lambda value: value.model_dump(exclude_unset=True),
    "json": lambda value: json.loads(value.model_dump_json()),
    "to_dict": lambda value: value.to_dict(),
}


def client_of(server):
    return openai.OpenAI(base_url=server.base_url + "/v1", api_key="none", max_retries=0)


def chat_message(client, way, tools, messages):
    fields = {"model": "ling-nano", "messages": messages, "tools": tools}
    if way == "create":
        return client.chat.completions.create(**fields).choices[0].message
    if way == "parse":
        answer = client.chat.completions.parse(**fields)
        assert isinstance(answer, ParsedChatCompletion)
        return answer.choices[0].message
    with client.chat.completions.stream(**fields) as stream:
        return stream.get_final_completion().choices[0].message


@pytest.mark.parametrize("text", ["call", "call and text", "thinking and call", "custom"])
@pytest.mark.parametrize("way", ["create", "parse", "stream"])
def test_chat_when_its_message_is_sent_back_then_it_continues(make_loop, text, way):
    if text == "custom" and way != "create":
        pytest.skip("the client's parse and stream know function tools only")
    server, loop = make_loop(TEXTS[text])
    tools = [{"type": "function", "function": FUNCTION}]
    if text == "custom":
        tools = [{"type": "custom", "custom": {"name": "get_weather"}}]
    client = client_of(server)
    for dump in DUMPS.values():
        loop.generated.clear()
        messages = [{"role": "user", "content": "How is the weather in Rome?"}]
        message = chat_message(client, way, tools, messages)
        call = message.tool_calls[0]
        if text == "custom":
            assert (call.type, call.custom.input) == ("custom", 'in "Rome"\né')
        messages += [
            dump(message),
            {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
        ]
        messages.append(dump(chat_message(client, way, tools, messages)))
        if says_more(messages, text):
            chat_message(client, way, tools, messages)
        loop.check_prefix()


def response(client, way, **fields):
    if way == "create":
        return client.responses.create(model="ling-nano", **fields)
    if way == "parse":
        return client.responses.parse(model="ling-nano", **fields)
    with client.responses.stream(model="ling-nano", **fields) as stream:
        return stream.get_final_response()


def responses_tools(text):
    if text == "custom":
        return [{"type": "custom", "name": "get_weather"}]
    function = {"type": "function", **FUNCTION}
    if not text.startswith("namespace"):
        return [function]
    function["strict"] = False
    inner = [function, {**function, "name": "other"}]
    named = {"type": "namespace", "description": "Weather.", "tools": inner}
    other = {"type": "namespace", "name": "mcp__other", "description": "Others.",
             "tools": [{**function, "name": "other"}]}  # fmt: skip
    return [{**named, "name": "mcp__weather"}, other, {"type": "web_search"}]


def result_of(output):
    """The result of an output's call, as its item."""
    call = next(item for item in output if item.type.endswith("_call"))
    if call.type == "custom_tool_call":
        assert call.input == 'in "Rome"\né'
    return {"type": call.type + "_output", "call_id": call.call_id, "output": "sunny"}, call


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("way", ["create", "parse", "stream"])
def test_responses_when_its_items_are_sent_back_then_it_continues(make_loop, text, way):
    server, loop = make_loop(TEXTS[text])
    client, tools = client_of(server), responses_tools(text)
    references = {"reference": lambda item: {"type": "item_reference", "id": item.id}}
    for dump in ({**DUMPS, **references}).values():
        loop.generated.clear()
        items = [{"role": "user", "content": "How is the weather in Rome?"}]
        output = response(client, way, input=items, tools=tools).output
        result, call = result_of(output)
        assert call.name == "get_weather"
        namespace = "mcp__weather" if text.startswith("namespace") else None
        assert getattr(call, "namespace", None) == namespace
        items += [*map(dump, output), result]
        output = response(client, way, input=items, tools=tools).output
        items += map(dump, output)
        if says_more(items, text):
            response(client, way, input=items, tools=tools)
        loop.check_prefix()


@pytest.mark.parametrize("text", TEXTS)
def test_responses_when_the_stored_one_is_continued_then_it_continues(make_loop, text):
    server, loop = make_loop(TEXTS[text])
    client, tools = client_of(server), responses_tools(text)
    first = response(client, "create", input="How is the weather in Rome?", tools=tools)
    result, _ = result_of(first.output)
    response(client, "create", input=[result], tools=tools, previous_response_id=first.id)
    loop.check_prefix()


@pytest.mark.parametrize("text", ["call", "call and text", "thinking and call"])
@pytest.mark.parametrize("way", ["create", "stream", "beta"])
def test_messages_when_its_message_is_sent_back_then_it_continues(make_loop, text, way):
    anthropic = client_package("anthropic")
    server, loop = make_loop(TEXTS[text])
    client = anthropic.Anthropic(base_url=server.base_url, api_key="none", max_retries=0)
    tools = [{"name": "get_weather", "input_schema": PARAMETERS}]

    def ask(messages):
        fields = {"model": "ling-nano", "max_tokens": 500, "messages": messages, "tools": tools}
        if way == "stream":
            with client.messages.stream(**fields) as stream:
                return stream.get_final_message()
        api = client.beta.messages if way == "beta" else client.messages
        return api.create(**fields)

    whole = {
        "message": lambda answer: answer.model_dump(),
        "message, json": lambda answer: json.loads(answer.model_dump_json()),
    }
    dumps = {
        name: lambda answer, dump=dump: {
            "role": "assistant",
            "content": [*map(dump, answer.content)],
        }
        for name, dump in DUMPS.items()
    }
    for dump in ({**dumps, **whole}).values():
        loop.generated.clear()
        messages = [{"role": "user", "content": "How is the weather in Rome?"}]
        answer = ask(messages)
        use = next(block for block in answer.content if block.type == "tool_use")
        result = {"type": "tool_result", "tool_use_id": use.id, "content": "sunny"}
        messages += [dump(answer), {"role": "user", "content": [result]}]
        messages.append(dump(ask(messages)))
        if says_more(messages, text):
            ask(messages)
        loop.check_prefix()
