"""The directory of replicas, and what `ling cluster status`, `drain`, `restart` and `down` ask."""

from __future__ import annotations

import signal
import time
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from pydantic import BaseModel, ConfigDict

from lingflash.cluster.controller import Controller
from lingflash.core.metrics import HttpMetrics
from lingflash.httpd.app import make_app
from lingflash.httpd.auth import require_key
from lingflash.httpd.body import json_response, read_request
from lingflash.httpd.context import HttpContext, context_of
from lingflash.httpd.health import health_router
from lingflash.httpd.openapi import install_openapi, json_body
from lingflash.protocol.replicas import write_listing

_STATES = ("placing", "starting", "ready", "unready", "draining")
# Beyond what replicas may take to drain.
_MARGIN_S = 30.0


class ClusterContext(HttpContext):
    """What `httpd` shares, and the controller."""

    def __init__(self, controller: Controller) -> None:
        config = controller.config
        metrics = HttpMetrics()
        metrics.registry.register(_Fleet(controller))
        super().__init__(
            metrics,
            api_keys=(config.token,),
            drain_timeout_s=config.replica.notice_s + config.replica.drain_timeout_s + _MARGIN_S,
        )
        self.controller = controller

    @property
    def not_ready(self) -> str | None:
        """Why the directory would not be whole, or None: gateways then keep what they know."""
        if not self.is_draining and not self.controller.knows_all:
            return "The replicas that run already have not all been heard."
        return super().not_ready


def create_cluster_app(controller: Controller) -> FastAPI:
    """Build the application; `app.state.context` is its ClusterContext."""
    app = make_app(ClusterContext(controller))
    app.include_router(health_router({"name": "lingflash cluster", "api": "/cluster"}))
    app.include_router(_router, dependencies=[Depends(require_key)])
    install_openapi(app, [DrainRequest])
    return app


class DrainRequest(BaseModel):
    """The body of /cluster/drain: the id of a replica."""

    model_config = ConfigDict(extra="forbid", strict=True)

    replica: str


_router = APIRouter(prefix="/cluster")


def _controller(request: Request) -> Controller:
    context = context_of(request)
    assert isinstance(context, ClusterContext)
    return context.controller


@_router.get("/replicas")
async def replicas(request: Request) -> Response:
    """The directory, as gateways read it."""
    controller = _controller(request)
    if not controller.knows_all:
        context_of(request).require_ready()
    body = write_listing(controller.entries())
    return Response(body, media_type="application/json")


@_router.get("/status")
async def status(request: Request) -> Response:
    """Replicas in all their states, machines, and why the last one failed."""
    return json_response(status_of(_controller(request), time.monotonic()))


@_router.post("/drain", openapi_extra=json_body(DrainRequest))
async def drain(request: Request) -> Response:
    """Put another replica in the place of one."""
    asked = await read_request(request, DrainRequest)
    _controller(request).replace(asked.replica)
    return json_response({"replacing": asked.replica})


@_router.post("/restart")
async def restart(request: Request) -> Response:
    """Put others in the place of all replicas, a few at a time."""
    controller = _controller(request)
    controller.restart()
    return json_response({"replacing": len(controller.members())})


@_router.post("/down")
async def down(request: Request) -> Response:
    """Drain all replicas and end."""
    controller = _controller(request)
    controller.end()
    signal.raise_signal(signal.SIGTERM)
    return json_response({"draining": len(controller.members())})


def status_of(controller: Controller, now_s: float) -> dict[str, Any]:
    """What `ling cluster status` shows."""
    return {
        "wanted": controller.wanted,
        "min": controller.config.scale.min,
        "max": controller.config.scale.most,
        "predicted_first_token_s": controller.predicted_s,
        "last_error": controller.last_error,
        "replicas": [
            {
                "id": each.id,
                "state": each.state,
                "for_s": round(now_s - each.since_s, 1),
                "is_current": each.generation == controller.generation and not each.is_leaving,
                "node": each.node,
                "url": each.url,
                "capacity": each.health.capacity,
                "sequences": each.health.sequences,
                "tokens_in_flight": each.health.tokens_in_flight,
                "queued_prompt_tokens": each.health.queued_prompt_tokens,
                "prompt_tokens_per_s": each.rate.per_s,
                "sessions": each.health.sessions,
            }
            for each in controller.members()
        ],
        "nodes": list(controller.nodes()),
    }


class _Fleet(Collector):
    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> list[Metric]:
        states = [each.state for each in self._controller.members()]
        by_state = GaugeMetricFamily(
            "lingflash_cluster_replicas", "Replicas by state", labels=["state"]
        )
        for state in _STATES:
            by_state.add_metric([state], states.count(state))
        return [
            by_state,
            _gauge("wanted", "Replicas that there should be", self._controller.wanted),
            _gauge(
                "predicted_first_token_seconds",
                "What a request that came now would wait; NaN while no rate was seen",
                self._controller.predicted_s,
            ),
        ]


def _gauge(name: str, what: str, value: float | None) -> Metric:
    shown = float("nan") if value is None else value
    return GaugeMetricFamily(f"lingflash_cluster_{name}", what, value=shown)
