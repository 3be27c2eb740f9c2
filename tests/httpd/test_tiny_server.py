"""A tiny server made of `httpd` alone: ids, keys, limits, envelopes, drain, failing services."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

from api_support import wait_until
from httpd_support import Shop, TinyServer
from lingflash.core.errors import ConfigError, LingflashError
from lingflash.core.log import setup_logging

SCRIPT = Path(__file__).parents[1] / "httpd_support.py"


@pytest.fixture
def make_server():
    servers = []

    def make(*args, **options):
        servers.append(TinyServer(*args, **options))
        return servers[-1]

    yield make
    for server in servers:
        server.stop()


def test_httpd_when_imported_then_brings_no_room_beside_or_above():
    code = (
        "import sys, lingflash.httpd.server, lingflash.httpd.app, lingflash.httpd.openapi;"
        "print(*sorted({m.split('.')[1] for m in sys.modules if m.startswith('lingflash.')}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["core", "httpd", "protocol"]


def test_request_then_id_of_the_client_or_a_new_one_under_the_dialects_name(make_server):
    server = make_server()
    given = server.echo(path="/short/echo", headers={"x-request-id": "abc"})
    assert given.json() == {"text": "hi", "caller": ""}
    assert given.headers["x-request-id"] == given.headers["x-trace"] == "abc"
    made = server.echo(headers={"x-request-id": "has space"})
    assert len(made.headers["x-request-id"]) == 32
    assert "x-trace" not in made.headers


def test_keys_when_set_then_needed_and_told_apart(make_server):
    server = make_server(api_keys=("one", "two"), admin_api_key="admin")
    refused = server.echo()
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"] == "Bearer"
    callers = {
        server.echo(headers={"authorization": f"Bearer {key}"}).json()["caller"]
        for key in ("one", "two")
    }
    assert len(callers) == 2
    assert server.client.post("/open", headers={"x-api-key": "one"}).status_code == 401
    assert server.client.post("/open", headers={"x-api-key": "admin"}).status_code == 200
    assert make_server().client.post("/open").status_code == 404


def test_body_when_large_or_wrong_then_refused(make_server):
    server = make_server(max_body_bytes=100)
    assert server.echo("x" * 80).status_code == 200
    large = server.echo("x" * 200)
    assert (large.status_code, large.json()["error"]["code"]) == (413, "request_too_large")
    unknown = server.client.post("/echo", json={"text": "x", "more": 1})
    assert (unknown.status_code, unknown.json()["error"]["param"]) == (400, "more")
    assert server.client.post("/echo", content=b"{").status_code == 400


@pytest.mark.parametrize("path", ["/echo", "/short/echo"])
def test_errors_then_in_the_dialect_of_the_path_and_no_secret(make_server, path):
    server = make_server()

    def message_of(response):
        body = response.json()
        if path == "/echo":
            return body["error"]["message"]
        assert body["status"] == response.status_code
        return body["oh"]

    full = server.echo("full", path)
    assert (full.status_code, message_of(full)) == (429, "Too many echoes.")
    assert full.headers["retry-after"] == "1"
    crash = server.echo("crash", path)
    assert crash.status_code == 500
    assert "secret" not in crash.text
    message_of(crash)
    assert "/nope" in message_of(server.client.get(path.replace("echo", "nope")))
    wrong = server.client.get(path)
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    text = server.context.metrics.render().decode()
    assert 'lingflash_http_responses_total{status="429"} 1.0' in text
    assert 'lingflash_request_errors_total{code="internal_error"} 1.0' in text


def test_document_then_names_bodies_answers_and_each_dialects_error(make_server):
    document = make_server().client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    assert set(schemas) == {"Echo", "Error", "ShortError"}
    responses = document["paths"]["/echo"]["post"]["responses"]
    assert responses["200"]["content"]["application/json"]["schema"]["required"] == ["text"]
    error = document["paths"]["/short/echo"]["post"]["responses"]["4XX"]
    assert error["content"]["application/json"]["schema"]["$ref"].endswith("/ShortError")


@pytest.mark.parametrize(
    ("work_s", "drain_timeout_s", "text"), [(1.5, 20, "done"), (60, 1.5, "aborted")]
)
def test_signal_when_work_runs_then_new_is_refused_and_it_ends_or_is_aborted(
    work_s, drain_timeout_s, text
):
    command = [sys.executable, str(SCRIPT), str(drain_timeout_s)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    answers = []
    try:
        url = f"http://127.0.0.1:{int(process.stdout.readline())}"
        thread = threading.Thread(
            target=lambda: answers.append(httpx.post(url + f"/wait?s={work_s}").json())
        )
        thread.start()
        wait_until(lambda: httpx.get(url + "/running").json()["running"])
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: httpx.get(url + "/running").json()["reason"])
        refused = httpx.post(url + "/echo", json={"text": "x"})
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        thread.join()
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.communicate()
    assert answers == [{"text": text}]


def test_service_when_it_dies_or_cannot_start_then_the_server_ends_with_its_error(make_server):
    server = make_server()
    server.call(server.service.dead.set)
    server.wait_stopped()
    assert server.error.message == "The shop burnt down."
    assert server.service.log == ["start", "stop"]
    failed = make_server(Shop(start_error=ConfigError("No key to the shop.")))
    failed.wait_stopped()
    assert isinstance(failed.error, ConfigError)


def test_service_when_its_stop_fails_then_logged_under_its_name(make_server):
    stream = io.StringIO()
    setup_logging("info", stream)
    try:
        server = make_server(Shop(stop_error=LingflashError("stuck")))
        server.stop()
    finally:
        setup_logging("warning")
    assert "level=error event=shop_stop_failed error=LingflashError message=stuck" in (
        stream.getvalue()
    )
