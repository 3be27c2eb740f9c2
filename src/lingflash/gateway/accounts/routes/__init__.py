"""The accounts over HTTP: OpenRouter's paths for keys and money, and our token bill.

app.include_router(accounts_router(accounts))
install_openapi(app, (*MODELS, ...))
"""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request

from lingflash.gateway.accounts.routes import byok, key, keys, sessions, usage
from lingflash.gateway.accounts.service import LedgerAccounts
from lingflash.gateway.accounts.wire import MODELS

__all__ = ["MODELS", "accounts_router"]


def accounts_router(accounts: LedgerAccounts) -> APIRouter:
    """All routes of these accounts; each asks for a key of theirs by itself."""

    def give(request: Request) -> None:
        request.state.accounts = accounts

    router = APIRouter(dependencies=[Depends(give)])
    for each in (key.router, keys.router, byok.router, sessions.router, usage.router):
        router.include_router(each)
    return router
