"""Every error class to an HTTP status and headers; a dialect gives it its body.

The most specific class in the table wins; a test fails on a class that only the root would catch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lingflash.core import errors
from lingflash.core.errors import LingflashError
from lingflash.protocol.errors import OPENAI_ERRORS, ErrorDialect, WireError

RETRY_AFTER_S = 1


@dataclass(frozen=True, slots=True)
class HttpError:
    """How a class of error looks to a client."""

    status: int
    type: str
    retry: bool = False


_INVALID = "invalid_request_error"
_SERVER = "server_error"

ERROR_MAP: dict[type[LingflashError], HttpError] = {
    errors.LingflashError: HttpError(500, _SERVER),
    errors.ConfigError: HttpError(500, _SERVER),
    errors.ModelLoadError: HttpError(500, _SERVER),
    errors.UnsupportedModelError: HttpError(500, _SERVER),
    errors.InvalidRequestError: HttpError(400, _INVALID),
    errors.ContextLengthError: HttpError(400, _INVALID),
    errors.RequestTooLargeError: HttpError(413, _INVALID),
    errors.UnsupportedMediaError: HttpError(415, _INVALID),
    errors.AuthenticationError: HttpError(401, "authentication_error"),
    errors.InsufficientCreditsError: HttpError(402, "insufficient_quota"),
    errors.NotAllowedError: HttpError(403, "permission_error"),
    errors.NotFoundError: HttpError(404, _INVALID),
    errors.CapacityError: HttpError(503, "overloaded_error", retry=True),
    errors.QueueFullError: HttpError(429, "rate_limit_error", retry=True),
    errors.RateLimitError: HttpError(429, "rate_limit_error", retry=True),
    errors.NotEnoughMemoryError: HttpError(503, "overloaded_error", retry=True),
    errors.UpstreamError: HttpError(502, _SERVER),
    errors.UpstreamTimeoutError: HttpError(504, "timeout_error"),
    errors.SandboxError: HttpError(400, _INVALID),
    errors.SandboxGoneError: HttpError(502, _SERVER),
    errors.EngineError: HttpError(500, _SERVER),
    errors.EngineDeadError: HttpError(503, _SERVER, retry=True),
    errors.NonFiniteLogitsError: HttpError(500, _SERVER),
    errors.DeadlineExceededError: HttpError(504, "timeout_error"),
}


def http_error(error: LingflashError) -> HttpError:
    """The table's entry for an error, by its nearest class."""
    for cls in type(error).__mro__:
        if cls in ERROR_MAP:
            return ERROR_MAP[cls]
    raise AssertionError("LingflashError is in the table")


def envelope(error: LingflashError, dialect: ErrorDialect = OPENAI_ERRORS) -> dict[str, Any]:
    http = http_error(error)
    return dialect.write(
        WireError(
            status=http.status,
            type=http.type,
            message=error.message,
            param=error.param,
            code=error.code,
        )
    )


def status_envelope(
    status: int, message: str, code: str, dialect: ErrorDialect = OPENAI_ERRORS
) -> dict[str, Any]:
    """The body for an error that has no class of ours, such as an unknown path."""
    kind = _INVALID if status < 500 else _SERVER
    return dialect.write(WireError(status=status, type=kind, message=message, code=code))


def headers_of(error: LingflashError) -> dict[str, str]:
    result: dict[str, str] = {}
    if http_error(error).retry:
        result["retry-after"] = str(RETRY_AFTER_S)
    if isinstance(error, errors.RateLimitError):
        result |= error.headers
    if isinstance(error, errors.AuthenticationError):
        result["www-authenticate"] = "Bearer"
    if isinstance(error, errors.RequestTooLargeError):
        result["connection"] = "close"  # the rest of the body is not wanted
    return result
