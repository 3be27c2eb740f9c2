"""/api/v1/usage and /api/v1/routes, and whether the page is there."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import pytest

from accounts_support import accounts_app, client_of, end_of, opened, served, start_of
from gateway_support import KEY, MemoryAccounts
from gateway_upstream import ScriptedUpstream
from lingflash.gateway.app import create_gateway_app

MILLION_PICO = 10**6


@pytest.fixture
async def accounts(database_url):
    accounts = await opened(database_url)
    yield accounts
    await accounts.close()


async def keys_of(accounts, *names, **fields):
    """Secrets and callers of new keys."""
    made = []
    for name in names:
        secret, _ = await accounts.keys.create({"name": name, **fields})
        made.append((secret, await accounts.authenticate(secret)))
    return made


async def test_usage_then_sums_by_key_and_by_session_are_those_of_the_rows(accounts):
    (one, first), (_, second) = await keys_of(accounts, "one", "two")
    for caller, session in ((first, "s"), (second, "s"), (first, "s"), (first, "=t")):
        end = end_of(prompt=10, cached=4, completion=5)
        await served(accounts, start_of(caller, session_id=session), end)
    ((manager, _),) = await keys_of(accounts, "boss", is_management=True)
    cost = "0.00000218"  # 6 at 100,000 pico-dollars, 4 at 20,000, 5 at 300,000
    async with client_of(accounts_app(accounts), manager) as client:
        told = (await client.get("/api/v1/usage")).json()
        assert told["has_more"] is False
        rows = {each["key_name"]: each for each in told["data"]}
        assert [rows[name]["requests"] for name in ("one", "two")] == [3, 1]
        assert rows["two"]["cost_usd"] == cost
        assert rows["two"]["cache_saving_usd"] == "0.00000032"
        assert (rows["one"]["prompt_tokens"], rows["one"]["cached_tokens"]) == (30, 12)
        by = {"group_by": "session"}
        sessions = (await client.get("/api/v1/usage", params=by)).json()["data"]
        found = {(each["key_name"], each["session_id"]): each["requests"] for each in sessions}
        assert found == {("one", "s"): 2, ("two", "s"): 1, ("one", "=t"): 1}
        by |= {"api_key_hash": first.key_hash}
        text = (await client.get("/api/v1/usage", params={**by, "format": "csv"})).text
        lines = list(csv.DictReader(io.StringIO(text)))
        assert {each["session_id"] for each in lines} == {"s", "'=t"}  # no formula
        by |= {"offset": 1}
        assert len((await client.get("/api/v1/usage", params=by)).json()["data"]) == 1
        await accounts.keys.delete(second.key_hash)
        rows = (await client.get("/api/v1/usage")).json()["data"]
        assert [each["key_name"] for each in rows if each["key_hash"] == second.key_hash] == [None]
    async with client_of(accounts_app(accounts), one) as client:
        own = {"api_key_hash": second.key_hash}  # of others for a management key only
        rows = (await client.get("/api/v1/usage", params=own)).json()["data"]
        assert [each["key_name"] for each in rows] == ["one"]
    assert await accounts.pins() == {"novita/ling": 3}


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("group_by=model", "allowed: key, session"),
        ("format=xml", "allowed: json, csv"),
        ("days=0", "allowed: 1 to 366"),
        ("days=x", "allowed: a whole number"),
        ("day=1", "allowed: group_by"),
    ],
)
async def test_usage_when_the_query_is_bad_then_says_what_is_allowed(sqlite_url, query, says):
    accounts = await opened(sqlite_url)
    ((secret, _),) = await keys_of(accounts, "one")
    async with client_of(accounts_app(accounts), secret) as client:
        answer = await client.get(f"/api/v1/usage?{query}")
    await accounts.close()
    assert (answer.status_code, says in answer.json()["error"]["message"]) == (400, True)


def test_routes_when_an_upstream_fails_then_its_breaker_and_errors_are_told_to_managers(
    make_gateway,
):
    accounts = MemoryAccounts()
    accounts.callers["boss"] = replace(accounts.callers[KEY], is_management=True)
    bad, good = ScriptedUpstream("401"), ScriptedUpstream()
    gateway = make_gateway({"Bad": bad, "Good": good}, accounts=accounts)
    for _ in range(2):
        assert gateway.post(provider={"order": ["Bad", "Good"]}).status_code == 200
    assert gateway.client.get("/api/v1/routes").status_code == 403
    boss = {"authorization": "Bearer boss"}
    told = gateway.client.get("/api/v1/routes", headers=boss).json()
    broken, fine = told["data"]
    assert [each["state"] for each in broken["breakers"]] == ["open"]
    assert 0 < broken["breakers"][0]["rests_s"] <= 10
    assert broken["breakers"][0]["replica"] is broken["directory"] is None
    assert [each["status"] for each in broken["failures"]] == [401]
    assert "refused the house's key" in broken["failures"][0]["message"]
    assert fine["breakers"] == fine["failures"] == []
    (endpoint,) = fine["endpoints"]
    assert (endpoint["answered"], endpoint["failed"], endpoint["pinned_sessions"]) == (2, 0, 1)
    assert gateway.environ["HOUSE_KEY"] not in str(told)


@pytest.mark.parametrize(
    ("settings", "is_there"),
    [
        ({}, True),
        ({"host": "0.0.0.0"}, False),
        ({"host": "0.0.0.0", "ui": True}, True),
        ({"ui": False}, False),
    ],
    ids=["loopback", "everywhere", "asked", "refused"],
)
def test_page_when_it_is_off_then_no_route_is_left(make_gateway, settings, is_there):
    gateway = make_gateway()
    config = gateway.config()
    app = create_gateway_app(
        replace(config, server=replace(config.server, **settings)), MemoryAccounts()
    )
    paths = [getattr(route, "path", "") for route in app.routes]
    assert any(path.startswith("/ui") for path in paths) is is_there
    assert "/api/v1/routes" in app.openapi()["paths"]


def test_models_then_what_every_endpoint_honours_is_said(make_gateway):
    def tables(tables):
        first, second = tables["model"][0]["endpoint"]
        first["parameters"] = ["seed", "return_cache_report"]
        second["parameters"] = ["return_cache_report", "top_k"]
        return tables

    gateway = make_gateway({"A": ScriptedUpstream(), "B": ScriptedUpstream()}, tables=tables)
    entry = gateway.client.get("/v1/models").json()["data"][0]
    assert entry["honoured_by_all"] == ["return_cache_report"]
