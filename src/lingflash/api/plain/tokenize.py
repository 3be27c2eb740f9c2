"""POST /tokenize and /detokenize, GET /tokenizer_info."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

from lingflash.api.answer.accept import accept
from lingflash.api.answer.logprobs import token_text
from lingflash.api.state import ServerState, state_of
from lingflash.core.errors import InvalidRequestError
from lingflash.core.limits import check_countable, check_token_ids
from lingflash.httpd.body import json_response
from lingflash.httpd.openapi import json_body
from lingflash.protocol.endpoint_fields import DETOKENIZE, TOKENIZE
from lingflash.protocol.tokenize import TokenizeRequest
from lingflash.text.chat_prompt import ModelText

router = APIRouter()


@router.post(TOKENIZE.path, openapi_extra=json_body(TOKENIZE.model))
async def tokenize(request: Request) -> Response:
    """Give the token ids of a text or of chat messages."""
    state, body, _, _ = await accept(request, TOKENIZE, needs_engine=False)
    text = _require_text(state)
    if (body.prompt is None) == (body.messages is None):
        raise InvalidRequestError("Give either prompt or messages.", param="prompt")

    def work() -> list[int]:
        if body.messages is not None:
            return text.encode_chat(
                body.messages,
                tools=body.tools,
                add_generation_prompt=body.add_generation_prompt,
                template_kwargs=body.chat_template_kwargs,
            )
        for name in ("tools", "chat_template_kwargs"):
            if getattr(body, name) is not None:
                raise InvalidRequestError(f"{name} belongs to messages, not prompt.", param=name)
        prompt = body.prompt or ""
        return text.tokenizer.encode(prompt, add_special_tokens=body.add_special_tokens)

    _check_size(state, body)
    token_ids = await asyncio.to_thread(work)
    answer: dict[str, Any] = {"count": len(token_ids), "tokens": token_ids}
    if state.engine.is_ready:
        answer["max_model_len"] = state.engine.info.max_model_len
    if body.return_token_strs:
        answer["token_strs"] = [token_text(text.tokenizer, i) for i in token_ids]
    return json_response(answer)


def _check_size(state: ServerState, body: TokenizeRequest) -> None:
    size = len(msgspec.json.encode([body.prompt, body.messages, body.tools]))
    context = state.engine.info.max_model_len if state.engine.is_ready else 0
    check_countable(size, context, param="prompt" if body.prompt is not None else "messages")


@router.post(DETOKENIZE.path, openapi_extra=json_body(DETOKENIZE.model))
async def detokenize(request: Request) -> Response:
    """Give the text of token ids, special tokens included."""
    state, body, _, _ = await accept(request, DETOKENIZE, needs_engine=False)
    text = _require_text(state)
    check_token_ids(body.tokens, text.tokenizer.vocab_size, "tokens")
    decoded = await asyncio.to_thread(text.tokenizer.decode, body.tokens)
    return json_response({"prompt": decoded})


@router.get("/tokenizer_info")
async def tokenizer_info(request: Request) -> Response:
    """What a program must know to use the two above as its tokenizer."""
    state = state_of(request)
    text = _require_text(state)
    template = text.template
    answer: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    if template is not None:
        answer |= {**template.special_tokens, "chat_template": template.source}
    if "eos_token" not in answer and state.engine.is_ready:
        answer["eos_token"] = text.tokenizer.decode(state.engine.info.stop_token_ids[:1])
    if state.engine.is_ready:
        answer["model_max_length"] = state.engine.info.max_model_len
    return json_response(answer)


def _require_text(state: ServerState) -> ModelText:
    if state.text is None:
        raise InvalidRequestError("This model has no tokenizer; it takes token ids only.")
    return state.text
