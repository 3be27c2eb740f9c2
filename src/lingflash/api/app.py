"""Puts the HTTP application together."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from fastapi import Depends, FastAPI, Request, Response
from starlette.exceptions import HTTPException

from lingflash.api.answer.generation import ClientGone
from lingflash.api.chat import route as chat
from lingflash.api.completions import route as completions
from lingflash.api.config import ServerConfig
from lingflash.api.messages import route as messages
from lingflash.api.plain import admin, health, models, tokenize
from lingflash.api.responses import route as responses
from lingflash.api.state import ServerState
from lingflash.core.errors import InvalidRequestError, LingflashError
from lingflash.httpd import error_map
from lingflash.httpd.auth import require_key
from lingflash.httpd.body import json_response
from lingflash.httpd.middleware import RequestContextMiddleware
from lingflash.httpd.openapi import install_openapi
from lingflash.link.client import EngineClient
from lingflash.protocol.chat import ChatCompletionRequest
from lingflash.protocol.completions import CompletionRequest
from lingflash.protocol.messages import CountTokensRequest, MessagesRequest
from lingflash.protocol.responses import ResponsesRequest
from lingflash.protocol.tokenize import DetokenizeRequest, TokenizeRequest


def create_app(engine: EngineClient, config: ServerConfig | None = None) -> FastAPI:
    """Build the application around an engine, which may still be loading.

    Args:
        engine: whoever made it starts and stops it.
        config: of the server; None takes the defaults.

    Returns:
        The application; `app.state.server` is its ServerState.

    Raises:
        ModelLoadError: tokenizer, template or generation_config.json cannot be read.
    """
    state = ServerState(engine, config or ServerConfig())
    # The documentation pages would load scripts from elsewhere; the document itself has its route.
    app = FastAPI(title="lingflash", openapi_url=None, docs_url=None, redoc_url=None)
    app.state.server = state
    app.add_middleware(RequestContextMiddleware, state=state)
    app.add_exception_handler(LingflashError, _on_lingflash_error)
    app.add_exception_handler(ClientGone, _on_client_gone)
    app.add_exception_handler(RecursionError, _on_recursion_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    with_key = [Depends(require_key)]
    app.include_router(health.router)
    app.include_router(admin.router)
    for module in (chat, completions, responses, messages, models, tokenize):
        app.include_router(module.router, dependencies=with_key)
    install_openapi(
        app,
        (
            ChatCompletionRequest,
            CompletionRequest,
            ResponsesRequest,
            MessagesRequest,
            CountTokensRequest,
            TokenizeRequest,
            DetokenizeRequest,
        ),
        version=_installed_version(),
    )

    @app.get("/openapi.json", include_in_schema=False, dependencies=with_key)
    async def openapi_document() -> Response:
        return json_response(app.openapi())

    return app


def _installed_version() -> str:
    try:
        return version("lingflash")
    except PackageNotFoundError:  # run from a folder that was never installed
        return "unknown"


async def _on_lingflash_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, LingflashError)
    return json_response(
        error_map.envelope_for(request.scope["path"], error),
        status=error_map.http_error(error).status,
        headers=error_map.headers(error),
    )


async def _on_client_gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # for the log; nobody reads it


async def _on_recursion_error(request: Request, error: Exception) -> Response:
    # Only nested data can do this, such as the arguments of a call in the history.
    return await _on_lingflash_error(
        request, InvalidRequestError("Something in the request is nested too deeply.")
    )


async def _on_http_exception(request: Request, error: Exception) -> Response:
    # Starlette raises these for unknown paths and methods.
    assert isinstance(error, HTTPException)
    method, path = request.method, request.url.path
    if error.status_code == 404:
        message, code = (
            f"There is no {path} here; see /openapi.json for what there is.",
            "not_found",
        )
    elif error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        message = f"{path} does not take {method}; allowed: {allowed}."
        code = "method_not_allowed"
    else:
        message, code = str(error.detail), "http_error"
    return json_response(
        error_map.http_envelope(request.scope["path"], error.status_code, message, code),
        status=error.status_code,
        headers=dict(error.headers or {}),
    )
