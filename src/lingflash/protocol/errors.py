"""OpenAI's error envelope."""

from __future__ import annotations

from typing import Any


def error_envelope(
    message: str, *, type: str, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """The body of every error answer.

    Args:
        message: what was given, what is allowed, what to change.
        type: OpenAI's class of error, such as invalid_request_error.
        param: the request field at fault.
        code: a stable word for the error.
    """
    return {"error": {"message": message, "type": type, "param": param, "code": code}}
