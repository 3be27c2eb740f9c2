"""What surrounds every request: its id, its log line, and an answer if the code below fails."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
import traceback
from collections.abc import Awaitable

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lingflash.core.log import log_event
from lingflash.httpd.body import give_memory_back
from lingflash.httpd.context import HttpContext
from lingflash.httpd.error_map import status_envelope
from lingflash.protocol.errors import ErrorDialect

logger = logging.getLogger("lingflash.httpd")

_CLIENT_ID = re.compile(rb"[\x21-\x7e]{1,128}")


class RequestContextMiddleware:
    """Gives each request an id and answers what nothing else did.

    The id is the client's `x-request-id` if that is short and printable, else a new one. It is in
    `scope["state"]["request_id"]`, in the answer's headers and in every log line.

    HEAD is answered where GET is, and a slash at a path's end means nothing: a redirect would name
    http:// to a client that came through a TLS proxy.
    """

    def __init__(self, app: ASGIApp, context: HttpContext) -> None:
        self._app = app
        self._context = context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        method = scope["method"]
        # A copy: the server below must know that a HEAD's answer has no body.
        scope = {**scope, "method": "GET" if method == "HEAD" else method}
        if len(scope["path"]) > 1:
            scope["path"] = scope["path"].rstrip("/") or "/"
        headers = [(b"x-request-id", request_id.encode("ascii"))]
        dialect = self._context.dialect_of(scope["path"])
        if dialect.id_header is not None:
            headers.append((dialect.id_header.encode("ascii"), request_id.encode("ascii")))
        status = 0
        started = time.perf_counter()
        metrics = self._context.metrics
        metrics.http_requests_in_flight.inc()

        # A plain function: an `async def` here would cost a coroutine for every streamed token.
        def send_with_id(message: Message) -> Awaitable[None]:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *headers]
            return send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except (asyncio.CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:  # a panic in a library written in Rust is no Exception
            # The message of an unexpected error may quote a prompt, so only its place is logged.
            last = traceback.extract_tb(error.__traceback__)[-1]
            log_event(
                logger,
                "internal_error",
                {
                    "request_id": request_id,
                    "error": type(error).__name__,
                    "at": f"{last.filename}:{last.lineno}",
                },
                level=logging.ERROR,
            )
            metrics.request_errors.labels("internal_error").inc()
            if status == 0:
                await _send_internal_error(send_with_id, dialect)
            else:
                raise ConnectionAbortedError(
                    "an answer that had begun could not be ended"
                ) from None
        finally:
            metrics.http_requests_in_flight.dec()
            if scope["state"].get("was_large"):
                asyncio.get_running_loop().run_in_executor(None, give_memory_back)
            if status:
                metrics.http_responses.labels(str(status)).inc()
            log_event(
                logger,
                "http",
                {
                    "request_id": request_id,
                    "method": method,
                    "path": scope["path"],
                    "status": status or "client_gone",
                    "duration_s": time.perf_counter() - started,
                },
                level=logging.DEBUG if scope["path"] in _QUIET_PATHS else logging.INFO,
            )


_QUIET_PATHS = frozenset(("/health", "/ready", "/metrics"))


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _CLIENT_ID.fullmatch(value):
            return value.decode("ascii")
    return secrets.token_hex(16)


async def _send_internal_error(send: Send, dialect: ErrorDialect) -> None:
    message = "The server failed on this request; its log says where, under the request id."
    body = msgspec.json.encode(status_envelope(500, message, "internal_error", dialect))
    await send(
        {
            "type": "http.response.start",
            "status": 500,
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
            ],
        }
    )
    await send({"type": "http.response.body", "body": body})
