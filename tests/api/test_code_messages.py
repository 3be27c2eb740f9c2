"""Anthropic's code execution tool in /v1/messages, which `ling sandbox` runs."""

from __future__ import annotations

import anthropic
import pytest

from api_support import read_named_events, wait_until
from code_support import alive, calls

PATH = "/v1/messages"
TOOL = {"type": "code_execution_20250522", "name": "code_execution"}
FIELDS = {"model": "ling-nano", "max_tokens": 200, "tools": [TOOL]}
HI = [{"role": "user", "content": "What is 17 times 23?"}]


def test_message_when_code_is_called_then_blocks_of_call_and_result(serve_code, sandboxes):
    server, script = serve_code("See:\n" + calls("print(17 * 23)"), "The result is 391.")
    client = anthropic.Anthropic(base_url=server.base_url, api_key="x", max_retries=0)
    whole = client.messages.create(messages=HI, **FIELDS)
    said, use, result, answer = whole.content
    assert (said.text, use.name, use.input) == (
        "See:",
        "code_execution",
        {"code": "print(17 * 23)"},
    )
    assert (result.tool_use_id, result.content.stdout) == (use.id, "391\n")
    assert result.content.return_code == 0
    assert (answer.text, whole.stop_reason) == ("The result is 391.", "end_turn")
    assert script.results == ["391\n"]
    script.check_prefix()
    wait_until(lambda: alive(sandboxes) == [], 30)
    with client.messages.stream(messages=HI, **FIELDS) as stream:
        streamed = stream.get_final_message()
    assert [block.type for block in streamed.content] == [block.type for block in whole.content]
    assert streamed.content[1].input == use.input
    assert streamed.usage.output_tokens == whole.usage.output_tokens
    # What is sent back is the same prompt again.
    messages = [
        *HI,
        {"role": "assistant", "content": whole.content},
        {"role": "user", "content": "?"},
    ]
    script.texts = ("Yes.",)
    script.generated.clear()
    client.messages.create(messages=messages, **FIELDS)
    assert "The result is 391." in script.prompts[-1]
    assert "<tool_response>\n391\n\n</tool_response>" in script.prompts[-1]


@pytest.mark.slow
def test_stream_when_code_is_called_then_each_block_has_its_place(serve_code):
    server, _ = serve_code(calls("print(1)", "1 / 0"), calls("pass"), "done")
    body = {**FIELDS, "messages": HI, "stream": True}
    with server.client.stream("POST", PATH, json=body) as response:
        events = [e for e in read_named_events(response.read()) if e["type"] != "ping"]
    starts = [e for e in events if e["type"] == "content_block_start"]
    assert [e["index"] for e in starts] == list(range(7))
    assert [e["content_block"]["type"].partition("_tool")[0] for e in starts] == [
        *["server", "server", "code_execution", "code_execution"],
        *["server", "code_execution", "text"],
    ]
    codes = [
        e["content_block"]["content"]["return_code"]
        for e in starts
        if "content" in e["content_block"]
    ]
    assert codes == [0, 1, 0]
    open_blocks = set()
    for event in events:
        if event["type"] == "content_block_start":
            open_blocks.add(event["index"])
        elif event["type"] == "content_block_delta":
            assert event["index"] in open_blocks
        elif event["type"] == "content_block_stop":
            open_blocks.remove(event["index"])
    assert not open_blocks
    assert events[-2]["delta"]["stop_reason"] == "end_turn"
    assert events[-2]["usage"]["code_interpreter_details"]["calls"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "code_execution"}])
def test_message_when_code_is_required_then_once(serve_code, choice):
    server, script = serve_code(calls("print(1)"), "one")
    answer = server.post(PATH, {**FIELDS, "messages": HI, "tool_choice": choice}).json()
    assert answer["content"][-1]["text"] == "one"
    assert '"calls": "required"' in server.engine.requests[0].grammar.text
    assert script.results == ["1\n"]


@pytest.mark.parametrize(
    ("sandbox", "kind"),
    [
        pytest.param(None, TOOL["type"], id="no_sandbox"),
        pytest.param("http://127.0.0.1:9", "code_execution_20250825", id="a_shell"),
    ],
)
def test_message_when_the_tool_cannot_run_then_it_is_dropped_and_named(serve_code, sandbox, kind):
    server, script = serve_code("hello", sandbox=sandbox)
    answer = server.post(PATH, {**FIELDS, "messages": HI, "tools": [{**TOOL, "type": kind}]})
    assert answer.headers["x-lingflash-dropped"] == "tools[0]"
    assert "python" not in script.prompts[0]


@pytest.mark.slow
def test_message_when_a_client_sends_odd_results_back_then_read_or_refused(serve_code):
    server, script = serve_code("hello")
    use = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "code_execution"}

    def answer(*blocks):
        messages = [*HI, {"role": "assistant", "content": list(blocks)}, *HI]
        return server.post(PATH, {**FIELDS, "messages": messages})

    good = {**use, "input": {"code": "1"}}
    result = {"type": "code_execution_tool_result", "tool_use_id": "srvtoolu_1"}
    error = {"type": "code_execution_tool_result_error", "error_code": "unavailable"}
    assert answer(good, {**result, "content": error}).status_code == 200
    assert "[unavailable]" in script.prompts[-1]
    assert answer(good, {**result, "content": None}).status_code == 200
    for blocks in ([{**use, "input": {}}], [{**use, "input": {"code": 1}}], [result]):
        assert answer(*blocks).status_code == 400
