"""Every error class to an HTTP status and an envelope: OpenAI's, or Anthropic's on its paths.

The most specific class in the table wins; a test fails on a class that only the root would catch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lingflash.core import errors
from lingflash.core.errors import LingflashError
from lingflash.core.types import TokenEvent
from lingflash.protocol.errors import error_envelope
from lingflash.protocol.messages import messages_error

RETRY_AFTER_S = 1


@dataclass(frozen=True, slots=True)
class HttpError:
    """How a class of error looks to a client.

    Args:
        status: HTTP status.
        type: OpenAI's word for the class.
        retry: send Retry-After.
    """

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
    errors.AuthenticationError: HttpError(401, "authentication_error"),
    errors.NotFoundError: HttpError(404, _INVALID),
    errors.CapacityError: HttpError(503, "overloaded_error", retry=True),
    errors.QueueFullError: HttpError(429, "rate_limit_error", retry=True),
    errors.NotEnoughMemoryError: HttpError(503, "overloaded_error", retry=True),
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


def envelope(error: LingflashError) -> dict[str, Any]:
    """The body for an error."""
    code = error.code
    if isinstance(error, errors.NotFoundError) and error.param == "model":
        code = "model_not_found"
    return error_envelope(error.message, type=http_error(error).type, param=error.param, code=code)


_MESSAGES_PATH = "/v1/messages"
# HTTP status to Anthropic's word for the class.
_MESSAGES_TYPES = {
    400: _INVALID,
    401: "authentication_error",
    404: "not_found_error",
    405: _INVALID,
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def is_messages_path(path: str) -> bool:
    """Whether errors under a path have Anthropic's envelope."""
    return path == _MESSAGES_PATH or path.startswith(_MESSAGES_PATH + "/")


def envelope_for(path: str, error: LingflashError) -> dict[str, Any]:
    """The body for an error on a path."""
    if not is_messages_path(path):
        return envelope(error)
    kind = _MESSAGES_TYPES.get(http_error(error).status, "api_error")
    return messages_error(error.message, type=kind, param=error.param)


def http_envelope(path: str, status: int, message: str, code: str) -> dict[str, Any]:
    """The body for an error that has no class of ours, such as an unknown path."""
    if is_messages_path(path):
        return messages_error(message, type=_MESSAGES_TYPES.get(status, "api_error"))
    kind = _INVALID if status < 500 else _SERVER
    return error_envelope(message, type=kind, code=code)


def headers(error: LingflashError) -> dict[str, str]:
    """Headers that go with an error."""
    result: dict[str, str] = {}
    if http_error(error).retry:
        result["retry-after"] = str(RETRY_AFTER_S)
    if isinstance(error, errors.AuthenticationError):
        result["www-authenticate"] = "Bearer"
    if isinstance(error, errors.RequestTooLargeError):
        result["connection"] = "close"  # the rest of the body is not wanted
    return result


def error_from_event(event: TokenEvent) -> LingflashError:
    """The error that a request's last event tells of."""
    if event.finish_reason == "aborted":
        return errors.CapacityError(
            "The request was aborted because the server is shutting down; try again."
        )
    message = event.error_message or "The engine failed while serving this request."
    for cls in ERROR_MAP:
        if cls.code == event.error_code:
            return cls(message)
    return errors.EngineError(message)
