"""How every endpoint that takes a body begins."""

from __future__ import annotations

from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel

from lingflash.api.state import ServerState, state_of
from lingflash.httpd.body import read_request
from lingflash.protocol.endpoint_fields import EndpointFields
from lingflash.protocol.fields import Dropped

ModelT = TypeVar("ModelT", bound=BaseModel)


async def accept(
    request: Request, endpoint: EndpointFields[ModelT], *, needs_engine: bool = True
) -> tuple[ServerState, ModelT, str, Dropped]:
    """Read a request's body, check its fields and its model, and that it can be served now.

    Returns:
        The server's state, the body, the model's name for the answer, and what of the body said
        nothing.

    Raises:
        InvalidRequestError: the body is wrong; `param` names the field.
        NotFoundError: the model is not served here.
        CapacityError: the engine is not ready, or the server drains.
    """
    state = state_of(request)
    dropped = Dropped()
    body = await read_request(request, endpoint.model, endpoint.table, dropped)
    if getattr(body, "stream_options", None) is not None and not getattr(body, "stream", None):
        dropped.add("stream_options", "stream_options")
    model = state.require_model(getattr(body, "model", None))
    if needs_engine:
        state.require_ready()
    return state, body, model, dropped
