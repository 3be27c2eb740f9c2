"""What the log, the metrics and a collector hear of a request that has ended."""

from __future__ import annotations

import logging

from lingflash.core.log import log_event
from lingflash.gateway.accounting import PICO_PER_USD, End, Start
from lingflash.gateway.relay.call import Call
from lingflash.gateway.state import GatewayState

logger = logging.getLogger("lingflash.gateway")


def report(state: GatewayState, call: Call, start: Start, end: End) -> None:
    """Tell of one request."""
    _count(state, start, end)
    usage = end.usage
    fields = {
        "request_id": call.request_id,
        "generation": call.id,
        "model": start.model,
        "provider": end.provider,
        "replica": end.replica,
        "route": end.wire.get("route"),
        "attempts": len(end.attempts),
        "outcome": end.outcome,
        "error": end.error_code,
        "prompt_tokens": usage.prompt_tokens if usage else None,
        "cached_tokens": usage.cached_tokens if usage else None,
        "cache_write_tokens": usage.cache_write_tokens if usage else None,
        "completion_tokens": usage.completion_tokens if usage else None,
        "ttft_ms": end.ttft_ms,
        "duration_ms": end.duration_ms,
    }
    log_event(logger, "relayed", fields)
    if state.telemetry is not None:
        state.telemetry.record(start, end, call.trace)


def _count(state: GatewayState, start: Start, end: End) -> None:
    metrics, usage = state.metrics, end.usage
    metrics.requests.labels(start.model, start.dialect, end.outcome).inc()
    metrics.duration_s.observe(end.duration_ms / 1000)
    if end.ttft_ms is not None:
        metrics.first_content_s.observe(end.ttft_ms / 1000)
    if usage is not None and end.provider is not None:
        for kind, count in (
            ("prompt", usage.prompt_tokens),
            ("cached", usage.cached_tokens),
            ("cache_write", usage.cache_write_tokens),
            ("completion", usage.completion_tokens),
        ):
            metrics.tokens.labels(end.provider, kind).inc(count)
        metrics.cost_usd.labels(end.provider).inc(end.cost.total / PICO_PER_USD)
