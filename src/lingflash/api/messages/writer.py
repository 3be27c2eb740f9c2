"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's API."""

from __future__ import annotations

import secrets
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

from lingflash.api.answer.blocks import Block, BlockStep, Turn
from lingflash.api.answer.generation import Deltas, Generation
from lingflash.api.answer.prepare import prepare_chat
from lingflash.api.answer.stream import AnswerWriter, send_answer
from lingflash.api.chat.writer import chat_choices
from lingflash.api.messages.input import to_chat
from lingflash.api.state import state_of
from lingflash.core.errors import LingflashError
from lingflash.httpd.auth import caller_of
from lingflash.httpd.body import json_response, read_request
from lingflash.httpd.error_map import envelope_for
from lingflash.httpd.openapi import json_body
from lingflash.protocol.messages import MESSAGES_TABLE, CountTokensRequest, MessagesRequest
from lingflash.protocol.sse import named_event

router = APIRouter()


@router.post("/v1/messages", openapi_extra=json_body(MessagesRequest))
async def create_message(request: Request) -> Response:
    """Answer a conversation, whole or as a stream of events."""
    state = state_of(request)
    body = await read_request(request, MessagesRequest, state.config.max_body_bytes, MESSAGES_TABLE)
    model = state.require_model(body.model)
    state.require_ready()
    chat, names = to_chat(body)
    with names.errors_translated():
        # Clients must give max_tokens and give what Anthropic's models can do.
        generation = await prepare_chat(state, request, chat, fit_max_tokens=True)
    await generation.start()
    answer = _MessageAnswer(
        model,
        generation,
        Turn(chat_choices(state, chat, 1, caller_of(request))[0]),
        max_tokens=body.max_tokens,
    )
    return await send_answer(generation, answer, request, stream=bool(body.stream))


@router.post("/v1/messages/count_tokens", openapi_extra=json_body(CountTokensRequest))
async def count_message_tokens(request: Request) -> Response:
    """Count the prompt tokens that a message would have."""
    state = state_of(request)
    body = await read_request(
        request, CountTokensRequest, state.config.max_body_bytes, MESSAGES_TABLE
    )
    state.require_model(body.model)
    state.require_ready()
    chat, names = to_chat(body)
    with names.errors_translated():
        generation = await prepare_chat(state, request, chat)
    return json_response({"input_tokens": len(generation.prompts[0])})


class _MessageAnswer(AnswerWriter):
    def __init__(self, model: str, generation: Generation, turn: Turn, *, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._generation = generation
        self._turn = turn
        self._head = {
            "id": "msg_" + secrets.token_hex(12),
            "type": "message",
            "role": "assistant",
            "model": model,
        }
        self._has_begun = False

    def begin(self) -> bytes:
        return b""  # the first event tells what was cached, which the first token knows

    def write(self, deltas: Deltas) -> bytes:
        events: list[bytes] = []
        steps = [step for _, delta in deltas for step in self._turn.take(delta)]
        if not self._has_begun:
            events.append(self._start())
        for step in steps:
            events += _step_events(step)
        return b"".join(events)

    def end(self) -> bytes:
        stop_reason, stop_sequence = self._stop()
        delta = {"stop_reason": stop_reason, "stop_sequence": stop_sequence}
        return _event("message_delta", delta=delta, usage=self._usage()) + _event("message_stop")

    def fail(self, error: LingflashError) -> bytes:
        return named_event("error", envelope_for("/v1/messages", error))

    async def collect(self) -> None:
        """Read the whole answer."""
        await self._turn.collect(self._generation)

    def whole(self) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        stop_reason, stop_sequence = self._stop()
        return {
            **self._head,
            "content": [_block(block, block.text) for block in self._turn.blocks],
            "stop_reason": stop_reason,
            "stop_sequence": stop_sequence,
            "usage": self._usage(),
        }

    def _start(self) -> bytes:
        self._has_begun = True
        usage = {**self._usage(), "output_tokens": 0}
        message = {
            **self._head,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage,
        }
        return _event("message_start", message=message) + _event("ping")

    def _stop(self) -> tuple[str, str | None]:
        turn = self._turn
        if turn.finish_reason == "length":
            is_limit = self._usage()["output_tokens"] >= self._max_tokens
            return ("max_tokens" if is_limit else "model_context_window_exceeded"), None
        if isinstance(turn.stop_reason, str):
            return "stop_sequence", turn.stop_reason
        return ("tool_use" if turn.num_calls else "end_turn"), None

    def _usage(self) -> dict[str, Any]:
        usage = self._generation.usage()
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        return {
            "input_tokens": usage["prompt_tokens"] - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": usage["completion_tokens"],
            **{key: usage[key] for key in ("cache_report",) if key in usage},
        }


def _block(block: Block, text: str) -> dict[str, Any]:
    if block.kind == "text":
        return {"type": "text", "text": text}
    if block.kind == "reasoning":
        return {"type": "thinking", "thinking": text, "signature": ""}
    # As generated: numbers of any size stay what they are.
    arguments = msgspec.Raw(text.encode()) if text else {}
    return {"type": "tool_use", "id": block.call_id, "name": block.name, "input": arguments}


_DELTAS = {
    "text": ("text_delta", "text"),
    "reasoning": ("thinking_delta", "thinking"),
    "call": ("input_json_delta", "partial_json"),
}


def _step_events(step: BlockStep) -> list[bytes]:
    index = step.block.index
    if step.action == "open":
        block = _block(step.block, "")
        return [_event("content_block_start", index=index, content_block=block)]
    if step.action == "close":
        return [_event("content_block_stop", index=index)]
    kind, key = _DELTAS[step.block.kind]
    delta = {"type": kind, key: step.text}
    return [_event("content_block_delta", index=index, delta=delta)]


def _event(kind: str, **fields: Any) -> bytes:
    return named_event(kind, {"type": kind, **fields})
