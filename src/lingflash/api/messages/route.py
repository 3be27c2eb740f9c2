"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's API."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from lingflash.api.answer.accept import accept
from lingflash.api.answer.blocks import Turn
from lingflash.api.answer.choices import chat_choices
from lingflash.api.answer.prepare import prepare_chat
from lingflash.api.answer.stream import send_answer
from lingflash.api.messages.input import to_chat
from lingflash.api.messages.writer import MessageAnswer
from lingflash.httpd.auth import caller_of
from lingflash.httpd.body import json_response
from lingflash.httpd.openapi import json_body
from lingflash.protocol.endpoint_fields import COUNT_TOKENS, MESSAGES

router = APIRouter()


@router.post(MESSAGES.path, openapi_extra=json_body(MESSAGES.model))
async def create_message(request: Request) -> Response:
    """Answer a conversation, whole or as a stream of events."""
    state, body, model = await accept(request, MESSAGES)
    chat, names = to_chat(body)
    with names.errors_translated():
        # Clients must give max_tokens and give what Anthropic's models can do.
        generation = await prepare_chat(state, request, chat, fit_max_tokens=True)
    await generation.start()
    turn = Turn(chat_choices(state, chat, 1, caller_of(request))[0])
    answer = MessageAnswer(model, generation, turn, max_tokens=body.max_tokens)
    return await send_answer(generation, answer, request, stream=bool(body.stream))


@router.post(COUNT_TOKENS.path, openapi_extra=json_body(COUNT_TOKENS.model))
async def count_message_tokens(request: Request) -> Response:
    """Count the prompt tokens that a message would have."""
    state, body, _ = await accept(request, COUNT_TOKENS)
    chat, names = to_chat(body)
    with names.errors_translated():
        generation = await prepare_chat(state, request, chat)
    return json_response({"input_tokens": len(generation.prompts[0])})
