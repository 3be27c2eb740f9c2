"""What goes through the gateway, and what becomes of it: bytes, usage, leaving clients, pins."""

from __future__ import annotations

import itertools
import json
import threading
import time
from decimal import Decimal

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api_support import wait_until
from gateway_support import KEY, request_of
from gateway_upstream import (
    PROMPT_TOKENS,
    ScriptedUpstream,
    data_event,
    stream_parts,
    texts,
    usage_of,
)
from lingflash.gateway.accounting import Caller, Session
from lingflash.gateway.relay.additions import Additions
from lingflash.gateway.relay.frames import frames_of
from lingflash.link.sse_reader import EventReader

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")


# Bytes


def through(dialect, data, cuts, *, adds=False, shows_usage=True):
    """A stream cut anywhere, as the relay passes it on."""
    additions = Additions(
        dialect=dialect,
        provider='Pro"vider',
        adds=adds,
        shows_usage=shows_usage,
        money=lambda usage: {"cost": 0.5},
    )
    frames, reader, out = frames_of(dialect), EventReader(), b""
    edges = [0, *sorted(cuts), len(data)]
    for start, end in itertools.pairwise(edges):
        for event in reader.feed(data[start:end]):
            out += additions.to_event(event, *frames.read(event))
    return out, frames


def words_of():
    return st.lists(st.text(max_size=8), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(st.data())
@pytest.mark.parametrize("dialect", ["chat", "completions", "responses", "messages"])
def test_stream_when_cut_anywhere_then_the_same_bytes(dialect, data):
    events = list(itertools.chain(*stream_parts(dialect, data.draw(words_of()))))
    stream = b"".join(events)
    if data.draw(st.booleans()):
        stream = stream.replace(b"\n", b"\r\n")
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=12))
    passed, frames = through(dialect, stream, cuts)
    assert passed == stream
    assert frames.usage.prompt_tokens == PROMPT_TOKENS


@settings(max_examples=60, deadline=None)
@given(st.data())
@pytest.mark.parametrize("dialect", ["chat", "completions"])
def test_stream_when_fields_are_added_then_all_else_is_the_same(dialect, data):
    events = list(itertools.chain(*stream_parts(dialect, data.draw(words_of()))))
    stream = b"".join(events)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=12))
    passed, _ = through(dialect, stream, cuts, adds=True)
    got = EventReader().feed(passed)
    assert len(got) == len(events)
    for before, after in zip(events, got, strict=True):
        if not before.startswith(b"data: {"):
            assert before == after
            continue
        was, now = json.loads(before[6:]), json.loads(after[6:])
        assert now.pop("provider") == 'Pro"vider'
        if "usage" in was:
            assert now["usage"].pop("cost") == 0.5
        assert now == was


def test_usage_when_not_asked_for_then_neither_event_nor_null_is_shown():
    head = {"id": "c", "choices": [{"index": 0, "delta": {"content": 'a,"usage":null'}}]}
    null = json.dumps({**head, "usage": None}, separators=(",", ":")).encode()
    usage = data_event({"id": "c", "choices": [], "usage": usage_of("chat", 1)})
    stream = b"data: " + null + b"\n\n" + usage + b"data: [DONE]\n\n"
    passed, frames = through("chat", stream, [], shows_usage=False)
    shown = b"data: " + json.dumps(head, separators=(",", ":")).encode() + b"\n\n"
    assert passed == shown + b"data: [DONE]\n\n"
    assert frames.usage.completion_tokens == 1


@pytest.mark.parametrize("path", PATHS)
def test_stream_when_under_v1_then_the_upstreams_bytes(make_gateway, path):
    upstream = ScriptedUpstream()
    gateway = make_gateway({"One": upstream})
    dialect = {"chat": "chat", "comp": "completions", "resp": "responses", "mess": "messages"}[
        path.removeprefix("/v1/")[:4]
    ]
    asks = {"stream_options": {"include_usage": True}} if "completions" in path else {}
    _, _, body = gateway.stream(path, **asks)
    assert body == b"".join(itertools.chain(*stream_parts(dialect, texts(5))))
    whole = gateway.post(path)
    assert json.loads(whole.content) == whole.json()
    wait_until(lambda: len(gateway.accounts.rows) == 2)
    for _, end in gateway.accounts.rows:
        assert (end.usage.prompt_tokens, end.usage.cached_tokens) == (10, 4)
        assert end.usage.completion_tokens == 5


def test_request_then_upstream_gets_what_was_written_but_the_gateways_own(make_gateway):
    upstream = ScriptedUpstream()
    gateway = make_gateway({"One": upstream})
    body = (
        '{"model":"model","messages":[{"role":"user","content":"\\u00e9"}],"seed":'
        '123456789012345678901234567890,"temperature":0.10,"provider":{"sort":"price",'
        '"options":{"one":{"special":1},"other":{"x":2}}},"models":["test/model"],'
        '"session_id":"s","trace":{"a":1},"usage":{"include":true}}'
    )
    assert gateway.client.post("/v1/chat/completions", content=body).is_success
    path, headers, sent = upstream.requests[0]
    assert path == "/v1/chat/completions"
    assert sent == {
        "model": "up",
        "messages": [{"role": "user", "content": "é"}],
        "seed": 123456789012345678901234567890,
        "temperature": 0.1,
        "special": 1,
    }
    assert KEY not in str(headers)


def test_openrouters_answer_then_provider_money_and_metadata(make_gateway):
    gateway = make_gateway()
    headers = {"x-openrouter-metadata": "enabled"}
    body = gateway.post("/api/v1/chat/completions", headers=headers).json()
    assert body["provider"] == "One"
    cost = (6 * 100_000 + 4 * 20_000 + 5 * 300_000) / 1e12
    assert body["usage"]["cost"] == cost
    assert body["usage"]["is_byok"] is False
    assert body["usage"]["prompt_tokens_details"] == {"cached_tokens": 4}
    assert body["openrouter_metadata"]["attempts"] == [
        {"provider": "One", "model": "test/model", "status": 200}
    ]
    _, headers, stream = gateway.stream("/api/v1/chat/completions")
    usage = json.loads(stream.split(b"\n\n")[-3].removeprefix(b"data: "))["usage"]
    assert (usage["cost"], usage["total_tokens"]) == (cost, 15)
    assert headers["x-generation-id"].startswith("gen-")
    assert headers["x-ratelimit-remaining-requests"] == "9"


# Limits, and requests that never get to an upstream


def test_body_when_too_large_then_the_files_key_is_named(make_gateway):
    gateway = make_gateway(tables=lambda file: {**file, "server": {"max_body_mb": Decimal("0.01")}})
    error = gateway.post(messages=[{"role": "user", "content": "x" * 20_000}]).json()["error"]
    assert error["message"].endswith("send less, or raise server.max_body_mb.")


def test_admission_when_refused_then_told_and_no_upstream_is_asked(make_gateway):
    upstream = ScriptedUpstream()
    gateway = make_gateway({"One": upstream})
    gateway.accounts.budget_pico = 0
    refused = gateway.post("/api/v1/chat/completions")
    assert refused.status_code == 402
    assert refused.json()["error"]["metadata"]["error_type"] == "payment_required"
    assert gateway.post("/v1/messages").json()["error"]["type"] == "api_error"
    gateway.accounts.budget_pico = None
    gateway.accounts.limit = 0
    limited = gateway.post()
    assert (limited.status_code, limited.headers["x-ratelimit-limit"]) == (429, "1")
    assert upstream.requests == []
    assert gateway.accounts.rows == []
    wait_until(lambda: gateway.leaked() == [])


def test_reservation_then_the_most_that_the_request_can_cost(make_gateway):
    gateway = make_gateway()
    gateway.post(n=3)
    gateway.post(max_tokens=None)
    (start, _), (open_ended, _) = gateway.accounts.rows
    num_bytes = start.prompt_tokens - 1
    assert num_bytes > 60
    assert start.completion_tokens == 3 * 64
    assert start.reserve_pico == start.prompt_tokens * 100_000 + 192 * 300_000
    assert open_ended.completion_tokens == 8192
    gateway.post("/v1/responses", previous_response_id="resp_of_anybody")
    stored, _ = gateway.accounts.rows[-1]
    assert stored.prompt_tokens == 8192
    gateway.post("/v1/responses", conversation="conv_1")
    assert gateway.accounts.rows[-1][0].prompt_tokens == 8192


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({"max_tokens": 500, "max_completion_tokens": 1}, 500),
        ({"max_tokens": 1, "max_completion_tokens": 500}, 500),
        ({"max_tokens": 500, "max_completion_tokens": 0}, 8192),
        ({"max_tokens": 0}, 8192),
    ],
)
def test_reservation_when_a_server_could_read_more_then_that_is_reserved(
    make_gateway, fields, tokens
):
    gateway = make_gateway()
    gateway.post(**fields)
    assert gateway.accounts.rows[0][0].completion_tokens == tokens


@pytest.mark.parametrize("count", [2.0, "2", True, [2], 10**30])
def test_request_when_number_of_answers_is_none_then_400(make_gateway, count):
    gateway = make_gateway()
    for name in ("n", "best_of"):
        response = gateway.post(**{name: count})
        assert response.status_code == 400
        assert response.json()["error"]["param"] == name
    assert gateway.accounts.rows == []


def test_start_when_a_key_is_for_an_alias_then_its_model_is_meant(make_gateway):
    gateway = make_gateway()
    gateway.accounts.callers[KEY] = Caller(
        key_hash="h1", name="test", label="l", allowed_models=["model", "model:free", "x"]
    )
    gateway.post(model="model")
    ((start, _),) = gateway.accounts.rows
    assert start.caller.allowed_models == ["test/model", "test/model:free", "x"]


def test_start_when_more_models_are_named_then_all_of_them_are_judged(make_gateway):
    def tables(tables):
        free = {**tables["model"][0]["endpoint"][0], "free": True, "price": []}
        tables["model"][0]["endpoint"].append(free)
        return tables

    gateway = make_gateway(tables=tables)
    gateway.post(model="test/model:free", models=["test/model"])
    ((start, _),) = gateway.accounts.rows
    assert (start.model, list(start.fallbacks)) == ("test/model:free", ["test/model"])
    assert start.is_free  # or the limits of the free model would hold for nobody


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/v1/chat/completions", {"model": "nope"}, 404, "nope"),
        ("/v1/chat/completions", {"model": None}, 400, "model"),
        ("/v1/chat/completions", {"stream": "yes"}, 400, "stream"),
        ("/v1/chat/completions", {"max_tokens": -1}, 400, "max_tokens"),
        ("/v1/chat/completions", {"session_id": "x" * 300}, 400, "session_id"),
        ("/v1/responses", {"background": True}, 400, "background"),
        ("/v1/embeddings", {}, 404, "/v1/embeddings"),
    ],
)
def test_request_when_it_cannot_be_routed_then_refused_by_name(
    make_gateway, path, body, status, words
):
    gateway = make_gateway()
    response = gateway.client.post(path, json={**request_of(path), **body})
    assert response.status_code == status
    assert words in response.json()["error"]["message"]
    anthropic = gateway.client.post("/v1/messages", json={"model": "nope"})
    assert anthropic.json()["error"]["type"] == "not_found_error"


def test_request_when_no_upstream_speaks_the_dialect_then_refused_by_name(make_gateway):
    def tables(tables):
        tables["upstream"][0]["dialects"] = ["chat"]
        return tables

    gateway = make_gateway(tables=tables)
    response = gateway.post("/v1/responses")
    assert response.status_code == 404
    assert "One does not speak responses" in response.json()["error"]["message"]


def test_key_when_missing_or_unknown_then_401(make_gateway):
    gateway = make_gateway()
    for headers in ({"authorization": ""}, {"authorization": "Bearer nobody"}):
        for path in (*PATHS, "/v1/messages/count_tokens"):
            body = request_of(path.removesuffix("/count_tokens"))
            assert gateway.client.post(path, json=body, headers=headers).status_code == 401
        for path in ("/v1/models", "/api/v1/models", "/api/v1/providers"):
            assert gateway.client.get(path, headers=headers).status_code == 401
    with_other_header = {"authorization": "", "x-api-key": KEY}
    assert gateway.client.get("/v1/models", headers=with_other_header).is_success


# Clients that leave


@pytest.mark.parametrize("path", PATHS)
def test_client_when_it_leaves_a_stream_then_upstream_is_cancelled_and_billed(make_gateway, path):
    upstream = ScriptedUpstream(words=1000, pause_s=0.01)
    gateway = make_gateway({"One": upstream})
    body = {**request_of(path), "stream": True}
    with gateway.client.stream("POST", path, json=body) as response:
        seen = b""
        for part in response.iter_bytes():
            seen += part
            if b"w5 " in seen:
                break
    left_s = time.monotonic()
    assert upstream.gone.wait(5)
    assert time.monotonic() - left_s < 1
    wait_until(lambda: len(gateway.accounts.rows) == 1)
    ((_, end),) = gateway.accounts.rows
    assert (end.outcome, end.usage_source) == ("cancelled", "counted")
    assert (
        6 <= end.usage.completion_tokens <= upstream.sent_tokens <= end.usage.completion_tokens + 3
    )
    assert end.cost.total > 0
    assert gateway.accounts.progress
    wait_until(lambda: gateway.leaked() == [])
    assert gateway.state.breakers.states(0.0) == {}


def test_client_when_it_leaves_before_the_answer_then_the_prompt_is_billed(make_gateway):
    upstream = ScriptedUpstream("hang")
    gateway = make_gateway({"One": upstream})
    with pytest.raises(httpx.ReadTimeout):
        gateway.client.post("/v1/messages", json=request_of("/v1/messages"), timeout=0.2)
    assert upstream.gone.wait(5)
    wait_until(lambda: len(gateway.accounts.rows) == 1)
    ((_, end),) = gateway.accounts.rows
    assert (end.outcome, end.status, end.usage_source) == ("cancelled", 499, "estimated")
    assert end.usage.completion_tokens == 0
    assert 0 < end.usage.prompt_tokens < 30
    wait_until(lambda: gateway.leaked() == [])


# Sessions, breakers


def test_session_when_fallbacks_are_off_then_its_dearer_endpoint_was_reserved_for(make_gateway):
    def with_dear_b(tables):
        own = tables["model"][0]["endpoint"][1]
        own["price"] = [{**own["price"][0], "completion": Decimal(30)}]
        return tables

    gateway = make_gateway({"A": ScriptedUpstream(), "B": ScriptedUpstream()}, tables=with_dear_b)
    endpoints = gateway.state.config.catalog.endpoints.values()
    (pin,) = (each.id for each in endpoints if each.provider == "B")
    gateway.accounts.sessions["s"] = Session(id="s", turns=1, pinned_endpoint=pin)
    alone = {"provider": {"allow_fallbacks": False}}
    answers = [gateway.post(session_id=name, **alone) for name in ("s", "new")]
    names = [each.headers["x-lingflash-provider"] for each in answers]
    assert (names, answers[0].headers["x-lingflash-route"]) == (["B", "A"], "session")
    # 64 tokens of the dear one, whichever serves.
    assert all(start.reserve_pico >= 64 * 30_000_000 for start, _ in gateway.accounts.rows)


def test_session_when_its_upstream_dies_then_another_and_it_stays_there(make_gateway):
    a, b = ScriptedUpstream(), ScriptedUpstream()
    gateway = make_gateway({"A": a, "B": b})

    def turn():
        response = gateway.post(session_id="s", provider={"order": ["A", "B"]})
        return response.headers["x-lingflash-provider"], response.headers["x-lingflash-route"]

    assert [turn() for _ in range(4)] == [("A", "order"), *[("A", "session")] * 3]
    gateway.in_loop(a.stop)
    assert turn() == ("B", "session; attempt 2")
    gateway.in_loop(a.start)
    assert [turn() for _ in range(3)] == [("B", "session")] * 3
    assert len(b.requests) == 4


@pytest.mark.parametrize("name", ["session_id", "x-session-id", "prompt_cache_key"])
def test_session_when_named_in_any_way_then_known(make_gateway, name):
    gateway = make_gateway()
    if name == "x-session-id":
        gateway.post(headers={name: "mine"})
    else:
        gateway.post(**{name: "mine"})
    assert list(gateway.accounts.sessions) == ["mine"]


def test_session_when_not_named_then_by_what_it_began_with(make_gateway):
    gateway = make_gateway()
    first = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    gateway.post(messages=first)
    gateway.post(messages=[*first, {"role": "assistant", "content": "a"},
                           {"role": "user", "content": "v"}])  # fmt: skip
    gateway.post(messages=[*first[:1], {"role": "user", "content": "other"}])
    assert [each.turns for each in gateway.accounts.sessions.values()] == [2, 1]


def test_breaker_when_an_upstream_fails_often_then_left_alone_then_probed(make_gateway):
    def tables(tables):
        return {**tables, "breaker": {"cooldown_s": 1}}

    bad, good = ScriptedUpstream("500"), ScriptedUpstream()
    gateway = make_gateway({"Bad": bad, "Good": good}, tables=tables)

    def ask(i):
        return gateway.post(session_id=f"s{i}", provider={"order": ["Bad", "Good"]})

    for i in range(8):
        assert ask(i).headers["x-lingflash-provider"] == "Good"
    assert len(bad.requests) == 5
    metrics = gateway.client.get("/metrics").text
    assert 'lingflash_gateway_breakers{provider="bad",state="open"} 1.0' in metrics
    assert gateway.client.get("/ready").json()["resting"] == ["bad"]
    bad.fault = ""
    wait_until(lambda: gateway.state.breakers.state("bad#house", time.monotonic()) == "half_open")
    assert ask(99).headers["x-lingflash-provider"] == "Bad"
    only = make_gateway({"Bad": ScriptedUpstream("429_with_retry_after")})
    assert only.post().status_code == 429
    resting = only.post()
    assert (resting.status_code, resting.headers["retry-after"]) == (503, "1")
    assert len(only.upstreams["Bad"].requests) == 1
    assert [end.outcome for _, end in only.accounts.rows] == ["failed", "failed"]


def test_count_tokens_then_the_upstreams_number_and_nothing_paid(make_gateway):
    gateway = make_gateway()
    response = gateway.post("/v1/messages")
    assert response.is_success
    body = request_of("/v1/messages")
    counted = gateway.client.post("/v1/messages/count_tokens", json=body)
    assert counted.json() == {"input_tokens": PROMPT_TOKENS}
    start, end = gateway.accounts.rows[-1]
    assert (start.reserve_pico, end.cost.total, end.usage) == (0, 0, None)


def test_connections_when_answers_are_whole_then_used_again(make_gateway):
    upstream = ScriptedUpstream()
    gateway = make_gateway({"One": upstream})
    for _ in range(5):
        gateway.post()
        gateway.stream()
    wait_until(lambda: len(gateway.accounts.rows) == 10)
    assert upstream.connections == 1


# Lists


def test_lists_then_models_endpoints_and_providers(make_gateway):
    gateway = make_gateway({"A B": ScriptedUpstream(), "C": ScriptedUpstream()})
    get = gateway.client.get
    assert [m["id"] for m in get("/v1/models").json()["data"]] == ["test/model", "model"]
    assert get("/v1/models/test/model").json()["owned_by"] == "A B, C"
    assert get("/v1/models/nope").status_code == 404
    (model,) = get("/api/v1/models").json()["data"]
    assert model["pricing"]["prompt"] == "0.0000001"
    endpoints = get("/api/v1/models/test/model/endpoints").json()["data"]["endpoints"]
    assert [each["provider_name"] for each in endpoints] == ["A B", "C"]
    assert [p["slug"] for p in get("/api/v1/providers").json()["data"]] == ["a-b", "c"]
    paths = get("/openapi.json").json()["paths"]
    assert {"/v1/chat/completions", "/api/v1/models/{author}/{slug}/endpoints"} <= set(paths)


# Reload and the end


def test_reload_when_good_or_bad_then_no_request_is_lost(make_gateway):
    upstream = ScriptedUpstream(words=40, pause_s=0.01)
    changes = []

    def tables(tables):
        for change in changes:
            change(tables)
        return tables

    gateway = make_gateway({"One": upstream}, tables=tables)
    bodies = []
    running = [
        threading.Thread(target=lambda: bodies.append(gateway.stream()[2])) for _ in range(4)
    ]
    for each in running:
        each.start()
    wait_until(lambda: len(upstream.requests) == 4)
    changes.append(lambda t: t["model"][0].update(name="renamed"))
    gateway.reload()
    assert gateway.client.get("/v1/models").json()["data"][0]["id"] == "renamed"
    changes.append(lambda t: t["model"][0].update(nmae="x"))
    gateway.reload()
    assert gateway.client.get("/v1/models").json()["data"][0]["id"] == "renamed"
    for each in running:
        each.join(20)
    assert [body.endswith(b"data: [DONE]\n\n") for body in bodies] == [True] * 4
    assert gateway.post(model="renamed").is_success
    metrics = gateway.client.get("/metrics").text
    assert 'lingflash_gateway_reloads_total{result="refused"} 1.0' in metrics


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "stream"])
def test_drain_when_time_is_up_then_an_error_and_a_row(make_gateway, is_streamed):
    upstream = ScriptedUpstream("" if is_streamed else "hang", words=100, pause_s=0.02)
    gateway = make_gateway({"One": upstream})
    answers = []

    def ask():
        if is_streamed:
            answers.append(gateway.stream())
        else:
            response = gateway.post()
            answers.append((response.status_code, {}, response.content))

    asking = threading.Thread(target=ask)
    asking.start()
    wait_until(lambda: upstream.requests)
    if is_streamed:
        wait_until(lambda: upstream.sent_tokens > 2)
    gateway.in_loop(lambda: [abort() for abort in list(gateway.state.in_flight.values())])
    asking.join(10)
    ((status, _, body),) = answers
    assert status == (200 if is_streamed else 503)
    assert b"shutting down" in body
    assert b"[DONE]" not in body
    wait_until(lambda: gateway.leaked() == [])
    ((_, end),) = gateway.accounts.rows
    assert (end.outcome, end.error_code) == ("failed", "over_capacity")
