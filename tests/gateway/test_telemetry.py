"""Spans and metrics of requests, in the conventions' names, without secrets or texts."""

from __future__ import annotations

import subprocess
import sys

import pytest

from api_support import wait_until
from gateway_support import HOUSE_KEY, KEY
from gateway_upstream import ScriptedUpstream
from lingflash.gateway.telemetry import Telemetry

export = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
from opentelemetry.sdk.metrics import MeterProvider  # noqa: E402
from opentelemetry.sdk.metrics.export import InMemoryMetricReader  # noqa: E402
from opentelemetry.sdk.trace import TracerProvider  # noqa: E402
from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: E402

TRACE = "0af7651916cd43dd8448eb211c80319c"
BROUGHT = "sk-SENTINEL-of-the-caller"


def test_requests_when_recorded_then_spans_and_metrics_have_the_conventions_names(make_gateway):
    bad, good = ScriptedUpstream("500"), ScriptedUpstream()
    gateway = make_gateway({"Bad": bad, "Good": good})
    spans, metrics = export.InMemorySpanExporter(), InMemoryMetricReader()
    tracers = TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(spans))
    gateway.state.telemetry = Telemetry(tracers, MeterProvider([metrics]))
    headers = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01", "x-provider-key": BROUGHT}
    order = {"order": ["Bad"], "allow_fallbacks": True}
    assert gateway.post(session_id="s", provider=order, headers=headers).is_success
    gateway.in_loop(good.stop)
    gateway.post("/v1/completions", provider={"only": ["Good"]})
    wait_until(lambda: len(spans.get_finished_spans()) == 2)
    served, failed = spans.get_finished_spans()
    assert served.name == "chat test/model"
    assert f"{served.context.trace_id:032x}" == TRACE
    assert served.attributes["gen_ai.provider.name"] == "Good"
    assert served.attributes["gen_ai.conversation.id"] == "s"
    assert served.attributes["gen_ai.usage.input_tokens"] == 10
    assert served.attributes["gen_ai.usage.cache_read.input_tokens"] == 4
    assert served.attributes["gen_ai.response.finish_reasons"] == ("stop",)
    assert [each.attributes["error.type"] for each in served.events] == [
        "provider_unavailable", "provider_unavailable", ""
    ]  # fmt: skip
    assert failed.name == "text_completion test/model"
    assert failed.attributes["error.type"] == "provider_unavailable"
    assert not failed.status.is_ok
    text = metrics.get_metrics_data().to_json()
    for name in ("gen_ai.client.token.usage", "gen_ai.server.request.duration"):
        assert name in text
    text += served.to_json() + failed.to_json()
    for secret in (BROUGHT, HOUSE_KEY, KEY, "w0 "):
        assert secret not in text


def test_gateway_when_it_is_off_then_nothing_of_it_is_imported():
    code = (
        "import sys, lingflash.gateway.app;"
        "print([m for m in sys.modules if m.startswith('opentelemetry.sdk')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
