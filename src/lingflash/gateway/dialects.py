"""How errors are written under each path: OpenAI's way, Anthropic's, OpenRouter's."""

from __future__ import annotations

from typing import Any

from lingflash.protocol.errors import OPENAI_ERRORS, ErrorDialect, WireError, object_schema
from lingflash.protocol.messages import ANTHROPIC_ERRORS

# A word of ours to OpenRouter's.
_TYPES = {
    "insufficient_credits": "payment_required",
    "rate_limit_exceeded": "rate_limit_exceeded",
    "queue_full": "rate_limit_exceeded",
    "over_capacity": "provider_overloaded",
    "provider_unavailable": "provider_unavailable",
    "provider_timeout": "timeout",
    "context_length_exceeded": "context_length_exceeded",
    "invalid_api_key": "authentication",
    "not_allowed": "permission_denied",
    "not_found": "not_found",
    "request_too_large": "payload_too_large",
    "invalid_request": "invalid_request",
}


def _openrouter_error(error: WireError) -> dict[str, Any]:
    metadata: dict[str, Any] = {"error_type": _TYPES.get(error.code or "", error.type)}
    if error.param is not None:
        metadata["param"] = error.param
    return {"error": {"code": error.status, "message": error.message, "metadata": metadata}}


_ERROR = {
    "code": {"type": "integer"},
    "message": {"type": "string"},
    "metadata": {"type": "object"},
}
OPENROUTER_ERRORS = ErrorDialect(
    "OpenRouterError", object_schema({"error": object_schema(_ERROR)}), _openrouter_error
)


def error_dialect_of(path: str) -> ErrorDialect:
    """How errors under a path are written."""
    if path.startswith(("/v1/messages", "/api/v1/messages")):
        return ANTHROPIC_ERRORS
    return OPENROUTER_ERRORS if path.startswith("/api/") else OPENAI_ERRORS
