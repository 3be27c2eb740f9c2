"""Why an attempt failed, what that says of the upstream, and what the caller hears of it.

No message has a key: what an upstream says is quoted only after every secret was taken out.
"""

from __future__ import annotations

import email.utils
import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from lingflash.core.errors import (
    AuthenticationError,
    CapacityError,
    ContextLengthError,
    InsufficientCreditsError,
    InvalidRequestError,
    LingflashError,
    RateLimitError,
    UpstreamError,
    UpstreamTimeoutError,
)
from lingflash.gateway.routing.breaker import Verdict
from lingflash.gateway.routing.plan import Candidate
from lingflash.link.connection_pool import ForbiddenPeer
from lingflash.link.http_client import BadAnswer, TooSlow

_MAX_QUOTED = 500
_MAX_RETRY_AFTER_S = 3600.0


class AttemptFailed(Exception):
    """One attempt gave no content.

    Args:
        status: the upstream's, 0 where it gave none.
        error: for the caller, if no other attempt does better.
        verdict: for the breaker of the upstream and key.
        is_final: no other upstream would do better, since the request is at fault.
        retry_after_s: as the upstream asked.
    """

    def __init__(
        self,
        status: int,
        error: LingflashError,
        verdict: Verdict = "fail",
        *,
        is_final: bool = False,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(error.message)
        self.status = status
        self.error = error
        self.verdict: Verdict = verdict
        self.is_final = is_final
        self.retry_after_s = retry_after_s


class Quoter:
    """Quotes upstreams, without any of these secrets."""

    def __init__(self, secrets: Sequence[str]) -> None:
        self._secrets = [each for each in secrets if len(each) >= 4]

    def __call__(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        text = " ".join(text.split())
        return text if len(text) <= _MAX_QUOTED else text[:_MAX_QUOTED] + "..."


def refused(
    candidate: Candidate, status: int, headers: Mapping[str, str], body: bytes, quote: Quoter
) -> AttemptFailed:
    """An upstream answered with another status than 200."""
    provider, key = candidate.endpoint.provider, candidate.key
    said = quote(_message_of(body))
    told = f": {said}" if said else "."
    if 300 <= status < 400:
        error = UpstreamError(f"{provider} answered with a redirect, which is not followed.")
        return AttemptFailed(status, error)
    match status:
        case 401 | 403:
            if key.is_brought:
                error = AuthenticationError(f"{provider} refused {key.name}{told}")
            else:
                error = UpstreamError(f"{provider} refused the house's key.")
            return AttemptFailed(status, error, "cool")
        case 402:
            if key.is_brought:
                error = InsufficientCreditsError(f"{provider} wants {key.name} to be paid{told}")
            else:
                error = UpstreamError(f"{provider} does not serve the house now.")
            return AttemptFailed(status, error, "cool")
        case 429:
            seconds = _retry_after(headers)
            wait = {"retry-after": str(max(1, round(seconds)))} if seconds is not None else {}
            error = RateLimitError(f"{provider} has too many requests{told}", headers=wait)
            return AttemptFailed(status, error, "cool", retry_after_s=seconds)
        case 400 | 413 | 415 | 422:
            error = _request_error(provider, body, told)
            return AttemptFailed(status, error, "succeed", is_final=True)
        case 503 | 529:
            return AttemptFailed(status, CapacityError(f"{provider} is overloaded{told}"))
        case 408 | 504:
            error = UpstreamTimeoutError(f"{provider} took too long{told}")
            return AttemptFailed(status, error)
    error = UpstreamError(f"{provider} answered with status {status}{told}")
    # What it does not have, another may; that is no reason to leave it alone.
    return AttemptFailed(status, error, "succeed" if status < 500 else "fail")


def broken(candidate: Candidate, error: Exception, status: int = 0) -> AttemptFailed:
    """No answer came, or none that can be read."""
    return AttemptFailed(status, broken_error(candidate.endpoint.provider, error))


def broken_error(provider: str, error: Exception) -> LingflashError:
    """What a caller hears of an exception of the HTTP client."""
    match error:
        case TooSlow():
            return UpstreamTimeoutError(f"{provider} took too long: {error}.")
        case ForbiddenPeer():
            return UpstreamError(
                f"{provider} is at a private address, which its configuration does not allow."
            )
        case BadAnswer():
            return UpstreamError(f"{provider} gave a broken answer: {str(error)[:200]}.")
    return UpstreamError(f"{provider} cannot be reached ({type(error).__name__}).")


def error_event(candidate: Candidate, said: Any, quote: Quoter) -> AttemptFailed:
    """An upstream's stream or answer says that it failed."""
    provider = candidate.endpoint.provider
    code = said.get("code", said.get("status")) if isinstance(said, Mapping) else None
    text = quote(_text_of(said))
    message = f"{provider} failed: {text}" if text else f"{provider} failed."
    if code == 429 or code in ("rate_limit_exceeded", "rate_limit_error"):
        return AttemptFailed(200, RateLimitError(message), "cool")
    if code in (503, 529) or code == "overloaded_error":
        return AttemptFailed(200, CapacityError(message))
    return AttemptFailed(200, UpstreamError(message))


def empty(candidate: Candidate) -> AttemptFailed:
    """A stream ended before any content."""
    return AttemptFailed(200, UpstreamError(f"{candidate.endpoint.provider} sent an empty stream."))


def _request_error(provider: str, body: bytes, told: str) -> InvalidRequestError:
    said = _error_of(body)
    param = said.get("param")
    param = param[:200] if isinstance(param, str) else None
    message = f"{provider} refused the request{told}"
    if said.get("code") == "context_length_exceeded":
        return ContextLengthError(message, param=param)
    return InvalidRequestError(message, param=param)


def _error_of(body: bytes) -> Mapping[str, Any]:
    try:
        data = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    error = data.get("error", data) if isinstance(data, dict) else {}
    return error if isinstance(error, dict) else {"message": error}


def _message_of(body: bytes) -> str:
    """What the body of an error says; a page in HTML says nothing."""
    return _text_of(_error_of(body))


def _text_of(said: Any) -> str:
    if isinstance(said, Mapping):
        said = said.get("message", said.get("detail"))
    return said if isinstance(said, str) else ""


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that an upstream asks to be left alone, given as such or as a date."""
    given = headers.get("retry-after", "").strip()
    if not given:
        return None
    try:
        seconds = float(given)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(given).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return min(max(seconds, 0.0), _MAX_RETRY_AFTER_S) if seconds == seconds else None


class BrokeOff(Exception):
    """An upstream failed after content; the client has been told."""

    def __init__(self, error: LingflashError) -> None:
        super().__init__(error.message)
        self.error = error
