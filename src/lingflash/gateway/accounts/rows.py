"""Requests as rows: of the ledger, and of a reservation that another process may have to settle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from lingflash.core.types import Usage
from lingflash.gateway.accounting import Attempt, Caller, Cost, End, Part, Start


def clean(text: str, length: int) -> str:
    """What any database takes: no half surrogate, no NUL, not too long."""
    return text.encode("utf-8", "replace").decode().replace("\0", "")[:length]


def _clean(text: str | None, length: int) -> str | None:
    return None if text is None else clean(text, length)


def start_to_row(start: Start) -> dict[str, Any]:
    """What a sweeper must know of a request; its parts are left out, they may be many."""
    return {
        "request_id": clean(start.request_id, 128),
        "dialect": start.dialect,
        "model": clean(start.model, 256),
        "is_streamed": start.is_streamed,
        "session_id": clean(start.session_id, 256),
        "is_free": start.is_free,
        "is_byok": start.is_byok,
    }


def start_of_row(row: Mapping[Any, Any]) -> Start:
    """The request of a row of `reservation`."""
    return Start(
        id=row["id"],
        caller=Caller(key_hash=row["key_hash"], name="", label=""),
        reserve_pico=row["reserved"],
        byok_reserve_pico=row["reserved_byok"],
        prompt_tokens=0,
        completion_tokens=0,
        **row["start"],
    )


def progress_to_row(
    usage: Usage, cost: Cost, attempt: Attempt | None, upstream_cost: Cost
) -> dict[str, Any]:
    """What a stream had made, for the column `progress`."""
    return {
        "usage": [
            usage.prompt_tokens,
            usage.cached_tokens,
            usage.completion_tokens,
            usage.reasoning_tokens,
            usage.cache_write_tokens,
        ],
        "cost": msgspec.to_builtins(cost),
        "upstream_cost": msgspec.to_builtins(upstream_cost),
        "attempt": None if attempt is None else msgspec.to_builtins(attempt),
    }


def killed_end(row: Mapping[Any, Any], duration_ms: int) -> End:
    """How a request ended whose process is dead, by what was last written of it."""
    progress = row["progress"]
    if progress is None:
        return End(
            outcome="killed",
            status=0,
            error_code="process_died",
            usage_source="estimated",
            duration_ms=duration_ms,
        )
    # What the version before wrote ends with the thinking.
    prompt, cached, completion, reasoning, *written = progress["usage"]
    attempt = None if progress["attempt"] is None else Attempt(**progress["attempt"])
    is_byok = attempt is not None and attempt.is_byok
    return End(
        outcome="killed",
        status=0,
        error_code="process_died",
        attempts=() if attempt is None else (attempt,),
        endpoint=attempt and attempt.endpoint,
        provider=attempt and attempt.provider,
        model=attempt and attempt.model,
        usage=Usage(
            prompt_tokens=prompt,
            cached_tokens=cached,
            completion_tokens=completion,
            reasoning_tokens=reasoning,
            cache_write_tokens=sum(written),
        ),
        usage_source="counted",
        cost=Cost(**progress["cost"]),
        upstream_cost=Cost(**progress["upstream_cost"]),
        byok_id="unknown" if is_byok else None,
        duration_ms=duration_ms,
    )


def generation_row(
    start: Start, end: End, *, step: int, parts: Any, created_at: int
) -> dict[str, Any]:
    """The one row of a request."""
    usage = end.usage or Usage(prompt_tokens=0, cached_tokens=0, completion_tokens=0)
    return {
        "id": start.id,
        "request_id": clean(start.request_id, 128),
        "session_id": clean(start.session_id, 256),
        "step": step,
        "key_hash": start.caller.key_hash,
        "dialect": start.dialect,
        "model_requested": clean(start.model, 256),
        "model_served": _clean(end.model, 256),
        "provider": _clean(end.provider, 128),
        "endpoint": _clean(end.endpoint, 256),
        "byok_id": _clean(end.byok_id, 64),
        "response_id": _clean(end.response_id, 256),
        "is_free": start.is_free,
        "is_streamed": start.is_streamed,
        "attempts": [msgspec.to_builtins(each) for each in end.attempts],
        "ttft_ms": end.ttft_ms,
        "duration_ms": end.duration_ms,
        "tokens_prompt": usage.prompt_tokens,
        "tokens_cached": usage.cached_tokens,
        "tokens_cache_write": usage.cache_write_tokens,
        "tokens_completion": usage.completion_tokens,
        "tokens_reasoning": usage.reasoning_tokens or 0,
        "usage_source": end.usage_source,
        "cost_prompt": end.cost.prompt,
        "cost_completion": end.cost.completion,
        "cache_saving": end.cost.cache_saving,
        "upstream_prompt": end.upstream_cost.prompt,
        "upstream_completion": end.upstream_cost.completion,
        "outcome": end.outcome,
        "status": end.status,
        "error_code": _clean(end.error_code, 64),
        "parts": parts,
        "wire": {
            **end.wire,
            "code": usage.code and msgspec.to_builtins(usage.code),
            "replica": end.replica,
        },
        "created_at": created_at,
    }


def parts_to_json(parts: Sequence[Part]) -> list[list[Any]]:
    """Parts as they are stored: role, digest, bytes and, of a tool's result, its name."""
    return [
        [each.role, each.digest, each.num_bytes, *([clean(each.name, 64)] if each.name else [])]
        for each in parts
    ]


def part_of_json(stored: Sequence[Any]) -> Part:
    """The reverse of parts_to_json, for one part."""
    role, digest, num_bytes, *name = stored
    return Part(role=role, digest=digest, num_bytes=num_bytes, name=name[0] if name else None)
