"""What the routes of one gateway share."""

from __future__ import annotations

import hashlib
import secrets
import time

from fastapi import Request

from lingflash.core.errors import AuthenticationError
from lingflash.gateway import telemetry
from lingflash.gateway.accounting import Accounts, Caller
from lingflash.gateway.config.load import GatewayConfig
from lingflash.gateway.dialects import error_dialect_of
from lingflash.gateway.directory.watches import Watches
from lingflash.gateway.metrics import GatewayMetrics
from lingflash.gateway.outcomes import Outcomes
from lingflash.gateway.replicas import Replicas
from lingflash.gateway.routing.breaker import Breakers
from lingflash.gateway.routing.measurements import Measurements
from lingflash.gateway.routing.plan import Candidate
from lingflash.httpd.auth import given_key
from lingflash.httpd.context import HttpContext, context_of
from lingflash.httpd.limits import ConnectionLimits
from lingflash.link.connection_pool import ConnectionPool

# An upstream without a ready replica is one that rests for so long, as far as a client is told.
_NO_REPLICA_S = 1.0
# A key that was stored is used after so long at the latest; one that is deleted, never again.
_KEYLESS_S = 1.0
_MAX_KEYLESS = 10_000


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
            max_body_name="server.max_body_mb",
            drain_timeout_s=server.drain_timeout_s,
            cors_origins=server.cors_origins,
            connections=ConnectionLimits(max_connections=server.max_connections),
            dialect_of=error_dialect_of,
        )
        self.config = config
        self.accounts = accounts
        self.breakers = Breakers(config.breaker)
        self.replicas = Replicas(lambda: self.config.upstreams, self.watches, self.breakers)
        self.measurements = Measurements()
        self.outcomes = Outcomes()
        self.pool = ConnectionPool()
        self.telemetry = telemetry.connect() if server.opentelemetry else None
        self._keyless: dict[tuple[str, str, str], float] = {}
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
        if candidate.choice is None and self.replicas.has_some(candidate.endpoint):
            return _NO_REPLICA_S
        return self.breakers.rests_s(self.breaker_of(candidate), time.monotonic())

    def is_keyless(self, caller: Caller, provider: str, model: str) -> bool:
        """Whether a caller had no stored key there a moment ago; most never have one."""
        until_s = self._keyless.get((caller.key_hash, provider, model))
        return until_s is not None and time.monotonic() < until_s

    def note_keyless(self, caller: Caller, provider: str, model: str) -> None:
        """Remember for a moment that a caller has no stored key there."""
        if len(self._keyless) >= _MAX_KEYLESS:
            self._keyless.clear()
        self._keyless[caller.key_hash, provider, model] = time.monotonic() + _KEYLESS_S


def state_of(request: Request) -> GatewayState:
    """The state of the application that a request came to."""
    state = context_of(request)
    assert isinstance(state, GatewayState)
    return state
