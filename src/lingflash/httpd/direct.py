"""POST of a few paths without the framework's routing, which would cost as much as the work.

The same paths are routes of the application, too: for its document, and for every other method.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from fastapi import Request, Response
from starlette.types import ASGIApp, Receive, Scope, Send

Endpoint = Callable[[Request], Awaitable[Response]]
Handlers = Mapping[type[Exception], Callable[[Request, Exception], Awaitable[Response]]]


class DirectRoutes:
    """Answers what is posted to these paths; everything else goes on.

    Args:
        routes: by path; an endpoint takes the request alone.
        handlers: of what an endpoint may raise; of anything else the server tells.
    """

    def __init__(self, app: ASGIApp, routes: Mapping[str, Endpoint], handlers: Handlers) -> None:
        self._app = app
        self._routes = routes
        self._handlers = handlers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        is_post = scope["type"] == "http" and scope["method"] == "POST"
        endpoint = self._routes.get(scope["path"]) if is_post else None
        if endpoint is None:
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            response = await endpoint(request)
        except tuple(self._handlers) as error:
            handle = next(own for kind, own in self._handlers.items() if isinstance(error, kind))
            response = await handle(request, error)
        await response(scope, receive, send)
