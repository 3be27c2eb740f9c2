"""The answer to a message: named events of a stream, or one body."""

from __future__ import annotations

import json
import secrets
from typing import Any, assert_never

import msgspec

from lingflash.api.answer.blocks import Block, BlockStep, Turn
from lingflash.api.answer.generation import Answering, Deltas, never_written
from lingflash.api.answer.stream import AnswerWriter
from lingflash.api.messages.code_blocks import result_block, use_block
from lingflash.core.errors import LingflashError
from lingflash.httpd.error_map import envelope
from lingflash.protocol.messages import ANTHROPIC_ERRORS
from lingflash.protocol.sse import named_event
from lingflash.protocol.usage import cache_report, code_details


class MessageAnswer(AnswerWriter):
    """Writes an answer while it is generated, or collects it.

    Args:
        max_tokens: what was asked for, which the context may not leave.
    """

    def __init__(self, model: str, generation: Answering, turn: Turn, *, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._generation = generation
        self._turn = turn
        # Where each block is among those of the answer, in which results of code are blocks, too.
        self._places: list[tuple[Block, bool]] = []
        self._place_of: dict[int, int] = {}
        self._head = {
            "id": "msg_" + secrets.token_hex(12),
            "type": "message",
            "role": "assistant",
            "model": model,
        }

    def begin(self) -> bytes:
        # What was cached only the first token knows; `message_delta` tells.
        message = {
            **self._head,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {**self._usage(), "output_tokens": 0},
        }
        return _event("message_start", message=message) + self.ping()

    def ping(self) -> bytes:
        return _event("ping")

    def write(self, deltas: Deltas) -> bytes:
        return b"".join(event for step in self._turn.take(deltas) for event in self._take(step))

    def _take(self, step: BlockStep) -> list[bytes]:
        """Note where a block is; the events of what happened to it."""
        if step.action == "open":
            self._place_of[step.block.index] = len(self._places)
            self._places.append((step.block, False))
        elif step.action == "end":
            self._places.append((step.block, True))
            where = len(self._places) - 1
            block = result_block(step.block)
            return [
                _event("content_block_start", index=where, content_block=block),
                _event("content_block_stop", index=where),
            ]
        elif step.action == "run":
            return []
        return _step_events(step, self._place_of[step.block.index])

    def end(self) -> bytes:
        stop_reason, stop_sequence = self._stop()
        delta = {"stop_reason": stop_reason, "stop_sequence": stop_sequence}
        return _event("message_delta", delta=delta, usage=self._usage()) + _event("message_stop")

    def fail(self, error: LingflashError) -> bytes:
        return named_event("error", envelope(error, ANTHROPIC_ERRORS))

    async def collect(self) -> None:
        """Read the whole answer."""
        async for deltas in self._generation.deltas():
            for step in self._turn.take(deltas):
                self._take(step)

    def whole(self) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        stop_reason, stop_sequence = self._stop()
        return {
            **self._head,
            "content": [
                result_block(block) if is_result else _block(block, block.text)
                for block, is_result in self._places
            ],
            "stop_reason": stop_reason,
            "stop_sequence": stop_sequence,
            "usage": self._usage(),
        }

    def _stop(self) -> tuple[str, str | None]:
        turn = self._turn
        match turn.finish_reason:
            case None | "stop":
                if isinstance(turn.stop_reason, str) and not turn.ends_with_call:
                    return "stop_sequence", turn.stop_reason
                return ("tool_use" if turn.num_calls else "end_turn"), None
            case "length":
                is_limit = self._generation.usage().completion_tokens >= self._max_tokens
                return ("max_tokens" if is_limit else "model_context_window_exceeded"), None
            case "error" | "aborted":
                raise never_written(turn.finish_reason)
            case _:
                assert_never(turn.finish_reason)

    def _usage(self) -> dict[str, Any]:
        usage = self._generation.usage()
        return {
            "input_tokens": usage.prompt_tokens - usage.cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": usage.cached_tokens,
            "output_tokens": usage.completion_tokens,
            **cache_report(usage),
            **code_details(usage),
        }


def _block(block: Block, text: str) -> dict[str, Any]:
    if block.kind == "text":
        return {"type": "text", "text": text}
    if block.kind == "reasoning":
        return {"type": "thinking", "thinking": text, "signature": ""}
    if block.run is not None:
        return use_block(block, is_empty=not text)
    # As generated: numbers of any size stay what they are.
    arguments = msgspec.Raw(text.encode()) if text else {}
    return {"type": "tool_use", "id": block.call_id, "name": block.own_name, "input": arguments}


_DELTAS = {
    "text": ("text_delta", "text"),
    "reasoning": ("thinking_delta", "thinking"),
    "call": ("input_json_delta", "partial_json"),
}


def _step_events(step: BlockStep, index: int) -> list[bytes]:
    if step.action == "open":
        block = _block(step.block, "")
        return [_event("content_block_start", index=index, content_block=block)]
    if step.action == "close":
        return [_event("content_block_stop", index=index)]
    kind, key = _DELTAS[step.block.kind]
    text = step.text
    if step.block.run is not None:
        text = json.dumps({"code": text}, ensure_ascii=False)
    delta = {"type": kind, key: text}
    return [_event("content_block_delta", index=index, delta=delta)]


def _event(kind: str, **fields: Any) -> bytes:
    return named_event(kind, {"type": kind, **fields})
