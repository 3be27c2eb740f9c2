"""Who calls a route of the accounts."""

from __future__ import annotations

from typing import Any

from fastapi import Request

from lingflash.core.errors import AuthenticationError, InvalidRequestError
from lingflash.gateway.accounting import Caller, require_management
from lingflash.gateway.accounts.service import LedgerAccounts
from lingflash.httpd.auth import given_key


def accounts_of(request: Request) -> LedgerAccounts:
    """The accounts that the request's router was made for."""
    return request.state.accounts


async def require_caller(request: Request) -> Caller:
    """Whoever holds the request's key.

    Raises:
        AuthenticationError: there is none, or it is not one of ours.
    """
    secret = given_key(request)
    if not secret:
        raise AuthenticationError(
            "No API key was given; send the header 'Authorization: Bearer KEY' or 'x-api-key: KEY'."
        )
    return await accounts_of(request).authenticate(secret)


async def require_manager(request: Request) -> Caller:
    """The same, of a management key.

    Raises:
        NotAllowedError: it is an ordinary one.
    """
    caller = await require_caller(request)
    require_management(caller)
    return caller


def given_query(request: Request, **allowed: type) -> dict[str, Any]:
    """The parameters of a query: text, whole numbers from 0, or true and false.

    Raises:
        InvalidRequestError: one is not known, or not of its type.
    """
    result: dict[str, Any] = {}
    for name, text in request.query_params.items():
        kind = allowed.get(name)
        if kind is None:
            raise InvalidRequestError(
                f"{name[:40]} is no parameter of {request.scope['path']}; "
                f"allowed: {', '.join(allowed)}.",
                param=name[:40],
            )
        if kind is int and text.isascii() and text.isdecimal() and len(text) < 10:
            result[name] = int(text)
        elif kind is bool and text.lower() in ("true", "false"):
            result[name] = text.lower() == "true"
        elif kind is str and "\0" not in text and len(text) <= 256:
            result[name] = text
        else:
            wanted = {int: "a whole number", bool: "true or false", str: "a text"}[kind]
            raise InvalidRequestError(f"{name} is {text[:40]!r}; allowed: {wanted}.", param=name)
    return result
