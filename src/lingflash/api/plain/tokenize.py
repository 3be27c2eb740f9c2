"""POST /tokenize and /detokenize."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

from lingflash.api.answer.accept import accept
from lingflash.api.answer.logprobs import token_text
from lingflash.api.state import ServerState
from lingflash.core.errors import InvalidRequestError, RequestTooLargeError
from lingflash.core.limits import check_token_ids
from lingflash.httpd.body import json_response
from lingflash.httpd.openapi import json_body
from lingflash.protocol.endpoint_fields import DETOKENIZE, TOKENIZE
from lingflash.protocol.tokenize import TokenizeRequest
from lingflash.text.chat_prompt import ModelText

router = APIRouter()

_LEAST_TEXT_BYTES = 2**20
_BYTES_PER_TOKEN = 16


@router.post(TOKENIZE.path, openapi_extra=json_body(TOKENIZE.model))
async def tokenize(request: Request) -> Response:
    """Give the token ids of a text or of chat messages."""
    state, body, _ = await accept(request, TOKENIZE, needs_engine=False)
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
    """Refuse a text far longer than any context, whose ids would take all memory.

    Raises:
        RequestTooLargeError: it is.
    """
    context = state.engine.info.max_model_len if state.engine.is_ready else 0
    allowed = max(_LEAST_TEXT_BYTES, _BYTES_PER_TOKEN * context)
    size = len(msgspec.json.encode([body.prompt, body.messages, body.tools]))
    if size > allowed:
        raise RequestTooLargeError(
            f"The text has {size} bytes; at most {allowed} are tokenized at once, "
            f"{_BYTES_PER_TOKEN} for each token of the context. Send it in parts.",
            param="prompt" if body.prompt is not None else "messages",
        )


@router.post(DETOKENIZE.path, openapi_extra=json_body(DETOKENIZE.model))
async def detokenize(request: Request) -> Response:
    """Give the text of token ids, special tokens included."""
    state, body, _ = await accept(request, DETOKENIZE, needs_engine=False)
    text = _require_text(state)
    check_token_ids(body.tokens, text.tokenizer.vocab_size, "tokens")
    decoded = await asyncio.to_thread(text.tokenizer.decode, body.tokens)
    return json_response({"prompt": decoded})


def _require_text(state: ServerState) -> ModelText:
    if state.text is None:
        raise InvalidRequestError("This model has no tokenizer; it takes token ids only.")
    return state.text
