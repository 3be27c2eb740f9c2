"""Token counts out of an upstream's answer; None where they are missing, null or impossible."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lingflash.core.types import MAX_COUNT, CodeUsage, Usage
from lingflash.gateway.accounting import Dialect

# In text of any language a token has about so many bytes.
BYTES_PER_TOKEN = 4


def read_usage(dialect: Dialect, given: Any) -> Usage | None:
    """The `usage` of an answer or event."""
    if not isinstance(given, Mapping):
        return None
    if dialect == "messages":
        return _anthropics(given)
    is_chat = dialect in ("chat", "completions")
    prompt = _count(given, "prompt_tokens" if is_chat else "input_tokens")
    answer = _count(given, "completion_tokens" if is_chat else "output_tokens")
    if prompt is None or answer is None:
        return None
    of_prompt = _details(given, "prompt_tokens_details" if is_chat else "input_tokens_details")
    of_answer = _details(given, "completion_tokens_details" if is_chat else "output_tokens_details")
    cached = _count(of_prompt, "cached_tokens")
    if cached is None:
        cached = _count(given, "prompt_cache_hit_tokens") or 0  # DeepSeek's word
    cached = min(cached, prompt)
    return Usage(
        prompt_tokens=prompt,
        cached_tokens=cached,
        cache_write_tokens=min(_count(of_prompt, "cache_write_tokens") or 0, prompt - cached),
        completion_tokens=answer,
        reasoning_tokens=_count(of_answer, "reasoning_tokens"),
        code=_code(_details(given, "code_interpreter_details")),
    )


def _code(told: Mapping[str, Any]) -> CodeUsage | None:
    """What code took that the upstream ran for the answer."""
    calls, size = _count(told, "calls"), _count(told, "output_bytes")
    seconds = told.get("seconds")
    if calls is None or size is None or isinstance(seconds, bool):
        return None
    if not isinstance(seconds, int | float) or not 0 <= seconds <= MAX_COUNT:
        return None
    return CodeUsage(calls=calls, seconds=float(seconds), output_bytes=size)


def _anthropics(given: Mapping[str, Any]) -> Usage | None:
    """Anthropic's input_tokens are those that were neither read from a cache nor written to it."""
    new = _count(given, "input_tokens")
    if new is None:
        return None
    cached = _count(given, "cache_read_input_tokens") or 0
    written = _count(given, "cache_creation_input_tokens") or 0
    return Usage(
        prompt_tokens=new + cached + written,
        cached_tokens=cached,
        cache_write_tokens=written,
        completion_tokens=_count(given, "output_tokens") or 0,
    )


def estimated_tokens(num_bytes: int) -> int:
    """About how many tokens a text of so many bytes has."""
    return -(-num_bytes // BYTES_PER_TOKEN)


def _details(given: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = given.get(name)
    return value if isinstance(value, Mapping) else {}


def _count(given: Mapping[str, Any], name: str) -> int | None:
    value = given.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_COUNT:
        return None
    return value
