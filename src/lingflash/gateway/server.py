"""Serves the gateway: the application in `httpd`'s server, with the accounts behind it."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Iterable

from fastapi import APIRouter

from lingflash.core.errors import ConfigError, LingflashError
from lingflash.core.log import log_event
from lingflash.gateway.accounting import Accounts
from lingflash.gateway.app import create_gateway_app
from lingflash.gateway.config.load import GatewayConfig
from lingflash.gateway.state import GatewayState
from lingflash.httpd.server import run_server

logger = logging.getLogger("lingflash.gateway")


class _AccountsService:
    """The accounts as what a server stands in front of: opened before it, closed after it."""

    name = "accounts"

    def __init__(self, state: GatewayState, close: Callable[[], Awaitable[None]]) -> None:
        self._state = state
        self._close = close

    async def start(self) -> None:
        """They are open; what the directories know is asked for."""
        await self._state.watches.start()

    async def wait_dead(self) -> LingflashError:
        """They tell of every failure themselves."""
        await asyncio.Event().wait()
        raise AssertionError("nothing sets the event")

    def drain(self) -> None:
        """Nothing of them would be mended."""

    async def stop(self) -> None:
        """Close directories, connections and accounts, once no request needs them."""
        self._state.watches.close()
        self._state.pool.close()
        await self._close()


async def serve_gateway(
    config: GatewayConfig,
    accounts: Accounts,
    sock: socket.socket,
    *,
    close: Callable[[], Awaitable[None]],
    reload: Callable[[], GatewayConfig],
    routers: Iterable[APIRouter] = (),
    on_ready: Callable[[GatewayState], None] | None = None,
) -> None:
    """Serve until a signal, drain, close the accounts.

    Args:
        accounts: open.
        reload: reads the file again, on SIGHUP; what it refuses changes nothing.
        routers: of the accounts' own endpoints.
    """
    app = create_gateway_app(config, accounts, routers)
    state: GatewayState = app.state.context

    def announce() -> None:
        log_event(logger, "ready", {"models": ",".join(config.catalog.names())})
        if on_ready is not None:
            on_ready(state)

    await run_server(
        app,
        state,
        _AccountsService(state, close),
        sock,
        on_ready=announce,
        on_hangup=lambda: reload_config(state, reload),
    )


def reload_config(state: GatewayState, reload: Callable[[], GatewayConfig]) -> None:
    """Read the file again; a bad one is told of, and the old one stays."""
    try:
        config = reload()
    except ConfigError as error:
        state.metrics.reloads.labels("refused").inc()
        fields = {"error": error.message, "hint": "the configuration from before stays in use"}
        log_event(logger, "reload_refused", fields, level=logging.ERROR)
        return
    state.take_config(config)
    state.metrics.reloads.labels("done").inc()
    log_event(logger, "reloaded", {"models": ",".join(config.catalog.names())})
