"""How every endpoint that takes a body begins."""

from __future__ import annotations

from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel

from lingflash.api.state import ServerState, state_of
from lingflash.core.errors import ContextLengthError
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
        _check_counts(body, state.engine.info.max_model_len, endpoint.too_long)
    return state, body, model, dropped


def _check_counts(body: BaseModel, max_model_len: int, too_long: str) -> None:
    """Refuse lists that cannot fit the context before anything is made of their items.

    Raises:
        ContextLengthError: each item takes a token at least, and there are more than the context.
    """
    for name in ("messages", "input", "tools"):
        items = getattr(body, name, None)
        if isinstance(items, list) and len(items) > max_model_len:
            raise ContextLengthError(
                too_long.format(tokens=len(items), limit=max_model_len), param=name
            )
