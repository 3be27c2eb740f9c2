"""How every endpoint that takes a body begins."""

from __future__ import annotations

from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel

from lingflash.api.state import ServerState, state_of
from lingflash.core.errors import InvalidRequestError
from lingflash.httpd.body import read_request
from lingflash.protocol.chat import StreamOptions
from lingflash.protocol.endpoint_fields import EndpointFields
from lingflash.protocol.responses import ResponseStreamOptions

ModelT = TypeVar("ModelT", bound=BaseModel)


async def accept(
    request: Request, endpoint: EndpointFields[ModelT], *, needs_engine: bool = True
) -> tuple[ServerState, ModelT, str]:
    """Read a request's body, check its fields and its model, and that it can be served now.

    Returns:
        The server's state, the body, and the model's name for the answer.

    Raises:
        InvalidRequestError: the body is wrong; `param` names the field.
        NotFoundError: the model is not served here.
        CapacityError: the engine is not ready, or the server drains.
    """
    state = state_of(request)
    body = await read_request(request, endpoint.model, endpoint.table)
    model = state.require_model(getattr(body, "model", None))
    if needs_engine:
        state.require_ready()
    return state, body, model


def check_stream_options(
    options: StreamOptions | ResponseStreamOptions | None, stream: bool | None
) -> None:
    """Refuse options of a stream that was not asked for."""
    if options is not None and not stream:
        raise InvalidRequestError("stream_options needs stream: true.", param="stream_options")
