"""Every directory keeps the same promises, and a watch keeps what the last one said."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from decimal import Decimal

import pytest

from api_support import wait_until
from lingflash.gateway.directory.cluster import ClusterDirectory
from lingflash.gateway.directory.directory import DirectoryError
from lingflash.gateway.directory.dns import DnsDirectory
from lingflash.gateway.directory.static import StaticDirectory
from lingflash.gateway.directory.watch import Watch
from lingflash.protocol.replicas import Replica, write_listing

LOAD = {"model": "ling-nano", "capacity": 8, "tokens_in_flight": 120, "sessions": 3}


class Server:
    """A server that says on any path what it is told to."""

    def __init__(self, host="127.0.0.1", port=0):
        self.host, self.port = host, port
        self.status, self.body = 200, {"status": "ready", **LOAD}
        self.asked = []  # request heads

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._answer, self.host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://{self.host}:{self.port}"
        return self

    async def __aexit__(self, *exc):
        self._server.close()

    async def _answer(self, reader, writer):
        self.asked.append((await reader.readuntil(b"\r\n\r\n")).decode())
        body = self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()
        head = f"HTTP/1.1 {self.status} X\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        writer.close()


NAME = "replicas.test"


@pytest.fixture
def names(monkeypatch):
    """What NAME stands for: addresses, or the resolver's error."""
    found, lookup = [], socket.getaddrinfo

    def getaddrinfo(host, port, *args, **kwargs):
        if host != NAME:
            return lookup(host, port, *args, **kwargs)
        if isinstance(found[0], OSError):
            raise found[0]
        return [entry for ip in found for entry in lookup(ip, port, *args, **kwargs)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return found


@pytest.fixture(params=["static", "dns", "ray"])
async def fleet(request, names):
    """A directory of three servers, one of which is gone; the two others, and the directory."""
    async with Server() as one, Server("127.0.0.2", one.port) as two, Server() as cluster:
        urls = [one.url, two.url, f"http://127.0.0.3:{one.port}"]
        names += ["127.0.0.1", "127.0.0.2", "127.0.0.2", "127.0.0.3"]  # a resolver may repeat
        cluster.body = write_listing(
            [
                Replica(url=one.url, ready=True, **{k: LOAD[k] for k in LOAD if k != "sessions"}),
                Replica(url=two.url, draining=True),
                Replica(url=urls[2]),
            ]
        )
        two.status, two.body = 503, {"status": "not ready", "draining": True}
        directory = {
            "static": StaticDirectory(urls),
            "dns": DnsDirectory(NAME, one.port),
            "ray": ClusterDirectory(cluster.url, "token"),
        }[request.param]
        yield directory, urls


async def test_directory_when_servers_differ_then_each_is_told_as_it_is(fleet):
    directory, (ready, draining, gone) = fleet
    assert list(await directory.replicas()) == [
        Replica(url=ready, model="ling-nano", capacity=8, tokens_in_flight=120, ready=True),
        Replica(url=draining, draining=True),
        Replica(url=gone),
    ]


async def test_directory_when_asked_by_many_at_once_then_all_get_the_same(fleet):
    directory, _ = fleet
    answers = await asyncio.gather(*(directory.replicas() for _ in range(8)))
    assert all(each == answers[0] for each in answers)


async def test_directory_when_servers_are_asked_then_with_their_key(names):
    async with Server() as server:
        names.append("127.0.0.1")
        for directory in (StaticDirectory([server.url], "k"), DnsDirectory(NAME, server.port, "k")):
            [replica] = await directory.replicas()
            assert replica.capacity == 8
    assert all("GET /ready " in head for head in server.asked)
    assert ["Authorization: Bearer k\r\n" in head for head in server.asked] == [True, True]


async def test_static_when_a_server_is_something_else_then_it_is_not_ready():
    bodies = (
        *(b"<html>", b"[1]", b'{"x":' + b"[" * 100_000),
        *({"capacity": "many"}, {"capacity": -1}, {"tokens_in_flight": 10**400}),
    )
    async with contextlib.AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(Server()) for _ in bodies]
        for server, body in zip(servers, bodies, strict=True):
            server.body = body
        directory = StaticDirectory([each.url for each in servers])
        assert not any(each.ready for each in await directory.replicas())


@pytest.mark.parametrize("code", [socket.EAI_NONAME, socket.EAI_NODATA], ids=["noname", "nodata"])
async def test_dns_when_a_name_has_no_address_then_there_are_no_replicas(names, code):
    names.append(socket.gaierror(code, "nobody"))
    assert await DnsDirectory(NAME, 80).replicas() == []


async def test_dns_when_the_resolver_fails_then_that_is_said(names):
    names.append(socket.gaierror(socket.EAI_AGAIN, "try again"))
    with pytest.raises(DirectoryError, match=r"replicas\.test cannot be looked up: try again"):
        await DnsDirectory(NAME, 80).replicas()


async def test_cluster_when_it_is_asked_then_with_its_token_on_the_path():
    async with Server() as cluster:
        cluster.body = write_listing([])
        assert await ClusterDirectory(cluster.url, "cluster-token").replicas() == []
    [head] = cluster.asked
    assert head.startswith("GET /cluster/replicas HTTP/1.1\r\n")
    assert "Authorization: Bearer cluster-token\r\n" in head


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (401, b"wrong token", "answers with status 401: wrong token"),
        (200, b"<html>", "is no directory of replicas"),
        (200, b'{"replicas": 3}', "is no directory of replicas"),
        (200, b'{"replicas": [{"url": "ftp://a"}]}', "is no directory of replicas"),
        (200, b'{"x":' + b"[" * 100_000, "is no directory of replicas: nested too deeply"),
        (200, b'{"replicas": [{"url": "http://a", "capacity": -1}]}', "is no directory"),
    ],
    ids=["status", "html", "number", "url", "deep", "negative"],
)
async def test_cluster_when_the_answer_is_none_then_that_is_said(status, body, said):
    async with Server() as cluster:
        cluster.status, cluster.body = status, body
        with pytest.raises(DirectoryError, match=said):
            await ClusterDirectory(cluster.url, "t").replicas()


async def test_cluster_when_nobody_listens_then_that_is_said():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        with pytest.raises(DirectoryError, match="gives no answer"):
            await ClusterDirectory(url, "t").replicas()


class Told:
    """A directory that says what the test does."""

    def __init__(self):
        self.next = [Replica(url="http://a:1", ready=True)]

    async def replicas(self):
        if isinstance(self.next, Exception):
            raise self.next
        return self.next


async def test_watch_when_its_directory_falls_silent_then_the_last_answer_stays():
    told = Told()
    watch = Watch("fleet", told)
    assert (watch.replicas, watch.problem) == ((), "it was not asked yet")
    await watch.refresh()
    known = watch.replicas
    assert (known, watch.problem) == ((Replica(url="http://a:1", ready=True),), None)
    told.next = DirectoryError("gone")
    await watch.refresh()
    assert (watch.replicas, watch.problem) == (known, "gone")
    told.next = []
    await watch.refresh()
    assert (watch.replicas, watch.problem) == ((), None)


async def test_watch_when_its_directory_fails_unforeseen_then_it_asks_on():
    told = Told()
    told.next = KeyError("a fault")
    watch = Watch("fleet", told, every_s=0.01)
    running = asyncio.create_task(watch.run())
    async with asyncio.timeout(10):
        while "a fault" not in (watch.problem or ""):
            await asyncio.sleep(0.001)
        told.next = []
        while watch.problem is not None:
            await asyncio.sleep(0.001)
    running.cancel()


async def test_watch_when_it_runs_then_it_sees_changes_by_itself():
    told = Told()
    watch = Watch("fleet", told, every_s=0.01)
    running = asyncio.create_task(watch.run())
    async with asyncio.timeout(10):
        while not watch.replicas:
            await asyncio.sleep(0.001)
        told.next = [Replica(url="http://b:1")]
        while watch.replicas[0].url != "http://b:1":
            await asyncio.sleep(0.001)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


def replicated(urls):
    """A change of the file: its one upstream is a directory of these."""

    def tables(tables):
        upstream = tables["upstream"][0]
        for key in ("base_url", "api_key_variable", "allow_private_address"):
            del upstream[key]
        upstream["directory"] = "fleet"
        every_s = Decimal("0.1")
        directory = {"name": "fleet", "kind": "static", "replicas": urls, "every_s": every_s}
        return {**tables, "directory": [directory]}

    return tables


def test_gateway_when_its_file_changes_then_another_directory_is_watched(make_gateway):
    gateway = make_gateway(tables=replicated(["http://127.0.0.1:1"]))
    watch = gateway.state.watches["fleet"]
    assert watch.replicas == (Replica(url="http://127.0.0.1:1"),)
    gateway.reload()
    assert gateway.state.watches["fleet"] is watch  # the same file: nothing is forgotten
    gateway._tables = replicated(["http://127.0.0.1:2"])
    gateway.reload()
    wait_until(lambda: gateway.state.watches["fleet"].replicas)
    assert gateway.state.watches["fleet"].replicas == (Replica(url="http://127.0.0.1:2"),)
    series = gateway.client.get("/metrics").text
    assert 'lingflash_gateway_replicas{directory="fleet",state="other"} 1.0' in series


def test_gateway_when_a_directory_is_silent_then_ready_says_so(make_gateway):
    def tables(tables):
        tables = replicated([])(tables)
        directory = {"name": "fleet", "kind": "ray", "url": "http://127.0.0.1:1",
                     "token_variable": "HOUSE_KEY"}  # fmt: skip
        return {**tables, "directory": [directory]}

    gateway = make_gateway(tables=tables)
    assert gateway.client.get("/ready").json()["degraded"] == ["directory fleet"]
