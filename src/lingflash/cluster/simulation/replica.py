"""How long one replica takes: prompts one after the other, in chunks beside the answers that run.

A step reads a chunk of the first prompt that waits and makes one token of each answer; it takes as
long as both do by themselves. Between two events all answers of a replica grow alike, so that only
the beginnings and ends of requests are computed, however long they are.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from lingflash.cache.lease import Lease
from lingflash.cluster.simulation.cache import CacheShape, SimulatedCache, Text
from lingflash.core.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What was measured of one replica.

    Args:
        prefill_tokens_per_s: of a prompt alone.
        step_s: decode steps by how many answers run, ascending.
        overhead_s: of a request, outside of the steps.
    """

    prefill_tokens_per_s: float
    step_s: Sequence[tuple[int, float]]
    overhead_s: float = 0.0

    def decode_step_s(self, batch: int) -> float:
        """Of so many answers; between and beyond those that were measured on straight lines."""
        if batch <= 0:
            return 0.0
        points = self.step_s
        if len(points) == 1 or batch <= points[0][0]:
            return points[0][1]
        after = next((i for i, (many, _) in enumerate(points) if batch <= many), len(points) - 1)
        (few, short), (many, long) = points[after - 1 : after + 1]
        return short + (batch - few) * (long - short) / (many - few)


@dataclass(slots=True, eq=False)
class Request:
    """One request at one replica; times are those of the simulation."""

    text: Text
    prompt_tokens: int
    answer_tokens: int
    arrived_s: float
    cached_tokens: int = 0
    first_s: float = 0.0
    ended_s: float = 0.0
    lease: Lease | None = None


@dataclass(slots=True)
class Replica:
    """One replica; ask `next_s` and call `advance` with it."""

    rates: Rates
    shape: CacheShape
    busy_s: float = 0.0
    answer_s: float = 0.0  # answers under way x seconds
    _cache: SimulatedCache = field(init=False)
    _now_s: float = 0.0
    _made: float = 0.0  # tokens that an answer would have that ran all the time
    _waiting: deque[Request] = field(default_factory=deque[Request])
    _reading: Request | None = None
    _left: float = 0.0  # tokens of that prompt to be computed
    _chunk: float = 0.0  # of them, in each step
    _running: list[tuple[float, int, Request]] = field(
        default_factory=list[tuple[float, int, Request]]
    )
    _count: int = 0

    def __post_init__(self) -> None:
        self._cache = SimulatedCache(self.shape)

    @property
    def tokens_in_flight(self) -> int:
        """As its /ready would say."""
        prompts = sum(each.prompt_tokens for each in self._waiting)
        prompts += self._reading.prompt_tokens if self._reading else 0
        return prompts + sum(each.prompt_tokens for _, _, each in self._running)

    def add(self, request: Request) -> None:
        """A request has come; advance() was called with the time before."""
        self._waiting.append(request)
        self._begin()

    def next_s(self) -> float:
        """When something happens here by itself; infinity if nothing does."""
        step_s, chunk = self._step()
        found = float("inf")
        if self._reading is not None:
            found = self._now_s + self._left / chunk * step_s
        if self._running:
            found = min(found, self._now_s + max(self._running[0][0] - self._made, 0.0) * step_s)
        return found

    def advance(self, now_s: float) -> list[Request]:
        """Go on to a time, at most next_s().

        Returns:
            The requests that have got their first token, or ended.
        """
        seconds = now_s - self._now_s
        step_s, chunk = self._step()
        self._now_s = now_s
        if step_s:
            self.busy_s += seconds
            self.answer_s += len(self._running) * seconds
            self._made += seconds / step_s
            self._left -= seconds / step_s * chunk
        changed: list[Request] = []
        reading = self._reading
        if reading is not None and self._left <= 1e-6:
            assert reading.lease is not None
            self._cache.read(reading.lease, reading.text, reading.prompt_tokens)
            reading.first_s = now_s
            self._reading = None
            self._count += 1
            target = self._made + reading.answer_tokens - 1
            heapq.heappush(self._running, (target, self._count, reading))
            changed.append(reading)
        while self._running and self._running[0][0] <= self._made + 1e-6:
            _, _, request = heapq.heappop(self._running)
            assert request.lease is not None
            length = request.prompt_tokens + request.answer_tokens
            self._cache.end(request.lease, request.text, length)
            request.ended_s = now_s
            changed.append(request)
        self._begin()
        return list(dict.fromkeys(changed))  # an answer of one token does both at once

    def _step(self) -> tuple[float, float]:
        """How long a step takes now, and how much of a prompt it reads."""
        decode_s = self.rates.decode_step_s(len(self._running))
        if self._reading is None:
            return decode_s, 0.0
        return decode_s + self._chunk / self.rates.prefill_tokens_per_s, self._chunk

    def _begin(self) -> None:
        if self._reading is not None or not self._waiting:
            return
        request = self._waiting[0]
        lease = self._cache.admit(request.text, request.prompt_tokens)
        if lease is None:
            if not self._running:
                raise ConfigError(
                    f"A prompt of {request.prompt_tokens} tokens does not fit into a replica that "
                    f"keeps {self.shape.tokens}; give more with --cache-tokens."
                )
            return  # until another ends
        self._waiting.popleft()
        request.lease = lease
        request.cached_tokens = self._cache.found_tokens(lease, request.prompt_tokens - 1)
        new = request.prompt_tokens - request.cached_tokens
        self._reading = request
        self._left = new + self.rates.overhead_s * self.rates.prefill_tokens_per_s
        self._chunk = min(self.shape.chunk_tokens, self._left)
