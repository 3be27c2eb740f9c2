"""`ling cluster up`: the controller, and in front of it the server that gateways ask."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

from lingflash.cluster.app import ClusterContext, create_cluster_app
from lingflash.cluster.controller import Controller
from lingflash.core.errors import EngineError, LingflashError
from lingflash.core.log import log_event
from lingflash.httpd.server import run_server

logger = logging.getLogger("lingflash.cluster")

_POLL_S = 0.1


class _ControllerService:
    """The controller as what a server stands in front of."""

    name = "controller"

    def __init__(self, context: ClusterContext) -> None:
        self._context = context
        self._controller = context.controller
        self._running: asyncio.Task[None] | None = None
        self._emptying: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to look after the replicas; they become ready in their own time."""
        self._running = asyncio.create_task(self._controller.run())

    async def wait_dead(self) -> LingflashError:
        """A bug of ours, since nothing that befalls a replica ends the controller."""
        assert self._running is not None
        await asyncio.wait((self._running,))
        error = self._running.exception()
        logger.error("the controller failed", exc_info=error)
        return EngineError(f"The controller failed: {error!r}. The log has where.")

    def drain(self) -> None:
        """Replicas that would end with this process are drained; others go on without it."""
        controller = self._controller
        if controller.keeps_replicas and not controller.is_ending:
            log_event(logger, "replicas_go_on", {"replicas": len(controller.members())})
            return
        controller.end()
        self._context.in_flight["replicas"] = controller.kill_all
        self._emptying = asyncio.create_task(self._wait_empty())

    async def stop(self) -> None:
        """Look after them no more."""
        for task in (self._running, self._emptying):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        if self._controller.is_ending:
            self._controller.kill_all()

    async def _wait_empty(self) -> None:
        while not self._controller.is_empty:
            await asyncio.sleep(_POLL_S)
        del self._context.in_flight["replicas"]


async def serve_cluster(
    controller: Controller, sock: socket.socket, on_ready: Callable[[], None]
) -> None:
    """Serve until a signal or `ling cluster down`.

    Args:
        controller: its placer is connected.
        on_ready: called once it listens; replicas may still be loading.

    Raises:
        LingflashError: the controller failed.
    """
    app = create_cluster_app(controller)
    context: ClusterContext = app.state.context
    await run_server(app, context, _ControllerService(context), sock, on_ready=on_ready)
