"""`ling gateway` as a process, with accounts in SQLite: clients, reload, drain, wrong starts."""

from __future__ import annotations

import json
import signal
import socket
from pathlib import Path

import pytest

from api_support import wait_until
from clients_support import client_package
from gateway_process import GatewayProcess
from gateway_support import request_of
from gateway_upstream import upstream_in_a_thread
from lingflash.cli import main

SECRET = "sk-house-SENTINEL"

FILE = """
[server]
port = 0
drain_timeout_s = 5

[[upstream]]
name = "Novita"
base_url = "{url}"
dialects = ["chat", "completions", "responses", "messages"]
api_key_variable = "NOVITA_KEY"
allow_private_address = true

[[model]]
name = "test/model"

[[model.endpoint]]
upstream = "Novita"
upstream_model = "up"
context_tokens = 8192

[[model.endpoint.price]]
prompt = 0.10
completion = 0.30
cache_read = 0.02
"""


@pytest.fixture
def gateway(tmp_path):
    with upstream_in_a_thread() as upstream:
        started = GatewayProcess(tmp_path, FILE.format(url=upstream.url), {"NOVITA_KEY": SECRET})
        started.upstream = upstream
        yield started
        started.kill()


@pytest.fixture
def ling(tmp_path, monkeypatch, capsys):
    """The command in this process, in a folder of its own: its exit code and what it said."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NOVITA_KEY", SECRET)

    def ling(*args):
        with pytest.raises(SystemExit) as done:
            main(args)
        captured = capsys.readouterr()
        return done.value.code, captured.out + captured.err

    return ling


def test_openrouters_client_then_everything_parses_and_the_row_has_the_cost(gateway):
    openrouter = client_package("openrouter")
    messages = [{"role": "user", "content": "hi"}]
    cost = (6 * 100_000 + 4 * 20_000 + 5 * 300_000) / 1e12
    with openrouter.OpenRouter(server_url=f"{gateway.url}/api/v1", api_key=gateway.key) as client:
        answer = client.chat.send(
            model="test/model", messages=messages, provider={"order": ["Novita"]}, session_id="s"
        )
        assert answer.choices[0].message.content == "w0 w1 w2 w3 w4 "
        assert (answer.usage.cost, answer.usage.total_tokens) == (cost, 15)
        with client.chat.send(model="test/model", messages=messages, stream=True) as stream:
            chunks = list(stream)
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices).startswith(
            "w0"
        )
        assert chunks[-1].usage.cost == cost
        assert client.models.list().result.data[0].id == "test/model"
        endpoints = client.endpoints.list(author="test", slug="model").data.endpoints
        assert [each.provider_name for each in endpoints] == ["Novita"]
        assert [each.slug for each in client.providers.list().data] == ["novita"]
        with pytest.raises(openrouter.errors.OpenRouterError, match="not served here"):
            client.chat.send(model="nope", messages=messages)
    used = gateway.client.get("/api/v1/key").json()["data"]["usage"]
    assert used == pytest.approx(2 * cost, abs=1e-15)
    raw = gateway.client.post("/api/v1/chat/completions", json=request_of("/chat/completions"))
    row = gateway.client.get(f"/api/v1/generation?id={raw.headers['x-generation-id']}").json()
    assert row["data"]["total_cost"] == cost
    bill = gateway.client.get("/api/v1/sessions/s").json()
    assert json.dumps(bill).count("test/model") >= 1


def test_messages_and_responses_when_over_the_budget_then_stopped_as_any_other(gateway):
    gateway.run("gateway", "keys", "update", "test", "--limit", "0.0000001")
    for path in ("/v1/chat/completions", "/v1/messages", "/v1/responses", "/v1/completions"):
        answer = gateway.client.post(path, json=request_of(path))
        assert answer.status_code == 402
    assert gateway.upstream.requests == []


def test_hangup_when_the_file_is_good_or_bad_then_taken_or_told(gateway):
    text = gateway.file.read_text()
    gateway.file.write_text(text.replace('name = "test/model"', 'name = "other/model"'))
    gateway.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "event=reloaded" in gateway.log.read_text())
    assert gateway.client.get("/v1/models").json()["data"][0]["id"] == "other/model"
    gateway.file.write_text(text.replace("context_tokens", "contxt_tokens"))
    gateway.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "event=reload_refused" in gateway.log.read_text())
    assert "did you mean context_tokens?" in gateway.log.read_text()
    assert gateway.client.get("/v1/models").json()["data"][0]["id"] == "other/model"
    assert gateway.stop() == 0


def test_term_when_a_stream_runs_then_it_ends_first_and_no_secret_was_logged(gateway):
    gateway.upstream.words, gateway.upstream.pause_s = 50, 0.01
    body = {**request_of("/v1/chat/completions"), "stream": True}
    with gateway.client.stream("POST", "/v1/chat/completions", json=body) as answer:
        parts = answer.iter_bytes()
        seen = next(parts)
        gateway.process.send_signal(signal.SIGTERM)
        seen += b"".join(parts)
    assert seen.endswith(b"data: [DONE]\n\n")
    assert gateway.process.wait(20) == 0
    everything = gateway.log.read_text()
    everything += (gateway.folder / "gateway.db").read_bytes().decode("latin-1")
    assert SECRET not in everything
    assert gateway.key not in everything


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("[[upstream]]", "[[upstraem]]", "gateway.toml: upstraem is not a known key"),
        ('upstream = "Novita"', 'upstream = "Novta"', "did you mean Novita?"),
        ("allow_private_address = true", "", "write allow_private_address = true"),
        ('"NOVITA_KEY"', '"NO_SUCH_KEY"', "names NO_SUCH_KEY, which is not set"),
        ("[server]", '[accounts]\nmaster_key_file = "none"\n[server]', "none"),
        ("[server]", '[accounts]\ndatabase = "sqlite:////nowhere/x.db"\n[server]', "database"),
        ("[server]", "[accounts]\nrpn = 1\n[server]", "accounts.rpn is not a known key"),
    ],
)
def test_start_when_the_file_is_wrong_then_one_clear_sentence(ling, old, new, words):
    text = FILE.format(url="http://127.0.0.1:9/v1")
    assert old in text
    Path("gateway.toml").write_text(text.replace(old, new))
    code, said = ling("gateway")
    assert code == 2
    (line,) = [each for each in said.splitlines() if each.startswith("error:")]
    assert words in line


def test_check_then_the_routes_and_why_others_are_not_taken(ling):
    Path("gateway.toml").write_text(FILE.format(url="http://127.0.0.1:9/v1"))
    Path("r.json").write_text(json.dumps({"model": "test/model", "provider": {"zdr": True}}))
    code, said = ling("gateway", "check", "gateway.toml")
    assert code == 0
    assert "1. test/model@novita (Novita: $0.1 in, $0.3 out per million tokens)" in said
    asking = ("gateway", "check", "gateway.toml", "--request")
    code, said = ling(*asking, "r.json", "--path", "/v1/messages")
    assert code == 0
    assert "nobody may serve it" in said
    assert "test/model@novita: does not declare zdr" in said
    assert SECRET not in said
    for args, words in (
        (("none.json",), "cannot be read"),
        (("gateway.toml",), "is no JSON"),
        (("r.json", "--path", "/v1/x"), "allowed: /v1/chat/completions"),
    ):
        code, said = ling(*asking, *args)
        assert code == 2
        assert words in said


def test_start_when_the_address_cannot_be_had_then_the_files_keys_are_named(ling):
    for old, new, words in (
        ("port = 0", 'port = 0\nhost = "no-such-host.invalid"', "gateway.toml: server.host 'no-"),
        (
            "port = 0",
            "port = {port}",
            "is in use; stop what uses it, or give another gateway.toml: ",
        ),
    ):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            text = FILE.format(url="http://127.0.0.1:9/v1").replace(old, new)
            Path("gateway.toml").write_text(text.format(port=taken.getsockname()[1]))
            code, said = ling("gateway")
        assert code == 2
        assert words in said
        assert "--" not in said
