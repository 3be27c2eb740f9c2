"""Deeply nested JSON is a 400 on every endpoint, wherever it stands."""

from __future__ import annotations

import json

import pytest

CHAT = '{"messages": [{"role": "user", "content": "x"}], '
CALL = '{{"id": "c", "type": "function", "function": {{"name": "f", "arguments": {}}}}}'
MESSAGES = '{"model": "toy", "max_tokens": 5, "messages": [{"role": "user", "content": "x"}'
FUNCTION_CALL = '{"type": "function_call", "call_id": "c", "name": "f", "arguments": '
BODIES = {
    "chat tool": ("/v1/chat/completions", CHAT + '"tools": [{"type": "function", "function": '
                  '{"name": "f", "parameters": NEST}}]}'),
    "chat call": ("/v1/chat/completions", '{"messages": [{"role": "assistant", "tool_calls": ['
                  + CALL.format("TEXT") + "]}]}"),
    "tokenize call": ("/tokenize", '{"messages": [{"role": "assistant", "tool_calls": ['
                      + CALL.format("TEXT") + "]}]}"),
    "completions": ("/v1/completions", '{"prompt": NEST}'),
    "responses tool": ("/v1/responses", '{"input": "x", "tools": [{"type": "function", '
                       '"name": "f", "parameters": NEST}]}'),
    "responses input": ("/v1/responses", '{"input": [NEST]}'),
    "responses call": ("/v1/responses", '{"input": [' + FUNCTION_CALL + "TEXT}]}"),
    "messages tool": ("/v1/messages", MESSAGES + '], "tools": [{"name": "f", '
                      '"input_schema": NEST}]}'),
    "messages call": ("/v1/messages", MESSAGES + ', {"role": "assistant", "content": [{"type": '
                      '"tool_use", "id": "a", "name": "f", "input": NEST}]}, '
                      '{"role": "user", "content": "x"}]}'),
    "count": ("/v1/messages/count_tokens", '{"model": "toy", "messages": NEST}'),
}  # fmt: skip


@pytest.mark.parametrize("depth", [200, 900, 5000, 100_000])
@pytest.mark.parametrize("name", BODIES)
def test_body_when_nested_deeply_then_no_server_error(server, name, depth):
    path, body = BODIES[name]
    nest = '{"a":' * depth + "1" + "}" * depth
    body = body.replace("NEST", nest).replace("TEXT", json.dumps(nest))
    response = server.client.post(path, content=body.encode())
    assert response.status_code < 500, response.text
    if "TEXT" not in BODIES[name][1]:
        assert response.status_code == 400
        error = response.json()["error"]
        assert error["type"] == "invalid_request_error"
        if depth < 1000:  # more is not even decoded
            assert error["param"] in ("tools", "messages", "input", "prompt")
