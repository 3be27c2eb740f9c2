"""The rule at the door where only the whole request tells: notes, bounds, counts, wording."""

from __future__ import annotations

import base64
import json

import pytest

from api_support import MAX_MODEL_LEN, TOKENIZER

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
DROPPED = "x-lingflash-dropped"
PNG = base64.b64encode(b"\x89PNG" + bytes(3000)).decode()
IMAGE = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}
NOTE = "[image omitted (image/png, 3 KB): this model reads text only]"
HI = {"role": "user", "content": "hi"}
TEXT = base64.b64encode("# Héllo".encode()).decode()
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CALLED = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "c", "content": "Read it."}


def prompt_of(server):
    return TOKENIZER.decode(server.engine.requests[-1].prompt_token_ids)


@pytest.mark.parametrize("name", ["response", "output_schema"])
def test_tool_when_it_says_what_it_returns_then_taken_and_named(server, name):
    """BFCL's functions say it, those of several turns are sent with it."""
    function = {"name": "f", "parameters": {"type": "object"}, name: {"type": "object"}}
    response = server.post(
        CHAT, {"messages": [HI], "tools": [{"type": "function", "function": function}]}
    )
    assert response.status_code == 200, response.text
    assert response.headers[DROPPED] == f"tools[0].function.{name}"
    assert name not in prompt_of(server)


def test_image_when_in_history_or_in_a_tools_result_then_a_note(server):
    picture = {"role": "user", "content": [{"type": "text", "text": "Look:"}, IMAGE]}
    for messages, where in (
        ([picture, {"role": "assistant", "content": "I cannot."}, HI], "messages[0].content[1]"),
        ([picture, HI], "messages[0].content[1]"),  # a client goes on after the refusal
        ([HI, CALLED, {**RESULT, "content": [IMAGE]}], "messages[2].content[0]"),
        ([HI, CALLED, RESULT, {"role": "user", "content": [IMAGE]}], "messages[3].content[0]"),
        ([HI, CALLED, RESULT, {"role": "user", "content": [IMAGE]}, {"role": "assistant",
         "content": "x"}, HI], "messages[3].content[0]"),
    ):  # fmt: skip
        response = server.post(CHAT, {"messages": messages})
        assert response.headers[DROPPED] == where, response.text
        assert NOTE in prompt_of(server)
    assert "Look:\n" + NOTE in TOKENIZER.decode(server.engine.requests[0].prompt_token_ids)


def test_image_when_in_the_newest_message_then_400_or_a_note_by_flag(make_server):
    source = {"type": "base64", "media_type": "image/png", "data": PNG}
    item = {
        "role": "user",
        "content": [{"type": "input_image", "image_url": IMAGE["image_url"]["url"]}],
    }
    block = {"role": "user", "content": [{"type": "image", "source": source}]}
    said = {"role": "assistant", "content": "x"}
    bodies = [
        (CHAT, {"messages": [HI, said, {"role": "user", "content": [IMAGE]}]}),
        (RESPONSES, {"input": [HI, said, item]}),
        (MESSAGES, {"model": "toy", "max_tokens": 9,
                    "messages": [HI, said, block]}),
    ]  # fmt: skip
    for flag, status in (("refuse", 400), ("note", 200)):
        server = make_server(unreadable_parts=flag)
        for path, body in bodies:
            response = server.post(path, body)
            assert response.status_code == status, response.text
            field = "input" if path == RESPONSES else "messages"
            where = f"{field}[2].content[0]"
            if status == 400:
                assert response.json()["error"]["param"] == where + ".type"
            else:
                assert response.headers[DROPPED] == where
                assert NOTE in prompt_of(server)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "document", "title": "a.md", "source": {"type": "text", "data": "# Héllo"}},
        {"type": "document", "source": {"type": "content", "content": "# Héllo"}},
        {"type": "input_file", "filename": "a.md",
         "file_data": TEXT},
        {"type": "file", "file": {"file_data": "data:text/plain;base64," + TEXT}},
    ],
)  # fmt: skip
def test_document_when_it_holds_text_then_it_is_read(server, part):
    response = server.post(CHAT, {"messages": [{"role": "user", "content": [part]}]})
    assert (response.status_code, response.headers.get(DROPPED)) == (200, None)
    assert "# Héllo" in prompt_of(server)


def test_results_when_they_have_two_parts_then_these_stay_apart(server):
    parts = [{"type": "text", "text": "first"}, {"type": "text", "text": "second"}]
    server.post(CHAT, {"messages": [HI, CALLED, {**RESULT, "content": parts}]})
    assert "first\nsecond" in prompt_of(server)
    server.post(CHAT, {"messages": [{"role": "user", "content": parts}]})
    assert "firstsecond" in prompt_of(server)


@pytest.mark.parametrize(
    ("path", "name", "body"),
    [
        (CHAT, "max_tokens", {"messages": [HI]}),
        (CHAT, "max_completion_tokens", {"messages": [HI]}),
        (RESPONSES, "max_output_tokens", {"input": "hi"}),
        (MESSAGES, "max_tokens", {"model": "toy", "messages": [HI]}),
        ("/v1/completions", "max_tokens", {"prompt": ["hi", "a much longer prompt than hi"]}),
    ],
)
def test_max_tokens_when_over_the_room_then_cut_down_to_it(make_server, path, name, body):
    server = make_server("x " * 3 * MAX_MODEL_LEN)
    response = server.post(path, {**body, name: 10**9})
    assert response.status_code == 200, response.text
    for request in server.engine.requests:
        assert request.sampling.max_tokens == MAX_MODEL_LEN - len(request.prompt_token_ids)
    text = response.text
    assert any(word in text for word in ('"length"', '"incomplete"', "context_window_exceeded"))


def test_prompt_when_too_long_then_in_the_words_that_clients_look_for(server):
    many = "q " * 2 * MAX_MODEL_LEN
    for path, body, words in (
        (CHAT, {"messages": [{"role": "user", "content": many}]}, "maximum context length"),
        (RESPONSES, {"input": many}, "maximum context length"),
        (RESPONSES, {"input": many, "truncation": "auto"}, "maximum context length"),
        ("/v1/completions", {"prompt": many}, "maximum context length"),
        (MESSAGES, {"messages": [{"role": "user", "content": many}]}, "prompt is too long: "),
        (MESSAGES, {"messages": [HI] * (MAX_MODEL_LEN + 1)}, "prompt is too long: "),
    ):
        if path == MESSAGES:
            body = {**body, "model": "toy", "max_tokens": 9}
        response = server.post(path, body)
        assert response.status_code == 400
        assert words in response.json()["error"]["message"]
        if path != MESSAGES:
            assert response.json()["error"]["code"] == "context_length_exceeded"
    assert f" tokens > {MAX_MODEL_LEN} maximum" in response.json()["error"]["message"]


def test_header_when_much_is_dropped_then_bounded_safe_and_counted(server):
    odd = {"é\r\nset-cookie: x, \U0001f600": 1, "parsed": {}}
    response = server.post(CHAT, {"messages": [{**HI, **odd}] * 100, "frob": None})
    line = response.headers[DROPPED]
    assert response.status_code == 200
    assert line.startswith("frob, messages[0].___set-cookie__x___, messages[0].parsed, ")
    assert len(line) < 1100
    shown = line.count(",")
    assert line.endswith(f", and {201 - shown} more")
    before = server.metric('lingflash_dropped_fields_total{field="parsed"}')
    events = server.stream(CHAT, {"messages": [{**HI, "parsed": {}}]})
    assert events[-1] == "[DONE]"
    assert server.metric('lingflash_dropped_fields_total{field="parsed"}') == before + 1
    assert "set-cookie" not in server.client.get("/metrics").text


def test_header_when_a_stream_then_there_too_and_absent_without_reason(server):
    for body, expected in (({"user": "u"}, "user"), ({}, None)):
        for path, more in ((CHAT, {"messages": [HI]}), (RESPONSES, {"input": "hi"})):
            with server.client.stream("POST", path, json={**body, **more, "stream": True}) as got:
                assert got.headers.get(DROPPED) == expected
                got.read()


def test_count_when_any_conversation_then_its_tokens(server):
    answered = [HI, {"role": "assistant", "content": [
        {"type": "thinking", "thinking": "hm", "signature": ""},
        {"type": "tool_use", "id": "c", "name": "f", "input": {}}]}]  # fmt: skip
    body = {"model": "toy", "tools": [{"name": "f", "input_schema": {"type": "object"}}]}
    path = MESSAGES + "/count_tokens"
    count = server.post(path, {**body, "messages": answered}).json()["input_tokens"]
    assert count > server.post(path, {**body, "messages": [HI]}).json()["input_tokens"]
    many = [{"role": "user", "content": "q " * 2 * MAX_MODEL_LEN}]
    assert server.post(path, {**body, "messages": many}).json()["input_tokens"] > MAX_MODEL_LEN
    counted = server.post(RESPONSES + "/input_tokens", {"model": "toy", "input": "hi"}).json()
    server.post(RESPONSES, {"input": "hi"})
    assert counted == {
        "object": "response.input_tokens",
        "input_tokens": len(server.engine.requests[-1].prompt_token_ids),
    }


def test_tokenizer_info_then_what_a_remote_tokenizer_needs(server):
    info = server.client.get("/tokenizer_info").json()
    assert info["eos_token"] == "<|role_end|>"
    assert "add_generation_prompt" in info["chat_template"]


def test_stream_when_usage_is_asked_for_in_every_chunk_then_it_grows(server):
    options = {"include_usage": True, "continuous_usage_stats": True}
    for path, body in ((CHAT, {"messages": [HI]}), ("/v1/completions", {"prompt": "hi"})):
        events = server.stream(path, {**body, "stream_options": options})[:-1]
        counts = [event["usage"]["completion_tokens"] for event in events]
        assert counts == sorted(counts)
        assert counts[-1] > 0
        assert not events[-1]["choices"]


def test_template_variables_when_they_are_hints_then_read_or_named(make_loop):
    server, _ = make_loop()
    for kwargs, status, word in (
        ({"enable_thinking": True}, 200, "detailed thinking on"),
        ({"thinking": False, "frob": None}, 200, "detailed thinking off"),
        ({"thinking_option": "banana"}, 400, "thinking_option"),
        ({"frob": 1}, 400, "thinking_option"),
        ({"part": 1}, 400, "thinking_option"),
    ):
        body = {"model": "ling-nano", "messages": [HI], "chat_template_kwargs": kwargs}
        response = server.post(CHAT, body)
        assert response.status_code == status, kwargs
        if status == 200:
            prompt = server.state.text.tokenizer.decode(server.engine.requests[-1].prompt_token_ids)
            assert word in prompt
        else:
            assert word in response.json()["error"]["message"]
            assert "part," not in response.json()["error"]["message"]
    for reasoning, word in (({"effort": "high"}, "on"), ({"enabled": False}, "off")):
        body = {"model": "ling-nano", "messages": [HI], "reasoning": reasoning}
        assert server.post(CHAT, body).status_code == 200
        prompt = server.state.text.tokenizer.decode(server.engine.requests[-1].prompt_token_ids)
        assert f"detailed thinking {word}" in prompt


def test_schema_when_part_of_it_is_left_to_the_model_then_named(make_loop):
    server, _ = make_loop()
    items = {"type": "array", "items": {"type": "string"}, "uniqueItems": True}
    parameters = {"type": "object", "properties": {"a": items}, "required": ["a"]}
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    body = {"model": "ling-nano", "messages": [HI], "tools": tools, "tool_choice": "required"}
    response = server.post(CHAT, body)
    assert response.status_code == 200, response.text
    assert response.headers[DROPPED] == "tools[0].function.parameters.properties.a.uniqueItems"
    assert json.loads(server.engine.requests[-1].grammar.text)["tools"][0]["name"] == "f"
