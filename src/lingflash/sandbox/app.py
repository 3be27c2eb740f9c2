"""Puts the sandbox server together."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence

from fastapi import APIRouter, Depends, FastAPI, Request, Response

from lingflash.httpd.app import make_app
from lingflash.httpd.auth import require_key
from lingflash.httpd.body import json_response
from lingflash.httpd.health import health_router
from lingflash.httpd.openapi import install_openapi
from lingflash.httpd.page import install_page
from lingflash.httpd.server import run_server
from lingflash.sandbox.cgroup import Cgroups
from lingflash.sandbox.config import SandboxConfig
from lingflash.sandbox.e2b import code, control, files, filesystem, logs, passing, processes
from lingflash.sandbox.e2b.access import E2B_ERRORS, SandboxContext, sandbox_of, state_of
from lingflash.sandbox.jail.argv import Interpreter
from lingflash.sandbox.manager import Manager
from lingflash.sandbox.metrics import SandboxMetrics
from lingflash.sandbox.remote import Remote

_plain = APIRouter()


@_plain.get("/health")
async def health(request: Request) -> Response:
    """With a sandbox's token or id whether it runs; without, that the process answers."""
    if request.headers.get("x-access-token") or request.headers.get("e2b-sandbox-id"):
        if isinstance(state_of(request).backend, Remote):
            return await passing.inside(request)
        sandbox_of(request, id_is_enough=True)
        return Response(status_code=204)
    return json_response({"status": "alive"})


def create_app(
    config: SandboxConfig, interpreter: Interpreter, groups: Cgroups | None = None
) -> FastAPI:
    """Build the application; `app.state.context.backend` is to be started and stopped.

    Args:
        interpreter: of the sandboxes, if they are on this machine.
        groups: where their cgroups are made, if anywhere.
    """
    numbers = SandboxMetrics()
    context = SandboxContext(
        numbers,
        api_keys=config.api_keys,
        drain_timeout_s=config.drain_timeout_s,
        dialect_of=lambda path: E2B_ERRORS,
    )
    app = make_app(context)
    app.include_router(_plain)  # its /health comes first
    app.include_router(health_router({"name": "lingflash sandbox", "api": "e2b"}))
    if config.backend == "remote":
        context.backend = Remote(config, numbers)
        app.include_router(passing.router)
    else:
        context.backend = Manager(config, interpreter, numbers, groups)
        for module in (control, logs):
            app.include_router(module.router, dependencies=[Depends(require_key)])
        for module in (files, filesystem, processes, code):
            app.include_router(module.router)  # by the sandbox's own token
    if config.has_page:
        screens, needs_key = ("sandboxes",), bool(config.api_keys)
        install_page(app, "ling sandbox", screens, needs_key=needs_key)
    install_openapi(app)
    return app


async def serve(app: FastAPI, socks: Sequence[socket.socket], on_ready: Callable[[], None]) -> None:
    """Serve until a signal.

    Raises:
        LingflashError: a wall does not hold, or no sandbox can be started.
    """
    context: SandboxContext = app.state.context
    await run_server(
        app, context, context.backend, socks[0], more_socks=socks[1:], on_ready=on_ready
    )
