"""Keys that callers bring: where they go, what they pay, and where they must never be seen."""

from __future__ import annotations

import json
import logging

import pytest

from api_support import wait_until
from gateway_support import HOUSE_KEY, KEY, impatient
from gateway_upstream import ScriptedUpstream
from lingflash.core.log import flush_logs, setup_logging
from lingflash.gateway.accounting import ProviderKey

BROUGHT = "sk-novita-SENTINEL-of-the-caller"
# As in the announcement, but for the host.
ANNOUNCED = {
    "model": "inclusionai/ling-2.6-flash:free",
    "messages": [{"role": "user", "content": "What is the meaning of life?"}],
    "provider": {"order": ["Novita"], "api_key": BROUGHT},
}


def announced_model(tables):
    """The announcement's model, free at every upstream of the file."""
    model = tables["model"][0]
    model["name"] = "inclusionai/ling-2.6-flash"
    free = [{**each, "free": True, "price": []} for each in model["endpoint"]]
    model["endpoint"] += free
    return tables


def priced(tables):
    model = tables["model"][0]
    model["name"] = "inclusionai/ling-2.6-flash"
    tables["requests"] = {"byok_fee_percent": 5}
    return tables


@pytest.fixture
def vendors(make_gateway):
    def make(tables=announced_model, novita="", **options):
        others = {"Novita": ScriptedUpstream(novita), "Other": ScriptedUpstream()}
        return make_gateway(others, tables=tables, **options), others["Novita"], others["Other"]

    return make


def keys_seen(upstream):
    return [headers.get("authorization") for _, headers, _ in upstream.requests]


def test_announcements_request_then_answered_by_that_vendor_with_that_key_alone(vendors):
    gateway, novita, other = vendors()
    response = gateway.client.post("/api/v1/chat/completions", json=ANNOUNCED)
    assert response.status_code == 200
    body = response.json()
    assert body["provider"] == "Novita"
    assert body["usage"]["is_byok"] is True
    assert body["usage"]["cost"] == 0
    assert keys_seen(novita) == [f"Bearer {BROUGHT}"]
    sent = novita.requests[0][2]
    assert sent == {"model": "up", "messages": ANNOUNCED["messages"]}
    assert other.requests == []
    assert BROUGHT not in response.text + str(response.headers)
    ((start, end),) = gateway.accounts.rows
    assert (start.is_byok, start.is_free, end.byok_id) == (True, True, "inline")
    assert BROUGHT not in repr(start) + repr(end)


def test_brought_key_when_in_the_header_or_named_by_only_then_the_same(vendors):
    gateway, novita, _ = vendors()
    body = {**ANNOUNCED, "provider": {"only": ["novita"]}}
    headers = {"x-provider-key": BROUGHT}
    assert gateway.client.post("/v1/chat/completions", json=body, headers=headers).is_success
    assert keys_seen(novita) == [f"Bearer {BROUGHT}"]


@pytest.mark.parametrize("fault", ["401", "402", "429", "500"])
def test_brought_key_when_the_vendor_fails_then_never_the_houses(vendors, fault):
    gateway, novita, other = vendors(novita=fault)
    response = gateway.client.post("/api/v1/chat/completions", json=ANNOUNCED)
    assert response.status_code == {"401": 401, "402": 402, "429": 429, "500": 502}[fault]
    assert response.json()["error"]["message"].startswith("Novita ")
    assert keys_seen(novita) == [f"Bearer {BROUGHT}"]
    assert other.requests == []
    assert BROUGHT not in response.text
    # Its breaker is its own: the house is still served there.
    novita.fault = ""
    house = {**ANNOUNCED, "provider": {"order": ["Novita"]}}
    assert gateway.client.post("/v1/chat/completions", json=house).is_success
    assert keys_seen(novita)[-1] == f"Bearer {HOUSE_KEY}"


def test_brought_key_when_fallbacks_are_written_out_then_the_house_serves(vendors):
    gateway, novita, other = vendors(novita="401")
    provider = {**ANNOUNCED["provider"], "allow_fallbacks": True, "ignore": []}
    body = {**ANNOUNCED, "provider": provider}
    response = gateway.client.post("/api/v1/chat/completions", json=body)
    assert response.is_success
    assert response.json()["provider"] == "Other"
    assert response.json()["usage"]["is_byok"] is False
    assert keys_seen(novita) == [f"Bearer {BROUGHT}", f"Bearer {HOUSE_KEY}"]
    assert keys_seen(other) == [f"Bearer {HOUSE_KEY}"]


@pytest.mark.parametrize(
    ("provider", "words"),
    [
        ({"api_key": BROUGHT}, "exactly one name"),
        ({"order": ["Novita", "Other"], "api_key": BROUGHT}, "exactly one name"),
        ({"order": ["Nobody"], "api_key": BROUGHT}, "no provider here"),
        ({"order": ["Novita"], "api_key": BROUGHT + "\n"}, "no HTTP header holds"),
    ],
)
def test_brought_key_when_it_is_not_clear_whose_then_refused(vendors, provider, words):
    gateway, novita, other = vendors()
    response = gateway.client.post(
        "/api/v1/chat/completions", json={**ANNOUNCED, "provider": provider}
    )
    assert response.status_code == 400
    assert words in response.json()["error"]["message"]
    assert BROUGHT not in response.text
    assert novita.requests == other.requests == []


def test_brought_key_when_the_gateway_takes_none_then_refused(vendors):
    def tables(tables):
        return {**announced_model(tables), "requests": {"inline_provider_keys": False}}

    gateway, novita, _ = vendors(tables)
    response = gateway.client.post("/v1/chat/completions", json=ANNOUNCED)
    assert response.status_code == 400
    assert "/api/v1/byok" in response.json()["error"]["message"]
    assert novita.requests == []


def test_brought_key_when_the_model_has_a_price_then_the_fee_is_paid(vendors):
    gateway, _, _ = vendors(priced)
    body = {**ANNOUNCED, "model": "inclusionai/ling-2.6-flash"}
    usage = gateway.client.post("/api/v1/chat/completions", json=body).json()["usage"]
    vendors_cost = 6 * 100_000 + 4 * 20_000 + 5 * 300_000
    assert usage["cost_details"]["upstream_inference_cost"] == vendors_cost / 1e12
    ((start, end),) = gateway.accounts.rows
    assert end.upstream_cost.total == vendors_cost
    assert end.cost.total == vendors_cost // 20
    assert 0 < start.reserve_pico < 8192 * 300_000 // 10  # of the fee alone


def test_stored_keys_when_there_are_some_then_before_or_after_the_houses(vendors):
    gateway, novita, other = vendors(priced)
    body = {**ANNOUNCED, "model": "inclusionai/ling-2.6-flash"}
    del body["provider"]
    first = ProviderKey(id="k1", provider="novita", name="mine", secret=BROUGHT)
    gateway.accounts.stored_keys = {"novita": [first]}
    assert gateway.client.post("/v1/chat/completions", json=body).is_success
    assert keys_seen(novita) == [f"Bearer {BROUGHT}"]
    ((_, end),) = gateway.accounts.rows
    assert end.byok_id == "k1"

    last = ProviderKey(id="k2", provider="novita", name="mine", secret=BROUGHT, is_fallback=True)
    gateway.accounts.stored_keys = {"novita": [last]}
    novita.requests.clear()
    body["provider"] = {"order": ["Novita"]}
    assert gateway.client.post("/v1/chat/completions", json=body).is_success
    assert keys_seen(novita) == [f"Bearer {HOUSE_KEY}"]
    assert other.requests == []


def test_stored_key_when_required_and_refused_then_named_and_never_the_houses(vendors):
    gateway, novita, other = vendors(priced, novita="401")
    own = ProviderKey(id="k1", provider="novita", name="our-own", secret=BROUGHT, is_required=True)
    gateway.accounts.stored_keys = {"novita": [own]}
    body = {"model": "inclusionai/ling-2.6-flash", "messages": ANNOUNCED["messages"]}
    response = gateway.client.post("/v1/chat/completions", json=body)
    assert response.status_code == 401
    assert "our-own" in response.json()["error"]["message"]
    assert keys_seen(novita) == [f"Bearer {BROUGHT}"]
    assert other.requests == []


@pytest.fixture
def debug_log():
    """The whole log on standard error, for one test."""
    loggers = [logging.getLogger(name) for name in ("lingflash", "uvicorn", "asyncio")]
    before = [(each.handlers, each.level, each.propagate) for each in loggers]
    setup_logging("debug")
    yield
    flush_logs()
    for each, (handlers, level, propagate) in zip(loggers, before, strict=True):
        each.handlers, each.propagate = handlers, propagate
        each.setLevel(level)


@pytest.mark.parametrize("fault", ["", "401", "500", "hang", "cut", "error_first", "redirect"])
@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "stream"])
def test_secrets_when_anything_happens_then_in_no_answer_log_or_metric(
    vendors, debug_log, capfd, fault, is_streamed
):
    gateway, novita, _ = vendors(lambda each: impatient(announced_model(each)), novita=fault)
    body = {**ANNOUNCED, "stream": is_streamed}
    url = f"/api/v1/chat/completions?api_key={BROUGHT}&token={KEY}"
    answers = []
    with gateway.client.stream("POST", url, json=body) as response:
        response.read()
        answers.append(response.text + str(response.headers))
    wait_until(lambda: len(gateway.accounts.rows) == 1)
    wait_until(lambda: gateway.leaked() == [])
    for wrong in (
        {**body, "provider": {"order": [BROUGHT]}},
        {**body, "provider": {"order": ["Novita"], "api_key": BROUGHT, "nope": BROUGHT}},
        {**body, "provider": {"order": ["Novita"], "api_key": [BROUGHT]}},
    ):
        answer = gateway.client.post("/v1/chat/completions", json=wrong)
        assert answer.status_code == 400
        if wrong["provider"]["order"] != [BROUGHT]:  # which is no place for a key
            answers.append(answer.text)
    answers.append(gateway.client.get("/metrics").text)
    answers.append(gateway.client.get("/ready").text)
    answers.append(repr(gateway.accounts.rows))
    answers.append(repr(gateway.state.config))
    answers.append(json.dumps(gateway.state.breakers.states(0.0)))
    flush_logs()
    captured = capfd.readouterr()
    for secret in (BROUGHT, HOUSE_KEY, KEY):
        assert secret not in "".join(answers)
        assert secret not in captured.out + captured.err
    assert "event=relayed" in captured.err
    assert keys_seen(novita) == [f"Bearer {BROUGHT}"]


def test_stored_key_when_stored_after_requests_without_then_used_a_moment_later(vendors):
    gateway, novita, _ = vendors(priced)
    body = {
        "model": "inclusionai/ling-2.6-flash",
        "messages": ANNOUNCED["messages"],
        "provider": {"only": ["Novita"]},
    }
    assert gateway.client.post("/v1/chat/completions", json=body).is_success
    key = ProviderKey(id="k1", provider="novita", name="mine", secret=BROUGHT)
    gateway.accounts.stored_keys = {"novita": [key]}

    def is_used():
        assert gateway.client.post("/v1/chat/completions", json=body).is_success
        return keys_seen(novita)[-1] == f"Bearer {BROUGHT}"

    wait_until(is_used)
    gateway.accounts.stored_keys = {}
    assert not is_used()
