"""The 22 faults of an upstream, streamed and not, in each dialect: what the caller gets, one row,
the breaker, nothing left behind."""

from __future__ import annotations

import json

import pytest

from api_support import wait_until
from gateway_support import HOUSE_KEY, impatient
from gateway_upstream import ScriptedUpstream, texts, usage_of

PATHS = {
    "openai": "/v1/chat/completions",
    "openrouter": "/api/v1/chat/completions",
    "text": "/v1/completions",
    "responses": "/v1/responses",
    "anthropic": "/v1/messages",
}
# The others are slow: they run in .ci/run.
CALLERS = [
    pytest.param(name, marks=() if name in ("openrouter", "anthropic") else pytest.mark.slow)
    for name in PATHS
]
DIALECTS = {"openai": "chat", "openrouter": "chat", "text": "completions",
            "responses": "responses", "anthropic": "messages"}  # fmt: skip

# Fault to the caller's status, and the breaker's failures and state afterwards.
REFUSED = {
    "refuse": (502, 1, "closed"),
    "hang": (504, 1, "closed"),
    "401": (502, 0, "open"),
    "402": (502, 0, "open"),
    "429": (429, 0, "open"),
    "429_with_retry_after": (429, 0, "open"),
    "500": (502, 1, "closed"),
    "502_html": (502, 1, "closed"),
    "503": (503, 1, "closed"),
    "redirect": (502, 1, "closed"),
    "error_first": (502, 1, "closed"),
    "empty": (502, 1, "closed"),
    "wrong_type": (502, 1, "closed"),
    "slow_loris": (504, 1, "closed"),
}
# Not streamed, these are no answer at all; streamed, they come after content.
BROKEN = {
    "cut": (502, 1, "closed"),
    "stall": (504, 1, "closed"),
    "malformed": (502, 1, "closed"),
    "finish_error": (502, 1, "closed"),
}
FINE = ("split_utf8", "no_usage", "null_usage", "usage_twice", "large_frame", "done_twice")


def error_of(caller, body):
    """The message of an error in a caller's dialect; its form is checked."""
    if caller == "anthropic":
        assert body["type"] == "error"
        assert set(body["error"]) >= {"type", "message"}
        return body["error"]["message"]
    if caller == "openrouter":
        assert isinstance(body["error"]["code"], int)
        assert set(body["error"]) == {"code", "message", "metadata"}
        return body["error"]["message"]
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return body["error"]["message"]


def data_of(stream):
    """The JSON of each event, and the marks that are none."""
    found = []
    for event in stream.decode().split("\n\n"):
        for line in event.splitlines():
            if line.startswith("data: "):
                text = line.removeprefix("data: ")
                found.append(text if text == "[DONE]" else json.loads(text))
    return found


def check_aftermath(gateway, failures, state):
    """One row, what the breaker thinks, and nothing open."""
    wait_until(lambda: len(gateway.accounts.rows) == 1)
    wait_until(lambda: gateway.leaked() == [])
    breakers = gateway.state.breakers
    ((name, breaker),) = breakers._all.items()
    assert name == "one#house"
    assert breaker.results.count(False) == failures
    assert ("open" if breaker.is_open else "closed") == state
    return gateway.accounts.rows[0]


@pytest.fixture
def ask(make_gateway):
    def ask(caller, fault, is_streamed):
        upstream = ScriptedUpstream("" if fault == "refuse" else fault)
        tables = None if fault in FINE else impatient
        gateway = make_gateway({"One": upstream}, tables=tables)
        if fault == "refuse":
            gateway.in_loop(upstream.stop)
        path = PATHS[caller]
        if not is_streamed:
            response = gateway.post(path)
            return gateway, upstream, response.status_code, response.headers, response.content
        return gateway, upstream, *gateway.stream(path)

    return ask


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("fault", REFUSED)
def test_fault_when_before_content_then_an_error_in_the_callers_words(
    ask, fault, caller, is_streamed
):
    gateway, _, status, headers, body = ask(caller, fault, is_streamed)
    expected, failures, state = REFUSED[fault]
    assert status == expected
    assert headers["content-type"] == "application/json"
    message = error_of(caller, json.loads(body))
    assert message.startswith("One ")
    assert HOUSE_KEY not in message
    assert ("retry-after" in headers) == (status in (429, 503))
    if fault == "429_with_retry_after":
        assert headers["retry-after"] == "7"
        assert 6 < gateway.state.breakers.rests_s("one#house", gateway.in_loop(clock)) <= 7
    start, end = check_aftermath(gateway, failures, state)
    assert (end.outcome, end.status, end.cost.total) == ("failed", expected, 0)
    assert end.usage is None
    assert [each.provider for each in end.attempts] == ["One"]
    assert start.is_streamed is is_streamed


def clock():
    import time

    return time.monotonic()


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("fault", BROKEN)
def test_fault_when_whole_answer_is_broken_then_an_error_in_the_callers_words(ask, fault, caller):
    gateway, _, status, _, body = ask(caller, fault, False)
    expected, failures, state = BROKEN[fault]
    assert status == expected
    assert error_of(caller, json.loads(body)).startswith("One ")
    _, end = check_aftermath(gateway, failures, state)
    assert (end.outcome, end.status, end.cost.total) == ("failed", expected, 0)


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("fault", BROKEN)
def test_fault_when_after_content_then_an_error_frame_and_no_done(ask, fault, caller):
    gateway, upstream, status, headers, body = ask(caller, fault, True)
    _, failures, state = BROKEN[fault]
    assert status == 200
    assert headers["content-type"].startswith("text/event-stream")
    events = data_of(body)
    assert "[DONE]" not in events
    last = events[-1]
    if caller == "responses":
        assert last["type"] == "response.failed"
        assert last["response"]["status"] == "failed"
        assert last["response"]["id"] == "resp_1"
        assert last["response"]["error"]["message"].startswith("One ")
    else:
        if caller == "openrouter":
            assert last["choices"][0]["finish_reason"] == "error"
        assert error_of(caller, last).startswith("One ")
    count = 5 if fault == "finish_error" else 3
    assert sum("w0 " in str(each) or "w2 " in str(each) for each in events[:-1]) == 2
    _, end = check_aftermath(gateway, failures, state)
    assert (end.outcome, end.status) == ("failed", 200)
    assert end.usage.completion_tokens == count == upstream.sent_tokens
    assert end.cost.total > 0


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("fault", FINE)
def test_fault_when_harmless_then_the_answer_is_whole_and_billed(ask, fault, caller, is_streamed):
    gateway, _, status, _, body = ask(caller, fault, is_streamed)
    assert status == 200
    text = body.decode()
    for word in {"split_utf8": ["列", "🙂"], "large_frame": ["xxx"]}.get(fault, texts(5)):
        assert word in text
    if is_streamed:
        done = text.count("data: [DONE]")
        assert done == (DIALECTS[caller] in ("chat", "completions"))
    _, end = check_aftermath(gateway, 0, "closed")
    assert (end.outcome, end.status) == ("completed", 200)
    counted = fault in ("no_usage", "null_usage")
    assert end.usage_source == ("counted" if counted else "upstream")
    if fault not in ("split_utf8", "large_frame"):
        exact = usage_of("chat", 5)
        num_tokens = end.usage.completion_tokens
        assert num_tokens == exact["completion_tokens"] or (counted and not is_streamed)
        if not counted:
            assert end.usage.prompt_tokens == exact["prompt_tokens"]


# A body that trickles takes all the time that a request has.
_OTHERS_IN_TIME = [each for each in (*REFUSED, *BROKEN) if each != "slow_loris"]


@pytest.mark.parametrize("fault", _OTHERS_IN_TIME)
def test_fault_when_another_upstream_is_there_then_it_answers(make_gateway, fault):
    bad, good = ScriptedUpstream("" if fault == "refuse" else fault), ScriptedUpstream()
    gateway = make_gateway({"Bad": bad, "Good": good}, tables=impatient)
    if fault == "refuse":
        gateway.in_loop(bad.stop)
    response = gateway.post(provider={"order": ["Bad", "Good"]})
    assert response.status_code == 200
    assert response.headers["x-lingflash-provider"] == "Good"
    assert response.headers["x-lingflash-route"] == "order; attempt 2"
    wait_until(lambda: gateway.leaked() == [])
    ((_, end),) = gateway.accounts.rows
    assert [(each.provider, each.error is None) for each in end.attempts] == [
        ("Bad", False),
        ("Good", True),
    ]
    assert end.provider == "Good"
    assert end.cost.total == 6 * 100_000 + 4 * 20_000 + 5 * 300_000


@pytest.mark.parametrize("fault", REFUSED)
def test_fault_when_streamed_and_another_upstream_is_there_then_its_bytes_alone(
    make_gateway, fault
):
    bad, good = ScriptedUpstream("" if fault == "refuse" else fault), ScriptedUpstream()
    gateway = make_gateway({"Bad": bad, "Good": good}, tables=impatient)
    if fault == "refuse":
        gateway.in_loop(bad.stop)
    status, headers, body = gateway.stream(provider={"order": ["Bad", "Good"]})
    assert (status, headers["x-lingflash-provider"]) == (200, "Good")
    alone = make_gateway({"Good": ScriptedUpstream()}).stream()[2]
    assert body == alone
