"""What no type of an SDK has and clients send all the same: rows of the tables, odd ids, bytes."""

from __future__ import annotations

import json

import pytest

from lingflash.api.config import ServerConfig
from lingflash.protocol import history_fields as tables
from lingflash.protocol.endpoint_fields import ENDPOINT_FIELDS

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
DROPPED = "x-lingflash-dropped"
HI = {"role": "user", "content": "hi"}
SCHEMA = {"type": "object", "properties": {}}


def chat(message=(), part=(), call=(), function=(), tool=(), definition=()):
    """A chat with a call in its history, and fields more at each place."""
    made = {"name": "f", "arguments": "{}", **dict(function)}
    calls = [{"id": "c", "type": "function", "function": made, **dict(call)}]
    text = {"type": "text", "text": "x", **dict(part)}
    messages = [
        HI,
        {"role": "assistant", "content": [text], "tool_calls": calls, **dict(message)},
        {"role": "tool", "tool_call_id": "c", "content": "R"},
    ]
    defined = {"name": "f", "parameters": SCHEMA, **dict(definition)}
    tools = [{"type": "function", "function": defined, **dict(tool)}]
    return {"messages": messages, "tools": tools}


# Place, table, where the header says that it was.
PLACES = {
    "message": (tables.CHAT_MESSAGE, "messages[1]"),
    "part": (tables.TEXT_PART, "messages[1].content[0]"),
    "call": (tables.CALL, "messages[1].tool_calls[0]"),
    "function": (tables.CALL_FUNCTION, "messages[1].tool_calls[0].function"),
    "tool": (tables.CHAT_TOOL, "tools[0]"),
    "definition": (tables.FUNCTION, "tools[0].function"),
}
VALUES = ("x", {"any": ["thing"]}, 7, True)
ROWS = [(place, name) for place, (table, _) in PLACES.items() for name in table.inert]


@pytest.mark.parametrize(("place", "name"), ROWS, ids=lambda value: value)
def test_history_when_it_holds_what_others_leave_behind_then_taken_and_named(server, place, name):
    path = f"{PLACES[place][1]}.{name}"
    for value in VALUES:
        response = server.post(CHAT, chat(**{place: {name: value}}))
        assert response.status_code == 200, response.text
        assert path in response.headers[DROPPED].split(", ")
    for nothing in (None, "", [], {}):
        assert server.post(CHAT, chat(**{place: {name: nothing}})).status_code == 200


@pytest.mark.parametrize("place", ["message", "part", "call", "function"])
def test_history_when_a_field_is_one_that_nobody_knows_then_taken_and_named(server, place):
    response = server.post(CHAT, chat(**{place: {"x_of_tomorrow": {"a": 1}}}))
    assert response.status_code == 200, response.text
    assert f"{PLACES[place][1]}.x_of_tomorrow" in response.headers[DROPPED]


BODIES = {
    CHAT: {"messages": [HI]},
    "/v1/completions": {"prompt": "hi"},
    RESPONSES: {"input": "hi"},
    MESSAGES: {"model": "toy", "max_tokens": 4, "messages": [HI]},
}
LABELS = [(path, name) for path in BODIES for name in ENDPOINT_FIELDS[path].table.inert]


@pytest.mark.parametrize(("path", "name"), LABELS)
def test_request_when_it_has_a_label_then_taken_and_named(server, path, name):
    response = server.post(path, {**BODIES[path], name: {"k": "v"}})
    assert response.status_code == 200, response.text
    assert name in response.headers[DROPPED].split(", ")


@pytest.mark.parametrize("call_id", ["", None, "same"])
def test_calls_when_their_ids_are_empty_or_all_the_same_then_read_in_order(server, call_id):
    function = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        HI,
        {"role": "assistant", "content": None, "tool_calls": [{"id": call_id, **function}] * 2},
        {"role": "tool", "tool_call_id": call_id, "content": "one"},
        {"role": "tool", "tool_call_id": call_id, "content": "two"},
    ]
    response = server.post(CHAT, {"messages": messages})
    assert response.status_code == 200, response.text


@pytest.mark.parametrize("content", [None, "", [], [{"type": "text", "text": ""}]])
def test_assistant_when_its_content_is_nothing_then_an_empty_answer(server, content):
    messages = [HI, {"role": "assistant", "content": content}, HI]
    response = server.post(CHAT, {"messages": messages})
    assert response.status_code == 200, response.text


@pytest.mark.parametrize("path", BODIES)
def test_body_when_it_begins_with_a_byte_order_mark_then_read(server, path):
    content = b"\xef\xbb\xbf" + json.dumps(BODIES[path]).encode()
    response = server.client.post(
        path, content=content, headers={"content-type": "application/json"}
    )
    assert response.status_code == 200, response.text


def test_connection_when_idle_then_kept_longer_than_clients_pools_keep_theirs():
    assert ServerConfig().keep_alive_s > 60
