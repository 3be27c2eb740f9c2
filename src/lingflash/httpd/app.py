"""An application that answers every error in an envelope; routes are added to it."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Match

from lingflash.core.errors import InvalidRequestError, LingflashError
from lingflash.httpd.body import json_response
from lingflash.httpd.client_gone import ClientGone
from lingflash.httpd.context import HttpContext, context_of
from lingflash.httpd.direct import DirectRoutes, Endpoint
from lingflash.httpd.error_map import envelope, headers_of, http_error, status_envelope
from lingflash.httpd.middleware import RequestContextMiddleware


def make_app(context: HttpContext, direct: Mapping[str, Endpoint] | None = None) -> FastAPI:
    """An application without routes; `app.state.context` is its context.

    Args:
        direct: routes that are to be added, whose POST goes past the framework.
    """
    # The documentation pages would load scripts from elsewhere; `install_openapi` has the document.
    app = FastAPI(
        title="lingflash",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # the middleware takes the slash away
    )
    app.state.context = context
    handlers = {
        LingflashError: _on_lingflash_error,
        RecursionError: _on_recursion_error,
        ClientGone: _on_client_gone,
    }
    if direct:
        app.add_middleware(DirectRoutes, routes=direct, handlers=handlers)
    if context.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(context.cors_origins),
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["*"],
        )
    app.add_middleware(RequestContextMiddleware, context=context)
    for kind, handler in {**handlers, HTTPException: _on_http_exception}.items():
        app.add_exception_handler(kind, handler)
    return app


async def _on_lingflash_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, LingflashError)
    return json_response(
        envelope(error, context_of(request).dialect_of(request.scope["path"])),
        status=http_error(error).status,
        headers=headers_of(error),
    )


async def _on_recursion_error(request: Request, error: Exception) -> Response:
    # Only nested data can do this, such as the arguments of a call in the history.
    return await _on_lingflash_error(
        request, InvalidRequestError("Something in the request is nested too deeply.")
    )


async def _on_http_exception(request: Request, error: Exception) -> Response:
    # Starlette raises these for unknown paths and methods.
    assert isinstance(error, HTTPException)
    method, path = request.method, request.url.path
    headers = dict(error.headers or {})
    if error.status_code == 404:
        message, code = (
            f"There is no {path} here; see /openapi.json for what there is.",
            "not_found",
        )
    elif error.status_code == 405:
        allowed = _methods_of(request)
        headers["Allow"] = allowed
        message = f"{path} does not take {method}; allowed: {allowed}."
        code = "method_not_allowed"
    else:
        message, code = str(error.detail), "http_error"
    dialect = context_of(request).dialect_of(request.scope["path"])
    return json_response(
        status_envelope(error.status_code, message, code, dialect),
        status=error.status_code,
        headers=headers,
    )


def _methods_of(request: Request) -> str:
    """What a path takes; Starlette's error tells of the first of its routes alone."""
    routes = request.app.routes
    scopes = [(method, {**request.scope, "method": method}) for method in _METHODS]
    return ", ".join(
        method
        for method, scope in scopes
        if any(route.matches(scope)[0] is Match.FULL for route in routes)
    )


_METHODS = ("DELETE", "GET", "PATCH", "POST", "PUT")


async def _on_client_gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # for the log; nobody reads it
