"""Who is left alone for a while: one breaker for each key of each upstream.

    closed     attempts pass; 5 failures among the last 10 open it
    open       nothing passes until the cooldown is over
    half open  one attempt passes; its success closes the breaker, its failure opens it again

A cooldown is never shortened by a later one. Times are given, so that nothing here has a clock.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from lingflash.gateway.config.tables import BreakerTable

Verdict = Literal["fail", "cool", "succeed"]
# Brought keys make breakers without end; the ones that were not used for longest are forgotten.
_MAX_BREAKERS = 10_000


@dataclass(slots=True)
class _Breaker:
    results: deque[bool]
    open_until_s: float = 0.0
    is_open: bool = False
    is_probing: bool = False


@dataclass(slots=True)
class Breakers:
    """All breakers.

    Args:
        key: in all methods names an upstream and one of its keys.
        now_s: a monotonic time.
    """

    settings: BreakerTable
    _all: OrderedDict[str, _Breaker] = field(default_factory=OrderedDict[str, _Breaker])

    def rests_s(self, key: str, now_s: float) -> float:
        """For how long no attempt may be made; 0 if one may be."""
        breaker = self._all.get(key)
        if breaker is None or not breaker.is_open:
            return 0.0
        if breaker.is_probing:
            return max(breaker.open_until_s - now_s, 1.0)
        return max(breaker.open_until_s - now_s, 0.0)

    def begin(self, key: str, now_s: float) -> bool:
        """Ask for an attempt; True must be followed by one of the others."""
        if self.rests_s(key, now_s) > 0:
            return False
        breaker = self._get(key)
        breaker.is_probing = breaker.is_open
        return True

    def succeed(self, key: str) -> None:
        """An attempt was answered, if only by a refusal of what was asked."""
        breaker = self._get(key)
        if breaker.is_open:
            breaker.results.clear()
        breaker.is_open = breaker.is_probing = False
        breaker.results.append(True)

    def fail(self, key: str, now_s: float) -> None:
        """An attempt failed."""
        breaker = self._get(key)
        breaker.results.append(False)
        failures = breaker.results.count(False)
        if breaker.is_probing or failures >= self.settings.failures:
            self._open(breaker, now_s + self.settings.cooldown_s)
        breaker.is_probing = False

    def cool(self, key: str, now_s: float, seconds: float | None) -> None:
        """An attempt was refused for its key: too many requests, or not valid, or not paid for.

        Args:
            seconds: as the upstream asks; None where it does not say.
        """
        breaker = self._get(key)
        breaker.is_probing = False
        self._open(breaker, now_s + (self.settings.rate_limit_s if seconds is None else seconds))

    def take(self, verdict: Verdict, key: str, now_s: float, seconds: float | None = None) -> None:
        """What an attempt that was not answered says of its upstream and key."""
        match verdict:
            case "fail":
                self.fail(key, now_s)
            case "cool":
                self.cool(key, now_s, seconds)
            case "succeed":
                self.succeed(key)

    def drop(self, key: str) -> None:
        """An attempt ended without telling anything, since the client left."""
        self._get(key).is_probing = False

    def keep_only(self, is_kept: Callable[[str], bool]) -> None:
        """Forget those whose upstream is gone."""
        for key in [key for key in self._all if not is_kept(key)]:
            del self._all[key]

    def state(self, key: str, now_s: float) -> str:
        """closed, open or half_open."""
        breaker = self._all.get(key)
        if breaker is None or not breaker.is_open:
            return "closed"
        return "open" if now_s < breaker.open_until_s else "half_open"

    def states(self, now_s: float) -> dict[str, str]:
        """All that are not closed."""
        found = {key: self.state(key, now_s) for key in self._all}
        return {key: state for key, state in found.items() if state != "closed"}

    def _open(self, breaker: _Breaker, until_s: float) -> None:
        breaker.is_open = True
        breaker.open_until_s = max(breaker.open_until_s, until_s)

    def _get(self, key: str) -> _Breaker:
        breaker = self._all.get(key)
        if breaker is None:
            breaker = self._all[key] = _Breaker(deque(maxlen=self.settings.window))
            if len(self._all) > _MAX_BREAKERS:
                self._all.popitem(last=False)
        else:
            self._all.move_to_end(key)
        return breaker
