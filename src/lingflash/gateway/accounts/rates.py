"""Requests and tokens per minute: counted by `limits`, in Redis or in this process.

Windows are fixed and begin with a key's first request. Tokens are counted when a request comes, at
the most it may take, and what it did not take is given back when it ends. While Redis does not
answer, every gateway allows its part, limit / number of gateways, by its own counters.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage, Storage
from limits.aio.strategies import FixedWindowRateLimiter
from limits.errors import ConfigurationError, StorageError

from lingflash.core.errors import ConfigError, RateLimitError
from lingflash.core.log import log_event

logger = logging.getLogger("lingflash.gateway")

T = TypeVar("T")

# The client raises beyond its pool, so no more than these ask at once.
_REDIS_CONNECTIONS = 32
_REDIS_TIMEOUT_S = 2.0
_RETRY_S = 2.0
_CLOCK_STEP_S = 2.0


@dataclass(frozen=True, slots=True)
class Rate:
    """A limit per minute.

    Args:
        unit: "requests" or "tokens", in the names of headers.
        cost: how much of it a request takes.
    """

    key: str
    unit: str
    per_minute: int
    cost: int


@dataclass(frozen=True, slots=True)
class Taken:
    """What a request took.

    Args:
        headers: `x-ratelimit-*`.
        tokens: of those limits that count tokens, with the end of their window.
    """

    headers: dict[str, str]
    tokens: Sequence[tuple[Rate, float]] = ()


class Rates:
    """Counters of all keys.

    Args:
        redis: URL; None counts in this process alone.
        num_processes: how many gateways there are now.

    Raises:
        ConfigError: the URL is none of Redis.
    """

    def __init__(self, redis: str | None, num_processes: Callable[[], int]) -> None:
        self._num_processes = num_processes
        self._memory = FixedWindowRateLimiter(MemoryStorage())
        self._clock_offset = time.time() - time.monotonic()
        self._redis = None if redis is None else FixedWindowRateLimiter(_open(redis))
        self._redis_slots = asyncio.Semaphore(_REDIS_CONNECTIONS)
        self._redis_again = 0.0

    @property
    def degraded(self) -> str | None:
        """That Redis is gone and limits have shrunk, or None."""
        if self._redis is None or not self._redis_again:
            return None
        return (
            "Redis does not answer: each gateway allows its part of every limit per minute, "
            f"1/{max(1, self._num_processes())}."
        )

    async def check(self) -> None:
        """Ask Redis whether it is there, so that `degraded` is true without requests, too."""
        if self._redis is not None:
            storage = self._redis.storage
            await self._asked(lambda: storage.get("check"))

    async def take(self, rates: Sequence[Rate]) -> Taken:
        """Count a request against all of its limits, or against none.

        Raises:
            RateLimitError: one is reached.
        """
        headers: dict[str, str] = {}
        tokens: list[tuple[Rate, float]] = []
        done: list[Rate] = []
        for rate in rates:
            if rate.cost > rate.per_minute:
                await self._undo(done)
                raise RateLimitError(
                    f"The request may take {rate.cost} {rate.unit}, and {rate.per_minute} a minute "
                    "are allowed; ask for fewer (max_tokens), or shorten the prompt."
                )
            is_in, limit, remaining, reset = await self._hit(rate)
            name = f"x-ratelimit-{{}}-{rate.unit}"
            wait_s = max(1, round(reset - time.time() + 0.5))
            headers[name.format("limit")] = str(limit)
            headers[name.format("remaining")] = str(remaining)
            headers[name.format("reset")] = f"{wait_s}s"
            if not is_in:
                await self._undo(done)
                headers["retry-after"] = str(wait_s)
                raise RateLimitError(
                    f"{limit} {rate.unit} a minute are allowed; come again in {wait_s} s.",
                    headers=headers,
                )
            done.append(rate)
            if rate.unit == "tokens":
                tokens.append((rate, reset))
        return Taken(headers, tokens)

    async def give_back(self, taken: Taken, used: int) -> None:
        """Give tokens back that a request did not take, if their minute is not over."""
        for rate, reset in taken.tokens:
            unused = rate.cost - used
            if unused > 0 and time.time() < reset - 0.5:
                await self._add(rate, -unused)

    async def _undo(self, done: Sequence[Rate]) -> None:
        # Requests stay counted: who is refused has asked. Tokens were not used.
        for rate in done:
            if rate.unit == "tokens":
                await self._add(rate, -rate.cost)

    async def _hit(self, rate: Rate) -> tuple[bool, int, int, float]:
        """Whether it is within the limit, the limit, what remains, when the window ends."""

        async def hit(limiter: FixedWindowRateLimiter, item: RateLimitItemPerMinute):  # noqa: ANN202
            is_in = await limiter.hit(item, rate.key, rate.unit, cost=rate.cost)
            if not is_in and rate.cost > 1:
                await limiter.storage.incr(
                    item.key_for(rate.key, rate.unit), item.get_expiry(), amount=-rate.cost
                )
            stats = await limiter.get_window_stats(item, rate.key, rate.unit)
            return is_in, item.amount, max(0, stats.remaining), stats.reset_time

        shared, item = self._redis, RateLimitItemPerMinute(rate.per_minute)
        if shared is not None:
            result = await self._asked(lambda: hit(shared, item))
            if result is not None:
                return result
        if shared is not None:
            part = max(1, rate.per_minute // max(1, self._num_processes()))
            item = RateLimitItemPerMinute(part, namespace="DEGRADED")
        self._see_clock()
        return await hit(self._memory, item)

    async def _add(self, rate: Rate, amount: int) -> None:
        item = RateLimitItemPerMinute(rate.per_minute)
        key = item.key_for(rate.key, rate.unit)

        async def add(storage: Storage) -> bool:
            # A window that has just ended must not begin with a gift.
            if await storage.get(key) + amount >= 0:
                await storage.incr(key, item.get_expiry(), amount=amount)
            return True

        shared = self._redis
        if shared is None:
            await add(self._memory.storage)
        else:
            await self._asked(lambda: add(shared.storage))

    async def _asked(self, ask: Callable[[], Awaitable[T]]) -> T | None:
        """What Redis says; None, and silence for a while, if it does not answer."""
        try:
            async with self._redis_slots:
                # Only here: while this waited for its turn Redis may have been found gone.
                if time.monotonic() < self._redis_again:
                    return None
                async with asyncio.timeout(_REDIS_TIMEOUT_S):
                    result = await ask()
        except (StorageError, OSError, TimeoutError) as error:
            if not self._redis_again:
                fields = {"error": type(error).__name__}
                log_event(logger, "redis_gone", fields, level=logging.WARNING)
            self._redis_again = time.monotonic() + _RETRY_S
            return None
        if self._redis_again:
            log_event(logger, "redis_back", {})
            self._redis_again = 0.0
        return result

    def _see_clock(self) -> None:
        """Begin anew where the clock was set: windows would last as long as it was set back."""
        offset = time.time() - time.monotonic()
        if abs(offset - self._clock_offset) > _CLOCK_STEP_S:
            self._memory = FixedWindowRateLimiter(MemoryStorage())
        self._clock_offset = offset

    async def close(self) -> None:
        """Close the connections."""
        if self._redis is not None:
            bridge = getattr(self._redis.storage, "bridge", None)
            if bridge is not None:
                await bridge.get_connection().aclose()


def _open(url: str) -> Storage:
    # Late, and by name: a missing package is then said as one of an extra.
    import redis.asyncio  # noqa: F401
    from limits.aio.storage import RedisStorage

    if not url.startswith(("redis://", "rediss://", "redis+unix://")):
        raise ConfigError(
            "The Redis URL is of no kind that is known; allowed: redis://HOST:PORT/NUMBER, "
            "rediss://... or redis+unix://PATH.",
            param="redis",
        )
    try:
        return RedisStorage(
            f"async+{url}",
            wrap_exceptions=True,
            implementation="redispy",
            key_prefix="lingflash",
            max_connections=_REDIS_CONNECTIONS + 8,
            socket_timeout=_REDIS_TIMEOUT_S,
            socket_connect_timeout=_REDIS_TIMEOUT_S,
        )
    except (ConfigurationError, ValueError) as error:
        raise ConfigError(f"The Redis URL cannot be used: {error}.", param="redis") from None
