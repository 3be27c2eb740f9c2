"""What was seen of each endpoint's speed lately, for `sort` and `preferred_*`."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

_KEPT = 100


@dataclass(slots=True)
class _Seen:
    latency_s: deque[float] = field(default_factory=lambda: deque[float](maxlen=_KEPT))
    tokens_per_s: deque[float] = field(default_factory=lambda: deque[float](maxlen=_KEPT))


class Measurements:
    """The last answers of each endpoint.

    Args:
        endpoint: in all methods its id; an endpoint that is gone costs a few numbers.
    """

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}

    def add(self, endpoint: str, latency_s: float, tokens_per_s: float | None) -> None:
        """Remember an answer: seconds to its first content, and tokens per second after it."""
        seen = self._seen.setdefault(endpoint, _Seen())
        seen.latency_s.append(latency_s)
        if tokens_per_s is not None:
            seen.tokens_per_s.append(tokens_per_s)

    def latency_s(self, endpoint: str, percentile: str = "p50") -> float | None:
        """Seconds that this part of the answers stayed below; None if nothing was seen."""
        seen = self._seen.get(endpoint)
        return _quantile(seen.latency_s, percentile) if seen else None

    def tokens_per_s(self, endpoint: str, percentile: str = "p50") -> float | None:
        """Tokens per second that this part of the answers reached; None if nothing was seen."""
        seen = self._seen.get(endpoint)
        return _quantile([-each for each in seen.tokens_per_s], percentile, -1) if seen else None


def _quantile(values: deque[float] | list[float], percentile: str, sign: int = 1) -> float | None:
    if not values:
        return None
    share = int(percentile.removeprefix("p")) / 100
    ordered = sorted(values)
    return sign * ordered[min(int(share * len(ordered)), len(ordered) - 1)]
