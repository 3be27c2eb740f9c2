"""Everything that goes wrong on the way: clients that leave, engines that die, bodies that lie."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import socket
import threading
import time

import httpx
import pytest

from api_support import engine_info, parse_events, wait_until
from lingflash.core import errors
from lingflash.core.errors import (
    EngineDeadError,
    InvalidRequestError,
    LingflashError,
    NonFiniteLogitsError,
)
from lingflash.link.scripted import Behaviour

LONG = "word " * 400


def raw_request(server, path, body, headers=""):
    """Send a request on a socket of our own and leave it open."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    host = server.base_url.removeprefix("http://")
    address, port = host.split(":")
    sock = socket.create_connection((address, int(port)), timeout=10)
    head = f"POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n{headers}"
    sock.sendall(head.encode() + f"content-length: {len(data)}\r\n\r\n".encode() + data)
    return sock


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("hang", [False, True])
@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
        ("/v1/completions", {"prompt": ["x", "y"], "max_tokens": 1000}),
    ],
)
def test_request_when_the_client_leaves_then_aborted_at_once(
    make_server, path, fields, stream, hang
):
    server = make_server(LONG, behaviour=Behaviour(delay_s=0.01, hang=hang))
    sock = raw_request(server, path, {**fields, "stream": stream})
    wait_until(lambda: server.engine.stats.num_running > 0)
    if stream:
        assert sock.recv(100)
    time.sleep(0.03)
    sock.close()
    started = time.monotonic()
    wait_until(lambda: len(server.engine.aborted) == len(server.engine.requests))
    assert time.monotonic() - started < 0.5
    wait_until(lambda: not server.state.in_flight)
    assert server.metric("lingflash_requests_aborted_total") == 1
    assert server.metric("lingflash_num_requests_running") == 0
    assert server.metric("lingflash_http_requests_in_flight") == 1  # the scrape itself


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
def test_request_when_the_client_leaves_before_the_engine_answers_then_given_up_at_once(
    make_server, path, monkeypatch
):
    server = make_server(LONG)
    left = []

    async def submit(request):
        try:
            await asyncio.sleep(600)  # an engine that hangs
        except asyncio.CancelledError:
            left.append(request.request_id)
            raise

    monkeypatch.setattr(server.engine, "submit", submit)
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 5, "model": "toy"}
    if path == "/v1/responses":
        body = {"input": "x"}
    sock = raw_request(server, path, body)
    time.sleep(0.3)
    assert not left
    sock.close()
    wait_until(lambda: left, timeout_s=2)
    wait_until(lambda: server.metric("lingflash_requests_aborted_total") == 1)
    assert server.metric("lingflash_http_requests_in_flight") == 1  # the scrape itself


def test_request_when_many_clients_leave_then_no_task_stays(make_server):
    server = make_server(LONG, behaviour=Behaviour(delay_s=0.005))
    server.chat(max_tokens=1)
    before = server.metric("lingflash_asyncio_tasks")
    body = {"messages": [{"role": "user", "content": "x"}]}
    socks = [
        raw_request(server, "/v1/chat/completions", {**body, "stream": bool(i % 2)})
        for i in range(20)
    ]
    wait_until(lambda: server.engine.stats.num_running == 20)
    for sock in socks:
        sock.close()
    wait_until(lambda: server.engine.stats.num_running == 0)
    wait_until(lambda: server.metric("lingflash_asyncio_tasks") <= before)


def test_stream_when_a_reader_is_slow_then_others_are_not_and_it_loses_nothing(make_server):
    # Long ids make each event large, so that the socket's buffers fill.
    server = make_server({(): [60] * 1500}, behaviour=Behaviour(), served_model_names=("m" * 5000,))
    body = {"prompt": "x", "max_tokens": 1500, "stream": True}
    sock = raw_request(server, "/v1/completions", body, headers="connection: close\r\n")
    wait_until(lambda: server.engine.stats.num_running == 0)
    started = time.monotonic()
    assert server.complete(max_tokens=5).status_code == 200
    assert time.monotonic() - started < 1.0
    data = b""
    while part := sock.recv(1 << 16):
        data += part
    # One write holds many events once the reader fell behind, and all tokens arrive.
    assert data.count(b'"text":"') == 1500
    assert data.count(b"[DONE]") == 1


def test_stream_when_a_reader_takes_nothing_for_long_then_it_is_given_up(make_server, monkeypatch):
    monkeypatch.setattr("lingflash.api.answer.stream.STALL_TIMEOUT_S", 0.2)
    server = make_server({(): [60] * 3000}, served_model_names=("m" * 5000,))
    sock = raw_request(
        server, "/v1/completions", {"prompt": "x", "max_tokens": 3000, "stream": True}
    )
    wait_until(lambda: server.state.in_flight)
    wait_until(lambda: not server.state.in_flight)
    assert server.metric("lingflash_requests_aborted_total") == 1
    sock.close()


def test_chat_when_the_engine_fails_before_the_answer_then_its_status(make_server):
    server = make_server(behaviour=Behaviour(fail_after_tokens=2))
    server.engine.behaviour.fail_with = NonFiniteLogitsError("NaN in the logits.")
    response = server.chat()
    assert response.status_code == 500
    assert response.json()["error"] == {
        "message": "NaN in the logits.",
        "type": "server_error",
        "param": None,
        "code": "non_finite_logits",
    }
    assert server.metric('lingflash_request_errors_total{code="non_finite_logits"}') == 1


def test_stream_when_the_engine_fails_midway_then_one_error_event_and_a_clean_end(make_server):
    server = make_server(LONG, behaviour=Behaviour(fail_after_tokens=3))
    events = server.stream_chat()
    assert "[DONE]" not in events
    assert events[-1]["error"]["code"] == "internal_error"
    assert all("error" not in event for event in events[:-1])
    assert len(events) == 1 + 3 + 1
    assert server.chat(max_tokens=2).status_code == 200  # on the same connection pool


def test_stream_when_one_of_several_choices_fails_then_the_rest_is_aborted(make_server):
    server = make_server(LONG, behaviour=Behaviour(delay_s=0.005, fail_after_tokens=50))
    events = server.stream("/v1/completions", {"prompt": ["a", "b"], "max_tokens": 1000})
    assert events[-1]["error"]
    wait_until(lambda: server.engine.stats.num_running == 0)
    wait_until(lambda: not server.state.in_flight)


def test_engine_when_it_dies_midway_then_error_ready_is_red_and_it_comes_back(make_server):
    server = make_server(LONG, behaviour=Behaviour(delay_s=0.01))
    results = []
    body = {"messages": [{"role": "user", "content": "x"}]}
    threads = [
        threading.Thread(
            target=lambda stream=stream: results.append(
                httpx.post(
                    server.base_url + "/v1/chat/completions",
                    json={**body, "stream": stream},
                    timeout=10,
                )
            )
        )
        for stream in (False, True)
    ]
    for thread in threads:
        thread.start()
    wait_until(lambda: server.engine.stats.num_running == 2)
    assert server.client.get("/ready").status_code == 200
    server.call(server.engine.die)
    for thread in threads:
        thread.join()
    by_status = {response.status_code: response for response in results}
    assert by_status[503].json()["error"]["code"] == "engine_dead"
    assert parse_events(by_status[200].content)[-1]["error"]["code"] == "engine_dead"
    ready = server.client.get("/ready")
    assert ready.status_code == 503
    assert "engine" in ready.json()["reason"]
    assert server.client.get("/health").status_code == 200
    refused = server.chat()
    assert refused.status_code == 503
    assert refused.headers["retry-after"]
    assert server.metric("lingflash_engine_ready") == 0
    server.call(asyncio.ensure_future, server.engine.start())
    wait_until(lambda: server.engine.is_ready)
    assert server.chat(max_tokens=1).status_code == 200


def test_server_when_the_engine_is_gone_for_good_then_it_ends_with_an_error(make_server):
    server = make_server()
    server.call(server.engine.die, for_good=True)
    server.wait_stopped()
    assert isinstance(server.error, EngineDeadError)


def test_engine_when_it_refuses_then_the_error_is_mapped(make_server):
    server = make_server(behaviour=Behaviour(reject_with=InvalidRequestError("no", param="seed")))
    for stream in (False, True):
        response = server.chat(stream=stream)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "seed"


@pytest.mark.parametrize("stream", [False, True])
def test_queue_when_full_then_429_with_retry_after(make_server, stream):
    info = dataclasses.replace(engine_info(), max_num_seqs=1, max_num_waiting=0)
    server = make_server(info=info, behaviour=Behaviour(hang=True))
    sock = raw_request(server, "/v1/completions", {"prompt": "x"})
    wait_until(lambda: server.engine.stats.num_running == 1)
    response = server.chat(stream=stream)
    assert response.status_code == 429
    assert int(response.headers["retry-after"]) >= 1
    assert response.json()["error"]["type"] == "rate_limit_error"
    sock.close()


@pytest.mark.parametrize("where", ["body", "flag"])
def test_request_when_its_deadline_passes_then_504(make_server, where):
    config = {"request_timeout_s": 0.05} if where == "flag" else {}
    fields = {"timeout": 0.05} if where == "body" else {}
    server = make_server(behaviour=Behaviour(hang=True, delay_s=0.01), **config)
    response = server.chat(**fields)
    assert response.status_code == 504
    assert response.json()["error"]["code"] == "deadline_exceeded"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b"{'a': 1}",
        b'{"messages": NaN}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"messages": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    ],
)
def test_body_when_malformed_then_400(server, body):
    for path in ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"):
        response = server.client.post(path, content=body)
        assert response.status_code == 400
        assert response.json()["error"]["type"] == "invalid_request_error"


def test_body_when_too_large_then_413_declared_or_not(make_server):
    server = make_server(max_body_bytes=2000)
    big = json.dumps({"prompt": "x" * 5000}).encode()
    declared = server.client.post("/v1/completions", content=big)
    assert declared.status_code == 413
    assert declared.json()["error"]["code"] == "request_too_large"

    def parts():
        for i in range(0, len(big), 500):
            yield big[i : i + 500]

    assert server.client.post("/v1/completions", content=parts()).status_code == 413
    assert server.complete("x").status_code == 200


def test_body_when_it_never_ends_then_the_limit_still_holds(make_server):
    server = make_server(max_body_bytes=2000)
    host, port = server.base_url.removeprefix("http://").split(":")
    sock = socket.create_connection((host, int(port)), timeout=10)
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    sock.sendall(head + (b"3e8\r\n" + b"x" * 1000 + b"\r\n") * 3)
    assert sock.recv(100).startswith(b"HTTP/1.1 413")
    sock.close()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nope", 404),
        ("POST", "/v1/embeddings", 404),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("POST", "/health", 405),
    ],
)
def test_path_when_unknown_or_wrong_method_then_an_envelope(server, method, path, status):
    response = server.client.request(method, path)
    assert response.status_code == status
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert path in error["message"]
    assert response.headers["x-request-id"]
    if status == 405:
        assert response.headers["allow"]


def test_auth_when_keys_are_set_then_all_but_health_and_ready_need_one(make_server):
    server = make_server(api_keys=("first-key", "second-key"))
    for path in ("/health", "/ready"):
        assert server.client.get(path).status_code == 200
    for method, path in [
        ("GET", "/v1/models"),
        ("GET", "/v1/models/toy"),
        ("GET", "/metrics"),
        ("GET", "/openapi.json"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("POST", "/tokenize"),
        ("POST", "/detokenize"),
    ]:
        for headers in (
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": "Bearer first-ke"},
            {"authorization": "Basic first-key"},
            {"authorization": "first-key"},
            {"authorization": "Bearer"},
            {"authorization": b"Bearer \xff\xfe"},
        ):
            response = server.client.request(method, path, headers=headers)
            assert response.status_code == 401, (path, headers)
            assert response.json()["error"]["code"] == "invalid_api_key"
            assert response.headers["www-authenticate"] == "Bearer"
            assert "first-key" not in response.text
    for key in ("first-key", "second-key"):
        headers = {"authorization": f"Bearer {key}"}
        assert server.client.get("/v1/models", headers=headers).status_code == 200
        assert server.client.get("/metrics", headers=headers).status_code == 200


def test_request_id_when_given_then_returned_else_made(server):
    given = server.client.get("/health", headers={"x-request-id": "abc-123"})
    assert given.headers["x-request-id"] == "abc-123"
    made = server.client.get("/health", headers={"x-request-id": "has space"})
    assert made.headers["x-request-id"] != "has space"
    assert len(made.headers["x-request-id"]) == 32
    long = server.client.get("/health", headers={"x-request-id": "a" * 500})
    assert len(long.headers["x-request-id"]) == 32


def test_request_id_when_repeated_by_concurrent_requests_then_both_are_served(make_server):
    server = make_server(LONG, behaviour=Behaviour(delay_s=0.002))
    codes = []

    def ask():
        response = httpx.post(
            server.base_url + "/v1/completions",
            json={"prompt": "x", "max_tokens": 20},
            headers={"x-request-id": "same"},
        )
        codes.append(response.status_code)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [200] * 3


def test_logs_when_requests_are_served_then_ids_but_no_text_and_no_key(make_server, capfd):
    from lingflash.core.log import flush_logs, setup_logging

    server = make_server("secretanswer", api_keys=("secretkey",))
    setup_logging("debug")
    try:
        headers = {"authorization": "Bearer secretkey", "x-request-id": "id-1"}
        body = {"messages": [{"role": "user", "content": "secretprompt"}]}
        for path in ("/v1/chat/completions", "/tokenize"):
            assert server.post(path, body, headers=headers).status_code == 200
        server.engine.behaviour.reject_with = ValueError("secretprompt")  # type: ignore[assignment]
        response = server.post("/v1/chat/completions", body, headers=headers)
        assert response.status_code == 500
        assert response.json()["error"]["code"] == "internal_error"
        assert "secret" not in response.text
    finally:
        assert flush_logs()
        logged = capfd.readouterr().err
        setup_logging("warning")
    assert "event=request_finished request_id=id-1 prompt_tokens=" in logged
    assert "event=http request_id=id-1 method=POST path=/v1/chat/completions status=200" in logged
    assert "event=internal_error request_id=id-1 error=ValueError" in logged
    assert "secret" not in logged


def test_metrics_when_requests_were_served_then_counted(make_server):
    server = make_server("abc", behaviour=Behaviour(num_cached_tokens=2))
    server.complete([1, 2, 3])
    server.chat(logprobs=9)
    server.stream("/v1/completions", {"prompt": [1]})
    text = server.client.get("/metrics").text
    assert server.metric("lingflash_prompt_tokens_total") == 4
    assert server.metric("lingflash_prompt_tokens_cached_total") == 4
    assert server.metric("lingflash_generation_tokens_total") == 6
    assert server.metric('lingflash_request_success_total{finished_reason="stop"}') == 2
    assert server.metric("lingflash_time_to_first_token_seconds_count") == 2
    assert server.metric("lingflash_inter_token_latency_seconds_count") > 0
    assert server.metric("lingflash_e2e_request_latency_seconds_count") == 2
    assert server.metric("lingflash_kv_blocks_free") == 100
    assert server.metric("lingflash_state_slots_free") == 32
    assert server.metric('lingflash_http_responses_total{status="400"}') == 1
    for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
        assert f"lingflash_{name} 0.0" in text
    assert "python_info" not in text


def test_openapi_when_loaded_then_bodies_are_described_and_references_resolve(server):
    document = server.client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    chat = document["paths"]["/v1/chat/completions"]["post"]
    name = chat["requestBody"]["content"]["application/json"]["schema"]["$ref"].split("/")[-1]
    assert "messages" in schemas[name]["properties"]
    text = json.dumps(document)
    for part in text.split('"$ref": "#/components/schemas/')[1:]:
        assert part.split('"')[0] in schemas
    for path in ("/v1/completions", "/v1/models", "/tokenize", "/health", "/ready", "/metrics"):
        assert path in document["paths"]


def all_subclasses(cls):
    for sub in cls.__subclasses__():
        yield sub
        yield from all_subclasses(sub)


def test_error_map_then_every_error_class_is_mapped_itself():
    from lingflash.httpd.error_map import ERROR_MAP

    ours = {cls for cls in all_subclasses(LingflashError) if cls.__module__ == errors.__name__} | {
        LingflashError
    }
    assert set(ERROR_MAP) == ours
    codes = [cls.code for cls in ours]
    assert len(set(codes)) == len(codes)


def test_answers_when_small_then_not_delayed_by_nagle(server):
    started = time.monotonic()
    for _ in range(20):
        server.client.get("/v1/models")
    # Headers and body are two writes; with Nagle's algorithm each answer waits 40 ms for an ACK.
    assert time.monotonic() - started < 0.5
