"""The gateway's own series; labels are names of the configuration, never a client's words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lingflash.core.metrics import HttpMetrics
from lingflash.protocol.replicas import Replica

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class GatewayMetrics(HttpMetrics):
    """All series of a gateway.

    Args:
        read_breakers: upstream and state of every breaker that is not closed.
        read_ready: whether a request would be served.
        read_replicas: what each directory knows, by its name.
    """

    def __init__(
        self,
        read_breakers: Callable[[], Mapping[str, str]],
        read_ready: Callable[[], bool],
        read_replicas: Callable[[], Mapping[str, Sequence[Replica]]],
    ) -> None:
        super().__init__()
        self.registry.register(_States(read_breakers, read_ready, read_replicas))
        self.requests = self._counter(
            "gateway_requests", "Requests by model, dialect and outcome", "model", "dialect",
            "outcome",
        )  # fmt: skip
        self.attempts = self._counter(
            "gateway_attempts", "Attempts by provider and what came of them", "provider", "result"
        )
        self.tokens = self._counter(
            "gateway_tokens", "Tokens by provider: prompt, cached, completion", "provider", "kind"
        )
        self.cost_usd = self._counter(
            "gateway_cost_usd", "What requests cost their callers", "provider"
        )
        self.first_content_s = self._histogram(
            "gateway_first_content_seconds", "From admission to the first content", _SECONDS
        )
        self.duration_s = self._histogram(
            "gateway_request_seconds", "From admission to the end", _SECONDS
        )
        self.reloads = self._counter("gateway_reloads", "Reloads of the file", "result")


class _States(Collector):
    def __init__(
        self,
        read_breakers: Callable[[], Mapping[str, str]],
        read_ready: Callable[[], bool],
        read_replicas: Callable[[], Mapping[str, Sequence[Replica]]],
    ) -> None:
        self._read_breakers = read_breakers
        self._read_ready = read_ready
        self._read_replicas = read_replicas

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        ready = "1 if a request would be served"
        yield GaugeMetricFamily("lingflash_gateway_ready", ready, value=float(self._read_ready()))
        counts: dict[tuple[str, str], int] = {}
        for key, state in self._read_breakers().items():
            place = (key.partition("#")[0], state)
            counts[place] = counts.get(place, 0) + 1
        family = GaugeMetricFamily(
            "lingflash_gateway_breakers",
            "Breakers that are not closed",
            labels=["provider", "state"],
        )
        for place, count in counts.items():
            family.add_metric(list(place), count)
        yield family
        replicas = GaugeMetricFamily(
            "lingflash_gateway_replicas",
            "Replicas that a directory knows: ready, draining, or other",
            labels=["directory", "state"],
        )
        for name, found in self._read_replicas().items():
            states = [_state_of(each) for each in found]
            for state in ("ready", "draining", "other"):
                replicas.add_metric([name, state], states.count(state))
        yield replicas


def _state_of(replica: Replica) -> str:
    return "draining" if replica.draining else "ready" if replica.ready else "other"
