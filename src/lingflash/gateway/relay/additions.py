"""What the gateway adds to an upstream's bytes, and what it hides; everything else stays as it is.

Under /v1 an answer is the upstream's, byte for byte. Its usage is asked for in any case, since
somebody has to be billed; a client that did not ask does not see it. Under /api/v1 completions get
`provider`, and the money in their `usage`, as OpenRouter's clients know it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from lingflash.gateway.accounting import Attempt, Dialect
from lingflash.gateway.relay.call import Call
from lingflash.gateway.relay.frames import Kind
from lingflash.gateway.routing.plan import Candidate, Plan
from lingflash.protocol.sse import sse_event

_NULL_USAGE = b',"usage":null'


@dataclass(frozen=True, slots=True, kw_only=True)
class Additions:
    """For one answer.

    Args:
        adds: whether `provider` and money are added.
        shows_usage: whether the client sees an event that has only the usage.
        money: the fields for `usage`, from the upstream's own.
        metadata: for `openrouter_metadata` beside the usage, if it was asked for.
    """

    dialect: Dialect
    provider: str
    adds: bool
    shows_usage: bool
    money: Callable[[Any], Mapping[str, Any]]
    metadata: Callable[[], Mapping[str, Any]] | None = None

    def to_event(self, event: bytes, kind: Kind, data: dict[str, Any] | None) -> bytes:
        """An event for the client; b"" if it is not for it."""
        if data is None or self.dialect not in ("chat", "completions"):
            return event
        if not self.shows_usage:
            if kind == "usage":
                return b""
            return _without_null_usage(event, data)
        if not self.adds:
            return event
        if isinstance(data.get("usage"), dict):
            return sse_event(self._with_money(data))
        if "provider" in data or not data:
            return event
        end = event.rfind(b"}")
        name = msgspec.json.encode(self.provider)
        return event[:end] + b',"provider":' + name + event[end:]

    def to_body(self, body: bytes, data: dict[str, Any]) -> bytes:
        """A whole answer for the client."""
        if not self.adds or self.dialect not in ("chat", "completions"):
            return body
        added = self._with_money(data)
        # What is not added stays as it was written, numbers included.
        raw = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        names = ("provider", "usage", "openrouter_metadata")
        # OpenRouter's own client refuses an answer without a fingerprint, if only a null one.
        fields: dict[str, Any] = {**raw, "system_fingerprint": raw.get("system_fingerprint")}
        fields |= {name: added[name] for name in names if name in added}
        return msgspec.json.encode(fields)

    def _with_money(self, data: dict[str, Any]) -> dict[str, Any]:
        usage = data.get("usage")
        result = {**data, "provider": data.get("provider", self.provider)}
        if isinstance(usage, dict):
            result["usage"] = {**usage, **self.money(usage)}
        if self.metadata is not None:
            result["openrouter_metadata"] = self.metadata()
        return result


def _without_null_usage(event: bytes, data: dict[str, Any]) -> bytes:
    """An event without the `usage: null` that only our asking brought."""
    if "usage" not in data or data["usage"] is not None or event.count(_NULL_USAGE) != 1:
        return event
    return event.replace(_NULL_USAGE, b"")


def metadata_of(
    call: Call, plan: Plan, candidate: Candidate, attempts: Sequence[Attempt]
) -> Mapping[str, Any]:
    """OpenRouter's account of a route, for whoever asked for it.

    Args:
        attempts: those that failed before the one that serves.
    """
    tried = [
        {"provider": each.provider, "model": each.model, "status": each.status} for each in attempts
    ]
    own = candidate.endpoint
    tried.append({"provider": own.provider, "model": own.model, "status": 200})
    available = dict.fromkeys(each.endpoint.provider for each in plan.candidates)
    return {
        "requested": call.wish.models[0],
        "strategy": plan.rule,
        "attempt": len(tried),
        "attempts": tried,
        "endpoints": {
            "available": list(available),
            "total": len(plan.candidates) + len(plan.resting) + len(plan.excluded),
        },
        "is_byok": candidate.key.is_brought,
    }
