"""Conversations: how many turns, at which endpoint, how much was cached, the last one's parts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lingflash.gateway.accounting import End, Session, Start
from lingflash.gateway.accounts.rows import clean, parts_to_json


@dataclass(slots=True, kw_only=True)
class SessionState:
    """A row of `session`, its fields are the table's columns."""

    key_hash: str
    id: str
    steps: int = 0
    turns: int = 0
    pinned_endpoint: str | None = None
    pinned_replica: str | None = None
    used_at: int = 0
    later_prompt: int = 0
    later_cached: int = 0
    parts: list[Any] = field(default_factory=list[Any])

    def take(self, start: Start, end: End, now_ms: int) -> dict[str, Any] | None:
        """Go on by one request.

        Returns:
            Its parts, as the ledger keeps them: how many leading ones are those of the step before,
            and the others. None where they are not known.
        """
        self.steps += 1
        self.used_at = max(self.used_at, now_ms)
        if end.usage is not None and end.usage.prompt_tokens:
            if self.turns:
                self.later_prompt += end.usage.prompt_tokens
                self.later_cached += end.usage.cached_tokens
            self.turns += 1
        if end.endpoint is not None:
            self.pinned_endpoint = clean(end.endpoint, 256)
            self.pinned_replica = end.replica and clean(end.replica, 256)
        if not start.parts:
            return None
        parts = parts_to_json(start.parts)
        kept = 0
        for old, new in zip(self.parts, parts, strict=False):
            if old != new:
                break
            kept += 1
        self.parts = parts
        return {"kept": kept, "new": parts[kept:]}

    def seen(self, now_ms: int, pin_ttl_s: float) -> Session:
        """What the relay wants to know of it; a pin that is too old is none."""
        is_fresh = now_ms - self.used_at <= pin_ttl_s * 1000
        return Session(
            id=self.id,
            turns=self.turns,
            pinned_endpoint=self.pinned_endpoint if is_fresh else None,
            pinned_replica=self.pinned_replica if is_fresh else None,
            cache_rate=self.later_cached / self.later_prompt if self.later_prompt else None,
        )

    def row(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in SESSION_COLUMNS}


SESSION_COLUMNS = (
    "key_hash",
    "id",
    "steps",
    "turns",
    "pinned_endpoint",
    "pinned_replica",
    "used_at",
    "later_prompt",
    "later_cached",
    "parts",
)
