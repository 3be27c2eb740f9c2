"""Budgets hold under concurrency and kill -9, across processes, and every request has one row."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from sqlalchemy import select

from accounts_support import new_caller, num_reservations, opened, rows_of
from lingflash.gateway.accounts.config import PICO_PER_USD
from lingflash.store.tables import reservation

WORKER = Path(__file__).parents[1] / "accounts_worker.py"


def run_worker(log: Path, url: str, key: str, *options: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, WORKER, "--database", url, "--key", key, "--log", log, *options]
    )


def said(log: Path) -> list[list[str]]:
    if not log.exists():
        return []
    # The last line may be half written when the process is killed.
    return [line.split(" ") for line in log.read_text().split("\n")[:-1]]


async def wait_for(condition, timeout_s: float = 60.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not await condition():
            await asyncio.sleep(0.05)


async def test_budget_when_killed_under_64_clients_then_never_exceeded_and_one_row_each(
    database_url, tmp_path
):
    limit_pico = 40_000_000 * 150
    accounts = await opened(database_url, lease_s=3.0)
    secret, key = await accounts.keys.create({"name": "a", "limit": limit_pico / PICO_PER_USD})
    assert key.balance.limit_pico == limit_pico
    log = tmp_path / "log"
    worker = run_worker(log, database_url, secret, "--held", "3")
    query = select(reservation.c.id).where(reservation.c.progress.is_not(None))

    async def has_settled() -> bool:
        balance = (await accounts.keys.get(key.hash)).balance
        assert balance.spent_total + balance.reserved <= limit_pico
        written = await accounts.database.read(lambda c: set(c.execute(query).scalars()))
        events = said(log)
        held = {words[1] for words in events if words[0] == "held"}
        num_settled = sum(words[0] == "settled" for words in events)
        return num_settled >= 100 and len(held) == 3 and held <= written

    await wait_for(has_settled)
    worker.kill()
    worker.wait()

    async def is_swept() -> bool:
        return not await num_reservations(accounts)

    await wait_for(is_swept)
    balance = (await accounts.keys.get(key.hash)).balance
    assert (balance.reserved, balance.running) == (0, 0)
    assert balance.spent_total <= limit_pico
    rows = await rows_of(accounts)
    await accounts.close()
    by_id = {row["id"]: row for row in rows}
    assert len(by_id) == len(rows)
    cost = {id: row["cost_prompt"] + row["cost_completion"] for id, row in by_id.items()}
    assert sum(cost.values()) == balance.spent_total
    events = said(log)
    for kind, id, *rest in (words for words in events if len(words) > 1):
        assert id in by_id, f"{kind} {id} has no row"
        if kind == "settled":
            assert (by_id[id]["outcome"], cost[id]) == ("completed", int(rest[0]))
        if kind == "refused":
            assert (by_id[id]["outcome"], cost[id]) == ("refused", 0)
    noted: dict[str, set[int]] = {}
    for words in events:
        if words[0] == "noted":
            noted.setdefault(words[1], {0}).add(int(words[2]))
    killed = [id for id, row in by_id.items() if row["outcome"] == "killed"]
    assert killed
    # Billed is what was last written of each: something that its stream had truly made.
    assert all(cost[id] in noted.get(id, {0}) for id in killed)
    held = [words[1] for words in events if words[0] == "held"]
    assert all(id in killed and cost[id] for id in held)


async def test_two_processes_when_one_budget_then_held_and_settled_once(postgres, redis, tmp_path):
    url = postgres.new_database()
    accounts = await opened(url)
    secret, key = await accounts.keys.create({"name": "a", "limit": 0.003, "rpm": 500})
    logs = [tmp_path / "a", tmp_path / "b"]
    workers = [
        run_worker(
            log, url, secret, "--redis", redis.url, "--requests", "10", "--clients", "40",
            "--frames", "1", "--seed", str(seed), "--reserve", "30000000",
        )
        for seed, log in enumerate(logs)
    ]  # fmt: skip
    for worker in workers:
        assert await asyncio.to_thread(worker.wait, 120) == 0
    events = [words for log in logs for words in said(log)]
    counts = Counter(words[0] for words in events)
    refused = Counter(words[2] for words in events if words[0] == "refused")
    rows = await rows_of(accounts)
    balance = (await accounts.keys.get(key.hash)).balance
    await accounts.close()
    assert counts["admitted"] + counts["refused"] == len(rows) == 800
    # Those that the budget refused were counted against the minute before.
    assert 800 - refused["rate_limit_exceeded"] in (499, 500, 501)
    assert balance.spent_total == counts["settled"] * 13_000_000 == counts["admitted"] * 13_000_000
    assert balance.spent_total + balance.reserved <= balance.limit_pico
    assert (balance.reserved, balance.running) == (0, 0)


@pytest.mark.parametrize("limit", [0, 999, 1000, 64_000, 64_999])
async def test_budget_when_64_ask_at_once_then_as_many_as_it_allows(database_url, limit):
    from accounts_support import end_of, start_of
    from lingflash.core.errors import InsufficientCreditsError

    accounts = await opened(database_url)
    caller = await new_caller(accounts, limit=f"{limit}e-12")
    done = await asyncio.gather(
        *(accounts.admit(start_of(caller)) for _ in range(70)), return_exceptions=True
    )
    admitted = [each for each in done if not isinstance(each, BaseException)]
    assert len(admitted) == limit // 1000
    assert all(
        isinstance(each, InsufficientCreditsError)
        for each in done
        if isinstance(each, BaseException)
    )
    await asyncio.gather(*(accounts.settle(each, end_of(0, 0)) for each in admitted))
    assert (await accounts.keys.get(caller.key_hash)).balance.reserved == 0
    await accounts.close()
