"""The replicas of the upstreams that have a directory: who there is, and which is to serve."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from lingflash.gateway.config.tables import Upstream
from lingflash.gateway.directory.watch import Watch
from lingflash.gateway.routing.breaker import Breakers
from lingflash.gateway.routing.catalog import Endpoint
from lingflash.gateway.routing.plan import Candidate
from lingflash.gateway.routing.replicas import Choice, Prompt, ReplicaRouter, Sent
from lingflash.protocol.replicas import Replica


class Replicas:
    """One router for each upstream, fed with what its directory says.

    Args:
        upstreams: those of the file, by slug, as of now.
        watches: of the directories, by name.
        breakers: those of replicas that are gone are forgotten.
    """

    def __init__(
        self,
        upstreams: Callable[[], Mapping[str, Upstream]],
        watches: Mapping[str, Watch],
        breakers: Breakers,
    ) -> None:
        self._upstreams = upstreams
        self._watches = watches
        self._breakers = breakers
        self._routers: dict[str, ReplicaRouter] = {}
        self._seen: dict[str, Sequence[Replica]] = {}

    def has_some(self, endpoint: Endpoint) -> bool:
        """Whether an endpoint is served by replicas, however many there are now."""
        return self._directory(endpoint) is not None

    def has(self, endpoint: Endpoint, url: str | None) -> bool:
        """Whether an endpoint is at a replica; None asks whether it has none."""
        name = self._directory(endpoint)
        if name is None or url is None:
            return name is None and url is None
        return any(each.url == url for each in self._watches[name].replicas)

    def order(
        self, endpoint: Endpoint, prompt: Prompt, only: str | None = None
    ) -> list[Choice] | None:
        """Those that are ready, in the order to try them; None if the endpoint has none.

        Args:
            only: URL of the one that may serve, if no other may.
        """
        name = self._directory(endpoint)
        if name is None:
            return None
        router, replicas = self.router(endpoint.slug), self._watches[name].replicas
        if self._seen.get(endpoint.slug) is not replicas:
            self._forget_gone(endpoint.slug, router, replicas)
        ready = [
            each
            for each in replicas
            if each.ready and not each.draining and only in (None, each.url)
        ]
        return router.order(prompt, ready, time.monotonic())

    def send(self, candidate: Candidate) -> Sent | None:
        """Note that a candidate gets a request; None where it is no replica."""
        if candidate.choice is None:
            return None
        return self.router(candidate.endpoint.slug).send(candidate.choice, time.monotonic())

    def router(self, slug: str) -> ReplicaRouter:
        """What chooses among an upstream's replicas; another, if the file wants another way."""
        balance = self._upstreams()[slug].table.balance
        router = self._routers.get(slug)
        if router is None or router.balance != balance:
            router = self._routers[slug] = ReplicaRouter(balance)
        return router

    def _directory(self, endpoint: Endpoint) -> str | None:
        upstream = self._upstreams().get(endpoint.slug)
        return None if upstream is None else upstream.directory

    def _forget_gone(self, slug: str, router: ReplicaRouter, replicas: Sequence[Replica]) -> None:
        self._seen[slug] = replicas
        urls = {each.url for each in replicas}
        router.keep_only(urls)

        def is_kept(breaker: str) -> bool:
            upstream, _, key = breaker.partition("#")
            _, _, url = key.partition("@")
            return upstream != slug or not url or url in urls

        self._breakers.keep_only(is_kept)
