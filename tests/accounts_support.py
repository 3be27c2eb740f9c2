"""Requests for the accounts, as a relay would make them."""

from __future__ import annotations

import secrets
from typing import Any

import httpx
from fastapi import FastAPI
from sqlalchemy import select

from lingflash.core.metrics import HttpMetrics
from lingflash.core.types import Usage
from lingflash.gateway.accounting import Caller, Cost, End, Price, Start
from lingflash.gateway.accounts.config import AccountsConfig
from lingflash.gateway.accounts.routes import MODELS, accounts_router
from lingflash.gateway.accounts.service import LedgerAccounts, open_accounts
from lingflash.httpd.app import make_app
from lingflash.httpd.context import HttpContext
from lingflash.httpd.openapi import install_openapi
from lingflash.protocol.errors import ErrorDialect
from lingflash.store.tables import generation, reservation

PRICE = Price(prompt=100_000, completion=300_000, cache_read=20_000)


async def opened(database: str, master_key: str = "", **settings: Any) -> LedgerAccounts:
    if master_key:
        settings["master_key_variable"] = "MASTER"
    return await open_accounts(
        AccountsConfig(database=database, **settings), {"MASTER": master_key}
    )


async def new_caller(accounts: LedgerAccounts, **fields: Any) -> Caller:
    secret, _ = await accounts.keys.create({"name": "test", **fields})
    return await accounts.authenticate(secret)


def start_of(caller: Caller, **fields: Any) -> Start:
    values: dict[str, Any] = {
        "id": f"gen-{secrets.token_hex(12)}",
        "request_id": "req-1",
        "caller": caller,
        "dialect": "chat",
        "model": "ling",
        "is_streamed": True,
        "session_id": "s",
        "reserve_pico": 1000,
        "prompt_tokens": 10,
        "completion_tokens": 10,
    }
    return Start(**{**values, **fields})


def end_of(prompt: int = 10, completion: int = 5, cached: int = 0, **fields: Any) -> End:
    usage = Usage(prompt_tokens=prompt, cached_tokens=cached, completion_tokens=completion)
    values: dict[str, Any] = {
        "outcome": "completed",
        "status": 200,
        "endpoint": "novita/ling",
        "provider": "Novita",
        "model": "ling",
        "usage": usage,
        "cost": PRICE.cost(usage),
    }
    return End(**{**values, **fields})


def cost_of(pico: int) -> Cost:
    return Cost(prompt=pico)


async def rows_of(accounts: LedgerAccounts) -> list[dict[str, Any]]:
    query = select(generation).order_by(generation.c.created_at, generation.c.id)
    rows = await accounts.database.read(lambda c: c.execute(query).mappings().all())
    return [dict(row) for row in rows]


async def num_reservations(accounts: LedgerAccounts) -> int:
    query = select(reservation.c.id)
    return len(await accounts.database.read(lambda c: c.execute(query).all()))


def accounts_app(accounts: LedgerAccounts) -> FastAPI:
    """The accounts' routes alone, with OpenRouter's errors."""
    errors = ErrorDialect(
        "OpenRouterError",
        {"type": "object", "required": ["error"]},
        lambda error: {"error": {"code": error.status, "message": error.message}},
    )
    app = make_app(HttpContext(HttpMetrics(), dialect_of=lambda path: errors))
    app.include_router(accounts_router(accounts))
    install_openapi(app, MODELS)
    return app


def client_of(app: FastAPI, key: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app),
        base_url="http://gateway",
        headers={"authorization": f"Bearer {key}"},
    )


async def served(accounts: LedgerAccounts, start: Start, end: End) -> None:
    """One request from beginning to end."""
    await accounts.settle(await accounts.admit(start), end)
