"""What the routes of one gateway share."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from fastapi import Request

from lingflash.core.errors import AuthenticationError
from lingflash.gateway import telemetry
from lingflash.gateway.accounting import Accounts, Caller
from lingflash.gateway.config.load import GatewayConfig
from lingflash.gateway.dialects import error_dialect_of
from lingflash.gateway.directory.watches import Watches
from lingflash.gateway.metrics import GatewayMetrics
from lingflash.gateway.routing.breaker import Breakers
from lingflash.gateway.routing.measurements import Measurements
from lingflash.gateway.routing.catalog import Endpoint
from lingflash.gateway.routing.plan import Candidate
from lingflash.gateway.routing.replicas import Choice, Prompt, ReplicaRouter, Sent
from lingflash.httpd.auth import given_key
from lingflash.httpd.context import HttpContext, context_of
from lingflash.httpd.limits import ConnectionLimits
from lingflash.link.connection_pool import ConnectionPool
from lingflash.protocol.replicas import Replica

_MAX_HOMES = 100_000
# An upstream without a ready replica is one that rests for so long, as far as a client is told.
_NO_REPLICA_S = 1.0
# A key that was stored is used after so long at the latest; one that is deleted, never again.
_KEYLESS_S = 1.0
_MAX_KEYLESS = 10_000


@dataclass(frozen=True, slots=True)
class Home:
    """Where a stored response is, and whose it is."""

    endpoint: str
    key_id: str
    replica: str | None
    key_hash: str
    session_id: str


class GatewayState(HttpContext):
    """What `httpd` shares, and configuration, accounts, breakers, directories, connections.

    Args:
        accounts: whoever made them closes them.
    """

    def __init__(self, config: GatewayConfig, accounts: Accounts) -> None:
        self.watches = Watches(config.directories)
        self.metrics = GatewayMetrics(
            lambda: self.breakers.states(time.monotonic()),
            lambda: self.not_ready is None,
            lambda: {name: watch.replicas for name, watch in self.watches.items()},
        )
        server = config.server
        super().__init__(
            self.metrics,
            api_keys=() if config.metrics_key is None else (config.metrics_key,),
            max_body_bytes=int(server.max_body_mb * 2**20),
            drain_timeout_s=server.drain_timeout_s,
            cors_origins=server.cors_origins,
            connections=ConnectionLimits(max_connections=server.max_connections),
            dialect_of=error_dialect_of,
        )
        self.config = config
        self.accounts = accounts
        self.breakers = Breakers(config.breaker)
        self.measurements = Measurements()
        self.pool = ConnectionPool()
        self.telemetry = telemetry.connect() if server.opentelemetry else None
        self._keyless: dict[tuple[str, str, str], float] = {}
        self._routers: dict[str, ReplicaRouter] = {}  # by the upstream's slug
        self._seen: dict[str, Sequence[Replica]] = {}
        self._homes: OrderedDict[str, Home] = OrderedDict()
        # Brought keys are told apart by digests that mean nothing outside of this process.
        self._salt = secrets.token_bytes(16)

    def take_config(self, config: GatewayConfig) -> None:
        """Use another configuration from the next request on; running ones keep theirs.

        The address and what the accounts were opened with stay as they are.
        """
        self.config = config
        self.watches.take(config.directories)
        self.breakers.settings = config.breaker
        self.api_keys = () if config.metrics_key is None else (config.metrics_key,)

    async def caller_of(self, request: Request) -> Caller:
        """Whoever sent a request.

        Raises:
            AuthenticationError: no key, or one that is not of this gateway.
        """
        key = given_key(request)
        if not key:
            raise AuthenticationError(
                "No API key was given; send the header 'Authorization: Bearer KEY' or "
                "'x-api-key: KEY'."
            )
        return await self.accounts.authenticate(key)

    def breaker_of(self, candidate: Candidate) -> str:
        """The name of the breaker of an upstream and key."""
        key = candidate.key
        tag = key.id
        if key.kind == "inline" and key.secret is not None:
            tag = hashlib.blake2b(key.secret.encode(), key=self._salt, digest_size=12).hexdigest()
        replica = "" if candidate.replica is None else f"@{candidate.replica}"
        return f"{candidate.endpoint.slug}#{tag}{replica}"

    def rests_s(self, candidate: Candidate) -> float:
        """For how long an upstream and key are left alone."""
        upstream = self.config.upstreams.get(candidate.endpoint.slug)
        if candidate.choice is None and upstream is not None and upstream.directory is not None:
            return _NO_REPLICA_S
        return self.breakers.rests_s(self.breaker_of(candidate), time.monotonic())

    def router_of(self, slug: str) -> ReplicaRouter:
        """What chooses among an upstream's replicas."""
        balance = self.config.upstreams[slug].table.balance
        router = self._routers.get(slug)
        if router is None or router.balance != balance:
            router = self._routers[slug] = ReplicaRouter(balance)
        return router

    def order_replicas(self, endpoint: Endpoint, prompt: Prompt) -> list[Choice] | None:
        """An endpoint's replicas that are ready, in the order to try them; None if it has none."""
        upstream = self.config.upstreams.get(endpoint.slug)
        if upstream is None or upstream.directory is None:
            return None
        router, replicas = self.router_of(endpoint.slug), self.watches[upstream.directory].replicas
        if self._seen.get(endpoint.slug) is not replicas:
            self._forget_gone(endpoint.slug, router, replicas)
        ready = [each for each in replicas if each.ready and not each.draining]
        return router.order(prompt, ready, time.monotonic())

    def _forget_gone(
        self, slug: str, router: ReplicaRouter, replicas: Sequence[Replica]
    ) -> None:
        self._seen[slug] = replicas
        urls = {each.url for each in replicas}
        router.keep_only(urls)
        self.breakers.keep_only(
            lambda key: not key.startswith(f"{slug}#")
            or "@" not in key
            or key.partition("@")[2] in urls
        )

    def send(self, candidate: Candidate) -> Sent | None:
        """Note that a replica gets a request; None where the candidate is none."""
        choice = candidate.choice
        if choice is None:
            return None
        return self.router_of(candidate.endpoint.slug).send(choice, time.monotonic())

    def has_replica(self, home: Home) -> bool:
        """Whether whoever has a stored response is still there."""
        endpoint = self.config.catalog.endpoints.get(home.endpoint)
        upstream = None if endpoint is None else self.config.upstreams.get(endpoint.slug)
        if home.replica is None or upstream is None or upstream.directory is None:
            return home.replica is None
        return any(each.url == home.replica for each in self.watches[upstream.directory].replicas)

    def is_keyless(self, caller: Caller, provider: str, model: str) -> bool:
        """Whether a caller had no stored key there a moment ago; most never have one."""
        until_s = self._keyless.get((caller.key_hash, provider, model))
        return until_s is not None and time.monotonic() < until_s

    def note_keyless(self, caller: Caller, provider: str, model: str) -> None:
        """Remember for a moment that a caller has no stored key there."""
        if len(self._keyless) >= _MAX_KEYLESS:
            self._keyless.clear()
        self._keyless[caller.key_hash, provider, model] = time.monotonic() + _KEYLESS_S

    def keep_home(self, response_id: str, home: Home) -> None:
        """Remember where a response is stored."""
        self._homes[response_id] = home
        self._homes.move_to_end(response_id)
        if len(self._homes) > _MAX_HOMES:
            self._homes.popitem(last=False)

    def is_anothers(self, response_id: str, caller: Caller) -> bool:
        """Whether a stored response is known to be of another key."""
        home = self._homes.get(response_id)
        return home is not None and home.key_hash != caller.key_hash

    def home_of(self, response_id: str, caller: Caller) -> Home | None:
        """Where a response of this caller's is stored, if this process relayed it."""
        home = self._homes.get(response_id)
        return home if home is not None and home.key_hash == caller.key_hash else None


def state_of(request: Request) -> GatewayState:
    """The state of the application that a request came to."""
    state = context_of(request)
    assert isinstance(state, GatewayState)
    return state
