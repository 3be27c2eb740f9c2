"""The accounts over HTTP, as OpenRouter's own SDK asks for them and reads them."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import text

from accounts_support import (
    PRICE,
    accounts_app,
    client_of,
    end_of,
    new_caller,
    opened,
    served,
    start_of,
)
from clients_support import client_package
from lingflash.core.types import Usage
from lingflash.gateway.accounting import Attempt, Cost
from lingflash.gateway.accounts.vault import read_master_keys

openrouter = client_package("openrouter")
MASTER = "00" * 32


@pytest.fixture
async def accounts(database_url):
    accounts = await opened(database_url, master_key=MASTER, budget_usd=100, budget_reset="monthly")
    yield accounts
    await accounts.close()


@pytest.fixture
async def on_sqlite(sqlite_url):
    accounts = await opened(sqlite_url, master_key=MASTER)
    yield accounts
    await accounts.close()


async def key_of(accounts, **fields) -> str:
    return (await accounts.keys.create({"name": "test", **fields}))[0]


def sdk_of(accounts, key: str):
    client = client_of(accounts_app(accounts), key)
    return openrouter.OpenRouter(
        api_key=key, server_url="http://gateway/api/v1", async_client=client
    )


async def test_sdk_when_key_has_spent_then_reads_limits_usage_and_budgets(accounts):
    secret = await key_of(accounts, limit=2.5, limit_reset="daily", include_byok=True)
    caller = await accounts.authenticate(secret)
    await served(accounts, start_of(caller), end_of(cost=Cost(prompt=10**12)))
    byok = end_of(cost=Cost(), upstream_cost=Cost(completion=5 * 10**11), byok_id="inline")
    await served(accounts, start_of(caller, is_free=True), byok)
    data = (await sdk_of(accounts, secret).api_keys.get_current_key_metadata_async()).data
    assert (data.limit, data.limit_remaining, data.limit_reset) == (2.5, 1.0, "daily")
    assert (data.usage, data.usage_daily, data.usage_weekly, data.usage_monthly) == (1, 1, 1, 1)
    assert (data.byok_usage, data.byok_usage_daily, data.include_byok_in_limit) == (0.5, 0.5, True)
    assert [each.scope for each in data.budgets] == ["workspace", "key_limit"]
    assert data.effective_budget.remaining_usd == 1.0
    assert data.effective_budget.resets_at is not None
    free = data.free_model_daily_requests
    assert (free.limit, free.used, free.remaining) == (50, 1, 49)
    assert data.label == f"{secret[:11]}...{secret[-3:]}"
    credits = (await sdk_of(accounts, secret).credits.get_credits_async()).data
    assert (credits.total_credits, credits.total_usage) == (2.5, 1.0)


async def test_sdk_when_manager_then_makes_changes_lists_and_revokes_keys(accounts):
    sdk = sdk_of(accounts, await key_of(accounts, is_management=True))
    made = await sdk.api_keys.create_async(name="agent", limit=1.5, limit_reset="monthly")
    assert (made.data.name, made.data.limit, made.data.usage) == ("agent", 1.5, 0)
    caller = await accounts.authenticate(made.key)
    changed = await sdk.api_keys.update_async(hash=made.data.hash, limit=None, disabled=True)
    assert (changed.data.limit, changed.data.disabled, changed.data.name) == (None, True, "agent")
    with pytest.raises(Exception, match="disabled"):
        await accounts.authenticate(made.key)
    assert (await sdk.api_keys.get_async(hash=caller.key_hash)).data.hash == made.data.hash
    listed = await sdk.api_keys.list_async(include_disabled=False)
    assert [each.name for each in listed.data] == ["test"]
    assert len((await sdk.api_keys.list_async()).data) == 2
    assert (await sdk.api_keys.delete_async(hash=made.data.hash)).DELETED
    with pytest.raises(openrouter.errors.NotFoundResponseError):
        await sdk.api_keys.get_async(hash=made.data.hash)


async def test_sdk_when_byok_is_stored_then_masked_and_ordered(accounts):
    sdk = sdk_of(accounts, await key_of(accounts, is_management=True))
    secrets = ["sk-novita-aaaaaaaaaaaaaaaaaaaaaaaa", "sk-novita-bbbbbbbbbbbbbbbbbbbbbbbb"]
    for each in secrets:
        made = await sdk.byok.create_async(key=each, provider="novita", name=each[10])
        assert each not in made.model_dump_json()
    first = (await sdk.byok.list_async(provider="novita")).result.data[0]
    await sdk.byok.update_async(id=first.id, is_fallback=True, allowed_models=["ling"])
    caller = await new_caller(accounts)
    found = await accounts.provider_keys(caller, "Novita", ["ling:free"])
    assert [(each.secret, each.is_fallback) for each in found] == [
        (secrets[1], False),
        (secrets[0], True),
    ]
    assert secrets[0] not in repr(found)
    assert [each.name for each in await accounts.provider_keys(caller, "novita", ["other"])] == [
        "b"
    ]
    assert (await sdk.byok.delete_async(id=first.id)).DELETED
    assert (await sdk.byok.list_async()).result.total_count == 1


async def test_sdk_when_request_is_done_then_reads_its_generation(accounts):
    secret = await key_of(accounts)
    caller = await accounts.authenticate(secret)
    start = start_of(caller, session_id="chat-7")
    usage = Usage(prompt_tokens=10, cached_tokens=4, completion_tokens=3, reasoning_tokens=2)
    attempts = (
        Attempt(provider="Own", endpoint="own/ling", model="ling", status=0, error="connect"),
        Attempt(provider="Novita", endpoint="novita/ling", model="ling", status=200),
    )
    end = end_of(usage=usage, cost=PRICE.cost(usage), attempts=attempts, duration_ms=40, ttft_ms=9)
    await served(accounts, start, end)
    sdk = sdk_of(accounts, secret)
    data = (await sdk.generations.get_generation_async(id=start.id)).data
    assert (data.tokens_prompt, data.native_tokens_cached, data.native_tokens_reasoning) == (
        10,
        4,
        2,
    )
    assert data.total_cost == (6 * 100_000 + 4 * 20_000 + 3 * 300_000) / 1e12
    assert data.cache_discount == 4 * 80_000 / 1e12
    assert [each.status for each in data.provider_responses] == [None, 200]
    assert (data.session_id, data.cancelled, data.provider_name) == ("chat-7", False, "Novita")
    with pytest.raises(openrouter.errors.NotFoundResponseError):
        await sdk_of(accounts, await key_of(accounts)).generations.get_generation_async(id=start.id)


async def test_sdk_when_activity_is_asked_for_then_sums_by_endpoint_and_key(accounts):
    keys = [await key_of(accounts) for _ in range(2)]
    for each in keys:
        caller = await accounts.authenticate(each)
        for endpoint in ("a/x", "a/x", "b/y"):
            await served(accounts, start_of(caller), end_of(endpoint=endpoint))
    manager = await key_of(accounts, is_management=True)
    items = (await sdk_of(accounts, manager).analytics.get_user_activity_async(request={})).data
    assert [(each.endpoint_id, each.requests, each.prompt_tokens) for each in items] == [
        ("a/x", 4, 40),
        ("b/y", 2, 20),
    ]
    assert items[0].usage == 4 * (10 * 100_000 + 5 * 300_000) / 1e12
    day = {"date_": items[0].date_}
    own = (await sdk_of(accounts, keys[0]).analytics.get_user_activity_async(request=day)).data
    assert [each.requests for each in own] == [2, 1]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "says"),
    [
        ("GET", "/api/v1/keys", None, 403, "management key"),
        ("POST", "/api/v1/byok", {}, 403, "management key"),
        ("GET", "/api/v1/generation", None, 400, "id is missing"),
        ("GET", "/api/v1/generation?id=gen-x", None, 404, "gen-x"),
        ("GET", "/api/v1/activity?date=31.1.2027", None, 400, "2027-01-31"),
        ("GET", "/api/v1/activity?date=2027-02-31", None, 400, "2027-01-31"),
        ("GET", "/api/v1/activity?dat=x", None, 400, "allowed: date"),
        ("GET", "/api/v1/sessions/none", None, 404, "no session"),
        ("GET", "/api/v1/sessions/none?format=xml", None, 400, "allowed: json, csv"),
        ("GET", "/api/v1/sessions/a%00b", None, 404, "no session"),
    ],
)
async def test_route_when_key_is_ordinary_and_request_bad_then_says_what_is_allowed(
    on_sqlite, method, path, body, status, says
):
    async with client_of(accounts_app(on_sqlite), await key_of(on_sqlite)) as client:
        answer = await client.request(method, path, json=body)
    assert (answer.status_code, says in answer.json()["error"]["message"]) == (status, True)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": "a\0b"}, "name"),
        ({"name": "a", "limit": -1}, "limit"),
        ({"name": "a", "limit": 1e9}, "limit"),
        ({"name": "a", "limit": "1"}, "limit"),
        ({"name": "a", "limit_reset": "yearly"}, "limit_reset"),
        ({"name": "a", "rpm": 0}, "rpm"),
        ({"name": "a", "rpm": 2**40}, "rpm"),
        ({"name": "a", "expires_at": "soon"}, "expires_at"),
        ({"name": "a", "expires_at": "1950-01-01"}, "expires_at"),
        ({"name": "a", "is_management": True}, "--management"),
        ({"name": "a", "workspace_id": "other"}, "one workspace"),
        ({"name": "a", "rmp": 3}, "rmp"),
    ],
)
async def test_create_key_when_field_is_wrong_then_named(on_sqlite, body, says):
    manager = await key_of(on_sqlite, is_management=True)
    async with client_of(accounts_app(on_sqlite), manager) as client:
        answer = await client.post("/api/v1/keys", json=body)
        assert (answer.status_code, says in answer.json()["error"]["message"]) == (400, True)
        assert len((await client.get("/api/v1/keys")).json()["data"]) == 1


async def test_routes_when_no_key_or_a_wrong_one_then_401(on_sqlite):
    app = accounts_app(on_sqlite)
    for key in ("", "sk-ling-wrong", "\udcff"):
        async with client_of(app, "") as client:
            for path in ("key", "keys", "byok", "credits", "activity", "generation", "sessions/x"):
                answer = await client.get(
                    f"/api/v1/{path}",
                    headers={"authorization": f"Bearer {key}".encode("utf-8", "surrogateescape")},
                )
                assert answer.status_code == 401, path


async def test_routes_when_a_name_holds_nul_then_404(accounts):
    async with client_of(
        accounts_app(accounts), await key_of(accounts, is_management=True)
    ) as client:
        for path in ("keys/a%00b", "byok/a%00b", "sessions/a%00b?api_key_hash=x"):
            assert (await client.get(f"/api/v1/{path}")).status_code == 404


async def test_vault_when_stored_then_no_row_and_no_dump_holds_a_secret(accounts):
    secret = "sk-sentinel-0123456789abcdefghijkl"
    row = await accounts.vault.add({"key": secret, "provider": "novita"})
    await accounts.vault.update(row["id"], {"key": secret + "2"})
    stored = await accounts.database.read(
        lambda c: [list(each) for each in c.execute(text("SELECT * FROM byok_key"))]
    )
    assert "sentinel" not in repr(stored)
    assert "sentinel" not in repr(accounts.vault) + repr(
        read_master_keys(accounts.config, {"MASTER": MASTER}, Path())
    )


async def test_method_when_it_is_wrong_then_every_right_one_is_named(accounts):
    async with client_of(accounts_app(accounts), "none") as client:
        response = await client.put("/api/v1/keys")
        assert response.headers["allow"] == "GET, POST"
        assert "allowed: GET, POST." in response.json()["error"]["message"]
        response = await client.put("/api/v1/keys/x")
        assert response.headers["allow"] == "DELETE, GET, PATCH"
