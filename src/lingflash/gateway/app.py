"""Puts the gateway's application together."""

from __future__ import annotations

from collections.abc import Iterable

from fastapi import APIRouter, FastAPI

from lingflash.gateway.accounting import Accounts
from lingflash.gateway.config.load import GatewayConfig
from lingflash.gateway.routes import catalogue, inference, plain
from lingflash.gateway.state import GatewayState
from lingflash.httpd.app import make_app
from lingflash.httpd.openapi import install_openapi

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
    app = make_app(GatewayState(config, accounts))
    for router in (plain.router, inference.router, *routers, catalogue.router):
        app.include_router(router)
    install_openapi(app, streams=_STREAMS)
    return app
