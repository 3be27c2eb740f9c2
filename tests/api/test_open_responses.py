"""The text cases of the Open Responses compliance suite, with its schema of a response.

The cases (requests and what is asked of the answers) are those that the project openresponses
publishes in src/lib/compliance-tests.ts; the image case is left out, since this model reads text.
"""

from __future__ import annotations

import pytest

from api_support import read_named_events as read_events

NUMBER = (int, float)
OPTIONAL_TEXT = (str, type(None))

# Required fields of its ResponseResource.
RESPONSE = {
    "id": str, "object": str, "created_at": int, "completed_at": (int, type(None)), "status": str,
    "incomplete_details": (dict, type(None)), "model": str, "previous_response_id": OPTIONAL_TEXT,
    "instructions": (str, list, type(None)), "output": list, "error": (dict, type(None)),
    "tools": list, "tool_choice": (str, dict), "truncation": str, "parallel_tool_calls": bool,
    "text": dict, "top_p": NUMBER, "presence_penalty": NUMBER, "frequency_penalty": NUMBER,
    "top_logprobs": int, "temperature": NUMBER, "reasoning": (dict, type(None)),
    "user": OPTIONAL_TEXT, "usage": (dict, type(None)), "max_output_tokens": (int, type(None)),
    "max_tool_calls": (int, type(None)), "store": bool, "background": bool, "service_tier": str,
    "metadata": dict, "safety_identifier": OPTIONAL_TEXT, "prompt_cache_key": OPTIONAL_TEXT,
}  # fmt: skip
MESSAGE = {"type": str, "id": str, "status": str, "role": str, "content": list}
FUNCTION_CALL = {
    "type": str, "id": str, "call_id": str, "name": str, "arguments": str, "status": str,
}  # fmt: skip
OUTPUT_TEXT = {"type": str, "text": str, "annotations": list, "logprobs": list}
FUNCTION_TOOL = {
    "type": str, "name": str, "description": OPTIONAL_TEXT, "parameters": (dict, type(None)),
    "strict": (bool, type(None)),
}  # fmt: skip
USAGE = {
    "input_tokens": int, "output_tokens": int, "total_tokens": int, "input_tokens_details": dict,
    "output_tokens_details": dict,
}  # fmt: skip
PLACE = {"item_id": str, "output_index": int}
IN_PART = {**PLACE, "content_index": int}
EVENTS = {
    "response.created": {"response": dict},
    "response.in_progress": {"response": dict},
    "response.completed": {"response": dict},
    "response.output_item.added": {"output_index": int, "item": dict},
    "response.output_item.done": {"output_index": int, "item": dict},
    "response.content_part.added": {**IN_PART, "part": dict},
    "response.content_part.done": {**IN_PART, "part": dict},
    "response.output_text.delta": {**IN_PART, "delta": str, "logprobs": list},
    "response.output_text.done": {**IN_PART, "text": str, "logprobs": list},
    "response.function_call_arguments.delta": {**PLACE, "delta": str},
    "response.function_call_arguments.done": {**PLACE, "arguments": str},
}

CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"location": "SF"}}\n</tool_call>'
TOOL = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the current weather for a location",
    "parameters": {
        "type": "object",
        "properties": {
            "location": {
                "type": "string",
                "description": "The city and state, e.g. San Francisco, CA",
            }
        },
        "required": ["location"],
    },
}


def user(text):
    return {"type": "message", "role": "user", "content": text}


WEATHER = {"input": [user("What's the weather like in San Francisco?")], "tools": [TOOL]}
PIRATE = "You are a pirate. Always respond in pirate speak."
CASES = {
    "basic-response": {"input": [user("Say hello in exactly 3 words.")]},
    "streaming-response": {"input": [user("Count from 1 to 5.")], "stream": True},
    "system-prompt": {
        "input": [{"type": "message", "role": "system", "content": PIRATE}, user("Say hello.")]
    },
    "tool-calling": WEATHER,
    "tool-calling-streaming": {**WEATHER, "stream": True},
    "multi-turn": {
        "input": [
            user("My name is Alice."),
            {
                "type": "message",
                "role": "assistant",
                "content": "Hello Alice! Nice to meet you. How can I help you today?",
            },
            user("What is my name?"),
        ]
    },
}


def check(value, schema):
    for key, kind in schema.items():
        assert key in value, key
        assert isinstance(value[key], kind), (key, value[key])
        if kind is int:
            assert type(value[key]) is int


def check_item(item):
    check(item, MESSAGE if item["type"] == "message" else FUNCTION_CALL)
    for part in item.get("content", ()):
        check(part, OUTPUT_TEXT)


def check_response(response):
    check(response, RESPONSE)
    assert response["object"] == "response"
    for item in response["output"]:
        check_item(item)
    for tool in response["tools"]:
        check(tool, FUNCTION_TOOL)
    if response["usage"] is not None:
        check(response["usage"], USAGE)


def check_events(events):
    assert events.pop() == "[DONE]"
    for event in events:
        check(event, {"type": str, "sequence_number": int, **EVENTS[event["type"]]})
        if "item" in event:
            check_item(event["item"])
        if "response" in event:
            check_response(event["response"])
        if "part" in event:
            check(event["part"], OUTPUT_TEXT)


@pytest.mark.parametrize("case", CASES)
def test_case(make_server, case):
    server = make_server(CALL if "tool" in case else "Hello, Alice there.")
    body = {"model": "toy", **CASES[case]}
    if body.get("stream"):
        with server.client.stream("POST", "/v1/responses", json=body) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            events = read_events(answer.read())
        check_events(events)
        response = events[-1]["response"]
        assert events[-1]["type"] == "response.completed"
    else:
        response = server.post("/v1/responses", body).json()
        events = []
    check_response(response)
    assert response["status"] == "completed"
    assert response["output"]
    if case.startswith("tool-calling"):
        assert any(item["type"] == "function_call" for item in response["output"])
    if case == "tool-calling-streaming":
        kinds = [event["type"] for event in events]
        assert "response.function_call_arguments.delta" in kinds
        assert "response.function_call_arguments.done" in kinds
        for kind in ("response.output_item.added", "response.output_item.done"):
            assert any(
                event["type"] == kind and event["item"]["type"] == "function_call"
                for event in events
            )
