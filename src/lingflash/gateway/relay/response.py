"""A relayed call as an answer of the server."""

from __future__ import annotations

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from lingflash.core.errors import LingflashError
from lingflash.gateway.relay.client import Client
from lingflash.gateway.relay.planning import PlannedCall
from lingflash.gateway.relay.run import Run
from lingflash.gateway.state import GatewayState
from lingflash.httpd.body import json_response
from lingflash.httpd.client_gone import ClientGone, until_client_gone
from lingflash.httpd.error_map import envelope, headers_of, http_error


class RelayedAnswer(Response):
    """The answer to a call; everything happens while it is being sent."""

    def __init__(self, state: GatewayState, planned: PlannedCall, key: str) -> None:
        self.background = None
        self._state = state
        self._planned = planned
        self._key = key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve; whoever leaves ends the work upstream."""
        call = self._planned.call
        client = Client(send, self._state.config.requests.keep_alive_s)
        run = Run(self._state, self._planned, self._key, client)
        self._state.in_flight[call.id] = run.abort
        try:
            await until_client_gone(
                run.serve(),
                receive,
                is_stalled=client.is_stalled,
                check_every_s=client.check_every_s,
                on_check=run.keep_alive,
            )
        except ClientGone:
            return
        except LingflashError as error:
            self._state.metrics.request_errors.labels(error.code).inc()
            response = json_response(
                envelope(error, self._state.dialect_of(scope["path"])),
                status=http_error(error).status,
                headers={**run.headers(), **headers_of(error)},
            )
            await response(scope, receive, send)
        finally:
            self._state.in_flight.pop(call.id, None)
