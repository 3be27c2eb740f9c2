"""Answers with code that end before they are whole: clients that leave, cancel, and faults."""

from __future__ import annotations

import contextlib
import json
import socket

import pytest

from api_support import wait_until
from code_support import AUTO, PATH, SLEEP, TOKENIZER, alive, calls, code_items, is_idle, stream
from lingflash.core.errors import LingflashError
from lingflash.link.scripted import Behaviour

STAGES = {
    "first round": "response.in_progress",
    "call": "response.code_interpreter_call_code.done",
    "code": "response.code_interpreter_call.interpreting",
    "next round": "response.code_interpreter_call.completed",
    "text": "response.output_text.delta",
}
STAGE_PARAMS = [
    pytest.param(stage, marks=() if stage == "code" else pytest.mark.slow) for stage in STAGES
]
SLOW = {"behaviour": Behaviour(delay_s=0.005)}
LONG = "word " * 3000


def script_for(stage):
    """Texts of an answer that stays long in a stage."""
    if stage == "first round":
        return (LONG,)
    return (calls(SLEEP if stage in ("call", "code") else "print(1)"), LONG)


@contextlib.contextmanager
def streamed_until(server, stage):
    """A stream that has come to a stage: its further lines, and the response's id."""
    body = {"input": "hi", "tools": [AUTO], "stream": True}
    with server.client.stream("POST", PATH, json=body) as response:
        lines = response.iter_lines()
        next(line for line in lines if line == f"event: {STAGES[stage]}")
        yield lines, next(iter(server.state.live_responses))


@pytest.mark.parametrize("stage", STAGE_PARAMS)
def test_stream_when_its_client_leaves_then_nothing_is_left(serve_code, sandboxes, stage):
    server, _ = serve_code(*script_for(stage), **SLOW)
    with streamed_until(server, stage) as (_, response_id):
        pass
    wait_until(lambda: is_idle(server, sandboxes), 30)
    stored = server.client.get(f"{PATH}/{response_id}").json()
    assert stored["status"] == "cancelled"
    assert all(item["status"] in ("completed", "incomplete") for item in code_items(stored))


@pytest.mark.parametrize("stage", STAGE_PARAMS)
def test_stream_when_cancelled_then_it_ends_and_nothing_is_left(serve_code, sandboxes, stage):
    server, _ = serve_code(*script_for(stage), **SLOW)
    with streamed_until(server, stage) as (lines, response_id):
        cancelled = server.client.post(f"{PATH}/{response_id}/cancel")
        assert cancelled.json()["status"] == "cancelled"
        assert [line for line in lines if line.startswith("event: ")][
            -1
        ] == "event: response.failed"
    wait_until(lambda: is_idle(server, sandboxes), 30)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["first round", "code", "text"])
@pytest.mark.parametrize("how", ["leaves", "cancels"])
def test_create_when_it_ends_early_then_nothing_is_left(serve_code, sandboxes, stage, how):
    server, _ = serve_code(*script_for(stage), **SLOW)
    body = json.dumps({"input": "hi", "tools": [AUTO]}).encode()
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    address = ("127.0.0.1", int(server.base_url.rpartition(":")[2]))
    with socket.create_connection(address, timeout=60) as client:
        client.sendall(head.encode() + b"Connection: close\r\n\r\n" + body)
        wait_until(lambda: server.state.live_responses, 30)
        [live] = server.state.live_responses.values()
        if stage != "first round":
            wait_until(lambda: code_items(live.snapshot()), 30)
        if stage == "text":
            wait_until(lambda: live.snapshot()["output"][1:], 30)
        if how == "cancels":
            server.client.post(f"{PATH}/{live.id}/cancel")
            answer = b"".join(iter(lambda: client.recv(65536), b""))
            assert b'"status":"cancelled"' in answer
    wait_until(lambda: is_idle(server, sandboxes), 30)


@pytest.mark.slow
def test_stream_when_the_engine_fails_in_a_later_round_then_nothing_is_left(serve_code, sandboxes):
    call = calls("print(1)")
    server, _ = serve_code(call, LONG)
    limit = len(TOKENIZER.encode(call)) + 5
    server.engine.behaviour.fail_after_tokens = limit
    server.engine.behaviour.fail_with = LingflashError("boom")
    events = stream(server)
    assert events[-1]["type"] == "response.failed"
    assert events[-1]["response"]["error"]["message"] == "boom"
    wait_until(lambda: is_idle(server, sandboxes), 30)


@pytest.mark.slow
def test_server_when_it_stops_while_code_runs_then_the_answer_ends_and_nothing_is_left(
    serve_code, sandboxes
):
    server, _ = serve_code(calls(SLEEP), "never", drain_timeout_s=1.0)
    body = {"input": "hi", "tools": [AUTO], "stream": True}
    with server.client.stream("POST", PATH, json=body) as response:
        lines = response.iter_lines()
        next(line for line in lines if line.endswith("call.interpreting"))
        server.call(lambda: [abort() for abort in list(server.state.in_flight.values())])
        assert [line for line in lines if line.startswith("event: ")][
            -1
        ] == "event: response.failed"
    server.stop()
    wait_until(lambda: alive(sandboxes) == [], 30)
