"""What the sandboxes of one API key may use together, beside how many there may be.

Memory is counted by what they may use, so that the limit holds whatever they do. CPU time and
output are counted by what they did use, over an hour that moves on by the minute: a key that has
used up either has its sandboxes paused, and gets and resumes none until there is room again.
"""

from __future__ import annotations

import time
from collections import deque

from lingflash.core.errors import RateLimitError
from lingflash.sandbox.config import SandboxConfig

HOUR_S = 3600.0
_STEP_S = 60.0
_MIB = 2**20


class Hour:
    """How much was used within the last hour, by the minute.

    Args:
        limit: None is no limit.
    """

    def __init__(self, limit: float | None) -> None:
        self.limit = limit
        self._parts: deque[tuple[float, float]] = deque()  # when a minute began, and its amount
        self.used = 0.0

    def add(self, amount: float, now: float) -> None:
        """Count what was used just now."""
        if not self._parts or self._parts[-1][0] + _STEP_S <= now:
            self._parts.append((now, 0.0))
        began, before = self._parts[-1]
        self._parts[-1] = (began, before + amount)
        self.used += amount
        self._forget(now)

    def _forget(self, now: float) -> None:
        while self._parts and self._parts[0][0] + HOUR_S <= now:
            self.used -= self._parts.popleft()[1]
        if not self._parts:
            self.used = 0.0  # what rounding left

    def wait_s(self, now: float) -> float:
        """Seconds until there is room again; 0 if there is."""
        self._forget(now)
        if self.limit is None:
            return 0.0
        left = self.used
        for began, amount in self._parts:
            if left < self.limit:
                return 0.0
            left -= amount
            if left < self.limit:
                return began + HOUR_S - now
        return 0.0


class Quotas:
    """Of every API key: what it has used, and what it may."""

    def __init__(self, config: SandboxConfig) -> None:
        self._config = config
        self._cpu: dict[str, Hour] = {}
        self._output: dict[str, Hour] = {}

    def charge(self, owner: str, *, cpu_s: float, output_bytes: int) -> None:
        """Count what a sandbox of this key has used since the last time."""
        config, now = self._config, time.monotonic()
        for hours, limit, amount in (
            (self._cpu, config.cpu_s_per_key, cpu_s),
            (self._output, config.output_bytes_per_key, output_bytes),
        ):
            if limit is not None and amount > 0:
                hours.setdefault(owner, Hour(limit)).add(amount, now)

    def spent(self, owner: str) -> str | None:
        """Which of `cpu` and `output` a key has used up, if any."""
        now = time.monotonic()
        for name, hours in (("cpu", self._cpu), ("output", self._output)):
            if owner in hours and hours[owner].wait_s(now) > 0:
                return name
        return None

    def check(self, owner: str, has: int | None = None) -> None:
        """See whether a key may have running sandboxes.

        Args:
            has: so many it has, and wants one more.

        Raises:
            RateLimitError: their memory together would be too much, or it has used up what it may
                in an hour; Retry-After says until when.
        """
        if has is not None:
            self._check_memory(has)
        if (name := self.spent(owner)) is None:
            return
        hour = (self._cpu if name == "cpu" else self._output)[owner]
        wait_s = int(hour.wait_s(time.monotonic())) + 1
        assert hour.limit is not None
        if name == "cpu":
            said, flag = f"{hour.limit:g} CPU seconds", "--cpu-s-per-key"
        else:
            said, flag = f"{hour.limit / _MIB:g} MiB of output", "--output-mb-per-key"
        raise RateLimitError(
            f"The sandboxes of this API key have used up {said}, all that one key may use in an "
            f"hour. Try again in {wait_s} s, or raise {flag}.",
            param=name,
            headers={"retry-after": str(wait_s)},
        )

    def _check_memory(self, has: int) -> None:
        most = self._config.memory_bytes_per_key
        each = self._config.memory_bytes + self._config.disk_bytes
        if most is not None and (has + 1) * each > most:
            raise RateLimitError(
                f"This API key has {has} sandboxes, which may use {has * each // _MIB} MiB of "
                f"memory and files, and one more {each // _MIB}; one key may use {most // _MIB}. "
                "Kill one, or raise --memory-mb-per-key.",
                param="memory",
            )
