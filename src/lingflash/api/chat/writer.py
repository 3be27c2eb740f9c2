"""The answer to a chat request: chunks of a stream, or one body."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lingflash.api.answer.choices import ChatChoice, chat_choices, usage_of
from lingflash.api.answer.chunks import CompletionWriter, openai_finish_reason
from lingflash.api.answer.conversation import Conversation
from lingflash.api.answer.generation import Deltas, Generation
from lingflash.api.answer.logprobs import chat_logprobs
from lingflash.api.state import ServerState
from lingflash.core.types import Usage
from lingflash.protocol.chat import ChatCompletionRequest
from lingflash.text.answer import AnswerEvent
from lingflash.text.output import OutputDelta
from lingflash.text.reasoning import Reasoning
from lingflash.text.tokenizer import Tokenizer
from lingflash.text.tool_parser import CallDelta, CallStart, ToolCall
from lingflash.text.tools import ToolSet


def _call_object(call: ToolCall, tools: ToolSet) -> dict[str, Any]:
    if tools.is_custom(call.name):
        custom = {"name": call.name, "input": call.arguments}
        return {"id": call.call_id, "type": "custom", "custom": custom}
    return {
        "id": call.call_id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }


def _delta_of(event: AnswerEvent, choice: ChatChoice) -> dict[str, Any] | None:
    """What a chunk says about an event that the choice has read; None if nothing."""
    match event:
        case str():
            return {"content": event}
        case Reasoning(text):
            return {"reasoning": text, "reasoning_content": text}
        case CallStart(index, call_id, name):
            if choice.tools.is_custom(name):
                custom = {"name": name, "input": ""}
                call = {"index": index, "id": call_id, "type": "custom", "custom": custom}
                return {"tool_calls": [call]}
            function = {"name": name, "arguments": ""}
            call = {"index": index, "id": call_id, "type": "function", "function": function}
            return {"tool_calls": [call]}
        case CallDelta(index, arguments):
            if choice.tools.is_custom(choice.message.calls[index].name):
                return {"tool_calls": [{"index": index, "custom": {"input": arguments}}]}
            return {"tool_calls": [{"index": index, "function": {"arguments": arguments}}]}
    return None  # an end shows in the finish reason


def _finish_reason(choice: ChatChoice) -> str | None:
    return openai_finish_reason(choice.finish_reason, ended_with_calls=choice.ended_with_calls)


class ChatAnswer(CompletionWriter):
    """Writes an answer while it is generated, or collects it."""

    def __init__(
        self,
        state: ServerState,
        body: ChatCompletionRequest,
        conversation: Conversation,
        model: str,
        generation: Generation,
        caller: str,
    ) -> None:
        super().__init__(
            generation,
            model,
            body.stream_options,
            id_prefix="chatcmpl-",
            chunk_kind="chat.completion.chunk",
            kind="chat.completion",
        )
        self._tokenizer: Tokenizer | None = state.text.tokenizer if state.text else None
        self._wants_logprobs = bool(body.logprobs)
        self._wants_token_ids = bool(body.return_token_ids)
        self._choices = chat_choices(state, conversation, generation.num_choices, caller)

    def write(self, deltas: Deltas) -> bytes:
        chunks: list[bytes] = []
        is_plain = not self._wants_logprobs and not self._wants_token_ids
        for index, delta in deltas:
            choice = self._choices[index]
            events = choice.take(delta)
            if not choice.role_sent:
                self._open(choice, chunks)
            if is_plain:
                for event in events:
                    if isinstance(event, str):
                        chunks.append(self._encoder.text(index, event))
                    elif (part := _delta_of(event, choice)) is not None:
                        chunks.append(self._chunk(index, part, None))
            else:
                self._write_detailed(choice, delta, events, chunks)
            if choice.finish_reason is not None:
                chunks.append(self._chunk(index, {}, _finish_reason(choice)))
        return b"".join(chunks)

    def usage(self) -> Usage:
        """Token counts so far, those of thinking among them."""
        return usage_of(self._generation, self._choices)

    def _open(self, choice: ChatChoice, chunks: list[bytes]) -> None:
        choice.role_sent = True
        extra = None
        if self._wants_token_ids and choice.index == 0:
            extra = {"prompt_token_ids": self._generation.prompts[0]}
        delta = {"role": "assistant", "content": ""}
        fields = {"index": choice.index, "delta": delta, "logprobs": None, "finish_reason": None}
        chunks.append(self._encoder.choice(fields, extra))

    def _write_detailed(
        self,
        choice: ChatChoice,
        delta: OutputDelta,
        events: Sequence[AnswerEvent],
        chunks: list[bytes],
    ) -> None:
        # Log probabilities and ids go out with the token's step, even while its text is held back.
        logprobs = chat_logprobs(self._tokenizer, delta.logprobs) if delta.logprobs else None
        token_ids = delta.token_ids if self._wants_token_ids else None
        parts = [part for event in events if (part := _delta_of(event, choice)) is not None]
        if not parts and (logprobs or token_ids):
            parts = [{"content": ""}]
        for part in parts:
            chunks.append(self._chunk(choice.index, part, None, logprobs, token_ids))
            logprobs = token_ids = None

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        finish_reason: str | None,
        logprobs: dict[str, Any] | None = None,
        token_ids: list[int] | None = None,
    ) -> bytes:
        fields: dict[str, Any] = {
            "index": index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }
        if token_ids is not None:
            fields["token_ids"] = token_ids
        return self._encoder.choice(fields)

    async def collect(self) -> None:
        """Read the whole answer."""
        async for deltas in self._generation.deltas():
            for index, delta in deltas:
                choice = self._choices[index]
                events = choice.take(delta)
                if choice.parser is None:
                    choice.token_ids += delta.token_ids
                    choice.message.add(list(events))
                choice.logprobs += delta.logprobs or ()

    def whole(self) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        answer = super().whole()
        if self._wants_token_ids:
            answer["prompt_token_ids"] = self._generation.prompts[0]
        return answer

    def whole_choices(self) -> list[dict[str, Any]]:
        return [self._whole_choice(choice) for choice in self._choices]

    def _whole_choice(self, choice: ChatChoice) -> dict[str, Any]:
        said = choice.message
        message: dict[str, Any] = {
            "role": "assistant",
            "content": said.content if said.content or not said.calls else None,
            "refusal": None,
        }
        if said.reasoning:
            message["reasoning"] = message["reasoning_content"] = said.reasoning
        if said.calls:
            message["tool_calls"] = [_call_object(call, choice.tools) for call in said.calls]
        result: dict[str, Any] = {
            "index": choice.index,
            "message": message,
            "logprobs": (
                chat_logprobs(self._tokenizer, choice.logprobs) if self._wants_logprobs else None
            ),
            "finish_reason": _finish_reason(choice),
        }
        if self._wants_token_ids:
            result["token_ids"] = choice.token_ids
        return result
