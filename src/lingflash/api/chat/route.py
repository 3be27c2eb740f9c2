"""POST /v1/chat/completions."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from lingflash.api.answer.accept import accept
from lingflash.api.answer.conversation import read_chat
from lingflash.api.answer.dropped import dropped_headers
from lingflash.api.answer.prepare import prepare_chat
from lingflash.api.answer.stream import send_answer
from lingflash.api.chat.writer import ChatAnswer
from lingflash.httpd.auth import caller_of
from lingflash.httpd.openapi import json_body
from lingflash.protocol.endpoint_fields import CHAT

router = APIRouter()


@router.post(CHAT.path, openapi_extra=json_body(CHAT.model))
async def create_chat_completion(request: Request) -> Response:
    """Answer a conversation, whole or as a stream of chunks."""
    state, body, model, dropped = await accept(request, CHAT)
    conversation = await read_chat(state, request, body, dropped)
    generation = await prepare_chat(state, request, body, conversation)
    answer = ChatAnswer(state, body, conversation, model, generation, caller_of(request))
    await generation.start(request.receive)
    return await send_answer(
        generation,
        answer,
        request,
        stream=bool(body.stream),
        headers=dropped_headers(state, dropped),
    )
