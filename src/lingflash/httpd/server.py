"""Runs the application: socket, engine, signals, drain, exit code."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import socket
import time
from collections.abc import Callable, Iterator

import uvicorn

from lingflash.api.app import create_app
from lingflash.api.config import ServerConfig
from lingflash.api.state import ServerState
from lingflash.core.errors import ConfigError
from lingflash.core.log import log_event
from lingflash.link.client import EngineClient

logger = logging.getLogger("lingflash.api")

_POLL_S = 0.05
# After the aborts, how long the last answers may take to be written.
_LAST_WORDS_S = 2.0


def bind_socket(host: str, port: int) -> socket.socket:
    """Take the address before the model is loaded, so that a used port is known at once.

    Raises:
        ConfigError: it cannot be had.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # asyncio turns Nagle's delay off only where the protocol is given, not 0 for "the usual".
        sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    except OSError as error:
        raise ConfigError(f"--host {host!r} is no usable address: {error}.", param="host") from None
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(2048)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            message = f"Port {port} on {host} is in use; stop what uses it, or give another --port."
        elif error.errno == errno.EACCES:
            message = (
                f"Port {port} on {host} may not be used by this user; give a --port over 1023."
            )
        else:
            message = f"--host {host} --port {port} cannot be used: {error}."
        raise ConfigError(message, param="port") from None
    sock.setblocking(False)
    return sock


async def run_server(
    engine: EngineClient,
    config: ServerConfig,
    sock: socket.socket,
    *,
    on_ready: Callable[[ServerState], None] | None = None,
) -> None:
    """Start the engine, serve until a signal, drain, stop. While it loads, /ready says so.

    Args:
        engine: not yet started.
        config: of the server.
        sock: from `bind_socket`.
        on_ready: called when the engine can serve.

    Raises:
        LingflashError: the engine could not start, or is gone for good.
    """
    app = create_app(engine, config)
    state: ServerState = app.state.server
    server = _Server(
        uvicorn.Config(
            app,
            http="httptools",
            loop="none",  # already running
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=max(1, round(_LAST_WORDS_S)),
        )
    )
    engine_lives = False
    stop = asyncio.Event()
    signals = _Signals(stop)
    serving = asyncio.create_task(server.serve(sockets=[sock]))
    stopping = asyncio.create_task(stop.wait())
    tasks: list[asyncio.Task[object]] = [serving, stopping]
    try:
        with signals.installed():
            starting = asyncio.create_task(engine.start())
            tasks.append(starting)
            await asyncio.wait((starting, stopping, serving), return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()  # raises what the engine said
                engine_lives = True
                log_event(logger, "ready", {"models": ",".join(config.served_model_names)})
                if on_ready is not None:
                    on_ready(state)
                dead = asyncio.create_task(engine.wait_dead())
                tasks.append(dead)
                await asyncio.wait((stopping, dead, serving), return_when=asyncio.FIRST_COMPLETED)
                if dead.done():
                    engine_lives = False
                    raise dead.result()
                await _drain(state, signals)
    finally:
        state.is_draining = True
        server.should_exit = True
        # The engine first: its end ends the answers that uvicorn waits for.
        try:
            await engine.stop()
        except Exception as error:
            # It must not hide why we are here; of an engine that is gone it is no news either.
            fields = {"error": type(error).__name__, "message": str(error)}
            level = logging.ERROR if engine_lives else logging.DEBUG
            log_event(logger, "engine_stop_failed", fields, level=level)
        await asyncio.gather(serving, return_exceptions=True)
        state.responses.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _drain(state: ServerState, signals: _Signals) -> None:
    """Refuse new requests, let running ones finish, abort the rest."""
    state.is_draining = True
    state.engine.drain()
    timeout_s = state.config.drain_timeout_s
    log_event(logger, "draining", {"running": len(state.in_flight), "timeout_s": timeout_s})
    deadline = time.monotonic() + timeout_s
    while state.in_flight and time.monotonic() < deadline and not signals.is_impatient:
        await asyncio.sleep(_POLL_S)
    if state.in_flight:
        log_event(logger, "drain_aborts", {"running": len(state.in_flight)})
        for request_id in list(state.in_flight):
            state.engine.abort(request_id)
        deadline = time.monotonic() + _LAST_WORDS_S
        while state.in_flight and time.monotonic() < deadline:
            await asyncio.sleep(_POLL_S)


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers, which would close the listener before the drain."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Signals:
    """SIGTERM and SIGINT: the first asks for a drain, the second for a quick end."""

    def __init__(self, stop: asyncio.Event) -> None:
        self._stop = stop
        self.is_impatient = False

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        installed: list[signal.Signals] = []
        for number in (signal.SIGTERM, signal.SIGINT):
            # Not on Windows, nor in a thread that is not the main one (tests).
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
                loop.add_signal_handler(number, self._on_signal)
                installed.append(number)
        try:
            yield
        finally:
            for number in installed:
                loop.remove_signal_handler(number)

    def _on_signal(self) -> None:
        if self._stop.is_set():
            self.is_impatient = True
        self._stop.set()
