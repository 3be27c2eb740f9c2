"""An answer that comes whole: whether it is one, what it cost, how it ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from lingflash.core.types import Usage
from lingflash.gateway.accounting import Dialect
from lingflash.gateway.relay.usage import estimated_tokens, read_usage
from lingflash.link.http_client import BadAnswer

_BODY = {"chat": "choices", "completions": "choices", "responses": "output", "messages": "content"}


@dataclass(frozen=True, slots=True)
class WholeAnswer:
    """What is known of one.

    Args:
        counted: tokens of the answer by its bytes, where it does not tell.
        error: what it says instead of answering.
    """

    data: dict[str, Any]
    usage: Usage | None
    counted: int
    finish_reason: str | None
    answer_id: str | None
    error: Any = None


def read_answer(dialect: Dialect, body: bytes) -> WholeAnswer:
    """Read the body of an answer.

    Raises:
        BadAnswer: it is none of the dialect's.
    """
    try:
        data = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise BadAnswer("the answer is no JSON") from None
    if not isinstance(data, dict):
        raise BadAnswer("the answer is no JSON object")
    parts = data.get(_BODY[dialect])
    error = data.get("error")
    if not error and data.get("type") == "error":
        error = data
    if not error and not isinstance(parts, list):
        raise BadAnswer(f"the answer has no {_BODY[dialect]}")
    reason: Any = data.get("stop_reason") if dialect == "messages" else data.get("status")
    text_bytes = 0
    for part in parts or ():
        text_bytes += _text_bytes(part)
        if _BODY[dialect] == "choices" and isinstance(part, dict):
            reason = part.get("finish_reason")
            if reason == "error":
                error = error or part.get("error") or {"message": "finish_reason is error"}
    if dialect == "responses" and reason == "failed":
        error = error or {"message": "the response failed"}
    if not error and _BODY[dialect] == "choices" and not parts:
        raise BadAnswer("the answer has no choice")
    answer_id = data.get("id")
    return WholeAnswer(
        data=data,
        usage=read_usage(dialect, data.get("usage")),
        counted=estimated_tokens(text_bytes),
        finish_reason=None if reason is None else str(reason),
        answer_id=answer_id if isinstance(answer_id, str) else None,
        error=error,
    )


_TEXTS = frozenset(("text", "content", "thinking", "reasoning_content", "reasoning", "arguments",
                    "refusal", "input"))  # fmt: skip


def _text_bytes(value: Any, name: str = "") -> int:
    """Bytes of what was generated, wherever in the answer it stands."""
    if isinstance(value, str):
        return len(value.encode("utf-8", "surrogatepass")) if name in _TEXTS else 0
    if isinstance(value, dict):
        if name == "input":
            return len(msgspec.json.encode(value))
        return sum(_text_bytes(each, key) for key, each in value.items())
    if isinstance(value, list):
        return sum(_text_bytes(each, name) for each in value)
    return 0
