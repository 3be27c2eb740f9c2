"""Streams whose upstream is silent: their clients hear that they live, and nothing is decided."""

from __future__ import annotations

import asyncio
import itertools
import json
from decimal import Decimal

import pytest

from api_support import wait_until
from clients_support import client_package
from gateway_support import KEY, impatient, request_of
from gateway_upstream import ScriptedUpstream, stream_parts, texts
from lingflash.gateway.relay.client import KEEP_ALIVE, Client

PATHS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/responses": "responses",
    "/v1/messages": "messages",
}


def kept_alive(tables, seconds="0.1"):
    """The file with comments, and with upstreams that are given up after half a second."""
    return {**impatient(tables), "requests": {"keep_alive_s": Decimal(seconds)}}


@pytest.mark.parametrize("path", PATHS)
def test_stream_when_the_first_upstream_hangs_then_comments_and_the_seconds_bytes(
    make_gateway, path
):
    upstreams = {"A": ScriptedUpstream("hang"), "B": ScriptedUpstream()}
    gateway = make_gateway(upstreams, tables=kept_alive)
    options = {"stream_options": {"include_usage": True}} if "completions" in path else {}
    status, headers, body = gateway.stream(path, provider={"order": ["A"]}, **options)
    assert status == 200
    assert headers["content-type"].startswith("text/event-stream")
    assert body.startswith(KEEP_ALIVE)
    wanted = b"".join(itertools.chain(*stream_parts(PATHS[path], texts(5))))
    assert body.replace(KEEP_ALIVE, b"") == wanted
    ((_, end),) = gateway.accounts.rows
    assert [each.status for each in end.attempts] == [0, 200]
    assert (end.outcome, end.provider) == ("completed", "B")
    wait_until(lambda: gateway.leaked() == [])


@pytest.mark.parametrize("path", [*PATHS, "/api/v1/chat/completions"])
def test_stream_when_nobody_answers_then_the_error_is_told_inside(make_gateway, path):
    gateway = make_gateway({"A": ScriptedUpstream("hang")}, tables=kept_alive)
    status, headers, body = gateway.stream(path)
    assert status == 200
    assert headers["x-generation-id"]
    assert "x-lingflash-provider" not in headers
    comments, _, rest = body.rpartition(KEEP_ALIVE)
    assert comments.replace(KEEP_ALIVE, b"") == b""
    assert b"[DONE]" not in body
    event = json.loads(rest.strip().rpartition(b"data: ")[2])
    error = event["response"]["error"] if "response" in event else event["error"]
    assert "first_byte took more than 0.5 s" in error["message"]
    assert ("choices" in event) == path.startswith("/api")
    ((_, end),) = gateway.accounts.rows
    assert (end.outcome, end.status, end.cost.total) == ("failed", 504, 0)
    wait_until(lambda: gateway.leaked() == [])


@pytest.mark.parametrize(("seconds", "is_streamed"), [("0.1", False), ("0", True), ("3", True)])
def test_answer_when_nothing_was_sent_yet_then_the_error_is_its_status(
    make_gateway, seconds, is_streamed
):
    gateway = make_gateway(
        {"A": ScriptedUpstream("hang")}, tables=lambda tables: kept_alive(tables, seconds)
    )
    assert gateway.post(stream=is_streamed).status_code == 504


def test_stream_when_it_stalls_in_the_middle_then_comments_between_its_events(make_gateway):
    gateway = make_gateway({"A": ScriptedUpstream("stall")}, tables=kept_alive)
    _, _, body = gateway.stream()
    before, content, *_ = stream_parts("chat", texts(5))
    assert body.replace(KEEP_ALIVE, b"").startswith(b"".join(before + content[:3]))
    assert KEEP_ALIVE in body.partition(content[2])[2]


def test_clients_when_comments_come_first_then_the_whole_answer(make_gateway):
    upstreams = {"A": ScriptedUpstream("hang"), "B": ScriptedUpstream()}
    gateway = make_gateway(upstreams, tables=kept_alive)
    order = {"extra_body": {"provider": {"order": ["A"]}}}
    openai, anthropic = client_package("openai"), client_package("anthropic")
    asking = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0)
    fields = request_of("/v1/chat/completions")
    chunks = list(asking.chat.completions.create(**fields, stream=True, **order))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "".join(texts(5))
    fields = request_of("/v1/responses")
    *_, done = asking.responses.create(**fields, stream=True, **order)
    assert done.response.output_text == "".join(texts(5))
    asking = anthropic.Anthropic(base_url=gateway.url, auth_token=KEY, max_retries=0)
    with asking.messages.stream(**request_of("/v1/messages"), **order) as stream:
        assert "".join(stream.text_stream) == "".join(texts(5))


@pytest.mark.parametrize("first", ["keep_alive", "begin"])
async def test_client_when_two_begin_at_once_then_one_head_before_everything(first):
    sent = []

    async def send(message):
        await asyncio.sleep(0)  # as while its connection is behind
        sent.append(message.get("body", "head"))

    client = Client(send, keep_alive_s=1e-9)

    async def content():
        await client.begin({"a": "content"})
        await client.send(b"x", more=True)

    works = {"keep_alive": client.keep_alive({"a": "comment"}), "begin": content()}
    await asyncio.gather(works.pop(first), *works.values())
    assert sent[0] == "head"
    assert sorted(sent[1:]) == sorted([b"x", KEEP_ALIVE])
    assert not await client.refuse()
    await client.send(b"", more=False)
    await client.keep_alive({})
    assert sent[-1] == b""


async def test_client_when_refused_then_nothing_begins():
    sent = []

    async def send(message):
        sent.append(message)

    client = Client(send, keep_alive_s=1e-9)
    assert await client.refuse()
    await client.keep_alive({})
    await client.begin({})
    assert sent == []
