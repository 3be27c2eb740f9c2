"""Which sandbox a request is for, and what a failure in one is called over HTTP."""

from __future__ import annotations

import base64
import binascii
import errno

from fastapi import Request

from lingflash.core.errors import (
    AuthenticationError,
    InvalidRequestError,
    LingflashError,
    SandboxError,
    SandboxGoneError,
)
from lingflash.httpd.context import HttpContext, context_of
from lingflash.httpd.error_map import http_error
from lingflash.protocol.errors import ErrorDialect, WireError, object_schema
from lingflash.sandbox.backend import Backend
from lingflash.sandbox.manager import Manager, Sandbox

USER = "user"


class SandboxContext(HttpContext):
    """A sandbox server's context."""

    backend: Backend

    @property
    def manager(self) -> Manager:
        """The backend whose sandboxes are jails on this machine."""
        assert isinstance(self.backend, Manager)
        return self.backend

    @property
    def not_ready(self) -> str | None:
        """Why no request can be served now, or None."""
        if (reason := super().not_ready) is not None:
            return reason
        return None if self.backend.is_ready else "The sandbox server is starting."


def state_of(request: Request) -> SandboxContext:
    """The context of the server that a request came to."""
    context = context_of(request)
    assert isinstance(context, SandboxContext)
    return context


def sandbox_of(request: Request, *, id_is_enough: bool = False) -> Sandbox:
    """The running sandbox that a request names by its token.

    Args:
        id_is_enough: the SDKs send no token with this call, only the unguessable id.

    Raises:
        AuthenticationError: nothing is named, or the id and the token are of two sandboxes.
        SandboxGoneError: there is none, or it is paused.
    """
    manager = state_of(request).manager
    token = request.headers.get("x-access-token", "")
    sandbox_id = request.headers.get("e2b-sandbox-id", "")
    if token:
        sandbox = manager.by_token(token)
        if sandbox is not None and sandbox_id and sandbox.id != sandbox_id:
            raise AuthenticationError("The access token is of another sandbox.")
    elif id_is_enough and sandbox_id:
        sandbox = manager.by_id(sandbox_id)
    else:
        raise AuthenticationError(
            "No access token was given; send the sandbox's as the header X-Access-Token."
        )
    if sandbox is None or sandbox.box.gone.is_set():
        raise SandboxGoneError("The sandbox was not found; it has ended, or never was.")
    if sandbox.state == "paused":
        why = f" for the limit of its API key on {sandbox.paused_for}" if sandbox.paused_for else ""
        raise SandboxGoneError(
            f"The sandbox was not found running: it is paused{why}; connect to it."
        )
    return sandbox


def check_user(request: Request) -> None:
    """Refuse a user that a sandbox does not have.

    Raises:
        InvalidRequestError: it is another than "user".
    """
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    name = request.query_params.get("username", USER)
    if scheme.lower() == "basic":
        try:
            name = base64.b64decode(given, validate=True).decode().partition(":")[0]
        except (binascii.Error, UnicodeDecodeError):
            raise InvalidRequestError("The Basic authorization cannot be read.") from None
    if name not in ("", USER):
        raise InvalidRequestError(
            f"user is {name[:40]!r}; a sandbox has one user, {USER!r}.", param="user"
        )


# errno to HTTP status and to Connect's code; what is not here is 400 and invalid_argument.
_BY_ERRNO: dict[int, tuple[int, str]] = {
    errno.ENOENT: (404, "not_found"),
    errno.EEXIST: (409, "already_exists"),
    errno.EACCES: (403, "permission_denied"),
    errno.EPERM: (403, "permission_denied"),
    errno.EROFS: (403, "permission_denied"),
    errno.ENOSPC: (507, "resource_exhausted"),
    errno.EFBIG: (507, "resource_exhausted"),
    errno.EAGAIN: (429, "resource_exhausted"),
    errno.ENOMEM: (507, "resource_exhausted"),
}
_BY_STATUS = {
    400: "invalid_argument",
    401: "unauthenticated",
    404: "not_found",
    413: "resource_exhausted",
    415: "unimplemented",
    429: "resource_exhausted",
    502: "unavailable",
    503: "unavailable",
    504: "deadline_exceeded",
}


def outcome_of(error: LingflashError) -> tuple[int, str]:
    """An error's HTTP status and its word in Connect."""
    if isinstance(error, SandboxError) and error.errno is not None:
        return _BY_ERRNO.get(error.errno, (400, "invalid_argument"))
    status = http_error(error).status
    return status, _BY_STATUS.get(status, "internal")


def _write(error: WireError) -> dict[str, object]:
    return {"code": error.status, "message": error.message}


E2B_ERRORS = ErrorDialect(
    "E2bError",
    object_schema({"code": {"type": "integer"}, "message": {"type": "string"}}),
    _write,
)
