"""Runs an application: socket, signals, drain, and the service that it stands in front of."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import uvicorn
from starlette.types import ASGIApp

from lingflash.core.errors import ConfigError, LingflashError
from lingflash.core.log import log_event
from lingflash.httpd.connection import Connections
from lingflash.httpd.context import HttpContext
from lingflash.httpd.limits import fitted_to_files

logger = logging.getLogger("lingflash.httpd")

_POLL_S = 0.05
# What the end takes at most, so that it is over when --drain-timeout-s is: the errors of what was
# aborted, the service, the last bytes to slow clients, and what the caller closes. All of it is
# shorter where the limit is below so many seconds.
_ERRORS_S, _SERVICE_S, _LAST_BYTES_S, _CALLER_S = 1.0, 2.0, 1.0, 1.0
_FULL_PACE_FROM_S = 25.0
_SWEEP_S = 1.0
# What a client may leave unread in the kernel before the server notices that it does not read.
_SEND_BUFFER_BYTES = 256 * 1024


def bind_socket(
    host: str, port: int, *, host_name: str = "--host", port_name: str = "--port"
) -> socket.socket:
    """Take the address before the model is loaded, so that a used port is known at once.

    Args:
        host_name, port_name: the settings, as errors call them.

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
        raise ConfigError(
            f"{host_name} {host!r} is no usable address: {error}.", param="host"
        ) from None
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        sock.bind(address)
        sock.listen(2048)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            message = (
                f"Port {port} on {host} is in use; stop what uses it, or give another {port_name}."
            )
        elif error.errno == errno.EACCES:
            message = (
                f"Port {port} on {host} may not be used by this user; give a {port_name} over 1023."
            )
        else:
            message = f"{host_name} {host} {port_name} {port} cannot be used: {error}."
        raise ConfigError(message, param="port") from None
    sock.setblocking(False)
    return sock


class Service(Protocol):
    """What a server stands in front of, such as an engine."""

    @property
    def name(self) -> str:
        """What log lines call it."""
        ...

    async def start(self) -> None:
        """Return when it can serve.

        Raises:
            LingflashError: it could not be started.
        """
        ...

    async def wait_dead(self) -> LingflashError:
        """Return why, when it has failed for good; not after stop()."""
        ...

    def drain(self) -> None:
        """No new work will come; it need not be mended any more."""
        ...

    async def stop(self) -> None:
        """End it and what still runs; it may not have been started, or be dead.

        If it takes too long it is cancelled, and is to end what it can at once.
        """
        ...


async def run_server(
    app: ASGIApp,
    context: HttpContext,
    service: Service,
    sock: socket.socket,
    *,
    more_socks: Sequence[socket.socket] = (),
    on_ready: Callable[[], None] | None = None,
    on_hangup: Callable[[], None] | None = None,
) -> None:
    """Start the service, serve until a signal, drain, stop. It listens while the service starts.

    Args:
        on_hangup: what SIGHUP does, such as reading settings again; without it, it ends the server.

    Raises:
        LingflashError: the service could not start, or is gone for good.
    """
    metrics = context.metrics
    connections = Connections(
        fitted_to_files(context.connections),
        lambda reason: metrics.connections_dropped.labels(reason).inc(),
    )
    metrics.connections_open.set_function(lambda: connections.num_open)
    server = _Server(
        uvicorn.Config(
            app,
            http=connections.protocol(),
            loop="none",  # already running
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
        )
    )
    is_alive = False
    stop = asyncio.Event()
    signals = _Signals(stop, on_hangup)
    serving = asyncio.create_task(server.serve(sockets=[sock, *more_socks]))
    stopping = asyncio.create_task(stop.wait())
    sweeping = asyncio.create_task(_sweep(connections))
    tasks: list[asyncio.Task[Any]] = [serving, stopping, sweeping]
    try:
        with signals.installed():
            starting = asyncio.create_task(service.start())
            tasks.append(starting)
            await asyncio.wait((starting, stopping, serving), return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()  # raises what the service said
                is_alive = True
                if on_ready is not None:
                    on_ready()
                dead = asyncio.create_task(service.wait_dead())
                tasks.append(dead)
                await asyncio.wait((stopping, dead, serving), return_when=asyncio.FIRST_COMPLETED)
                if dead.done():
                    is_alive = False
                    raise dead.result()
                service.drain()
                await _drain(context, signals)
    finally:
        context.is_draining = True
        server.should_exit = True
        # The service first: its end ends the answers that uvicorn waits for.
        try:
            await asyncio.wait_for(service.stop(), _SERVICE_S * _pace(context))
        except TimeoutError:
            log_event(logger, f"{service.name}_killed", {}, level=logging.WARNING)
        except Exception as error:
            # It must not hide why we are here; of a service that is gone it is no news either.
            fields = {"error": type(error).__name__, "message": str(error)}
            level = logging.ERROR if is_alive else logging.DEBUG
            log_event(logger, f"{service.name}_stop_failed", fields, level=level)
        await _end_connections(server, serving, _LAST_BYTES_S * _pace(context))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _sweep(connections: Connections) -> None:
    while True:
        await asyncio.sleep(_SWEEP_S)
        connections.sweep()


def _pace(context: HttpContext) -> float:
    return min(max(context.drain_timeout_s / _FULL_PACE_FROM_S, 0.2), 1.0)


async def _drain(context: HttpContext, signals: _Signals) -> None:
    """Refuse new requests, let running ones finish, abort the rest in time for a whole end."""
    context.is_draining = True
    running, timeout_s = context.in_flight, context.drain_timeout_s
    log_event(logger, "draining", {"running": len(running), "timeout_s": timeout_s})
    end_s = _pace(context) * (_ERRORS_S + _SERVICE_S + _LAST_BYTES_S + _CALLER_S)
    deadline = time.monotonic() + timeout_s - end_s
    while running and time.monotonic() < deadline and not signals.is_impatient:
        await asyncio.sleep(_POLL_S)
    if running:
        log_event(logger, "drain_aborts", {"running": len(running)})
        for abort in list(running.values()):
            abort()
        deadline = time.monotonic() + _ERRORS_S * _pace(context)
        while running and time.monotonic() < deadline:
            await asyncio.sleep(_POLL_S)


async def _end_connections(
    server: uvicorn.Server, serving: asyncio.Task[Any], patience_s: float
) -> None:
    """Wait for what is being written; then leave clients that do not read, or have not written."""
    await asyncio.wait((serving,), timeout=patience_s)
    for connection in list(server.server_state.connections):
        connection.transport.abort()
    await asyncio.wait((serving,), timeout=patience_s)
    server.force_exit = True
    await asyncio.gather(serving, return_exceptions=True)


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers, which would close the listener before the drain."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


_ENDS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


class _Signals:
    """SIGTERM and its like: the first asks for a drain, the second for a quick end.

    SIGHUP is a terminal that was closed, unless the server has a use for it. SIGUSR1, which would
    end the process, is not for us.
    """

    def __init__(self, stop: asyncio.Event, on_hangup: Callable[[], None] | None) -> None:
        self._stop = stop
        self._on_hangup = on_hangup
        self.is_impatient = False

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        installed: list[signal.Signals] = []
        for number in (*_ENDS, signal.SIGUSR1):
            # Not on Windows, nor in a thread that is not the main one (tests).
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
                loop.add_signal_handler(number, self._handler_of(number))
                installed.append(number)
        try:
            yield
        finally:
            for number in installed:
                loop.remove_signal_handler(number)

    def _handler_of(self, number: signal.Signals) -> Callable[[], None]:
        if number == signal.SIGHUP and self._on_hangup is not None:
            return self._on_hangup
        return self._on_signal if number in _ENDS else _ignore

    def _on_signal(self) -> None:
        if self._stop.is_set():
            self.is_impatient = True
        self._stop.set()


def _ignore() -> None:
    pass
