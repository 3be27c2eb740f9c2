"""What a request can cost at most: what is no text, several prompts, and more than can be kept."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest

from accounts_support import end_of, new_caller, opened, rows_of, served, start_of
from gateway_upstream import ScriptedUpstream, usage_of
from lingflash.core.errors import InsufficientCreditsError
from lingflash.core.types import MAX_COUNT, Usage
from lingflash.gateway.accounting import MAX_PICO, Price
from lingflash.gateway.relay.bounds import may_exceed_bytes, num_prompts

_URL = {"url": "https://x.example/a.png"}
_TEXT = {"type": "text", "text": "hi"}


def _chat(*parts, **fields):
    return "chat", {"messages": [{"role": "user", "content": list(parts)}], **fields}


def _items(*items, **fields):
    return "responses", {"input": list(items), **fields}


def _blocks(*blocks, **fields):
    return "messages", {"messages": [{"role": "user", "content": list(blocks)}], **fields}


_FUNCTION = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
_PICTURE = {"type": "image", "source": {"type": "url", "url": "https://x.example/a.png"}}
TEXTS = [
    _chat(_TEXT),
    _chat(_TEXT, tools=[_FUNCTION]),
    ("chat", {"messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}]}),
    ("chat", {"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}),
    ("completions", {"prompt": ["a", "b"]}),
    _items({"role": "user", "content": "hi"}, {"role": "user", "content": [_TEXT]}),
    _items({"type": "function_call", "name": "f", "arguments": '{"type": "image"}'}),
    _items({"type": "function_call_output", "call_id": "1", "output": "x"}),
    _items({"type": "reasoning", "summary": [{"type": "summary_text", "text": "x"}]}),
    ("responses", {"input": "hi", "tools": [{"type": "function", "name": "f"}]}),
    _blocks(_TEXT, {"type": "tool_use", "input": {"type": "image"}}, system=[_TEXT]),
    _blocks({"type": "tool_result", "content": [_TEXT]}, tools=[{"name": "f"}]),
]
MORE = [
    _chat({"type": "image_url", "image_url": _URL}),
    _chat({"type": "file", "file": {"file_id": "file-1"}}),
    _chat({"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}}),
    _chat({"type": "video_url", "video_url": _URL}),
    _chat({"type": "of a vendor to come"}),
    _chat({"image_url": _URL}),
    ("chat", {"messages": [{"role": "assistant", "audio": {"id": "audio_1"}}]}),
    _chat(_TEXT, web_search_options={"search_context_size": "high"}),
    _chat(_TEXT, tools=[{"type": "web_search"}]),
    _items({"role": "user", "content": [{"type": "input_image", "file_id": "file-1"}]}),
    _items({"type": "function_call_output", "output": [{"type": "input_image", "file_id": "1"}]}),
    _items({"type": "item_reference", "id": "msg_1"}),
    _items({"id": "msg_1"}),
    ("responses", {"input": "hi", "previous_response_id": "resp_1"}),
    ("responses", {"input": "hi", "prompt": {"id": "p"}}),
    ("responses", {"input": "hi", "tools": [{"type": "file_search"}]}),
    _blocks(_PICTURE),
    _blocks({"type": "document", "source": {"type": "file", "file_id": "file_1"}}),
    _blocks({"type": "tool_result", "content": [_PICTURE]}),
    _blocks(_TEXT, tools=[{"type": "web_search_20250305", "name": "web_search"}]),
    _blocks(_TEXT, mcp_servers=[{"type": "url", "url": "https://x.example"}]),
]


@pytest.mark.parametrize(("dialect", "body"), TEXTS, ids=lambda value: str(value)[:60])
def test_prompt_when_it_is_text_then_its_bytes_bound_it(dialect, body):
    assert not may_exceed_bytes(dialect, json.loads(json.dumps(body)))


@pytest.mark.parametrize(("dialect", "body"), MORE, ids=lambda value: str(value)[:60])
def test_prompt_when_a_part_stands_for_more_then_its_bytes_do_not(dialect, body):
    assert may_exceed_bytes(dialect, json.loads(json.dumps(body)))


def test_reservation_when_bytes_bound_nothing_then_of_the_whole_context(make_gateway):
    gateway = make_gateway()
    picture = {"type": "image_url", "image_url": _URL}
    gateway.post(messages=[{"role": "user", "content": [picture]}])
    gateway.post(provider={"options": {"One": {"web_search_options": {"x": 1}}}})
    gateway.post("/v1/completions", prompt=["x" * 9000] * 3)
    picture_start, searched, several = (start for start, _ in gateway.accounts.rows)
    assert (picture_start.prompt_tokens, searched.prompt_tokens) == (8192, 8192)
    assert several.prompt_tokens == 3 * 8192
    assert several.completion_tokens == 3 * 64


@pytest.mark.parametrize("byok", [False, True])
async def test_admit_when_it_may_cost_more_than_can_be_kept_then_refused(database_url, byok):
    accounts = await opened(database_url)
    caller = await new_caller(accounts)
    name = "byok_reserve_pico" if byok else "reserve_pico"
    first = await accounts.admit(start_of(caller, **{name: MAX_PICO - 5}))
    for amount in (6, MAX_PICO + 1, 2**63, 2**80):
        with pytest.raises(InsufficientCreditsError, match=r"more than \$1000000 is let in"):
            await accounts.admit(start_of(caller, **{name: amount}))
    await accounts.settle(await accounts.admit(start_of(caller, **{name: 5})), end_of())
    await accounts.settle(first, end_of())
    await accounts.close()


async def test_settle_when_an_upstream_counts_without_end_then_written(database_url):
    accounts = await opened(database_url)
    caller = await new_caller(accounts)
    price = Price(prompt=10**12, completion=10**12, cache_read=0, cache_write=10**12)
    usage = Usage(
        prompt_tokens=MAX_COUNT, cached_tokens=MAX_COUNT // 2, completion_tokens=MAX_COUNT
    )
    for _ in range(6):
        end = end_of(usage=usage, cost=price.cost(usage), upstream_cost=price.cost(usage))
        await served(accounts, start_of(caller), end)
    assert accounts.degraded == []
    assert len(await rows_of(accounts)) == 6
    assert (await accounts.keys.get(caller.key_hash)).balance.spent_total == 2**63 - 1
    await accounts.close()


def test_stream_when_an_upstream_counts_without_end_then_it_ends(make_gateway, monkeypatch):
    def usage(dialect, count):
        told = usage_of(dialect, count)
        return {**told, "prompt_tokens": MAX_COUNT, "completion_tokens": MAX_COUNT}

    def dear(tables):
        tables["model"][0]["endpoint"][0]["price"][0]["prompt"] = Decimal(1_000_000)
        return tables

    monkeypatch.setattr("gateway_upstream.usage_of", usage)
    gateway = make_gateway({"One": ScriptedUpstream()}, tables=dear)
    assert gateway.stream()[0] == 200
    ((_, end),) = gateway.accounts.rows
    assert end.cost.prompt == MAX_PICO


@pytest.mark.parametrize(
    ("more", "prompts"),
    [
        ({}, 21),
        ({"max_tool_calls": 3}, 4),
        ({"max_tool_calls": 0}, 1),
        ({"max_tool_calls": -1}, 21),
        ({"max_tool_calls": True}, 21),
        ({"max_tool_calls": "3"}, 21),
        ({"max_tool_calls": 10**30}, 1001),
    ],
)
def test_prompts_when_the_upstream_runs_code_then_one_more_for_each_call(more, prompts):
    tools = [{"type": "function", "name": "f"}, {"type": "code_interpreter", "container": "c"}]
    assert num_prompts("responses", {"input": "hi", "tools": tools, **more}) == prompts
    assert num_prompts("chat", {"messages": [], "tools": tools, **more}) == 1
    assert may_exceed_bytes("responses", {"input": "hi", "tools": tools})


def test_bounds_when_messages_run_code_then_each_call_is_one_more_prompt():
    tools = [{"type": "code_execution_20250522", "name": "code_execution"}]
    assert num_prompts("messages", {"messages": [], "tools": tools}) == 21
    assert num_prompts("messages", {"messages": [], "tools": [{"name": "code_execution"}]}) == 1
    assert may_exceed_bytes("messages", {"messages": [], "tools": tools})
