"""Puts the gateway's application together."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from fastapi import APIRouter, FastAPI, Request

from lingflash.gateway.accounting import Accounts
from lingflash.gateway.config.load import GatewayConfig
from lingflash.gateway.routes import catalogue, inference, routing
from lingflash.gateway.state import GatewayState, state_of
from lingflash.httpd.app import make_app
from lingflash.httpd.health import health_router
from lingflash.httpd.openapi import install_openapi
from lingflash.httpd.page import install_page

_STREAMS = tuple(
    prefix + path
    for prefix in ("/v1", "/api/v1")
    for path in ("/chat/completions", "/completions", "/responses", "/messages")
)


def create_gateway_app(
    config: GatewayConfig, accounts: Accounts, routers: Iterable[APIRouter] = ()
) -> FastAPI:
    """Build the application; `app.state.context` is its GatewayState.

    Args:
        accounts: whoever made them closes them.
        routers: of the accounts' own endpoints.
    """
    app = make_app(GatewayState(config, accounts), inference.DIRECT)
    health = health_router({"name": "lingflash gateway", "api": ["/v1", "/api/v1"]}, _while_ready)
    for router in (health, inference.router, *routers, catalogue.router, routing.router):
        app.include_router(router)
    if config.server.has_page:
        install_page(
            app,
            "ling gateway",
            ("playground", "usage", "routes"),
            needs_key=True,
            features=("accounts",),
        )
    install_openapi(app, streams=_STREAMS)
    return app


def _while_ready(request: Request) -> dict[str, Any]:
    state = state_of(request)
    resting = {key.partition("#")[0] for key in state.breakers.states(time.monotonic())}
    silent = sorted(name for name, watch in state.watches.items() if watch.problem is not None)
    degraded = [*state.accounts.degraded, *(f"directory {name}" for name in silent)]
    return {"degraded": degraded, "resting": sorted(resting)}
