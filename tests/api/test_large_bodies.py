"""Bodies that are within the size limit and can still never be served: refused before any work."""

from __future__ import annotations

import threading
import time

import pytest

MODEL = "toy"
COUNT = 20_000
ITEM = {"role": "user", "content": ""}
TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/chat/completions", {"messages": [ITEM] * COUNT}, "messages"),
        ("/v1/messages", {"messages": [ITEM] * COUNT, "max_tokens": 1}, "messages"),
        ("/v1/messages/count_tokens", {"messages": [ITEM] * COUNT}, "messages"),
        ("/v1/responses", {"input": [ITEM] * COUNT}, "input"),
        ("/v1/chat/completions", {"messages": [ITEM], "tools": [TOOL] * COUNT}, "tools"),
    ],
)
def test_items_when_more_than_the_context_then_refused_at_once(make_server, path, body, param):
    server = make_server()
    response = server.post(path, {"model": MODEL, **body})
    assert response.status_code == 400
    error = response.json()["error"]
    assert f"{param} has {COUNT} items" in error["message"]
    assert server.engine.requests == []


@pytest.mark.parametrize("body", [{"prompt": "word " * 400_000}, {"messages": [ITEM] * 200_000}])
def test_tokenize_when_the_text_is_far_over_the_context_then_refused(make_server, body):
    response = make_server().post("/tokenize", body)
    assert response.status_code == 413
    assert "Send it in parts" in response.json()["error"]["message"]


def test_health_when_hostile_bodies_are_read_then_it_waits_for_none_of_them(make_server):
    server = make_server()
    bodies = [
        b'{"prompt":[' + b"[]," * 11_000_000 + b"[]]}",
        b'{"messages":[' + b"{}," * 11_000_000 + b"{}]}",
        b'{"prompt":[' + (b"[" * 100 + b"]" * 100 + b",") * 160_000 + b"[]]}",
    ]
    codes = []

    def send(body):
        codes.append(server.client.post("/v1/completions", content=body).status_code)

    threads = [threading.Thread(target=send, args=(body,)) for body in bodies]
    for thread in threads:
        thread.start()
    longest = 0.0
    while any(thread.is_alive() for thread in threads):
        started = time.monotonic()
        assert server.client.get("/health").status_code == 200
        longest = max(longest, time.monotonic() - started)
        time.sleep(0.02)
    assert codes == [400] * 3
    assert longest < 5  # it was 11 s; a second or less where nothing else runs
