"""What came of the attempts at each endpoint since this process began, for whoever looks."""

from __future__ import annotations

import time
from collections import Counter, deque
from dataclasses import dataclass, field

from lingflash.gateway.accounting import Attempt

_KEPT = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An attempt that failed.

    Args:
        at_ms: since 1970.
        message: as the caller would hear it, without any key; it may quote the upstream.
    """

    at_ms: int
    status: int
    code: str
    message: str
    generation_id: str
    duration_ms: int


@dataclass(slots=True)
class Outcomes:
    """All of them, by the endpoint's id. In memory alone: a message may quote what was asked."""

    answered: Counter[str] = field(default_factory=Counter[str])
    failed: Counter[str] = field(default_factory=Counter[str])
    answered_ms: dict[str, int] = field(default_factory=dict[str, int])
    failures: dict[str, deque[Failure]] = field(default_factory=dict[str, deque[Failure]])

    def note(self, attempt: Attempt, message: str, generation_id: str) -> None:
        """Take in an attempt that has ended; one whose client left tells nothing."""
        now_ms = time.time_ns() // 1_000_000
        if attempt.error is None:
            self.answered[attempt.endpoint] += 1
            self.answered_ms[attempt.endpoint] = now_ms
        elif attempt.error != "cancelled":
            self.failed[attempt.endpoint] += 1
            failure = Failure(
                at_ms=now_ms,
                status=attempt.status,
                code=attempt.error,
                message=message,
                generation_id=generation_id,
                duration_ms=attempt.duration_ms,
            )
            self.failures.setdefault(attempt.endpoint, deque(maxlen=_KEPT)).append(failure)
