"""POST /v1/completions."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from lingflash.api.answer.accept import accept
from lingflash.api.answer.dropped import dropped_headers
from lingflash.api.answer.stream import send_answer
from lingflash.api.completions.input import prepare_completion
from lingflash.api.completions.writer import CompletionAnswer
from lingflash.httpd.openapi import json_body
from lingflash.protocol.completions import split_prompts
from lingflash.protocol.endpoint_fields import COMPLETIONS

router = APIRouter()


@router.post(COMPLETIONS.path, openapi_extra=json_body(COMPLETIONS.model))
async def create_completion(request: Request) -> Response:
    """Continue one or more prompts, whole or as a stream of chunks."""
    state, body, model, dropped = await accept(request, COMPLETIONS)
    given = split_prompts(body.prompt)
    generation = await prepare_completion(state, request, body, given)
    answer = CompletionAnswer(state, body, model, generation, given)
    await generation.start(request.receive)
    return await send_answer(
        generation,
        answer,
        request,
        stream=bool(body.stream),
        headers=dropped_headers(state, dropped),
    )
