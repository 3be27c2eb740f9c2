"""/v1/messages over real HTTP, with raw requests in Anthropic's form."""

from __future__ import annotations

import pytest

from api_support import MAX_MODEL_LEN, TOKENIZER, read_named_events
from lingflash.core.errors import LingflashError, QueueFullError
from lingflash.link.scripted import Behaviour

CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city":  "Zürich"}}\n</tool_call>'
TOOL = {"name": "get_weather", "description": "d", "input_schema": {"type": "object"}}
PATH = "/v1/messages"
HELLO = [{"role": "user", "content": "hi"}]
BILLING = "x-anthropic-billing-header: cc_version=2.1.100.7b4; cc_entrypoint=cli; cch={};"


def fields_of(messages=None, **fields):
    messages = HELLO if messages is None else messages
    return {"model": "toy", "max_tokens": 1000, "messages": messages, **fields}


def create(server, messages=None, **fields):
    return server.post(PATH, fields_of(messages, **fields))


def stream(server, messages=None, **fields):
    body = {**fields_of(messages, **fields), "stream": True}
    with server.client.stream("POST", PATH, json=body) as response:
        assert response.status_code == 200, response.read()
        return read_named_events(response.read())


def last_prompt(server):
    return TOKENIZER.decode(server.engine.requests[-1].prompt_token_ids)


def test_create_when_asked_then_a_message(server):
    response = create(server, system="Be short.")
    body = response.json()
    assert response.status_code == 200, body
    assert body["id"].startswith("msg_")
    assert (body["type"], body["role"], body["model"]) == ("message", "assistant", "toy")
    assert body["content"] == [{"type": "text", "text": "fine, thank you"}]
    assert (body["stop_reason"], body["stop_sequence"]) == ("end_turn", None)
    assert body["usage"]["input_tokens"] == len(server.engine.requests[-1].prompt_token_ids)
    assert last_prompt(server) == (
        "<role>system</role>Be short.<|role_end|><role>user</role>hi<|role_end|>"
        "<role>assistant</role>"
    )
    assert response.headers["request-id"] == response.headers["x-request-id"]


def test_create_when_prefix_was_cached_then_it_is_counted_apart(make_server):
    server = make_server(behaviour=Behaviour(num_cached_tokens=7))
    usage = create(server).json()["usage"]
    num_tokens = len(server.engine.requests[-1].prompt_token_ids)
    assert usage["cache_read_input_tokens"] == 7
    assert usage["input_tokens"] == num_tokens - 7
    # The first event does not wait for the first token, which alone knows what was cached.
    end = stream(server)[-2]["usage"]
    assert end["cache_read_input_tokens"] == 7
    assert end["input_tokens"] == num_tokens - 7


def test_create_when_sampling_is_given_then_the_engine_gets_it(server):
    create(server, temperature=0.5, top_p=0.9, top_k=5, stop_sequences=["a", "b"], timeout=9.5)
    request = server.engine.requests[-1]
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 5)
    assert (sampling.stop, sampling.max_tokens, request.timeout_s) == (("a", "b"), 1000, 9.5)


def test_stop_when_a_sequence_ends_it_then_named(make_server):
    server = make_server("one two END three")
    body = create(server, stop_sequences=["END"]).json()
    assert body["content"] == [{"type": "text", "text": "one two "}]
    assert (body["stop_reason"], body["stop_sequence"]) == ("stop_sequence", "END")
    delta = stream(server, stop_sequences=["END"])[-2]["delta"]
    assert delta == {"stop_reason": "stop_sequence", "stop_sequence": "END"}


def test_stop_when_tokens_run_out_then_max_tokens(server):
    body = create(server, max_tokens=2).json()
    assert body["stop_reason"] == "max_tokens"
    assert body["usage"]["output_tokens"] == 2


def test_stop_when_the_context_is_full_then_its_own_reason(make_server):
    server = make_server("x " * MAX_MODEL_LEN, behaviour=Behaviour(tokens_per_event=500))
    body = create(server, max_tokens=10**6).json()
    assert body["stop_reason"] == "model_context_window_exceeded"
    usage = body["usage"]
    assert usage["input_tokens"] + usage["output_tokens"] == MAX_MODEL_LEN


@pytest.mark.parametrize("tokens_per_event", [1, 4, 1000])
def test_stream_when_text_and_calls_come_then_the_full_sequence(make_server, tokens_per_event):
    server = make_server(
        "Look:\n" + CALL + "\n" + CALL, behaviour=Behaviour(tokens_per_event=tokens_per_event)
    )
    events = stream(server, tools=[TOOL])
    kinds = [e["type"] for e in events]
    once = [kind for i, kind in enumerate(kinds) if i == 0 or kinds[i - 1] != kind]
    block = ["content_block_start", "content_block_delta", "content_block_stop"]
    assert once == ["message_start", "ping", *block * 3, "message_delta", "message_stop"]
    assert events[0]["message"]["content"] == []
    text = "".join(
        e["delta"]["text"] for e in events if e.get("delta", {}).get("type") == "text_delta"
    )
    assert text == "Look:"
    starts = [e["content_block"] for e in events if e["type"] == "content_block_start"]
    assert [s["type"] for s in starts] == ["text", "tool_use", "tool_use"]
    assert all(s["input"] == {} and s["name"] == "get_weather" for s in starts[1:])
    jsons = dict.fromkeys((1, 2), "")
    for e in events:
        if e.get("delta", {}).get("type") == "input_json_delta":
            jsons[e["index"]] += e["delta"]["partial_json"]
    assert list(jsons.values()) == ['{"city":  "Zürich"}'] * 2
    assert events[-2]["delta"]["stop_reason"] == "tool_use"
    whole = create(server, tools=[TOOL]).json()
    assert [b["type"] for b in whole["content"]] == ["text", "tool_use", "tool_use"]
    assert whole["content"][1]["input"] == {"city": "Zürich"}
    assert whole["usage"] == events[-2]["usage"]


def test_stream_when_the_engine_fails_then_one_error_event_and_a_clean_end(make_server):
    failure = Behaviour(fail_after_tokens=3, fail_with=LingflashError("boom"))
    server = make_server("a b c d e f", behaviour=failure)
    events = stream(server)
    assert [e["type"] for e in events].count("error") == 1
    assert events[-1] == {"type": "error", "error": {"type": "api_error", "message": "boom"}}
    whole = create(server)
    assert (whole.status_code, whole.json()) == (500, events[-1])


def test_history_when_tools_were_used_then_rendered_as_generated(server):
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "both?"}]},
        {"role": "assistant", "content": [
            {"type": "text", "text": "Look:"},
            {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": "é"},
             "cache_control": {"type": "ephemeral"}},
            {"type": "tool_use", "id": "t2", "name": "f", "input": {}}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t2", "is_error": True, "content": "no"},
            {"type": "tool_result", "tool_use_id": "t1",
             "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "more"}]},
            {"type": "text", "text": "go on"}]},
    ]  # fmt: skip
    assert create(server, messages).status_code == 200
    assert last_prompt(server) == (
        "<role>user</role>both?<|role_end|><role>assistant</role>Look:"
        '<tool_call>{"a": "é"}</tool_call><tool_call>{}</tool_call><|role_end|>'
        "<role>tool</role>one\n\nmore<|role_end|><role>tool</role>Error: no<|role_end|>"
        "<role>user</role>go on<|role_end|><role>assistant</role>"
    )


@pytest.mark.parametrize("form", ["block", "string", "joined block"])
def test_system_when_the_billing_line_changes_then_the_prompt_does_not(server, form):
    prompts = []
    for number in range(2):
        line = BILLING.format(number)
        system = {
            "block": [{"type": "text", "text": line}, {"type": "text", "text": "You are Code."}],
            "string": f"{line}\nYou are Code.",
            "joined block": [{"type": "text", "text": f"{line}\nYou are Code."}],
        }[form]
        assert create(server, system=system).status_code == 200
        prompts.append(last_prompt(server))
    assert prompts[0] == prompts[1]
    assert prompts[0].startswith("<role>system</role>You are Code.<|role_end|>")
    # Elsewhere it is text like any other.
    create(server, [{"role": "user", "content": BILLING.format(1)}], system="a\n" + line)
    assert last_prompt(server).count("x-anthropic-billing-header") == 2


def test_count_when_asked_then_what_a_message_would_use(server):
    fields = {"messages": HELLO, "model": "toy", "tools": [TOOL], "system": "s"}
    counted = server.post(PATH + "/count_tokens", fields)
    assert counted.status_code == 200, counted.text
    used = create(server, system="s", tools=[TOOL]).json()["usage"]["input_tokens"]
    assert counted.json() == {"input_tokens": used}
    assert len(server.engine.requests) == 1
    refused = server.post(PATH + "/count_tokens", {**fields, "max_tokens": 3})
    assert refused.json()["error"]["param"] == "max_tokens"


def test_key_when_in_either_header_then_accepted(make_server):
    server = make_server(api_keys=("k",))
    for headers, status in (
        ({"x-api-key": "k", "anthropic-version": "2023-06-01"}, 200),
        ({"authorization": "Bearer k"}, 200),
        ({"x-api-key": "wrong"}, 401),
        ({}, 401),
    ):
        response = server.post(PATH + "?beta=true", fields_of(), headers=headers)
        assert response.status_code == status
    assert response.json()["error"]["type"] == "authentication_error"
    assert response.json()["type"] == "error"


A_RESULT = {"type": "tool_result", "tool_use_id": "x"}
BAD_FIELDS = [
    ({"frobnicate": 1}, "frobnicate"),
    ({"max_tokens": None}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"thread": {"type": "create"}}, "thread"),
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": [3]}, "messages[0]"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "image"}]}]},
     "messages[0].content[0].type"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]},
     "messages[0].content[0].text"),
    ({"messages": [{"role": "user", "content": [A_RESULT]}]},
     "messages[0].content[0].tool_use_id"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, A_RESULT]}]},
     "messages[0].content[1].type"),
    ({"messages": [*HELLO, {"role": "assistant", "content": "I"}]}, "messages[1].role"),
    ({"messages": [*HELLO, {"role": "assistant", "content": [{"type": "tool_use", "id": "a",
      "name": "f", "input": "{}"}]}, *HELLO]}, "messages[1].content[0].input"),
    ({"system": 3}, "system"),
    ({"system": [{"type": "image"}]}, "system[0].type"),
    ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
    ({"tools": [{"input_schema": {}}]}, "tools[0].name"),
    ({"tools": [{**TOOL, "frob": 1}]}, "tools[0].frob"),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}],
      "tool_choice": {"type": "tool", "name": "web_search"}}, "tool_choice"),
    ({"tools": [TOOL, TOOL]}, "tools[1].name"),
    ({"tool_choice": "auto"}, "tool_choice"),
    ({"tool_choice": {"type": "frob"}}, "tool_choice.type"),
    ({"tool_choice": {"type": "tool"}}, "tool_choice.name"),
    ({"thinking": {"type": "frob"}}, "thinking.type"),
    ({"output_config": {"effort": "frob"}}, "output_config.effort"),
    ({"output_config": {"format": {"type": "text"}}}, "output_config.format"),
    ({"temperature": -1}, "temperature"),
    ({"top_k": -2}, "top_k"),
    ({"stop_sequences": [""]}, "stop_sequences[0]"),
    ({"stop_sequences": ["a"] * 17}, "stop_sequences"),
    ({"container": "c"}, "container"),
    ({"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}},
     "context_management.edits[0].type"),
    ({"stop": ["x"]}, "stop"),
    ({"stream": "yes"}, "stream"),
]  # fmt: skip


def test_create_when_a_field_is_bad_then_400_names_it(server):
    for fields, param in BAD_FIELDS:
        body = {**fields_of(), **fields}
        body = {key: value for key, value in body.items() if value is not None}
        response = server.post(PATH, body)
        error = response.json()["error"]
        assert response.json()["type"] == "error"
        assert (response.status_code, error.get("param")) == (400, param), (fields, response.text)
        assert error["type"] == "invalid_request_error"
        assert param.split("[")[0].split(".")[0] in error["message"]
    assert server.engine.requests == []


def test_create_when_the_prompt_is_longer_than_the_context_then_400(server):
    for system in ("x" * 3 * MAX_MODEL_LEN, "x y" * 3_000_000):
        error = create(server, system=system).json()["error"]
        assert (error["type"], error["param"]) == ("invalid_request_error", "messages")
    assert server.engine.requests == []


def test_create_when_inert_fields_are_given_then_accepted(server):
    response = create(
        server, metadata={"user_id": "u"}, service_tier="auto", thinking={"type": "disabled"},
        output_config={"effort": "high"}, tool_choice={"type": "auto"}, tools=[], container=None,
        cache_control={"type": "ephemeral"}, speed="standard",
        system=[{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}],
    )  # fmt: skip
    assert response.status_code == 200, response.text


def test_errors_when_they_have_other_causes_then_the_same_envelope(make_server):
    server = make_server(max_body_bytes=2000)
    for response, status, kind in (
        (create(server, model="nope"), 404, "not_found_error"),
        (create(server, system="x" * 3000), 413, "request_too_large"),
        (server.client.post(PATH, content=b"{"), 400, "invalid_request_error"),
        (server.client.get(PATH), 405, "invalid_request_error"),
        (server.post(PATH + "/frob", {}), 404, "not_found_error"),
    ):
        assert (response.status_code, response.json()["error"]["type"]) == (status, kind)
        assert response.json()["type"] == "error"
    server.engine.behaviour = Behaviour(reject_with=QueueFullError("full"))
    response = create(server)
    assert (response.status_code, response.json()["error"]["type"]) == (429, "rate_limit_error")
    assert response.headers["retry-after"]
