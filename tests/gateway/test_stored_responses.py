"""Stored responses: every gateway of one database knows who has them, also after a restart."""

from __future__ import annotations

import contextlib

import pytest
from sqlalchemy import text

from accounts_support import end_of, new_caller, opened, served, start_of
from gateway_support import request_of
from gateway_upstream import ScriptedUpstream
from lingflash.gateway.accounting import Caller
from lingflash.store.database import Database
from lingflash.store.migrate import migrate


def test_response_when_stored_then_asked_where_it_is(make_gateway):
    a, b = ScriptedUpstream(), ScriptedUpstream()
    gateway = make_gateway({"A": a, "B": b})
    first = gateway.post("/v1/responses", provider={"order": ["B"]}).json()
    assert first["id"] == "resp_1"
    follow = gateway.post("/v1/responses", previous_response_id="resp_1", input="and?")
    assert follow.headers["x-lingflash-provider"] == "B"
    assert follow.headers["x-lingflash-route"] == "response"
    assert len({start.session_id for start, _ in gateway.accounts.rows}) == 1
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")):
        assert gateway.client.request(method, f"/v1/responses/resp_1{path}").is_success
    assert a.requests == []
    assert len(b.requests) == 6
    unknown = gateway.post("/v1/responses", previous_response_id="resp_2")
    assert unknown.status_code == 404
    assert "resp_2" in unknown.json()["error"]["message"]
    assert gateway.client.get("/v1/responses/resp_2").status_code == 404
    gateway.accounts.callers["other"] = Caller(key_hash="h2", name="o", label="o")
    others = {"authorization": "Bearer other"}
    assert gateway.client.get("/v1/responses/resp_1", headers=others).status_code == 404
    for provider in ({}, {"only": ["B"]}):
        follow = gateway.post(
            "/v1/responses", previous_response_id="resp_1", provider=provider, headers=others
        )
        assert follow.status_code == 404
    assert len(b.requests) == 6


async def test_home_when_another_process_relayed_it_then_known_also_after_a_restart(database_url):
    first, second = await opened(database_url), await opened(database_url)
    caller, other = await new_caller(first), await new_caller(first)
    whole = end_of(endpoint="B", byok_id="k1", response_id="resp_1", replica="http://r:1")
    await served(first, start_of(caller, dialect="responses", session_id="s1"), whole)
    await first.close()
    again = await opened(database_url)
    for accounts in (second, again):
        home = await accounts.home_of(caller, "resp_1")
        assert (home.endpoint, home.byok_id, home.session_id) == ("B", "k1", "s1")
        assert home.replica == "http://r:1"
        assert (await accounts.home_of(other, "resp_1")).key_hash == caller.key_hash
        assert await accounts.home_of(caller, "resp_2") is None
        assert await accounts.home_of(caller, "resp\0_2\ud800") is None
    await served(again, start_of(other), end_of(endpoint="C", response_id="resp_1"))
    await served(again, start_of(caller), end_of(endpoint="D", response_id="resp_1"))
    assert (await second.home_of(other, "resp_1")).endpoint == "C"
    assert (await second.home_of(caller, "resp_1")).endpoint == "D"
    for accounts in (second, again):
        await accounts.close()


@contextlib.asynccontextmanager
async def at_version(url, version):
    """A database as an earlier version left it."""
    database = Database(url)
    await database.write(lambda connection: migrate(connection, version))
    yield database
    await database.close()


async def test_home_when_the_version_before_relayed_it_then_known(database_url):
    columns = {
        "id": "gen-1", "request_id": "r", "session_id": "s", "step": 1, "key_hash": "h1",
        "dialect": "responses", "model_requested": "m", "endpoint": "B", "is_free": False,
        "is_streamed": False, "attempts": "[]", "usage_source": "upstream", "status": 200,
        "outcome": "completed", "wire": '{"upstream_id": "resp_1", "route": "price"}',
    }  # fmt: skip
    places = ", ".join(f":{name}" for name in columns)
    row = text(f"INSERT INTO generation ({', '.join(columns)}) VALUES ({places})")
    async with at_version(database_url, "0001") as database:
        for id, dialect in (("gen-1", "responses"), ("gen-2", "chat")):
            values = {**columns, "id": id, "dialect": dialect}
            await database.write(lambda c, values=values: c.execute(row, values))
    accounts = await opened(database_url)
    home = await accounts.home_of(Caller(key_hash="h1", name="", label=""), "resp_1")
    assert (home.endpoint, home.byok_id, home.session_id) == ("B", None, "s")
    count = text("SELECT count(response_id) FROM generation")
    assert await accounts.database.read(lambda c: c.execute(count).scalar()) == 1
    await accounts.close()


@pytest.mark.parametrize("is_streamed", [False, True])
def test_response_when_a_second_gateway_is_asked_then_it_knows(make_gateway, is_streamed):
    upstreams = [ScriptedUpstream(), ScriptedUpstream()]
    one = make_gateway(dict(zip("AB", upstreams, strict=True)))
    body = {**request_of("/v1/responses"), "provider": {"order": ["B"]}, "stream": is_streamed}
    assert one.client.post("/v1/responses", json=body).is_success
    two = make_gateway({n: u.url for n, u in one.upstreams.items()}, accounts=one.accounts)
    assert two.client.get("/v1/responses/resp_1").is_success
    follow = two.post("/v1/responses", previous_response_id="resp_1")
    assert follow.headers["x-lingflash-provider"] == "B"
    assert upstreams[0].requests == []
