"""The cache's report on every endpoint, and its reset, with a scripted engine."""

from __future__ import annotations

from dataclasses import fields

import pytest

from api_support import parse_events, read_named_events
from lingflash.api.config import ServerConfig
from lingflash.core.errors import ConfigError
from lingflash.core.types import CacheReport
from lingflash.link.scripted import Behaviour
from lingflash.protocol.replicas import Health, read_health

HELLO = [{"role": "user", "content": "hi"}]
REPORT = {"cached_tokens": 32, "result": "differs", "position": 40}
# Path to the fields of a request.
ENDPOINTS = {
    "/v1/chat/completions": {"messages": HELLO},
    "/v1/completions": {"prompt": "hi"},
    "/v1/responses": {"input": "hi"},
    "/v1/messages": {"model": "toy", "messages": HELLO, "max_tokens": 9},
}
BEHAVIOUR = Behaviour(num_cached_tokens=32, cache_report=CacheReport("differs", 40))


@pytest.mark.parametrize("path", ENDPOINTS)
def test_report_when_asked_for_then_in_the_usage_of_every_endpoint(make_server, path):
    server = make_server(behaviour=BEHAVIOUR)
    fields = ENDPOINTS[path]
    assert "cache_report" not in server.post(path, fields).json()["usage"]
    body = server.post(path, {**fields, "return_cache_report": True}).json()
    assert body["usage"]["cache_report"] == [REPORT]
    refused = server.post(path, {**fields, "return_cache_report": "yes"})
    assert refused.status_code == 400
    assert "return_cache_report" in refused.text


@pytest.mark.parametrize("path", ENDPOINTS)
def test_report_when_streamed_then_where_the_usage_is(make_server, path):
    server = make_server(behaviour=BEHAVIOUR)
    fields = {**ENDPOINTS[path], "return_cache_report": True, "stream": True}
    if "completions" in path:
        fields["stream_options"] = {"include_usage": True}
    with server.client.stream("POST", path, json=fields) as response:
        data = response.read()
    if "completions" in path:
        usage = parse_events(data)[-2]["usage"]
    elif path == "/v1/responses":
        usage = next(
            e["response"]["usage"]
            for e in read_named_events(data)
            if e != "[DONE]" and e["type"] == "response.completed"
        )
    else:
        usage = read_named_events(data)[-2]["usage"]
    assert usage["cache_report"] == [REPORT]


def test_report_when_several_prompts_then_one_for_each(make_server):
    server = make_server(behaviour=BEHAVIOUR)
    body = server.complete(["a", "b"], return_cache_report=True).json()
    assert body["usage"]["cache_report"] == [REPORT, REPORT]


def reset(server, key=None):
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    return server.client.post("/reset_prefix_cache", headers=headers)


def test_reset_when_there_is_no_admin_key_then_off_and_says_how_to_switch_it_on(make_server):
    server = make_server(api_keys=("k",))
    for key in (None, "k", "other"):
        response = reset(server, key)
        assert response.status_code == 404
        assert "--admin-api-key" in response.json()["error"]["message"]
    assert server.engine.num_resets == 0


def test_reset_when_the_key_is_not_the_admins_then_refused(make_server):
    server = make_server(api_keys=("k",), admin_api_key="boss")
    for key in (None, "k", "other"):
        response = reset(server, key)
        assert response.status_code == 401
        assert response.json()["error"]["code"] == "invalid_api_key"
    assert server.engine.num_resets == 0
    assert reset(server, "boss").json() == {"status": "reset", "blocks": 0, "checkpoints": 0}
    assert server.engine.num_resets == 1
    chat = {"messages": HELLO}
    headers = {"authorization": "Bearer boss"}
    assert server.post("/v1/chat/completions", chat, headers=headers).status_code == 401


def test_reset_when_the_engine_is_gone_then_503(make_server):
    server = make_server(admin_api_key="boss")
    server.call(server.engine.die)
    assert reset(server, "boss").status_code == 503


def test_ready_then_says_what_the_self_test_found(make_server):
    body = make_server().client.get("/ready").json()
    assert (body["status"], body["prefix_cache"]) == ("ready", "untested")


def test_ready_then_says_what_a_gateway_and_a_cluster_ask(make_server):
    server = make_server()
    ready = server.client.get("/ready")
    health = read_health(ready.content, is_ready=True)
    names, info = server.state.config.served_model_names, server.engine.info
    assert health == Health(ready=True, model=names[0], capacity=info.max_num_seqs)
    assert set(ready.json()) >= {each.name for each in fields(Health)} - {"ready", "draining"}
    assert server.client.get("/ready", headers={"authorization": "Bearer x"}).json() == ready.json()
    server.state.api_keys = ("k",)
    assert set(server.client.get("/ready").json()) == {"status", "prefix_cache"}
    assert server.client.get("/ready", headers={"x-api-key": "k"}).json() == ready.json()
    server.state.is_draining = True
    body = server.client.get("/ready").content
    assert read_health(body, is_ready=False) == Health(ready=False, draining=True)


@pytest.mark.parametrize("key", ["k", "", "clé"])
def test_admin_key_when_no_key_of_its_own_then_refused_without_being_said(key):
    with pytest.raises(ConfigError, match="--admin-api-key") as caught:
        ServerConfig(api_keys=("k",), admin_api_key=key)
    assert repr(key) not in caught.value.message
