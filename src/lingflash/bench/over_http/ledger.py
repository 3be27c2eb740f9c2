"""How fast the gateway's accounts reserve and settle, all clients on one key: no HTTP, no upstream.

`ling bench gateway` measures it on SQLite and, where a URL of one is given, on PostgreSQL.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import dataclass, field

from lingflash.core.errors import LingflashError
from lingflash.core.types import Usage
from lingflash.gateway.accounting import Caller, Cost, End, Part, Start
from lingflash.gateway.accounts.config import AccountsConfig
from lingflash.gateway.accounts.service import LedgerAccounts, open_accounts

_COST = Cost(prompt=600, completion=400)
_WARM_UP = 20


@dataclass(slots=True)
class LedgerRates:
    """What was measured.

    Args:
        requests_per_s: reserved and settled by all clients together, one sample a round.
        reserve_ms, settle_ms: of one client alone, one sample a request.
    """

    requests_per_s: list[float] = field(default_factory=list[float])
    reserve_ms: list[float] = field(default_factory=list[float])
    settle_ms: list[float] = field(default_factory=list[float])


async def measure_ledger(
    database: str, *, num_clients: int = 64, num_requests: int = 50, repeats: int = 5
) -> LedgerRates:
    """Measure rounds of all clients, then one client alone.

    Args:
        database: a URL; it is left with a key and rows of its own.
        num_requests: of each client in a round, and of the one alone.

    Raises:
        LingflashError: the database cannot be used, or its sums are not what was served.
    """
    rates = LedgerRates()
    accounts = await open_accounts(AccountsConfig(database=database))
    try:
        # A limit that suffices, so that it is looked at and refuses nobody.
        secret, key = await accounts.keys.create({"name": "bench", "limit": 1000})
        caller = await accounts.authenticate(secret)
        for _ in range(_WARM_UP):
            await _request(accounts, caller, 0)
        for _ in range(repeats):
            started = time.perf_counter()
            await asyncio.gather(
                *(_client(accounts, caller, each, num_requests) for each in range(num_clients))
            )
            elapsed_s = time.perf_counter() - started
            rates.requests_per_s.append(num_clients * num_requests / elapsed_s)
        for _ in range(num_requests):
            reserve_s, settle_s = await _request(accounts, caller, 0)
            rates.reserve_ms.append(reserve_s * 1e3)
            rates.settle_ms.append(settle_s * 1e3)
        balance = (await accounts.keys.get(key.hash)).balance
        served = _WARM_UP + num_requests * (repeats * num_clients + 1)
        if (balance.spent_total, balance.reserved) != (served * _COST.total, 0):
            raise LingflashError(
                f"After {served} requests the ledger has {balance.spent_total} spent and "
                f"{balance.reserved} reserved; {served * _COST.total} and 0 are right."
            )
    finally:
        await accounts.close()
    return rates


async def _client(accounts: LedgerAccounts, caller: Caller, number: int, count: int) -> None:
    for _ in range(count):
        await _request(accounts, caller, number)


async def _request(accounts: LedgerAccounts, caller: Caller, number: int) -> tuple[float, float]:
    """Seconds that the reservation and the settlement took."""
    parts = tuple(Part(role="user", digest=f"{each:016x}", num_bytes=100) for each in range(10))
    start = Start(
        id=f"gen-{secrets.token_hex(12)}",
        request_id="bench",
        caller=caller,
        dialect="chat",
        model="bench",
        is_streamed=True,
        session_id=f"session-{number}",
        reserve_pico=2 * _COST.total,
        prompt_tokens=1000,
        completion_tokens=100,
        parts=parts,
    )
    usage = Usage(prompt_tokens=1000, cached_tokens=900, completion_tokens=100)
    end = End(outcome="completed", status=200, endpoint="bench/bench", usage=usage, cost=_COST)
    began = time.perf_counter()
    admission = await accounts.admit(start)
    reserved = time.perf_counter()
    await accounts.settle(admission, end)
    return reserved - began, time.perf_counter() - reserved
