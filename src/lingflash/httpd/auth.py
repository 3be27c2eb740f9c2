"""API keys, checked by a dependency of the routes.

Not by a middleware on paths: a crafted Host header once changed the path that a middleware saw
(CVE-2026-48710), while a route's dependency runs for that route or not at all.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from fastapi import Request

from lingflash.core.errors import AuthenticationError, NotFoundError
from lingflash.httpd.context import context_of


def caller_of(request: Request) -> str:
    """A name for whoever holds the request's key, for what must not be shared between keys."""
    if not context_of(request).api_keys:
        return ""
    return _digest(given_key(request)).hex()


# Coroutines: FastAPI would hand a plain function to a thread, for each request.
async def require_key(request: Request) -> None:
    """Let a request pass if it carries one of the keys, or if there are none.

    Raises:
        AuthenticationError: no key, or not one of ours.
    """
    keys = context_of(request).api_keys
    if keys:
        _require_one_of(keys, request)


def has_key(request: Request) -> bool:
    """Whether a request carries one of the keys, or there are none: for what may go without."""
    keys = context_of(request).api_keys
    return not keys or _is_one_of(keys, given_key(request))


async def require_admin_key(request: Request) -> None:
    """Let a request pass if it carries the admin key; the others' keys are not enough.

    Raises:
        NotFoundError: the server was started without one, so there is no such endpoint.
        AuthenticationError: no key, or another.
    """
    key = context_of(request).admin_api_key
    if key is None:
        raise NotFoundError(
            f"{request.scope['path']} is off; start the server with --admin-api-key KEY to use it."
        )
    _require_one_of((key,), request)


def _require_one_of(keys: Sequence[str], request: Request) -> None:
    given = given_key(request)
    if not given:
        raise AuthenticationError(
            "No API key was given; send the header 'Authorization: Bearer KEY' or 'x-api-key: KEY'."
        )
    if not _is_one_of(keys, given):
        raise AuthenticationError("The API key is not valid.")


def _is_one_of(keys: Sequence[str], given: str) -> bool:
    # Digests have one length, and every key is compared, so time tells nothing about any of them.
    digest = _digest(given)
    matches = 0
    for key in keys:
        matches += hmac.compare_digest(digest, hashlib.sha256(key.encode()).digest())
    return bool(matches)


def given_key(request: Request) -> str:
    """The key that a request carries, in OpenAI's header or Anthropic's; "" if none."""
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not given:
        given = request.headers.get("x-api-key", "")  # Anthropic's clients
    return given.strip()


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
