"""Tools as they come: namespaces, custom tools and their grammars, hosted and deferred ones."""

from __future__ import annotations

import json

import pytest

from api_support import read_named_events
from lingflash.core.hub import bundled_folder
from lingflash.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer.from_folder(bundled_folder())
HI = {"role": "user", "content": "hi"}
PARAMETERS = {"type": "object", "properties": {}}
DROPPED = "x-lingflash-dropped"


def called(name, arguments):
    body = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{body}\n</tool_call>"


def function(name, **fields):
    return {"type": "function", "name": name, "parameters": PARAMETERS, **fields}


def namespace(name, *tools):
    return {"type": "namespace", "name": name, "description": f"About {name}.", "tools": [*tools]}


def ask(server, path, **fields):
    response = server.post(path, {"model": "ling-nano", **fields})
    assert response.status_code == 200, response.text
    return response


def prompt_of(server):
    return TOKENIZER.decode(server.engine.requests[-1].prompt_token_ids)


def test_namespaces_when_two_share_a_name_then_each_answers_by_its_own(make_loop):
    server, loop = make_loop()
    tools = [namespace("a", function("f")), namespace("b", function("f"), function("g"))]
    for said, expected in (
        ("a.f", ("a", "f")),
        ("b.f", ("b", "f")),
        ("b__f", ("b", "f")),
        ("g", ("b", "g")),
        ("f", (None, "f")),  # two could be meant
        ("c.f", (None, "c.f")),
    ):
        loop.first = called(said, {})
        item = ask(server, "/v1/responses", input="hi", tools=tools).json()["output"][0]
        assert (item.get("namespace"), item["name"]) == expected
    assert "[b: About b.]" in prompt_of(server)


def test_namespaces_when_a_call_is_sent_back_then_it_has_the_prompts_name(make_loop):
    server, _ = make_loop()
    tools = [namespace("a", function("f"))]
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "c", "output": "x"}
    for left, of in ((tools, "a"), ([], "a"), (tools, None)):
        items = [HI, {**call, "namespace": of}, output]
        ask(server, "/v1/responses", input=items, tools=left)
        assert f'{{"name": "{"a.f" if of else "f"}", "arguments"' in prompt_of(server)


def test_tool_choice_when_it_names_a_tool_of_a_namespace_then_only_that_one(make_loop):
    server, _ = make_loop(called("a.f", {}))
    tools = [namespace("a", function("f"), function("g")), function("h")]
    ask(server, "/v1/responses", input="hi", tools=tools,
        tool_choice={"type": "function", "name": "f", "namespace": "a"})  # fmt: skip
    spec = json.loads(server.engine.requests[-1].grammar.text)
    assert [tool["name"] for tool in spec["tools"]] == ["a.f"]
    choice = {"type": "allowed_tools", "mode": "auto", "tools": [
        {"type": "function", "name": "h"}, {"type": "web_search"}]}  # fmt: skip
    response = ask(server, "/v1/responses", input="hi", tools=[*tools, {"type": "web_search"}],
                   tool_choice=choice)  # fmt: skip
    assert "tools[2], tool_choice.tools[1]" in response.headers[DROPPED]
    spec = json.loads(server.engine.requests[-1].grammar.text)
    assert [tool["name"] for tool in spec["tools"]] == ["h"]


PATCH = '*** Begin Patch\n+ a "é" \\ b\t😀\n*** End Patch\n'


@pytest.mark.parametrize("text", [PATCH, "", "x", "\\", '"'])
def test_custom_when_streamed_then_events_add_up_to_its_text(make_loop, text):
    server, _ = make_loop(called("patch", {"input": text}))
    tools = [{"type": "custom", "name": "patch", "description": "x"}]
    body = {"model": "ling-nano", "input": "hi", "tools": tools, "stream": True}
    with server.client.stream("POST", "/v1/responses", json=body) as response:
        events = read_named_events(response.read())
    pieces = [e["delta"] for e in events if e != "[DONE]" and e["type"].endswith("input.delta")]
    assert "".join(pieces) == text
    done = next(e for e in events if e["type"] == "response.custom_tool_call_input.done")
    assert done["input"] == text
    item = events[-2]["response"]["output"][0]
    assert (item["type"], item["name"], item["input"]) == ("custom_tool_call", "patch", text)
    chat_tools = [{"type": "custom", "custom": {"name": "patch"}}]
    body = {"model": "ling-nano", "messages": [HI], "tools": chat_tools}
    chunks = [c for c in server.stream("/v1/chat/completions", body) if c != "[DONE]"]
    calls = [c for chunk in chunks for c in chunk["choices"][0]["delta"].get("tool_calls", ())]
    assert calls[0]["type"] == "custom"
    assert "".join(call["custom"]["input"] for call in calls) == text
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("arguments", [{"patch": "x"}, {"input": 3}, {"input": "x", "more": 1}])
def test_custom_when_the_model_writes_other_arguments_then_they_are_the_text(make_loop, arguments):
    server, _ = make_loop(called("patch", arguments))
    tools = [{"type": "custom", "name": "patch"}]
    item = ask(server, "/v1/responses", input="hi", tools=tools).json()["output"][0]
    expected = "x" if arguments.get("input") == "x" else json.dumps(arguments)
    assert item["input"] == expected


def test_hosted_when_nothing_asks_for_them_then_left_out_and_named(make_loop):
    server, _ = make_loop()
    hosted = [{"type": kind} for kind in ("web_search", "file_search", "mcp", "code_interpreter")]
    response = ask(server, "/v1/responses", input="hi", tools=[function("f"), *hosted])
    assert response.headers[DROPPED] == "tools[1], tools[2], tools[3], tools[4]"
    assert "web_search" not in prompt_of(server)
    response = ask(server, "/v1/chat/completions", messages=[HI], tools=[{"type": "web_search"}])
    assert response.headers[DROPPED] == "tools[0]"
    tools = [{"type": "bash_20250124", "name": "bash"}, {"name": "f", "input_schema": PARAMETERS}]
    response = ask(server, "/v1/messages", messages=[HI], tools=tools, max_tokens=9)
    assert response.headers[DROPPED] == "tools[0]"
    assert server.metric('lingflash_dropped_fields_total{field="tools"}') == 6
    refused = server.post("/v1/messages", {
        "model": "ling-nano", "messages": [HI], "tools": tools, "max_tokens": 9,
        "tool_choice": {"type": "tool", "name": "bash"}})  # fmt: skip
    assert refused.status_code == 400
    assert "bash" in refused.json()["error"]["message"]


def test_deferred_when_the_conversation_has_found_it_then_offered(make_loop):
    server, _ = make_loop()
    tools = [{"name": name, "input_schema": PARAMETERS, "defer_loading": name != "Search"}
             for name in ("WebFetch", "Search", "Edit")]  # fmt: skip

    def offered(*messages, more=()):
        ask(server, "/v1/messages", messages=[HI, *messages], max_tokens=9, tools=[*tools, *more])
        shown = prompt_of(server).split("<tools>")[2].split("</tools>")[0]
        return [json.loads(line)["function"]["name"] for line in shown.strip().splitlines()]

    use = {"type": "tool_use", "id": "c", "name": "Search", "input": {}}
    found = {"type": "tool_reference", "tool_name": "WebFetch"}
    result = {"type": "tool_result", "tool_use_id": "c", "content": [found]}
    searched = ({"role": "assistant", "content": [use]}, {"role": "user", "content": [result]})
    assert offered() == ["Search"]
    assert offered(*searched) == ["Search", "WebFetch"]
    assert "Tool found: WebFetch" in prompt_of(server)
    hosted = {"type": "tool_search_tool_bm25_20251119", "name": "tool_search_tool_bm25"}
    assert offered(more=[hosted]) == ["Search", "WebFetch", "Edit"]


def test_items_when_they_bring_tools_then_offered(make_loop):
    server, _ = make_loop()
    found = {"type": "tool_search_output", "call_id": "c", "tools": [function("later")]}
    ask(server, "/v1/responses", input=[HI, found, HI], tools=[function("f")])
    assert '"later"' in prompt_of(server)
