"""The order of endpoints that may serve: session pin, `order`, `sort`, else the price."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from lingflash.gateway.accounting import Session
from lingflash.gateway.routing.catalog import Endpoint, Shortcut
from lingflash.gateway.routing.filters import is_named
from lingflash.gateway.routing.measurements import Measurements
from lingflash.gateway.routing.wish import SortBy, Wish

# What an answer is taken to have, where endpoints are compared by price.
_ANSWER_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class Ranking:
    """Endpoints in order, and the rule that put the first one there."""

    endpoints: list[Endpoint]
    rule: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranker:
    """Orders endpoints for one request."""

    wish: Wish
    shortcut: Shortcut | None
    session: Session
    measurements: Measurements
    day: date

    def rank(self, endpoints: Sequence[Endpoint]) -> Ranking:
        """Put endpoints in order."""
        by = self._sort_by()
        ranked = sorted(endpoints, key=lambda each: self._key(each, by))
        rule = "price" if by is None else f"sort={by}"
        names = self.wish.order
        if names:
            named = [e for name in names for e in ranked if e.answers_to(name)]
            ranked = list(dict.fromkeys([*named, *ranked]))
            rule = "order" if named else rule
        pinned = self._pinned(ranked)
        if pinned is not None:
            ranked = [pinned, *(each for each in ranked if each is not pinned)]
            rule = "session"
        return Ranking(ranked, rule)

    def _sort_by(self) -> SortBy | None:
        if self.wish.sort is not None:
            return self.wish.sort
        match self.shortcut:
            case "nitro":
                return "throughput"
            case "floor":
                return "price"
            case None:
                return None

    def _pinned(self, ranked: Sequence[Endpoint]) -> Endpoint | None:
        """The session's endpoint; one outside of `order` only served while those in it did not."""
        for each in ranked:
            if each.id == self.session.pinned_endpoint:
                return each if not self.wish.order or is_named(each, self.wish.order) else None
        return None

    def _key(self, endpoint: Endpoint, by: SortBy | None) -> tuple[float, ...]:
        price = self._effective_price(endpoint)
        # Sessions spread over equal endpoints, each always in the same way.
        seed = f"{self.session.id}\0{endpoint.id}".encode()
        tie = float(int.from_bytes(hashlib.blake2b(seed, digest_size=6).digest(), "big"))
        # An answer's length is an upper bound: who makes shorter ones may serve, but comes later.
        is_short = (self.wish.completion_tokens or 0) > endpoint.max_output_tokens
        later = float(is_short) + float(self._is_slow(endpoint))
        match by:
            case "throughput":
                # One that was never measured comes first, or it never would be.
                rate = self.measurements.tokens_per_s(endpoint.id)
                return later, float("-inf") if rate is None else -rate, price, tie
            case "latency":
                latency = self.measurements.latency_s(endpoint.id)
                return later, float("-inf") if latency is None else latency, price, tie
            case "price" | "exacto" | None:
                return later, price, tie

    def _is_slow(self, endpoint: Endpoint) -> bool:
        """Whether what was seen of it is not what is preferred; such come later, not never."""
        for percentile, least in self.wish.min_throughput.items():
            rate = self.measurements.tokens_per_s(endpoint.id, percentile)
            if rate is not None and rate < least:
                return True
        for percentile, most in self.wish.max_latency.items():
            latency = self.measurements.latency_s(endpoint.id, percentile)
            if latency is not None and latency > most:
                return True
        return False

    def _effective_price(self, endpoint: Endpoint) -> float:
        """Of this request, at the part of its prompts that the session's upstreams had cached."""
        price = endpoint.price(self.day)
        cached = self.session.cache_rate or 0.0
        prompt = price.prompt * (1 - cached) + price.cache_read * cached
        answer = min(self.wish.completion_tokens or _ANSWER_TOKENS, _ANSWER_TOKENS)
        return self.wish.prompt_tokens * prompt + answer * price.completion + price.request
