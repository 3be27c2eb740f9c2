"""HTTP as clients speak it: what they send beside the request itself changes no answer."""

from __future__ import annotations

import codecs
import gzip
import json
import zlib

import pytest

from httpd_support import TinyServer
from lingflash.api.config import ServerConfig
from lingflash.core.errors import ConfigError


@pytest.fixture
def server():
    server = TinyServer()
    yield server
    server.stop()


def test_head_when_there_is_a_get_then_its_headers_without_a_body(server):
    get, head = server.client.get("/openapi.json"), server.client.head("/openapi.json")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(get.content))
    assert server.client.head("/echo").status_code == 405
    assert server.client.head("/none").status_code == 404


@pytest.mark.parametrize("path", ["/echo/", "/echo//"])
def test_path_when_it_ends_with_a_slash_then_answered_without_a_redirect(server, path):
    assert server.client.post(path, json={"text": "hi"}).json()["text"] == "hi"


BODY = json.dumps({"text": "hällo"}).encode()


@pytest.mark.parametrize(
    ("encoding", "content"),
    [
        ("gzip", gzip.compress(BODY)),
        ("GZIP", gzip.compress(BODY)),
        ("x-gzip", gzip.compress(BODY)),
        ("deflate", zlib.compress(BODY)),
        ("identity", BODY),
        ("", codecs.BOM_UTF8 + BODY),
        ("gzip", gzip.compress(codecs.BOM_UTF8 + BODY)),
    ],
    ids=range(7),
)
def test_body_when_encoded_then_read(server, encoding, content):
    headers = {"content-encoding": encoding} if encoding else {}
    answer = server.client.post("/echo", content=content, headers=headers)
    assert answer.json()["text"] == "hällo"


@pytest.mark.parametrize(
    ("encoding", "content", "status"),
    [
        ("zstd", b"(\xb5/\xfd", 415),
        ("br", b"x", 415),
        ("gzip, gzip", b"x", 415),
        ("gzip", b"no gzip", 400),
        ("gzip", gzip.compress(BODY)[:-12], 400),
        ("gzip", gzip.compress(b"[" + b" " * 40_000_000 + b"]"), 413),
        ("", BODY[:-1], 400),
        ("", b"\xff\xfe{\x00}\x00", 400),
    ],
    ids=range(8),
)
def test_body_when_its_encoding_is_not_read_or_false_then_says_so(
    server, encoding, content, status
):
    headers = {"content-encoding": encoding} if encoding else {}
    answer = server.client.post("/echo", content=content, headers=headers)
    assert answer.status_code == status
    if status == 415:
        assert encoding[:3] in answer.text


def test_cors_when_an_origin_is_allowed_then_preflight_and_answer_say_so():
    server = TinyServer(cors_origins=("https://page.example",), api_keys=("one",))
    try:
        asked = {
            "origin": "https://page.example",
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization, x-stainless-lang",
        }
        preflight = server.client.options("/echo", headers=asked)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == "https://page.example"
        assert "x-stainless-lang" in preflight.headers["access-control-allow-headers"]
        headers = {"origin": "https://page.example", "authorization": "Bearer one"}
        answer = server.client.post("/echo", json={"text": "hi"}, headers=headers)
        assert answer.headers["access-control-allow-origin"] == "https://page.example"
        assert answer.headers["access-control-expose-headers"] == "*"
        other = server.client.options("/echo", headers={**asked, "origin": "https://other.example"})
        assert "access-control-allow-origin" not in other.headers
    finally:
        server.stop()


def test_cors_when_not_asked_for_then_no_page_is_let_in(server):
    answer = server.client.post("/echo", json={"text": "hi"}, headers={"origin": "https://a.b"})
    assert not any(name.startswith("access-control") for name in answer.headers)


@pytest.mark.parametrize(
    "origin", ["example.org", "https://a/b", "ftp://a", "https://", "null", ""]
)
def test_cors_when_the_origin_is_none_then_refused(origin):
    with pytest.raises(ConfigError, match="--cors-origin"):
        ServerConfig(cors_origins=(origin,))


def test_large_body_when_read_then_its_memory_is_given_back(server):
    def rss():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    body = json.dumps({"text": "x", "more": [[1] * 20 for _ in range(100_000)]}).encode()
    for _ in range(2):
        server.client.post("/echo", content=body)
    before = rss()
    for _ in range(6):
        assert server.client.post("/echo", content=body).status_code == 400  # an unknown field
    assert rss() - before < 60 * 2**20
