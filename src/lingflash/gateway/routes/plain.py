"""GET / (what this is), /health (the process lives), /ready (it can serve) and /metrics."""

from __future__ import annotations

import time

from fastapi import APIRouter, Depends, Request, Response

from lingflash.core.metrics import CONTENT_TYPE
from lingflash.gateway.state import state_of
from lingflash.httpd.auth import require_key
from lingflash.httpd.body import json_response
from lingflash.httpd.error_map import RETRY_AFTER_S

router = APIRouter()


@router.get("/")
async def root() -> Response:
    """Say what answers here."""
    return json_response(
        {"name": "lingflash gateway", "api": ["/v1", "/api/v1"], "openapi": "/openapi.json"}
    )


@router.get("/health")
async def health() -> Response:
    """Say that the process answers; a supervisor restarts it if not."""
    return json_response({"status": "alive"})


@router.get("/ready")
async def ready(request: Request) -> Response:
    """Say whether a request sent now would be served; a load balancer asks this."""
    state = state_of(request)
    reason = state.not_ready
    if reason is not None:
        return json_response(
            {"status": "not ready", "reason": reason},
            status=503,
            headers={"retry-after": str(RETRY_AFTER_S)},
        )
    resting = sorted({key.partition("#")[0] for key in state.breakers.states(time.monotonic())})
    degraded = list(state.accounts.degraded)
    return json_response({"status": "ready", "degraded": degraded, "resting": resting})


@router.get("/metrics", dependencies=[Depends(require_key)])
async def metrics(request: Request) -> Response:
    """Give all series in Prometheus' text format."""
    content = state_of(request).metrics.render()
    return Response(content, headers={"content-type": CONTENT_TYPE})
