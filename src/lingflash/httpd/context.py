"""What the parts of one HTTP server share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fastapi import Request

from lingflash.core.errors import CapacityError
from lingflash.core.metrics import HttpMetrics
from lingflash.httpd.limits import ConnectionLimits
from lingflash.protocol.errors import OPENAI_ERRORS, ErrorDialect


class HttpContext:
    """Keys, limits, counters and the drain of one server.

    Args:
        api_keys: any of them is accepted; none leaves the server open.
        admin_api_key: key of the endpoints that act on the server; None switches them off.
        max_body_name: the setting of `max_body_bytes`, as errors call it.
        cors_origins: origins whose pages may use the server from a browser; "*" is any.
        connections: bounds of each connection and of their number.
        dialect_of: how errors under a path are written.
    """

    def __init__(
        self,
        metrics: HttpMetrics,
        *,
        api_keys: Sequence[str] = (),
        admin_api_key: str | None = None,
        max_body_bytes: int = 32 * 2**20,
        max_body_name: str = "--max-body-mb",
        drain_timeout_s: float = 30.0,
        cors_origins: Sequence[str] = (),
        connections: ConnectionLimits | None = None,
        dialect_of: Callable[[str], ErrorDialect] = lambda path: OPENAI_ERRORS,
    ) -> None:
        self.metrics = metrics
        self.api_keys = api_keys
        self.admin_api_key = admin_api_key
        self.max_body_bytes = max_body_bytes
        self.max_body_name = max_body_name
        self.drain_timeout_s = drain_timeout_s
        self.cors_origins = cors_origins
        self.connections = connections or ConnectionLimits()
        self.dialect_of = dialect_of
        self.is_draining = False
        # Work that a drain waits for, by id, with what ends it when the time is up.
        self.in_flight: dict[str, Callable[[], None]] = {}

    @property
    def not_ready(self) -> str | None:
        """Why no request can be served now, or None."""
        return "The server is shutting down." if self.is_draining else None

    def require_ready(self) -> None:
        """Refuse work that could not be served.

        Raises:
            CapacityError: the server drains, or what it stands in front of is not ready.
        """
        reason = self.not_ready
        if reason is not None:
            raise CapacityError(f"{reason} Try again.")


def context_of(request: Request) -> HttpContext:
    """The context of the application that a request came to."""
    return request.app.state.context
