"""Every error that lingflash raises on purpose.

    LingflashError
    ├── ConfigError            a flag, environment value or keyword is wrong
    ├── ModelLoadError         a checkpoint cannot be read as asked
    │   └── UnsupportedModelError   it is a model that lingflash does not run
    ├── InvalidRequestError    this request can never be served (HTTP 400)
    │   ├── ContextLengthError      prompt or prompt + max_tokens exceed the context
    │   ├── RequestTooLargeError    the body is over the size limit (HTTP 413)
    │   └── UnsupportedMediaError   the body is encoded in a way that is not read (HTTP 415)
    ├── AuthenticationError    no or wrong API key (HTTP 401)
    ├── InsufficientCreditsError   a budget does not suffice (HTTP 402)
    ├── NotAllowedError        this key may not do that (HTTP 403)
    ├── NotFoundError          no such model or object (HTTP 404)
    ├── CapacityError          it could be served, but not now (HTTP 503)
    │   ├── QueueFullError          the waiting queue is full (HTTP 429)
    │   ├── RateLimitError          a key's limit per time or of concurrency is reached (HTTP 429)
    │   └── NotEnoughMemoryError    the model or its cache does not fit (at start-up)
    ├── UpstreamError          no server behind the gateway gave an answer (HTTP 502)
    │   └── UpstreamTimeoutError    one took too long (HTTP 504)
    ├── SandboxError           what was asked of a sandbox failed in it (HTTP 400)
    │   └── SandboxGoneError        it could not be started or has ended (HTTP 502)
    └── EngineError            the engine failed while serving (HTTP 500)
        ├── EngineDeadError         its process is gone (HTTP 503)
        ├── NonFiniteLogitsError    the model gave NaN or infinity for this request
        └── DeadlineExceededError   the request's deadline passed (HTTP 504)

Messages say what was given, what is allowed and what to change. The command line prints them
without a traceback; `httpd/error_map.py` maps each class to a status. To add one:
put it in the tree above, give it a `code`, and map it there (a test fails until you do).
"""

from __future__ import annotations

from typing import NoReturn


class LingflashError(Exception):
    """Root of the tree; `code` is a stable machine-readable word for it."""

    code: str = "internal_error"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions with keyword-only arguments do not pickle by themselves.
        return (_rebuild, (type(self), self.message, self.param))


def _rebuild(cls: type[LingflashError], message: str, param: str | None) -> LingflashError:
    return cls(message, param=param)


class ConfigError(LingflashError, ValueError):
    """A flag, environment value or keyword argument is wrong."""

    code = "invalid_config"


class ModelLoadError(LingflashError):
    """A checkpoint cannot be read: missing, truncated, wrong shapes, unused tensors."""

    code = "model_load_failed"


class UnsupportedModelError(ModelLoadError):
    """The checkpoint is of a model that lingflash does not run."""

    code = "unsupported_model"


class InvalidRequestError(LingflashError, ValueError):
    """The request can never be served as it is; `param` names the field."""

    code = "invalid_request"


class ContextLengthError(InvalidRequestError):
    """The prompt, or the prompt and max_tokens together, exceed the context.

    Args:
        num_tokens: of the prompt, where they are known, or at least so many.
        limit: tokens of the context.
    """

    code = "context_length_exceeded"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        num_tokens: int | None = None,
        limit: int | None = None,
    ) -> None:
        super().__init__(message, param=param)
        self.num_tokens = num_tokens
        self.limit = limit


class RequestTooLargeError(InvalidRequestError):
    """The request body is over the size limit."""

    code = "request_too_large"


class UnsupportedMediaError(InvalidRequestError):
    """The request body is in an encoding that the server does not read."""

    code = "unsupported_media"


class AuthenticationError(LingflashError):
    """No API key was given, or it is not one of ours."""

    code = "invalid_api_key"


class InsufficientCreditsError(LingflashError):
    """A budget of the key does not suffice for what the request may cost."""

    code = "insufficient_credits"


class NotAllowedError(LingflashError, PermissionError):
    """The key is valid but may not do that."""

    code = "not_allowed"


class NotFoundError(LingflashError):
    """The named model or object does not exist."""

    code = "not_found"


class CapacityError(LingflashError):
    """The request is fine but cannot be served now."""

    code = "over_capacity"


class QueueFullError(CapacityError):
    """The waiting queue is at its limit; try again later."""

    code = "queue_full"


class RateLimitError(CapacityError):
    """A limit of the key is reached; `headers` say which, and when to come again."""

    code = "rate_limit_exceeded"

    def __init__(
        self, message: str, *, param: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message, param=param)
        self.headers = headers or {}


class NotEnoughMemoryError(CapacityError, MemoryError):
    """The model, or a cache for one full context, does not fit in memory."""

    code = "not_enough_memory"


class UpstreamError(LingflashError):
    """A server or vendor behind the gateway gave no answer, or a broken one."""

    code = "provider_unavailable"


class UpstreamTimeoutError(UpstreamError, TimeoutError):
    """A server or vendor behind the gateway took longer than it may."""

    code = "provider_timeout"


class SandboxError(LingflashError):
    """What was asked of a sandbox's files or processes failed there.

    Args:
        errno: why, if the kernel said so.
    """

    code = "sandbox_error"

    def __init__(self, message: str, *, param: str | None = None, errno: int | None = None) -> None:
        super().__init__(message, param=param)
        self.errno = errno


class SandboxGoneError(SandboxError):
    """The sandbox could not be started, or has ended."""

    code = "sandbox_gone"


class EngineError(LingflashError):
    """The engine failed while serving this request."""

    code = "engine_error"


class EngineDeadError(EngineError):
    """The engine process is gone; running requests cannot be continued."""

    code = "engine_dead"


class NonFiniteLogitsError(EngineError):
    """The model produced NaN or infinite logits for this request."""

    code = "non_finite_logits"


class DeadlineExceededError(EngineError, TimeoutError):
    """The request's deadline passed before it finished."""

    code = "deadline_exceeded"


_BY_CODE: dict[str, type[LingflashError]] = {
    cls.code: cls
    for cls in list(globals().values())
    if isinstance(cls, type) and issubclass(cls, LingflashError)
}


def from_code(code: str | None, message: str, *, param: str | None = None) -> LingflashError:
    """An error that crossed a process as its code; an EngineError if no class has the code."""
    return _BY_CODE.get(code or "", EngineError)(message, param=param)


def refuse(param: str, problem: str) -> NoReturn:
    """Refuse a request for one of its fields.

    Args:
        param: the field, such as `messages[2].content`; the message begins with it.
        problem: goes on from there, such as "is empty; at least one message is needed".

    Raises:
        InvalidRequestError: always.
    """
    raise InvalidRequestError(f"{param} {problem}.", param=param)
