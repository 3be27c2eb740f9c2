"""The rule at the door, for everything that the official clients' types can write.

For every request, message, item, part, block and tool type each optional field is sent null, empty
and filled. Nothing may fail inside; a 400 comes only by a line of the table; and what is accepted
without being used is named.
"""

from __future__ import annotations

import json

import pytest
from openai.types import completion_create_params as completion_params
from openai.types.chat import (
    ChatCompletionContentPartParam,
    ChatCompletionMessageParam,
    ChatCompletionMessageToolCallUnionParam,
    ChatCompletionToolUnionParam,
)
from openai.types.chat import completion_create_params as chat_params
from openai.types.responses import (
    ResponseInputContentParam,
    response_create_params,
)
from openai.types.responses.response_input_param import ResponseInputItemParam
from openai.types.responses.tool_param import ToolParam

from clients_support import client_package
from lingflash.protocol import history_fields as tables
from lingflash.protocol.endpoint_fields import ENDPOINT_FIELDS
from lingflash.protocol.fields import FieldTable, says_nothing
from sdk_types import objects_in, variants

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
HI = {"role": "user", "content": "hi"}
CALLED = {
    "role": "assistant",
    "tool_calls": [{"id": "x", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
}
CALL_ITEM = {"type": "function_call", "call_id": "x", "name": "f", "arguments": "{}"}
USED = {"role": "assistant", "content": [{"type": "tool_use", "id": "x", "name": "f", "input": {}}]}
RESULT = {"type": "tool_result", "tool_use_id": "x", "content": "x"}

# What a generated value of a supported field may be refused for: the field, and why.
NOT_FROM_A_TABLE = {
    "tool_choice": "names a tool that is not there, or asks for calls without tools",
    "response_format": "a schema that is none",
    "text": "the same",
    "output_config": "the same",
    "reasoning_effort": "this model's template has no switch for thinking",
    "reasoning": "the same",
    "thinking": "the same, or a kind of it that is not supported",
    "logit_bias": "a token that is not there",
    "max_tokens": "has a lower bound",
    "n": "has an upper bound",
    "top_logprobs": "needs logprobs",
    "logprobs": "needs top_logprobs",
    "previous_response_id": "names a response that is not there",
    "stream_options": "an option that is refused",
    "include": "an output that cannot be given",
    "context_management": "an edit that is refused",
    "tool_calls": "belongs to the assistant alone",
    "format": "a grammar that is none",
    "strict": "a schema that is none",
    "name": "is taken",
    "id": "names an item that is not there",
    "metadata": "its labels are texts",
}


NESTED_REFUSED = {
    name
    for endpoint in ENDPOINT_FIELDS.values()
    for table in endpoint.table.options.values()
    for name in table.refused
} | {
    name
    for table in vars(tables).values()
    if isinstance(table, FieldTable)
    for name in table.refused
}


def check(server, path, body, field, where, table, *, is_whole=False, answered=None):
    """Send a body whose object at `where` has a field by the table."""
    response = server.post(path, body)
    told = f"{path} {json.dumps(body)[:600]}\n{response.status_code} {response.text[:300]}"
    assert response.status_code < 500, told
    named = response.headers.get("x-lingflash-dropped", "")
    at = where if is_whole else f"{where}.{field}" if where else str(field)
    if response.status_code != 200:
        assert response.status_code in (400, 404), told
        param = response.json()["error"].get("param") or ""
        parts = {part.split("[")[0] for part in param.split(".")}
        is_refused = table is not None and field in table.refused
        assert is_refused or parts & (NESTED_REFUSED | set(NOT_FROM_A_TABLE)), told
        if is_refused:
            value = answered[field]
            assert not table.refused[field].is_harmless(value), told
            assert value is False or not says_nothing(value), told
        return
    if is_whole or (field is not None and table is not None and field not in table.known):
        assert at in named.split(", ") or " more" in named, f"{told}\n{named}"


REQUESTS = [
    (CHAT, chat_params, "CompletionCreateParams", {"messages": [HI]}),
    (COMPLETIONS, completion_params, "CompletionCreateParams", {"prompt": "hi"}),
    (RESPONSES, response_create_params, "ResponseCreateParams", {"input": "hi"}),
]


def request_table(path):
    endpoint = ENDPOINT_FIELDS[path]
    table = endpoint.table
    known = tuple(endpoint.model.model_fields)
    return FieldTable(table.inert, table.refused, known, table.options)


def check_request(server, path, cls, body):
    table = request_table(path)
    for field, given in variants(cls):
        if field in ("stream", "model", *body):
            continue
        given = {k: v for k, v in given.items() if k not in ("model", *body)}
        sent = {**body, **given}
        check(server, path, sent, field, "", table, answered=sent)


@pytest.mark.parametrize(("path", "module", "name", "body"), REQUESTS)
def test_request_when_openais_type_is_sent_then_by_the_table(server, path, module, name, body):
    check_request(server, path, getattr(module, name + "Base"), body)


def test_request_when_anthropics_type_is_sent_then_by_the_table(server):
    client_package("anthropic")
    from anthropic.types.beta import message_create_params

    body = {"model": "toy", "messages": [HI], "max_tokens": 9}
    check_request(server, MESSAGES, message_create_params.MessageCreateParamsBase, body)


CHAT_TABLES = {
    "ChatCompletionMessageFunctionToolCallParam": tables.CALL,
    "ChatCompletionMessageCustomToolCallParam": tables.CALL,
    "ChatCompletionFunctionToolParam": tables.CHAT_TOOL,
    "ChatCompletionCustomToolParam": tables.CHAT_TOOL,
    "FunctionDefinition": tables.FUNCTION,
    "Custom": tables.CUSTOM_TOOL,
}


def test_chat_when_a_message_type_is_sent_back_then_by_the_table(server):
    for cls in objects_in(ChatCompletionMessageParam):
        for field, message in variants(cls):
            body = {"messages": [HI, CALLED, message, HI]}
            check(server, CHAT, body, field, "messages[2]", tables.CHAT_MESSAGE)


def test_chat_when_a_part_type_is_sent_then_read_or_a_note(server):
    for cls in objects_in(ChatCompletionContentPartParam):
        for field, part in variants(cls):
            is_text = part["type"] == "text"
            for message in ({"role": "user"}, {"role": "tool", "tool_call_id": "x"}):
                body = {"messages": [HI, CALLED, {**message, "content": [part]}, CALLED, HI]}
                where = "messages[2].content[0]"
                table = tables.TEXT_PART if is_text else None
                check(server, CHAT, body, field, where, table, is_whole=not is_text)


def test_chat_when_a_call_or_tool_type_is_sent_then_by_the_table(server):
    for cls in objects_in(ChatCompletionMessageToolCallUnionParam):
        for field, call in variants(cls):
            body = {"messages": [HI, {"role": "assistant", "tool_calls": [call]}, HI]}
            check(server, CHAT, body, field, "messages[1].tool_calls[0]", tables.CALL)
    for cls in objects_in(ChatCompletionToolUnionParam):
        for field, tool in variants(cls):
            check(server, CHAT, {"messages": [HI], "tools": [tool]}, field, "tools[0]",
                  tables.CHAT_TOOL)  # fmt: skip
    inner = [(key, field, value) for cls in objects_in(ChatCompletionToolUnionParam)
             for key, (hint, _) in _fields(cls).items() if key != "type"
             for inner in objects_in(hint) for field, value in variants(inner)]  # fmt: skip
    assert len(inner) > 10
    for key, field, value in inner:
        table = tables.FUNCTION if key == "function" else tables.CUSTOM_TOOL
        tool = {"type": key, key: value}
        body = {"messages": [HI], "tools": [tool]}
        check(server, CHAT, body, field, f"tools[0].{key}", table, answered=value)


def _fields(cls):
    from sdk_types import fields_of

    return fields_of(cls)


ITEM_TABLES = {
    "message": tables.ITEM_MESSAGE,
    "function_call": tables.ITEM_CALL,
    "custom_tool_call": tables.ITEM_CALL,
    "function_call_output": tables.ITEM_CALL_OUTPUT,
    "custom_tool_call_output": tables.ITEM_CALL_OUTPUT,
    "reasoning": tables.ITEM_REASONING,
}


def test_responses_when_an_item_type_is_sent_then_by_the_table(server):
    for cls in objects_in(ResponseInputItemParam):
        for field, item in variants(cls):
            kind = item.get("type") or ("message" if "role" in item else "item_reference")
            body = {"input": [HI, CALL_ITEM, item, HI]}
            if kind in tables.REFUSED_ITEMS:
                error = server.post(RESPONSES, body).json()["error"]
                assert error["param"] == "input[2].type"
                continue
            is_other = kind in tables.OTHER_ITEMS
            table = ITEM_TABLES.get(kind)
            check(server, RESPONSES, body, field, "input[2]", table, is_whole=is_other)


def test_responses_when_a_part_or_tool_type_is_sent_then_by_the_table(server):
    for cls in objects_in(ResponseInputContentParam):
        for field, part in variants(cls):
            is_text = part["type"] == "input_text"
            output = {"type": "function_call_output", "call_id": "x", "output": [part]}
            table = tables.TEXT_PART if is_text else None
            check(server, RESPONSES, {"input": [HI, CALL_ITEM, output]}, field,
                  "input[2].output[0]", table, is_whole=not is_text)  # fmt: skip
    by_type = {"function": tables.RESPONSES_FUNCTION, "custom": tables.RESPONSES_CUSTOM_TOOL,
               "namespace": tables.NAMESPACE}  # fmt: skip
    for cls in objects_in(ToolParam):
        for field, tool in variants(cls):
            table = by_type.get(tool["type"])
            check(server, RESPONSES, {"input": "hi", "tools": [tool]}, field, "tools[0]", table,
                  is_whole=table is None, answered=tool)  # fmt: skip


BLOCK_TABLES = {
    "text": tables.TEXT_PART,
    "tool_use": tables.TOOL_USE,
    "tool_result": tables.TOOL_RESULT,
    "thinking": tables.THINKING,
}
READ_AS_TEXT = ("search_result", "tool_reference")


def test_messages_when_a_block_type_is_sent_then_by_the_table(server):
    client_package("anthropic")
    from anthropic.types.beta import BetaContentBlockParam

    for cls in objects_in(BetaContentBlockParam):
        for field, block in variants(cls):
            kind = block["type"]
            if kind == "tool_result":
                messages = [HI, USED, {"role": "user", "content": [block]}]
            else:
                messages = [HI, {"role": "assistant", "content": [block]}, HI]
            where = f"messages[{2 if kind == 'tool_result' else 1}].content[0]"
            table = BLOCK_TABLES.get(kind)
            is_read = table is not None or kind in READ_AS_TEXT
            is_text = is_read or (kind == "compaction" and isinstance(block.get("content"), str))
            body = {"model": "toy", "max_tokens": 9, "messages": messages}
            if kind == "document" and (block.get("citations") or {}).get("enabled"):
                assert server.post(MESSAGES, body).json()["error"]["param"] == where + ".citations"
                continue
            check(server, MESSAGES, body, field, where, table, is_whole=not is_text)


def test_messages_when_a_message_or_tool_type_is_sent_then_by_the_table(server):
    client_package("anthropic")
    from anthropic.types.beta import BetaMessageParam, BetaToolUnionParam

    for cls in objects_in(BetaMessageParam):
        for field, message in variants(cls):
            body = {"model": "toy", "max_tokens": 9, "messages": [HI, message, HI]}
            check(server, MESSAGES, body, field, "messages[1]", tables.MESSAGE)
    for cls in objects_in(BetaToolUnionParam):
        for field, tool in variants(cls):
            is_ours = tool.get("type") in (None, "custom")
            body = {"model": "toy", "max_tokens": 9, "messages": [HI], "tools": [tool]}
            table = tables.MESSAGES_TOOL if is_ours else None
            check(server, MESSAGES, body, field, "tools[0]", table, is_whole=not is_ours,
                  answered=tool)  # fmt: skip
