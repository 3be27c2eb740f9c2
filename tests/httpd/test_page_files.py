"""The page's files over HTTP: which there are, with which headers, and none where it is off."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import sys
from importlib.resources import files

import httpx
import pytest

from lingflash.api.app import create_app
from lingflash.api.config import ServerConfig
from lingflash.httpd.page import CONTENT_POLICY
from lingflash.link.scripted import ScriptedEngine
from lingflash.sandbox.app import create_app as create_sandbox_app
from lingflash.sandbox.config import SandboxConfig
from lingflash.sandbox.jail.argv import Interpreter

WEB = files("lingflash") / "web"
MANIFEST = json.loads((WEB / "vendor" / "manifest.json").read_text(encoding="utf-8"))
FREE = {"MIT", "Apache-2.0"}
MAX_TRANSFERRED_BYTES = 200_000


def own_files():
    found = [each for each in WEB.rglob("*") if each.is_file()]
    return sorted(each.relative_to(WEB).as_posix() for each in found)


@pytest.fixture
def client():
    app = create_app(ScriptedEngine({(): []}, info()), ServerConfig())
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://page")


def info():
    from api_support import engine_info

    return engine_info()


@pytest.mark.parametrize("path", ["/ui", "/ui/", "/ui/app.js", "/ui/server.json"])
async def test_file_then_the_policy_lets_nothing_else_in(client, path):
    answer = await client.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-security-policy"] == CONTENT_POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "unsafe" not in CONTENT_POLICY
    assert not re.search(r"https?:|\*", CONTENT_POLICY)


async def test_file_when_it_is_known_already_then_not_sent_again(client):
    first = await client.get("/ui/app.js")
    again = await client.get("/ui/app.js", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


async def test_file_when_no_packing_is_accepted_then_sent_as_it_is(client):
    plain = await client.get("/ui/app.js", headers={"accept-encoding": "identity"})
    packed = await client.get("/ui/app.js", headers={"accept-encoding": "gzip"})
    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == "gzip"
    assert plain.content == packed.content == (WEB / "app.js").read_bytes()


@pytest.mark.parametrize(
    "path", ["/ui/../config.py", "/ui/..%2f..%2fcore/config.py", "/ui//etc/passwd", "/ui/none.js"]
)
async def test_file_when_there_is_none_then_404_whatever_the_path(client, path):
    answer = await client.get(path)
    assert answer.status_code == 404
    assert "core" not in answer.json()["error"]["message"].partition("no file")[0]


@pytest.mark.parametrize(
    ("settings", "is_there"),
    [
        ({}, True),
        ({"host": "localhost"}, True),
        ({"host": "::1"}, True),
        ({"host": "0.0.0.0"}, False),
        ({"host": "0.0.0.0", "ui": True}, True),
        ({"ui": False}, False),
    ],
    ids=["loopback", "localhost", "ipv6", "everywhere", "asked", "refused"],
)
def test_page_when_it_is_off_then_no_route_is_left(settings, is_there):
    app = create_app(ScriptedEngine({(): []}, info()), ServerConfig(**settings))
    paths = [getattr(route, "path", "") for route in app.routes]
    assert any(path.startswith("/ui") for path in paths) is is_there
    with_page = create_app(ScriptedEngine({(): []}, info()), ServerConfig(ui=True))
    assert with_page.openapi() == app.openapi()


@pytest.mark.parametrize(
    ("flags", "is_there"),
    [({}, True), ({"host": "0.0.0.0", "api_keys": ("k",)}, False), ({"ui": False}, False)],
    ids=["loopback", "everywhere", "refused"],
)
def test_sandbox_page_when_it_is_off_then_no_route_is_left(flags, is_there):
    python = Interpreter(sys.executable, ())
    app = create_sandbox_app(SandboxConfig(**flags), python)
    paths = [getattr(route, "path", "") for route in app.routes]
    assert any(path.startswith("/ui") for path in paths) is is_there


async def test_about_then_says_what_a_page_without_a_key_must_know(client):
    about = (await client.get("/ui/server.json")).json()
    assert about["server"] == "ling serve"
    assert about["needs_key"] is False
    app = create_app(ScriptedEngine({(): []}, info()), ServerConfig(api_keys=("k",)))
    locked = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://page")
    assert (await locked.get("/ui/server.json")).json()["needs_key"] is True
    known = (WEB / "app.js").read_text(encoding="utf-8")
    assert about["screens"]
    assert [name for name in about["screens"] if f"\n  {name}:" not in known] == []


def test_vendored_file_then_it_is_the_published_one_and_its_licence_lies_beside_it():
    folder = WEB / "vendor"
    listed = {"manifest.json"}
    for package in MANIFEST:
        assert package["license"] in FREE
        assert (folder / package["license_file"]).read_text(encoding="utf-8").strip()
        listed.add(package["license_file"])
        for each in package["files"]:
            data = (folder / each["file"]).read_bytes()
            assert hashlib.sha256(data).hexdigest() == each["sha256"], each["file"]
            listed.add(each["file"])
    assert {each.name for each in folder.iterdir()} == listed


def test_page_then_all_that_a_browser_loads_is_small():
    sent = [name for name in own_files() if not re.search(r"LICENSE|manifest", name)]
    size = sum(len(gzip.compress((WEB / name).read_bytes())) for name in sent)
    assert size < MAX_TRANSFERRED_BYTES


def test_page_then_it_names_no_other_origin_and_has_nothing_inline():
    for name in own_files():
        text = (WEB / name).read_text(encoding="utf-8")
        if name.startswith("vendor/"):
            continue
        for address in re.findall(r"https?://[^\s\"'`]*", text):
            assert address.startswith(("http://www.w3.org/",)), (name, address)
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|\beval\(|new Function", text)
    index = (WEB / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<style|style=|\son\w+=|<script(?![^>]*\ssrc=\"/ui/)", index)
