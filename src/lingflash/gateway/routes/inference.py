"""POST of every endpoint that generates, under /v1 and /api/v1; and stored responses."""

from __future__ import annotations

import re

from fastapi import APIRouter, Request, Response

from lingflash.core.errors import NotFoundError, UpstreamError, refuse
from lingflash.gateway.accounting import Dialect, Home
from lingflash.gateway.relay.attempt import MAX_BODY_BYTES, read_body, with_key
from lingflash.gateway.relay.call import read_call
from lingflash.gateway.relay.failures import broken_error
from lingflash.gateway.relay.planning import plan_call
from lingflash.gateway.relay.response import RelayedAnswer
from lingflash.gateway.routing.plan import HOUSE
from lingflash.gateway.state import GatewayState, state_of
from lingflash.httpd.auth import given_key
from lingflash.link.http_client import BadAnswer, Deadlines

router = APIRouter()

_RESPONSE_ID = re.compile(r"[A-Za-z0-9_-]{1,200}")


async def _relay(request: Request, dialect: Dialect, *, is_count: bool = False) -> Response:
    state = state_of(request)
    caller = await state.caller_of(request)
    call = await read_call(request, caller, dialect, is_count=is_count)
    state.require_ready()
    return RelayedAnswer(state, await plan_call(state, call), given_key(request))


async def chat_completions(request: Request) -> Response:
    """Relay a chat completion."""
    return await _relay(request, "chat")


async def completions(request: Request) -> Response:
    """Relay a text completion."""
    return await _relay(request, "completions")


async def responses(request: Request) -> Response:
    """Relay a response."""
    return await _relay(request, "responses")


async def messages(request: Request) -> Response:
    """Relay a message."""
    return await _relay(request, "messages")


async def count_tokens(request: Request) -> Response:
    """Let an upstream count the tokens of a message; costs nothing."""
    return await _relay(request, "messages", is_count=True)


DIRECT = {
    prefix + path: endpoint
    for prefix in ("/v1", "/api/v1")
    for path, endpoint in (
        ("/chat/completions", chat_completions),
        ("/completions", completions),
        ("/responses", responses),
        ("/messages", messages),
        ("/messages/count_tokens", count_tokens),
    )
}
"""What is relayed, by its path."""
for path, endpoint in DIRECT.items():
    router.post(path)(endpoint)


@router.get("/v1/responses/{response_id}")
@router.delete("/v1/responses/{response_id}")
@router.post("/v1/responses/{response_id}/cancel")
@router.get("/v1/responses/{response_id}/input_items")
async def stored_response(request: Request, response_id: str) -> Response:
    """Pass on what is asked of a stored response, to the upstream that has it."""
    state = state_of(request)
    caller = await state.caller_of(request)
    is_one = _RESPONSE_ID.fullmatch(response_id) is not None
    home = await state.accounts.home_of(caller, response_id) if is_one else None
    if home is None or home.key_hash != caller.key_hash:
        raise NotFoundError(
            f"The response {response_id[:200]!r} was not made with this key through this gateway, "
            "so it is not known which provider has it.",
            param="response_id",
        )
    if request.query_params.get("stream", "").lower() in ("1", "true"):
        refuse("stream", "is not supported here; read the response whole")
    state.require_ready()
    return await _pass_on(state, home, request)


async def _pass_on(state: GatewayState, home: Home, request: Request) -> Response:
    endpoint = state.config.catalog.endpoints.get(home.endpoint)
    if (
        endpoint is None
        or home.byok_id is not None
        or not state.replicas.has(endpoint, home.replica)
    ):
        raise NotFoundError("The provider that has this response cannot be asked any more.")
    upstream = state.config.upstreams[endpoint.slug]
    limits = state.config.deadlines
    address, key_headers = with_key(upstream, HOUSE, home.replica)
    path = upstream.path + request.scope["path"].removeprefix("/v1")
    query = request.scope["query_string"].decode("latin-1")
    try:
        async with state.pool.open(
            address,
            request.method,
            f"{path}?{query}" if query and query.isprintable() and " " not in query else path,
            headers=key_headers,
            deadlines=Deadlines(limits.connect_s, limits.first_byte_s, limits.idle_s, 60.0),
            is_public_only=not upstream.table.allow_private_address,
        ) as answer:
            body = await read_body(answer, MAX_BODY_BYTES)
            kind = answer.headers.get("content-type", "application/json")
    except (OSError, BadAnswer) as error:
        raise broken_error(endpoint.provider, error) from None
    if answer.status >= 500 or answer.status in (401, 403) or 300 <= answer.status < 400:
        raise UpstreamError(f"{endpoint.provider} answered with status {answer.status}.")
    return Response(body, status_code=answer.status, media_type=kind)
