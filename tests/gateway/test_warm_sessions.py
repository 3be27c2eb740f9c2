"""A session of many turns over two real servers: as warm as with one, also inside `order`."""

from __future__ import annotations

import contextlib

import httpx
import pytest

from api_support import serve_ling_nano
from gateway_support import gateway_to
from gateway_upstream import ScriptedUpstream

TURNS = 20


class Conversation:
    """Turns that each send all before; cached and prompt tokens of each."""

    def __init__(self, url, **fields):
        self.url, self.fields = url, fields
        self.messages = []
        self.cached, self.prompt, self.providers = [], [], []

    def turn(self):
        question = f"Question {len(self.messages) // 2}: what is the weather in Lisbon?"
        self.messages.append({"role": "user", "content": question})
        body = {"model": "ling-nano", "messages": self.messages, "temperature": 0,
                "max_tokens": 24, **self.fields}  # fmt: skip
        headers = {"authorization": "Bearer any"}
        answer = httpx.post(f"{self.url}/chat/completions", json=body, headers=headers, timeout=60)
        assert answer.is_success, answer.text
        data = answer.json()
        content = data["choices"][0]["message"]["content"] or ""
        self.messages.append({"role": "assistant", "content": content})
        self.cached.append(data["usage"]["prompt_tokens_details"]["cached_tokens"])
        self.prompt.append(data["usage"]["prompt_tokens"])
        self.providers.append(answer.headers.get("x-lingflash-provider"))


@pytest.mark.slow
def test_session_of_20_turns_when_over_two_servers_then_one_serves_as_warm_as_alone():
    with serve_ling_nano() as url:
        alone = Conversation(url)
        for _ in range(TURNS + 3):
            alone.turn()
    with contextlib.ExitStack() as first, serve_ling_nano() as second_url:
        first_url = first.enter_context(serve_ling_nano())
        with gateway_to(first_url, second_url) as url:
            order = {"order": ["replica-0", "replica-1"]}
            through = Conversation(url, provider=order)
            for _ in range(TURNS):
                through.turn()
            assert through.providers == ["replica-0"] * TURNS
            assert through.cached == alone.cached[:TURNS]
            assert sum(through.cached[1:]) > 0.5 * sum(through.prompt[1:])
            first.close()
            for _ in range(3):
                through.turn()
    assert through.providers[TURNS:] == ["replica-1"] * 3
    # What was sent before is read anew once, and is warm again from then on.
    assert through.cached[TURNS] == 0
    assert through.cached[TURNS + 1 :] == alone.cached[TURNS + 1 :]
    assert through.messages == alone.messages


def test_sessions_when_many_then_both_servers_have_some(make_gateway):
    a, b = ScriptedUpstream(), ScriptedUpstream()
    gateway = make_gateway({"A": a, "B": b})
    for i in range(24):
        assert gateway.post(session_id=f"s{i}").is_success
    assert min(len(a.requests), len(b.requests)) >= 4
