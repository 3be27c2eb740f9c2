"""OpenTelemetry: a span and metrics for each request, in the GenAI conventions' names.

The conventions are still drafts, so no other module knows one of their names. A span is made when
its request has ended, from what is known then; it has no prompts, answers or keys.
https://opentelemetry.io/docs/specs/semconv/gen-ai/
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lingflash.gateway.accounting import Dialect, End, Start

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

_SCOPE = "lingflash.gateway"
_OPERATIONS: dict[Dialect, str] = {
    "chat": "chat",
    "messages": "chat",
    "responses": "chat",
    "completions": "text_completion",
}


class Telemetry:
    """Records ended requests.

    Args:
        tracers, meters: where spans and metrics go.
    """

    def __init__(self, tracers: TracerProvider, meters: MeterProvider) -> None:
        self._tracer = tracers.get_tracer(_SCOPE)
        meter = meters.get_meter(_SCOPE)
        self._tokens = meter.create_histogram("gen_ai.client.token.usage", "{token}")
        self._duration = meter.create_histogram("gen_ai.server.request.duration", "s")
        self._first = meter.create_histogram("gen_ai.server.time_to_first_token", "s")

    def record(self, start: Start, end: End, headers: Mapping[str, str]) -> None:
        """Record a request that has just ended.

        Args:
            headers: of the request, for the trace that it belongs to.
        """
        from opentelemetry.trace import SpanKind, Status, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        common = _common(start, end)
        ended_ns = time.time_ns()
        span = self._tracer.start_span(
            f"{common['gen_ai.operation.name']} {start.model}",
            TraceContextTextMapPropagator().extract(dict(headers)),
            SpanKind.SERVER,
            {**common, **_of_span(start, end)},
            start_time=ended_ns - end.duration_ms * 1_000_000,
        )
        for each in end.attempts:
            span.add_event(
                "lingflash.attempt",
                {
                    "gen_ai.provider.name": each.provider,
                    "http.response.status_code": each.status,
                    "error.type": each.error or "",
                },
            )
        if end.outcome == "failed":
            span.set_status(Status(StatusCode.ERROR, end.error_code))
        span.end(ended_ns)
        self._measure(end, common)

    def _measure(self, end: End, common: Mapping[str, Any]) -> None:
        self._duration.record(end.duration_ms / 1000, common)
        if end.ttft_ms is not None:
            self._first.record(end.ttft_ms / 1000, common)
        if end.usage is not None:
            for kind, count in (
                ("input", end.usage.prompt_tokens),
                ("output", end.usage.completion_tokens),
            ):
                self._tokens.record(count, {**common, "gen_ai.token.type": kind})


def connect() -> Telemetry:
    """Send to the collector that the OTEL_* variables name, by default one on this machine.

    Raises:
        ModuleNotFoundError: the extra `otel` is not installed.
    """
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    # Threads of the SDK send in batches; what a collector does not take in time is dropped.
    tracers = TracerProvider()
    tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    meters = MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter())])
    return Telemetry(tracers, meters)


def _common(start: Start, end: End) -> dict[str, Any]:
    """What spans and metrics share; nothing of it is of one request alone."""
    found: dict[str, Any] = {
        "gen_ai.operation.name": _OPERATIONS[start.dialect],
        "gen_ai.request.model": start.model,
    }
    if end.provider is not None:
        found["gen_ai.provider.name"] = end.provider
    if end.model is not None:
        found["gen_ai.response.model"] = end.model
    if end.error_code is not None:
        found["error.type"] = end.error_code
    return found


def _of_span(start: Start, end: End) -> dict[str, Any]:
    found: dict[str, Any] = {
        "gen_ai.conversation.id": start.session_id,
        "http.response.status_code": end.status,
        "lingflash.generation.id": start.id,
        "lingflash.request.id": start.request_id,
        "lingflash.outcome": end.outcome,
        "lingflash.cost_pico": end.cost.total,
    }
    if end.ttft_ms is not None:
        found["gen_ai.response.time_to_first_chunk"] = end.ttft_ms / 1000
    if end.wire.get("upstream_id"):
        found["gen_ai.response.id"] = end.wire["upstream_id"]
    if end.wire.get("finish_reason"):
        found["gen_ai.response.finish_reasons"] = [end.wire["finish_reason"]]
    usage = end.usage
    if usage is not None:
        found["gen_ai.usage.input_tokens"] = usage.prompt_tokens
        found["gen_ai.usage.output_tokens"] = usage.completion_tokens
        found["gen_ai.usage.cache_read.input_tokens"] = usage.cached_tokens
        found["gen_ai.usage.cache_creation.input_tokens"] = usage.cache_write_tokens
        if usage.reasoning_tokens is not None:
            found["gen_ai.usage.reasoning.output_tokens"] = usage.reasoning_tokens
    return found
