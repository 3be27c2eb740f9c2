"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's API."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from lingflash.api.answer.accept import accept
from lingflash.api.answer.blocks import Turn
from lingflash.api.answer.choices import chat_choices
from lingflash.api.answer.conversation import read_beside
from lingflash.api.answer.dropped import dropped_headers
from lingflash.api.answer.prepare import cache_salt, encode_conversation, prepare_chat
from lingflash.api.answer.stream import send_answer
from lingflash.api.code.rounds import CodeWish, Rounds
from lingflash.api.messages.input import NAMES, read_messages
from lingflash.api.messages.writer import MessageAnswer
from lingflash.httpd.auth import caller_of
from lingflash.httpd.body import json_response
from lingflash.httpd.openapi import json_body
from lingflash.protocol.endpoint_fields import COUNT_TOKENS, MESSAGES

router = APIRouter()


@router.post(MESSAGES.path, openapi_extra=json_body(MESSAGES.model))
async def create_message(request: Request) -> Response:
    """Answer a conversation, whole or as a stream of events."""
    state, body, model, dropped = await accept(request, MESSAGES)
    conversation, options = await read_beside(request, lambda: read_messages(state, body, dropped))
    with NAMES.errors_translated():
        generation = await prepare_chat(state, request, options, conversation)
    await generation.start(request.receive)
    if conversation.tools.code is not None:
        wish = CodeWish(keeps=False)
        answering = Rounds(state, request, options, conversation, generation, wish)
        turn = answering.turn
    else:
        turn = Turn(chat_choices(state, conversation, 1, caller_of(request))[0])
        answering = generation
    answer = MessageAnswer(model, answering, turn, max_tokens=body.max_tokens)
    headers = dropped_headers(state, dropped)
    return await send_answer(answering, answer, request, stream=bool(body.stream), headers=headers)


@router.post(COUNT_TOKENS.path, openapi_extra=json_body(COUNT_TOKENS.model))
async def count_message_tokens(request: Request) -> Response:
    """Count the prompt tokens that a message would have."""
    state, body, _, dropped = await accept(request, COUNT_TOKENS)
    conversation, options = await read_beside(request, lambda: read_messages(state, body, dropped))
    salt = cache_salt(caller_of(request), options.cache_salt)
    with NAMES.errors_translated():
        prompt = await encode_conversation(state, request, conversation, salt, only_counts=True)
    headers = dropped_headers(state, dropped)
    return json_response({"input_tokens": len(prompt)}, headers=headers)
