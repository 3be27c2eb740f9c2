"""Requests through the accounts: admitted, refused, cancelled, killed; one row each."""

from __future__ import annotations

import asyncio
import logging

import pytest
from sqlalchemy import event, text, update

from accounts_support import (
    PRICE,
    cost_of,
    end_of,
    new_caller,
    num_reservations,
    opened,
    rows_of,
    served,
    start_of,
)
from lingflash.core.errors import (
    AuthenticationError,
    CapacityError,
    InsufficientCreditsError,
    NotAllowedError,
    RateLimitError,
)
from lingflash.core.types import Usage
from lingflash.gateway.accounting import Attempt, Cost, End
from lingflash.gateway.accounts import admission
from lingflash.store.tables import api_key


@pytest.fixture
async def accounts(database_url):
    accounts = await opened(database_url)
    yield accounts
    await accounts.close()


async def until(condition, timeout_s: float = 30.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not await condition():
            await asyncio.sleep(0.02)


async def balance_of(accounts, caller):
    return (await accounts.keys.get(caller.key_hash)).balance


async def session_of(accounts, caller, session_id):
    """As a request that comes learns of it."""
    admitted = await accounts.admit(start_of(caller, session_id=session_id))
    await accounts.settle(admitted, End(outcome="failed", status=502))
    return admitted.session


@pytest.mark.parametrize(
    ("end", "paid"),
    [
        (end_of(), 10 * 100_000 + 5 * 300_000),
        (end_of(outcome="cancelled", usage_source="counted"), 2_500_000),
        (End(outcome="failed", status=502, error_code="provider_unavailable"), 0),
    ],
)
async def test_settle_when_request_ends_then_one_row_and_rest_given_back(accounts, end, paid):
    caller = await new_caller(accounts, limit="1")
    await served(accounts, start_of(caller, reserve_pico=9_000_000), end)
    (row,) = await rows_of(accounts)
    assert (row["outcome"], row["cost_prompt"] + row["cost_completion"]) == (end.outcome, paid)
    balance = await balance_of(accounts, caller)
    assert (balance.reserved, balance.running, balance.spent_total) == (0, 0, paid)


async def test_settle_when_called_twice_then_paid_once(accounts, caplog):
    caller = await new_caller(accounts)
    admission = await accounts.admit(start_of(caller))
    with caplog.at_level(logging.WARNING, "lingflash.gateway"):
        await asyncio.gather(*(accounts.settle(admission, end_of()) for _ in range(3)))
    assert len(await rows_of(accounts)) == 1
    assert (await balance_of(accounts, caller)).spent_total == 2_500_000
    assert [each.msg for each in caplog.records] == ["settled_before"] * 2


@pytest.mark.parametrize(
    ("key", "start", "error", "status"),
    [
        ({"limit": "0"}, {}, InsufficientCreditsError, 402),
        ({"allowed_models": ["other"]}, {}, NotAllowedError, 403),
        ({"allowed_models": ["m"]}, {"model": "m", "fallbacks": ["x"]}, NotAllowedError, 403),
        ({"is_management": True}, {}, NotAllowedError, 403),
        ({"tpm": 19}, {}, RateLimitError, 429),
    ],
)
async def test_admit_when_refused_then_one_row_that_costs_nothing(
    accounts, key, start, error, status
):
    caller = await new_caller(accounts, **key)
    with pytest.raises(error):
        await accounts.admit(start_of(caller, **start))
    (row,) = await rows_of(accounts)
    assert (row["outcome"], row["status"], row["step"]) == ("refused", status, 0)
    assert await num_reservations(accounts) == 0


async def test_admit_when_variant_of_an_allowed_model_then_in(accounts):
    caller = await new_caller(accounts, allowed_models=["inclusionai/ling"])
    await served(accounts, start_of(caller, model="inclusionai/ling:free"), end_of())


@pytest.mark.parametrize("change", ["revoked", "disabled", "expired"])
async def test_admit_when_key_was_taken_away_since_it_was_looked_up_then_refused(accounts, change):
    secret, key = await accounts.keys.create({"name": "a"})
    caller = await accounts.authenticate(secret)
    if change == "revoked":
        await accounts.keys.delete(key.hash)
    else:
        fields = {"disabled": True} if change == "disabled" else {"expires_at": 1000}
        await accounts.keys.update(key.hash, fields)
    with pytest.raises(AuthenticationError):
        await accounts.admit(start_of(caller))
    accounts.forget_key(key.hash)
    with pytest.raises(AuthenticationError):
        await accounts.authenticate(secret)


async def test_admit_when_house_budget_is_reached_then_no_key_gets_in(database_url):
    accounts = await opened(database_url, budget_usd=2000e-12)
    callers = [await new_caller(accounts) for _ in range(3)]
    done = await asyncio.gather(
        *(accounts.admit(start_of(each)) for each in callers), return_exceptions=True
    )
    assert [type(each) for each in done].count(InsufficientCreditsError) == 1
    assert "All keys together have" in str(next(e for e in done if isinstance(e, Exception)))
    await accounts.close()


async def test_admit_when_key_counts_brought_keys_then_both_are_reserved_and_paid(accounts):
    caller = await new_caller(accounts, limit="1000e-12", include_byok=True)
    own = start_of(caller, reserve_pico=100, byok_reserve_pico=600, is_byok=True)
    first = await accounts.admit(own)
    with pytest.raises(InsufficientCreditsError):
        await accounts.admit(start_of(caller, reserve_pico=100, byok_reserve_pico=600))
    end = end_of(cost=cost_of(10), upstream_cost=cost_of(500), byok_id="inline")
    await accounts.settle(first, end)
    balance = await balance_of(accounts, caller)
    assert (balance.spent_total, balance.byok_total, balance.remaining) == (10, 500, 490)


async def test_admit_when_key_runs_as_many_as_it_may_then_refused_until_one_ends(accounts):
    caller = await new_caller(accounts, concurrency=2)
    first, _ = [await accounts.admit(start_of(caller)) for _ in range(2)]
    with pytest.raises(RateLimitError, match="2 requests of this key are running; allowed: 2"):
        await accounts.admit(start_of(caller))
    await accounts.settle(first, end_of())
    await accounts.admit(start_of(caller))


async def test_admit_when_client_leaves_meanwhile_then_nothing_stays_reserved(accounts):
    caller = await new_caller(accounts)
    task = asyncio.create_task(accounts.admit(start_of(caller)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    async def has_row() -> bool:
        return len(await rows_of(accounts)) == 1

    await until(has_row)
    (row,) = await rows_of(accounts)
    assert row["outcome"] == "cancelled"
    assert (await balance_of(accounts, caller)).reserved == 0


async def test_free_models_when_day_is_used_up_then_refused_until_the_next(
    database_url, monkeypatch
):
    accounts = await opened(database_url, free_per_day=2, free_rpm=50)
    now = [admission.wall_ms()]
    accounts._ledger._now_ms = lambda: now[0]
    caller = await new_caller(accounts)
    for _ in range(2):
        await served(accounts, start_of(caller, is_free=True), end_of())
    with pytest.raises(RateLimitError, match="allowed: 2 a day") as caught:
        await accounts.admit(start_of(caller, is_free=True))
    assert 1 <= int(caught.value.headers["retry-after"]) <= 86_400
    assert caught.value.headers["x-ratelimit-remaining"] == "0"
    # A brought key is nobody's gift, and other models are not free.
    await served(accounts, start_of(caller, is_free=True, is_byok=True), end_of())
    await served(accounts, start_of(caller), end_of())
    now[0] += 86_400_000
    await served(accounts, start_of(caller, is_free=True), end_of())
    now[0] -= 86_400_000  # the clock goes back: that day does not begin again
    await served(accounts, start_of(caller, is_free=True), end_of())
    with pytest.raises(RateLimitError):
        await accounts.admit(start_of(caller, is_free=True))
    await accounts.close()


async def test_expired_key_when_clock_goes_back_then_stays_expired(accounts):
    now = [1_000_000]
    accounts._ledger._now_ms = lambda: now[0]
    caller = await new_caller(accounts)
    await accounts.database.write(lambda c: c.execute(update(api_key).values(expires_at=2_000_000)))
    await served(accounts, start_of(caller), end_of())
    now[0] = 2_000_000
    with pytest.raises(AuthenticationError, match="expired"):
        await accounts.admit(start_of(caller))
    now[0] = 1_500_000
    with pytest.raises(AuthenticationError, match="expired"):
        await accounts.admit(start_of(caller))


async def test_sweeper_when_process_stands_still_then_its_requests_are_billed_as_noted(
    database_url,
):
    dead = await opened(database_url, lease_s=1.0, progress_s=0.05)
    caller = await new_caller(dead, limit="1")
    usage = Usage(prompt_tokens=10, cached_tokens=2, completion_tokens=7, reasoning_tokens=3)
    attempt = Attempt(provider="Novita", endpoint="novita/ling", model="ling", status=200)
    noted = await dead.admit(start_of(caller))
    silent = await dead.admit(start_of(caller))
    dead.note_progress(noted, usage, PRICE.cost(usage), attempt=attempt)

    async def is_written() -> bool:
        rows = await dead.database.read(
            lambda c: c.execute(text("SELECT progress FROM reservation")).all()
        )
        return sum(row[0] is not None for row in rows) == 1

    await until(is_written)
    for each in dead._background:  # what kill -9 does, without the rest of the process
        await each.stop()
    await dead.database.close()
    alive = await opened(database_url, lease_s=1.0)

    async def is_swept() -> bool:
        return await num_reservations(alive) == 0

    await until(is_swept)
    rows = {row["id"]: row for row in await rows_of(alive)}
    row = rows[noted.start.id]
    assert (row["outcome"], row["usage_source"], row["endpoint"]) == (
        "killed",
        "counted",
        "novita/ling",
    )
    assert (row["tokens_completion"], row["tokens_reasoning"]) == (7, 3)
    assert row["cost_prompt"] + row["cost_completion"] == PRICE.cost(usage).total
    assert rows[silent.start.id]["cost_prompt"] == 0
    balance = await balance_of(alive, caller)
    assert (balance.reserved, balance.running) == (0, 0)
    assert balance.spent_total == PRICE.cost(usage).total

    async def is_buried() -> bool:  # which comes after its requests
        rows = await alive.database.read(lambda c: c.execute(text("SELECT id FROM process")).all())
        return len(rows) == 1

    await until(is_buried)
    await alive.close()


async def test_sweeper_when_process_lives_then_its_requests_are_left_alone(database_url):
    first, second = [await opened(database_url, lease_s=1.0) for _ in range(2)]
    caller = await new_caller(first)
    admitted = await first.admit(start_of(caller))
    beats = first._leases, second._leases
    for _ in range(8):
        for each in beats:
            await each.beat()
        assert await second._leases.sweep() == 0
        await asyncio.sleep(0.2)
    assert second._leases.num_processes == 2
    await first.settle(admitted, end_of())
    (row,) = await rows_of(first)
    assert row["outcome"] == "completed"
    await first.close()
    await second.close()


async def test_close_when_a_request_runs_then_settled_as_killed(database_url):
    accounts = await opened(database_url)
    caller = await new_caller(accounts)
    await accounts.admit(start_of(caller))
    await accounts.close()
    accounts = await opened(database_url)
    assert [row["outcome"] for row in await rows_of(accounts)] == ["killed"]
    assert (await balance_of(accounts, caller)).reserved == 0
    await accounts.close()


async def test_settle_when_database_fails_then_told_and_written_when_it_is_back(
    sqlite_url, monkeypatch
):
    accounts = await opened(sqlite_url, lease_s=1.0)
    caller = await new_caller(accounts)
    admitted = await accounts.admit(start_of(caller))

    async def fail(work):
        raise CapacityError("The database failed: its disk is full.")

    with monkeypatch.context() as patch:
        patch.setattr(accounts.database, "write", fail)
        await accounts.settle(admitted, end_of())
        assert "1 requests wait to be written to the database." in accounts.degraded
        with pytest.raises(CapacityError, match="disk is full"):
            await accounts.admit(start_of(caller))

    async def is_written() -> bool:
        return not accounts.degraded and len(await rows_of(accounts)) == 1

    await until(is_written)
    assert (await balance_of(accounts, caller)).reserved == 0
    await accounts.close()


async def test_session_when_turns_pass_then_pin_and_cache_rate(accounts):
    caller, other = [await new_caller(accounts) for _ in range(2)]
    for cached, endpoint in ((0, "a/x"), (90, "a/x"), (70, "b/x")):
        end = end_of(100, 5, cached, endpoint=endpoint)
        await served(accounts, start_of(caller, session_id="chat"), end)
    await served(accounts, start_of(caller, session_id="chat"), End(outcome="failed", status=502))
    session = await session_of(accounts, caller, "chat")
    assert (session.turns, session.pinned_endpoint, session.cache_rate) == (3, "b/x", 0.8)
    assert (await session_of(accounts, other, "chat")).turns == 0
    now = admission.wall_ms()
    accounts._ledger._now_ms = lambda: now + 3_700_000
    assert (await session_of(accounts, caller, "chat")).pinned_endpoint is None


async def test_request_when_admitted_and_settled_then_two_transactions(sqlite_url):
    accounts = await opened(sqlite_url)
    caller = await new_caller(accounts)
    await served(accounts, start_of(caller, session_id="chat"), end_of(endpoint="a/x"))
    transactions = []
    event.listen(accounts.database._engine, "begin", lambda connection: transactions.append(1))
    admitted = await accounts.admit(start_of(caller, session_id="chat"))
    assert (len(transactions), admitted.session.pinned_endpoint) == (1, "a/x")
    await accounts.settle(admitted, end_of())
    assert len(transactions) == 2
    await accounts.close()


async def test_names_when_they_are_strange_then_written(accounts):
    strange = "\0\ud800 " + "x" * 5000
    caller = await new_caller(accounts)
    start = start_of(caller, session_id=strange, request_id=strange, model=strange)
    end = end_of(endpoint=strange, error_code=strange, wire={"finish_reason": "\0\ud800"})
    await served(accounts, start, end)
    (row,) = await rows_of(accounts)
    assert row["model_requested"].endswith("x")
    assert (await session_of(accounts, caller, strange)).turns == 1


async def test_batch_when_one_request_cannot_be_written_then_only_that_one_fails(accounts):
    caller = await new_caller(accounts)
    bad = start_of(caller, id=object())
    done = await asyncio.gather(
        *(accounts.admit(start) for start in (start_of(caller), start_of(caller), bad)),
        accounts.admit(start_of(caller)),
        return_exceptions=True,
    )
    assert [isinstance(each, CapacityError) for each in done] == [False, False, True, False]
    balance = await balance_of(accounts, caller)
    assert (balance.running, balance.reserved) == (3, 3000)


async def test_secrets_when_everything_was_done_then_in_no_row_log_or_repr(
    database_url, caplog, tmp_path, request
):
    caplog.set_level(logging.DEBUG)
    accounts = await opened(database_url, master_key="ab" * 32)
    secret, _ = await accounts.keys.create({"name": "a", "limit": "0.5"})
    vendor = "sk-vendor-sentinel-000000000000"
    await accounts.vault.add({"key": vendor, "provider": "novita"})
    caller = await accounts.authenticate(secret)
    found = await accounts.provider_keys(caller, "novita", ["ling"])
    assert [each.secret for each in found] == [vendor]
    await served(accounts, start_of(caller), end_of(cost=Cost(prompt=1)))
    for wrong in (secret + "x", vendor):
        with pytest.raises(AuthenticationError) as caught:
            await accounts.authenticate(wrong)
        assert wrong not in str(caught.value)
    await accounts.close()
    if database_url.startswith("sqlite"):
        files = [each.read_bytes() for each in tmp_path.glob("gateway.db*")]
        dump = b"".join(files).decode("latin-1")
    else:
        dump = request.getfixturevalue("postgres").dump(database_url)
    assert "novita" in dump
    for hidden in (secret, vendor, "ab" * 32):
        assert hidden not in dump
        assert hidden not in caplog.text + repr(found) + repr(caller) + repr(accounts.config)


async def test_requests_when_they_are_many_then_no_statement_reads_a_whole_table(sqlite_url):
    accounts = await opened(sqlite_url)
    caller = await new_caller(accounts)
    statements = {}

    @event.listens_for(accounts.database._engine, "before_cursor_execute")
    def note(connection, cursor, statement, parameters, context, executemany):
        statements[statement] = parameters[0] if executemany else parameters

    accounts.forget_key(caller.key_hash)
    starts = [start_of(caller, session_id=f"s{number}") for number in range(3)]
    admitted = await asyncio.gather(*(accounts.admit(start) for start in starts))
    for each in admitted:
        accounts.note_progress(each, Usage(prompt_tokens=1, cached_tokens=0, completion_tokens=1),
                               Cost())  # fmt: skip
    await accounts._progress.write()
    await asyncio.gather(*(accounts.settle(each, end_of()) for each in admitted))
    own = {k: v for k, v in statements.items() if not k.startswith(("BEGIN", "INSERT", "EXPLAIN"))}

    def plans(connection):
        return [
            (statement, row[3])
            for statement, parameters in own.items()
            for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
        ]

    found = await accounts.database.read(plans)
    await accounts.close()
    assert len(own) >= 6
    assert [each for each in found if each[1].startswith("SCAN") and "process" not in each[0]] == []


async def test_open_when_several_start_at_once_then_all_do(database_url):
    many = await asyncio.gather(*(opened(database_url, budget_usd=1) for _ in range(5)))
    for each in many:
        await each.close()
