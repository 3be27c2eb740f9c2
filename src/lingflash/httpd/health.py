"""GET / (what this is), /health (the process lives), /ready (it can serve) and /metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fastapi import APIRouter, Depends, Request, Response

from lingflash.core.metrics import CONTENT_TYPE
from lingflash.httpd.auth import require_key
from lingflash.httpd.body import json_response
from lingflash.httpd.context import context_of
from lingflash.httpd.error_map import RETRY_AFTER_S


def health_router(
    about: Mapping[str, Any], while_ready: Callable[[Request], Mapping[str, Any]] = lambda _: {}
) -> APIRouter:
    """The routes by which supervisors, balancers and scrapers know a server.

    Args:
        about: what answers here; clients ask it to see whether anything does.
        while_ready: what /ready says beside.
    """
    router = APIRouter()

    @router.get("/")
    async def root() -> Response:
        """Say what answers here."""
        return json_response({**about, "openapi": "/openapi.json"})

    @router.get("/health")
    async def health() -> Response:
        """Say that the process answers; a supervisor restarts it if not."""
        return json_response({"status": "alive"})

    @router.get("/ready")
    async def ready(request: Request) -> Response:
        """Say whether a request sent now would be served; a load balancer asks this."""
        reason = context_of(request).not_ready
        if reason is None:
            return json_response({"status": "ready", **while_ready(request)})
        return json_response(
            {
                "status": "not ready",
                "reason": reason,
                "draining": context_of(request).is_draining,
            },
            status=503,
            headers={"retry-after": str(RETRY_AFTER_S)},
        )

    @router.get("/metrics", dependencies=[Depends(require_key)])
    async def metrics(request: Request) -> Response:
        """Give all series in Prometheus' text format."""
        content = context_of(request).metrics.render()
        return Response(content, headers={"content-type": CONTENT_TYPE})

    return router
