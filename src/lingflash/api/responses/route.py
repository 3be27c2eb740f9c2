"""/v1/responses: create, read, delete, cancel, list the input items."""

from __future__ import annotations

import contextlib
from typing import Any

from fastapi import APIRouter, Request, Response

from lingflash.api.answer.accept import accept
from lingflash.api.answer.blocks import Turn
from lingflash.api.answer.choices import chat_choices
from lingflash.api.answer.conversation import Conversation, read_beside
from lingflash.api.answer.dropped import dropped_headers
from lingflash.api.answer.prepare import cache_salt, encode_conversation, prepare_chat
from lingflash.api.answer.stream import send_answer
from lingflash.api.code.containers import Container, Containers
from lingflash.api.code.rounds import CodeWish, Rounds
from lingflash.api.plain.pages import PAGE_NAMES, PAGE_QUERY, Page, read_query
from lingflash.api.responses.code_items import ITEM, without_outputs
from lingflash.api.responses.input import NAMES, CodePlace, read_responses
from lingflash.api.responses.writer import ResponseAnswer, new_id
from lingflash.api.state import ServerState, state_of
from lingflash.core.errors import InvalidRequestError, NotFoundError
from lingflash.httpd.auth import caller_of
from lingflash.httpd.body import json_response
from lingflash.httpd.openapi import json_body, query_parameters
from lingflash.protocol.chat import ChatOptions
from lingflash.protocol.endpoint_fields import INPUT_TOKENS, RESPONSES
from lingflash.protocol.fields import Dropped
from lingflash.protocol.responses import (
    CODE_OUTPUTS,
    INCLUDABLE,
    InputTokensRequest,
    ResponsesRequest,
    check_include,
    dropped_includes,
)

router = APIRouter()

_PREFIXES = {
    "message": "msg_",
    "function_call": "fc_",
    "custom_tool_call": "ctc_",
    "reasoning": "rs_",
    ITEM: "ci_",
}
_INCLUDE = {"type": "array", "items": {"enum": list(INCLUDABLE)}}
_PAGE_QUERY = query_parameters(**PAGE_QUERY, include=_INCLUDE)
_READ_QUERY = query_parameters(include=_INCLUDE, stream={"enum": ["false"]})


@router.post(RESPONSES.path, openapi_extra=json_body(RESPONSES.model))
async def create_response(request: Request) -> Response:
    """Answer an input, whole or as a stream of events, and keep the answer."""
    state, body, model, dropped = await accept(request, RESPONSES)
    owner = caller_of(request)
    dropped_includes(body.include, dropped, runs_code=state.containers is not None)
    if state.containers is None and body.max_tool_calls is not None:
        dropped.add("max_tool_calls", "max_tool_calls")
    conversation, options, place = await _read(state, request, body, owner, dropped)
    containers = state.containers if conversation.tools.code is not None else None
    container = None if containers is None else _container(containers, owner, place)
    with NAMES.errors_translated():
        generation = await prepare_chat(state, request, options, conversation)
    await generation.start(request.receive)
    if containers is not None:
        wish = CodeWish(container=container, max_calls=body.max_tool_calls)
        answering = Rounds(state, request, options, conversation, generation, wish)
        turn = answering.turn
    else:
        answering, turn = generation, Turn(chat_choices(state, conversation, 1, owner)[0])
    answer = ResponseAnswer(
        state,
        body,
        model,
        answering,
        turn,
        owner=owner,
        input_items=_input_items(body.input),
    )
    headers = dropped_headers(state, dropped)
    return await send_answer(answering, answer, request, stream=bool(body.stream), headers=headers)


def _container(containers: Containers, owner: str, place: CodePlace) -> Container | None:
    """Where code is to run; None for a new container.

    Raises:
        NotFoundError: the one that the request names is not there.
    """
    if place.named is not None:
        return containers.get(owner, place.named, "tools.container")
    if place.earlier is not None:
        with contextlib.suppress(NotFoundError):  # it has expired, or was another server's
            return containers.get(owner, place.earlier)
    return None


@router.post(INPUT_TOKENS.path, openapi_extra=json_body(INPUT_TOKENS.model))
async def count_input_tokens(request: Request) -> Response:
    """Count the prompt tokens that a response would have."""
    state, body, _, dropped = await accept(request, INPUT_TOKENS)
    owner = caller_of(request)
    conversation, options, _ = await _read(state, request, body, owner, dropped)
    salt = cache_salt(owner, options.cache_salt)
    with NAMES.errors_translated():
        prompt = await encode_conversation(state, request, conversation, salt, only_counts=True)
    return json_response(
        {"object": "response.input_tokens", "input_tokens": len(prompt)},
        headers=dropped_headers(state, dropped),
    )


@router.get("/v1/responses/{response_id}", openapi_extra=_READ_QUERY)
async def retrieve_response(response_id: str, request: Request) -> Response:
    """Read a response that was stored, or is being made."""
    query = _query(request, "include", "include[]", "include_obfuscation", "stream")
    if query.get("stream") not in (None, "false"):
        raise InvalidRequestError(
            "stream=true is not supported here; a response is streamed by its own request only.",
            param="stream",
        )
    state, owner = state_of(request), caller_of(request)
    live = state.live_response(owner, response_id)
    if live is not None:
        return json_response(live.snapshot())
    stored = await _stored(state).get(owner, response_id)
    if CODE_OUTPUTS not in request.query_params.getlist("include") + request.query_params.getlist(
        "include[]"
    ):
        stored.body["output"] = without_outputs(stored.body["output"])
    return json_response(stored.body)


@router.delete("/v1/responses/{response_id}")
async def delete_response(response_id: str, request: Request) -> Response:
    """Forget a response; what continues it can no longer be continued."""
    state, owner = state_of(request), caller_of(request)
    live = state.live_response(owner, response_id)
    if live is not None:
        raise InvalidRequestError(
            "The response is still being made; cancel it first.", param="response_id"
        )
    await _stored(state).delete(owner, response_id)
    return json_response({"id": response_id, "object": "response", "deleted": True})


@router.post("/v1/responses/{response_id}/cancel")
async def cancel_response(response_id: str, request: Request) -> Response:
    """End a response that is being made."""
    state, owner = state_of(request), caller_of(request)
    live = state.live_response(owner, response_id)
    if live is not None:
        live.cancel()
        return json_response(live.snapshot())
    stored = await _stored(state).get(owner, response_id)
    if stored.body["status"] == "cancelled":
        return json_response(stored.body)
    raise InvalidRequestError(
        f"The response has ended with the status {stored.body['status']!r}; only one that is in "
        "progress can be cancelled.",
        param="response_id",
    )


@router.get("/v1/responses/{response_id}/input_items", openapi_extra=_PAGE_QUERY)
async def list_input_items(response_id: str, request: Request) -> Response:
    """List the items of a response's own request, page by page."""
    page = Page.of(_query(request, *PAGE_NAMES, "include", "include[]"))
    stored = await _stored(state_of(request)).get(caller_of(request), response_id)
    return json_response(page.cut(stored.input_items))


async def _read(
    state: ServerState,
    request: Request,
    body: ResponsesRequest | InputTokensRequest,
    owner: str,
    dropped: Dropped,
) -> tuple[Conversation, ChatOptions, CodePlace]:
    """Read a request and what it continues; references in its input become what they name."""
    earlier = await _earlier_items(state, owner, body.previous_response_id)
    if isinstance(body.input, list):
        body.input = await _resolved(state, owner, body.input)
    return await read_beside(request, lambda: read_responses(state, body, earlier, dropped))


async def _resolved(
    state: ServerState, owner: str, items: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Items with those that references name in their place.

    Raises:
        NotFoundError: one is not stored here.
    """
    wanted = {i: item["id"] for i, item in enumerate(items) if _is_reference(item)}
    if not wanted:
        return items
    found = await _stored(state).find_items(owner, set(wanted.values()))
    for i, item_id in wanted.items():
        if item_id not in found:
            raise NotFoundError(
                f"input[{i}].id is {item_id!r}, which is no item of a stored response; send the "
                "item itself.",
                param=f"input[{i}].id",
            )
    return [found[wanted[i]] if i in wanted else item for i, item in enumerate(items)]


def _is_reference(item: dict[str, Any]) -> bool:
    kind = item.get("type")
    is_reference = kind == "item_reference" or (kind is None and "role" not in item)
    return is_reference and isinstance(item.get("id"), str)


async def _earlier_items(
    state: ServerState, owner: str, response_id: str | None
) -> list[list[dict[str, Any]]]:
    """Items of the responses that a request continues, oldest first."""
    if response_id is None:
        return []
    live = state.live_response(owner, response_id)
    if live is not None:
        raise InvalidRequestError(
            f"The response {response_id!r} is still being made; wait for its end.",
            param="previous_response_id",
        )
    chain = await state.responses.chain(
        owner, response_id, max_bytes=max(state.config.max_body_bytes, 2**20)
    )
    last = chain[-1].body["status"]
    if last not in ("completed", "incomplete"):
        raise InvalidRequestError(
            f"The response {response_id!r} ended with the status {last!r}; continue another.",
            param="previous_response_id",
        )
    return [items for one in chain for items in (one.input_items, one.body["output"])]


def _input_items(given: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The items of a request as they are stored: each with an id and a type."""
    if isinstance(given, str):
        content = [{"type": "input_text", "text": given}]
        given = [{"type": "message", "role": "user", "content": content}]
    items = []
    for item in given:
        kind = item.get("type") or "message"
        prefix = _PREFIXES.get(kind, "item_")
        item_id = item.get("id")
        stored = {"status": "completed", **item, "type": kind}
        stored["id"] = item_id if isinstance(item_id, str) and item_id else new_id(prefix)
        content = item.get("content")
        if kind == "message" and isinstance(content, str):
            part = "output_text" if item.get("role") == "assistant" else "input_text"
            stored["content"] = [{"type": part, "text": content}]
        items.append(stored)
    return items


def _stored(state: ServerState) -> Any:
    """The store, if there is one.

    Raises:
        NotFoundError: nothing is stored on this server.
    """
    if not state.responses.is_enabled:
        raise NotFoundError(
            "There is no such response: nothing is stored on this server (--responses-max-mb 0).",
            param="response_id",
        )
    return state.responses


def _query(request: Request, *known: str) -> dict[str, str]:
    """The query's parameters; an unknown one is refused, as an unknown field is."""
    query = read_query(request, *known)
    for name in ("include", "include[]"):
        try:
            check_include(request.query_params.getlist(name))
        except ValueError as error:
            raise InvalidRequestError(f"include: {error}.", param="include") from None
    return query
