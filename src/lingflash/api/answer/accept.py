"""How every endpoint that takes a body begins."""

from __future__ import annotations

from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel

from lingflash.api.state import ServerState, state_of
from lingflash.core.errors import ContextLengthError, InvalidRequestError
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
        _check_counts(body, state.engine.info.max_model_len)
    return state, body, model


def _check_counts(body: BaseModel, max_model_len: int) -> None:
    """Refuse lists that cannot fit the context before anything is made of their items.

    Raises:
        ContextLengthError: each item takes a token at least, and there are more than the context.
    """
    for name in ("messages", "input", "tools"):
        items = getattr(body, name, None)
        if isinstance(items, list) and len(items) > max_model_len:
            raise ContextLengthError(
                f"{name} has {len(items)} items, more than the context of {max_model_len} tokens "
                "can hold.",
                param=name,
            )


def check_stream_options(
    options: StreamOptions | ResponseStreamOptions | None, stream: bool | None
) -> None:
    """Refuse options of a stream that was not asked for."""
    if options is not None and not stream:
        raise InvalidRequestError("stream_options needs stream: true.", param="stream_options")
