"""A response while it is generated: its object at any moment, and its events."""

from __future__ import annotations

import secrets
import time
from typing import Any, Literal, assert_never

from lingflash.api.answer.blocks import Block, BlockStep, Turn
from lingflash.api.answer.generation import Answering, Deltas, never_written
from lingflash.api.answer.stream import AnswerWriter
from lingflash.api.responses.code_items import (
    code_item,
    without_outputs,
    write_code_step,
)
from lingflash.api.state import ServerState
from lingflash.core.errors import LingflashError
from lingflash.core.types import FinishReason
from lingflash.protocol.responses import CODE_OUTPUTS, ResponsesRequest
from lingflash.protocol.sse import DONE, named_event
from lingflash.protocol.usage import cache_report, code_details

Status = Literal["in_progress", "completed", "incomplete", "cancelled", "failed"]

_ITEM_PREFIX = {"text": "msg_", "call": "fc_", "custom": "ctc_", "reasoning": "rs_"}
_ARGUMENTS_EVENT = "response.function_call_arguments"
_CUSTOM_EVENT = "response.custom_tool_call_input"
_CANCELLED = "The response was cancelled."


def new_id(prefix: str) -> str:
    """A fresh id that nobody can guess."""
    return prefix + secrets.token_hex(24)


class ResponseAnswer(AnswerWriter):
    """Follows one response from its acceptance to its end, and stores it.

    Args:
        owner: hash of the key that it was asked for with.
        input_items: of the request, with ids.
    """

    def __init__(
        self,
        state: ServerState,
        body: ResponsesRequest,
        model: str,
        generation: Answering,
        turn: Turn,
        *,
        owner: str,
        input_items: list[dict[str, Any]],
    ) -> None:
        self._state = state
        self._generation = generation
        self._turn = turn
        self._input_items = input_items
        self._item_ids: dict[int, str] = {}
        self._sequence_number = 0
        self._status: Status = "in_progress"
        self._error: dict[str, Any] | None = None
        self._completed_at: int | None = None
        self._keeps = body.store is not False and state.responses.is_enabled
        self._shows_outputs = CODE_OUTPUTS in (body.include or ())
        self.owner = owner
        self.id = new_id("resp_")
        self._fixed = _fixed_fields(body, generation, model, self.id, store=self._keeps)
        state.live_responses[self.id] = self

    # What GET, cancel and the store see.

    def snapshot(self) -> dict[str, Any]:
        """The response object as it is now, for who asked for it."""
        whole = self._whole()
        return (
            whole if self._shows_outputs else {**whole, "output": without_outputs(whole["output"])}
        )

    def _whole(self) -> dict[str, Any]:
        is_length = self._status == "incomplete"
        return {
            **self._fixed,
            "status": self._status,
            "completed_at": self._completed_at,
            "error": self._error,
            "incomplete_details": {"reason": "max_output_tokens"} if is_length else None,
            "output": [self._item(block) for block in self._turn.blocks],
            "usage": None if self._status == "in_progress" else self._usage(),
        }

    def cancel(self) -> None:
        """End it within one step."""
        if self._status == "in_progress":
            self._end("cancelled")
            self._generation.abort()

    async def collect(self) -> None:
        """Read the whole answer."""
        await self._turn.collect(self._generation)
        self._end_by_itself()

    async def finished(self) -> None:
        """Store it, whole or as far as it came."""
        if self._status == "in_progress":
            self._end("cancelled")  # the client went away
        try:
            if self._keeps:
                self._fixed["store"] = await self._state.responses.put(
                    self.owner, self._whole(), self._input_items
                )
        finally:
            self._state.live_responses.pop(self.id, None)

    # The events.

    def begin(self) -> bytes:
        return self._response_event("response.created") + self._response_event(
            "response.in_progress"
        )

    def write(self, deltas: Deltas) -> bytes:
        events: list[bytes] = []
        for step in self._turn.take(deltas):
            self._write_step(step, events)
        if self._turn.finish_reason is not None:
            self._end_by_itself()
        return b"".join(events)

    def end(self) -> bytes:
        return self._response_event(f"response.{self._status}") + DONE

    def fail(self, error: LingflashError) -> bytes:
        self._fail(error)
        return self._response_event("response.failed")

    def whole(self) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        return self.snapshot()

    def has_body_after(self, error: LingflashError) -> bool:
        """Whether it was cancelled, which its body says."""
        self._fail(error)
        return self._status == "cancelled"

    def _fail(self, error: LingflashError) -> None:
        if self._status == "in_progress":
            self._end("failed")
            self._error = {"code": "server_error", "message": error.message}
        elif self._status == "cancelled":
            self._error = {"code": "server_error", "message": _CANCELLED}

    def _end_by_itself(self) -> None:
        if self._status == "in_progress":
            self._end(_status_after(self._turn.finish_reason))

    def _end(self, status: Status) -> None:
        self._status = status
        if status == "completed":
            self._completed_at = int(time.time())
            return
        for block in self._turn.blocks:
            if block.run is not None and block.run.status in ("in_progress", "interpreting"):
                block.run.status = "incomplete"

    def _write_step(self, step: BlockStep, events: list[bytes]) -> None:
        block = step.block
        if block.run is not None:
            item = code_item(block)
            shown = item if self._shows_outputs else without_outputs([item])[0]
            write_code_step(step, shown, self._event, events)
            return
        where = {"item_id": self._item_id(block), "output_index": block.index}
        in_part = {**where, "content_index": 0}
        if step.action == "open":
            item = self._item(block, status="in_progress", is_empty=True)
            events.append(
                self._event("response.output_item.added", output_index=block.index, item=item)
            )
            if block.kind != "call":
                part = _part(block, "")
                events.append(self._event("response.content_part.added", **in_part, part=part))
        elif step.action == "add":
            if block.kind == "text":
                events.append(
                    self._event(
                        "response.output_text.delta", **in_part, delta=step.text, logprobs=[]
                    )
                )
            elif block.kind == "reasoning":
                events.append(
                    self._event("response.reasoning_text.delta", **in_part, delta=step.text)
                )
            else:
                kind = _CUSTOM_EVENT if block.is_custom else _ARGUMENTS_EVENT
                events.append(self._event(kind + ".delta", **where, delta=step.text))
        else:
            self._close(block, where, events)

    def _close(self, block: Block, where: dict[str, Any], events: list[bytes]) -> None:
        text = block.text
        in_part = {**where, "content_index": 0}
        if block.kind == "text":
            events.append(
                self._event("response.output_text.done", **in_part, text=text, logprobs=[])
            )
        elif block.kind == "reasoning":
            events.append(self._event("response.reasoning_text.done", **in_part, text=text))
        elif block.is_custom:
            events.append(self._event(_CUSTOM_EVENT + ".done", **where, input=text))
        else:
            events.append(
                self._event(
                    _ARGUMENTS_EVENT + ".done", **where, name=block.own_name, arguments=text
                )
            )
        if block.kind != "call":
            part = _part(block, text)
            events.append(self._event("response.content_part.done", **in_part, part=part))
        item = self._item(block)
        events.append(self._event("response.output_item.done", output_index=block.index, item=item))

    def _response_event(self, kind: str) -> bytes:
        return self._event(kind, response=self.snapshot())

    def _event(self, kind: str, **fields: Any) -> bytes:
        number = self._sequence_number
        self._sequence_number += 1
        return named_event(kind, {"type": kind, "sequence_number": number, **fields})

    # The items.

    def _item_id(self, block: Block) -> str:
        if block.index not in self._item_ids:
            kind = "custom" if block.is_custom else block.kind
            self._item_ids[block.index] = new_id(_ITEM_PREFIX[kind])
        return self._item_ids[block.index]

    def _item(
        self, block: Block, *, status: str | None = None, is_empty: bool = False
    ) -> dict[str, Any]:
        if block.run is not None:
            return code_item(block)
        text = "" if is_empty else block.text
        if status is None:
            status = "completed" if block.is_complete else "incomplete"
        item: dict[str, Any] = {"id": self._item_id(block), "status": status}
        if block.kind == "call":
            item |= {
                "type": "custom_tool_call" if block.is_custom else "function_call",
                "call_id": block.call_id,
                "name": block.own_name,
                "input" if block.is_custom else "arguments": text,
            }
            if block.tool is not None and block.tool.namespace is not None:
                item["namespace"] = block.tool.namespace
        elif block.kind == "reasoning":
            item |= {
                "type": "reasoning",
                "summary": [],
                "content": [] if is_empty else [_part(block, text)],
            }
        else:
            content = [] if is_empty else [_part(block, text)]
            item |= {"type": "message", "role": "assistant", "content": content}
        return item

    def _usage(self) -> dict[str, Any]:
        usage = self._turn.usage(self._generation)
        return {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
            "total_tokens": usage.total_tokens,
            **cache_report(usage),
            **code_details(usage),
        }


def _status_after(reason: FinishReason | None) -> Status:
    match reason:
        case None | "stop":
            return "completed"
        case "length":
            return "incomplete"
        case "error" | "aborted":
            raise never_written(reason)
        case _:
            assert_never(reason)


def _part(block: Block, text: str) -> dict[str, Any]:
    if block.kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _fixed_fields(
    body: ResponsesRequest, generation: Answering, model: str, response_id: str, *, store: bool
) -> dict[str, Any]:
    """What does not change while the response is made: mostly the request, said back."""
    sampling = generation.sampling
    text_format = body.text.format if body.text is not None else None
    effort = body.reasoning.effort if body.reasoning is not None else None
    return {
        "id": response_id,
        "object": "response",
        "created_at": int(time.time()),
        "model": model,
        "previous_response_id": body.previous_response_id,
        "instructions": body.instructions,
        "tools": [
            {"description": None, "parameters": None, "strict": False, **tool}
            if tool.get("type") == "function"
            else tool
            for tool in body.tools or []
        ],
        "tool_choice": body.tool_choice or "auto",
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "text": {"format": text_format or {"type": "text"}, "verbosity": "medium"},
        "reasoning": {"effort": effort, "summary": None},
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "top_logprobs": 0,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "truncation": body.truncation or "disabled",
        "store": store,
        "background": False,
        "service_tier": "default",
        "metadata": body.metadata or {},
        "user": None,
        "safety_identifier": None,
        "prompt_cache_key": None,
    }
