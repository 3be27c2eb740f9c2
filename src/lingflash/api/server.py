"""Serves an engine: the application in `httpd`'s server, with the engine behind it."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Mapping
from typing import Any

from lingflash.api.app import create_app
from lingflash.api.config import ServerConfig
from lingflash.api.state import ServerState
from lingflash.core.log import log_event
from lingflash.httpd.server import run_server
from lingflash.link.client import EngineClient

logger = logging.getLogger("lingflash.api")


class _EngineService:
    """An engine as what a server stands in front of."""

    name = "engine"

    def __init__(self, engine: EngineClient) -> None:
        self.start = engine.start
        self.wait_dead = engine.wait_dead
        self.drain = engine.drain
        self.stop = engine.stop


async def serve_engine(
    engine: EngineClient,
    config: ServerConfig,
    sock: socket.socket,
    *,
    on_ready: Callable[[ServerState], None] | None = None,
    evidence: Mapping[str, Any] | None = None,
) -> None:
    """Start the engine, serve until a signal, drain, stop. While it loads, /ready says so.

    Args:
        evidence: what `config.evidence` holds.

    Raises:
        LingflashError: the engine could not start, or is gone for good.
    """
    app = create_app(engine, config, evidence)
    state: ServerState = app.state.context

    def announce() -> None:
        log_event(logger, "ready", {"models": ",".join(config.served_model_names)})
        if on_ready is not None:
            on_ready(state)

    looking = None if state.containers is None else asyncio.create_task(state.containers.look())
    try:
        await run_server(app, state, _EngineService(engine), sock, on_ready=announce)
    finally:
        if looking is not None and state.containers is not None:
            looking.cancel()
            await state.containers.close()
        state.responses.close()
        state.grammars.close()
