"""Prometheus metrics of a server, in a registry of its own (no process-wide state).

Names follow vLLM's under the prefix `lingflash_`, so that dashboards carry over. What the engine
counts is read from its newest `EngineStats` when a scraper asks; what the server sees is counted as
it happens.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lingflash.core.log import num_dropped_lines
from lingflash.core.types import EngineStats

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_LATENCY_BUCKETS_S = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120,
)  # fmt: skip
_REQUEST_BUCKETS_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)


class HttpMetrics:
    """What any HTTP server counts, in a registry that more can be added to."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.http_requests_in_flight = self._gauge(
            "http_requests_in_flight", "HTTP requests being answered"
        )
        self.http_responses = self._counter("http_responses", "HTTP answers by status", "status")
        self.request_errors = self._counter(
            "request_errors", "Failed requests by error code", "code"
        )
        self.connections_open = self._gauge("connections_open", "Connections that are open")
        self.connections_dropped = self._counter(
            "connections_dropped", "Connections closed against their clients' will", "reason"
        )
        dropped_lines = self._gauge("log_lines_dropped", "Log lines that nobody read")
        dropped_lines.set_function(num_dropped_lines)

    def _gauge(self, name: str, what: str) -> Gauge:
        return Gauge(f"lingflash_{name}", what, registry=self.registry)

    def _counter(self, name: str, what: str, *labels: str) -> Counter:
        counter = Counter(f"lingflash_{name}", what, labels, registry=self.registry)
        # Finding a series by its labels takes a lock and copies of them, several times a request.
        counter.labels = functools.lru_cache(1024)(counter.labels)
        return counter

    def _histogram(self, name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"lingflash_{name}", what, buckets=buckets, registry=self.registry)

    def render(self) -> bytes:
        """Return all series in the text format."""
        return generate_latest(self.registry)


class ServerMetrics(HttpMetrics):
    """All series of a server in front of an engine.

    Args:
        read_stats: gives the engine's newest numbers.
        read_ready: says whether the server can serve.
        read_plan: gives the memory that the engine planned at its start, by part.
    """

    def __init__(
        self,
        read_stats: Callable[[], EngineStats],
        read_ready: Callable[[], bool],
        read_plan: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        super().__init__()
        self.registry.register(_EngineCollector(read_stats, read_ready, read_plan))
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens of accepted requests")
        self.cached_prompt_tokens = self._counter(
            "prompt_tokens_cached", "Prompt tokens that were not computed anew"
        )
        self.generation_tokens = self._counter("generation_tokens", "Tokens generated for answers")
        self.request_success = self._counter(
            "request_success", "Finished sequences by finish reason", "finished_reason"
        )
        self.responses_store_errors = self._counter(
            "responses_store_errors", "Calls that the disk of stored responses failed"
        )
        self.dropped_fields = self._counter(
            "dropped_fields", "What was accepted without being used, by what it was", "field"
        )
        self.requests_aborted = self._counter(
            "requests_aborted", "Requests ended because the client went away"
        )
        self.time_to_first_token_s = self._histogram(
            "time_to_first_token_seconds",
            "From acceptance to the first token of a request",
            _LATENCY_BUCKETS_S,
        )
        self.inter_token_latency_s = self._histogram(
            "inter_token_latency_seconds",
            "Between two events of a sequence, per token",
            _LATENCY_BUCKETS_S,
        )
        self.e2e_request_latency_s = self._histogram(
            "e2e_request_latency_seconds",
            "From acceptance to the end of a request",
            _REQUEST_BUCKETS_S,
        )


class _EngineCollector(Collector):
    def __init__(
        self,
        read_stats: Callable[[], EngineStats],
        read_ready: Callable[[], bool],
        read_plan: Callable[[], Mapping[str, int]],
    ) -> None:
        self._read_stats = read_stats
        self._read_ready = read_ready
        self._read_plan = read_plan

    def describe(self) -> Iterator[Metric]:
        # Without this the registry would call collect() at registration, before there is an engine.
        return iter(())

    def collect(self) -> Iterator[Metric]:
        stats = self._read_stats()
        used = 1.0 - stats.free_blocks / stats.num_blocks if stats.num_blocks else 0.0
        gauges: list[tuple[str, str, float]] = [
            ("num_requests_running", "Sequences that compute", stats.num_running),
            ("num_requests_waiting", "Requests that wait for memory or a slot", stats.num_waiting),
            ("kv_cache_usage_perc", "Part of the cache blocks in use, 0 to 1", used),
            ("kv_blocks_free", "Cache blocks that are free", stats.free_blocks),
            ("kv_blocks_total", "Cache blocks", stats.num_blocks),
            ("state_slots_free", "State slots that are free", stats.free_state_slots),
            ("state_slots_total", "State slots", stats.num_state_slots),
            ("prefix_cache_blocks", "Cache blocks kept for later requests", stats.cached_blocks),
            ("state_checkpoints", "States kept for later requests", stats.state_checkpoints),
            (
                "prefix_cache_live",
                "1 if the self-test at start-up found a prompt again",
                float(stats.prefix_cache_live),
            ),
            ("engine_ready", "1 if the server can serve", float(self._read_ready())),
            ("asyncio_tasks", "Tasks on the server's event loop", _num_tasks()),
        ]
        for name, what, value in gauges:
            yield GaugeMetricFamily(f"lingflash_{name}", what, value=value)
        by_use = GaugeMetricFamily(
            "lingflash_cache_bytes", "Bytes of the cache by what they serve", labels=["use"]
        )
        for use, num_bytes in stats.cache_bytes.items():
            by_use.add_metric([use], num_bytes)
        yield by_use
        by_part = GaugeMetricFamily(
            "lingflash_memory_plan_bytes", "Memory planned at start-up", labels=["part"]
        )
        for part, num_bytes in self._read_plan().items():
            by_part.add_metric([part], num_bytes)
        yield by_part
        lookups = CounterMetricFamily(
            "lingflash_prefix_cache_lookups",
            "Sequences by why no more was found",
            labels=["result"],
        )
        for result, count in stats.prefix_results.items():
            lookups.add_metric([result], count)
        yield lookups
        counters: list[tuple[str, str, float]] = [
            ("preemptions", "Sequences put back to waiting", stats.num_preemptions),
            ("engine_steps", "Steps of the engine", stats.num_steps),
            ("engine_prompt_tokens", "Prompt tokens computed by the engine", stats.prompt_tokens),
            ("engine_generation_tokens", "Tokens sampled by the engine", stats.generated_tokens),
            ("prefix_cache_queries", "Prompt tokens looked up", stats.prefix_queried_tokens),
            ("prefix_cache_hits", "Prompt tokens found computed", stats.prefix_hit_tokens),
            ("spec_decode_draft_tokens", "Drafts that were verified", stats.draft_tokens),
            ("spec_decode_accepted_tokens", "Drafts accepted", stats.accepted_draft_tokens),
            ("prefix_cache_resets", "Times that it was emptied on request", stats.prefix_resets),
        ]
        for name, what, value in counters:
            yield CounterMetricFamily(f"lingflash_{name}", what, value=value)


def _num_tasks() -> int:
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:  # not called from an event loop
        return 0
