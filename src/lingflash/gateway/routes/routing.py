"""/api/v1/routes: how each upstream is now, for whoever runs the gateway."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

from lingflash.gateway.accounting import require_management
from lingflash.gateway.config.tables import Upstream
from lingflash.gateway.routing.catalog import Endpoint
from lingflash.gateway.routing.plan import HOUSE
from lingflash.gateway.state import GatewayState, state_of
from lingflash.httpd.body import json_response

router = APIRouter()


@router.get("/api/v1/routes")
async def routes(request: Request) -> Response:
    """Every upstream: its breakers, its endpoints with their pins, what failed there last."""
    state = state_of(request)
    require_management(await state.caller_of(request))
    pins = await state.accounts.pins()
    data = [_upstream(state, each, pins) for each in state.config.upstreams.values()]
    return json_response({"data": data, "degraded": list(state.accounts.degraded)})


def _upstream(state: GatewayState, upstream: Upstream, pins: Mapping[str, int]) -> dict[str, Any]:
    now_s = time.monotonic()
    breakers = [
        {
            "key": "house" if tag.partition("@")[0] == HOUSE.id else "brought",
            "replica": tag.partition("@")[2] or None,
            "state": breaker,
            "rests_s": round(state.breakers.rests_s(name, now_s), 1),
        }
        for name, breaker in state.breakers.states(now_s).items()
        for slug, _, tag in [name.partition("#")]
        if slug == upstream.slug
    ]
    endpoints = [
        each for each in state.config.catalog.endpoints.values() if each.slug == upstream.slug
    ]
    return {
        "name": upstream.name,
        "slug": upstream.slug,
        "base_url": upstream.table.base_url,
        "directory": upstream.directory,
        "dialects": list(upstream.table.dialects),
        "has_house_key": any(each.has_house_key for each in endpoints),
        "breakers": breakers,
        "endpoints": [_endpoint(state, each, pins.get(each.id, 0)) for each in endpoints],
        "failures": _failures(state, endpoints),
    }


def _endpoint(state: GatewayState, endpoint: Endpoint, pinned: int) -> dict[str, Any]:
    outcomes, seen = state.outcomes, state.measurements
    latency_s = seen.latency_s(endpoint.id)
    answered_ms = outcomes.answered_ms.get(endpoint.id)
    return {
        "id": endpoint.id,
        "model": endpoint.model,
        "upstream_model": endpoint.upstream_model,
        "quantization": endpoint.quantization,
        "pinned_sessions": pinned,
        "answered": outcomes.answered[endpoint.id],
        "failed": outcomes.failed[endpoint.id],
        "last_answer_at": None if answered_ms is None else _iso(answered_ms),
        "latency_ms": None if latency_s is None else round(latency_s * 1000, 1),
        "tokens_per_s": seen.tokens_per_s(endpoint.id),
    }


def _failures(state: GatewayState, endpoints: list[Endpoint]) -> list[dict[str, Any]]:
    """Those of all endpoints, the latest first."""
    found = [
        (failure.at_ms, {"endpoint": each.id, **msgspec.to_builtins(failure)})
        for each in endpoints
        for failure in state.outcomes.failures.get(each.id, ())
    ]
    found.sort(key=lambda pair: -pair[0])
    return [{"at": _iso(told.pop("at_ms")), **told} for _, told in found]


def _iso(ms: int) -> str:
    moment = datetime.fromtimestamp(ms / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
