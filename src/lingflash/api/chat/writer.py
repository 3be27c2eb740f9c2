"""The answer to a chat request: chunks of a stream, or one body."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any

from lingflash.api.answer.generation import Deltas, Generation
from lingflash.api.answer.logprobs import chat_logprobs
from lingflash.api.answer.stream import AnswerWriter
from lingflash.api.state import ServerState
from lingflash.core.types import TokenLogprob
from lingflash.protocol.chat import ChatCompletionRequest
from lingflash.protocol.sse import DONE, ChunkEncoder
from lingflash.text.answer import AnswerEvent, AnswerMessage, AnswerParser
from lingflash.text.output import OutputDelta
from lingflash.text.reasoning import END_THINK_TAG, THINK_TAG, Reasoning
from lingflash.text.tokenizer import Tokenizer
from lingflash.text.tool_parser import OPEN_TAG, CallDelta, CallStart, ToolCall


class ChatChoice:
    """One choice's answer so far.

    Args:
        index: of the choice.
        parser: reads thinking and calls; None takes all for content.
        remember: is given a turn that ended with calls, and its tokens, for later prompts.
        tag_ids: tokens that end the thinking: its closing tag, and a call's opening tag.
    """

    def __init__(
        self,
        index: int,
        parser: AnswerParser | None,
        remember: Callable[[AnswerMessage, Sequence[int]], None],
        tag_ids: tuple[int | None, int | None] = (None, None),
    ) -> None:
        self.index = index
        self.parser = parser
        self._remember = remember
        self._tag_ids = tag_ids
        self.num_reasoning_tokens = 0
        self.role_sent = False
        self.message = AnswerMessage()
        self.logprobs: list[TokenLogprob] = []
        self.token_ids: list[int] = []
        self.finish_reason: str | None = None

    def take(self, delta: OutputDelta) -> Sequence[AnswerEvent]:
        """Read a delta's text; note the finish reason."""
        parser = self.parser
        if parser is None:
            events: Sequence[AnswerEvent] = [delta.text] if delta.text else []
        else:
            was_thinking = parser.is_thinking
            found = parser.push(delta.text) if delta.text else []
            if was_thinking or parser.is_thinking:
                self.num_reasoning_tokens += self._num_thinking(delta.token_ids)
            if delta.finish_reason is not None:
                found += parser.finish(is_cut_off=delta.finish_reason == "length")
            self.token_ids += delta.token_ids
            self.message.add(found)
            events = found
        if delta.finish_reason is not None:
            self.finish_reason = delta.finish_reason
            if delta.finish_reason == "stop" and parser is not None and parser.num_calls:
                self.finish_reason = "tool_calls"
                self._remember(self.message, self.token_ids)
        return events

    def _num_thinking(self, token_ids: Sequence[int]) -> int:
        """How many of an event's tokens are thinking, its closing tag included."""
        end_think, open_call = self._tag_ids
        count = 0
        for token_id in token_ids:
            if token_id == open_call:
                break
            count += 1
            if token_id == end_think:
                break
        return count


def usage_of(generation: Generation, choices: Sequence[ChatChoice]) -> dict[str, Any]:
    """Token counts so far, those of thinking among them."""
    usage = generation.usage()
    details = {
        **usage.get("completion_tokens_details", {}),
        "reasoning_tokens": sum(choice.num_reasoning_tokens for choice in choices),
    }
    return {**usage, "completion_tokens_details": details}


def chat_choices(
    state: ServerState, body: ChatCompletionRequest, num_choices: int, caller: str
) -> list[ChatChoice]:
    """What reads the choices of a conversation's answer.

    Args:
        state: of the server; its call store remembers turns with calls.
        body: of the request.
        num_choices: how many.
        caller: whose turns they are.
    """
    parse_tools = bool(body.tools) and body.tool_choice != "none"
    tokenizer = None if state.text is None else state.text.tokenizer
    parse_reasoning = tokenizer is not None and tokenizer.token_id(THINK_TAG) is not None

    def parser() -> AnswerParser | None:
        if not (parse_tools or parse_reasoning):
            return None
        return AnswerParser(parse_tools=parse_tools, parse_reasoning=parse_reasoning)

    def remember(message: AnswerMessage, token_ids: Sequence[int]) -> None:
        state.calls.remember(caller, message, token_ids)

    tag_ids: tuple[int | None, int | None] = (None, None)
    if tokenizer is not None:
        tag_ids = tokenizer.token_id(END_THINK_TAG), tokenizer.token_id(OPEN_TAG)
    return [ChatChoice(i, parser(), remember, tag_ids) for i in range(num_choices)]


def _call_object(call: ToolCall) -> dict[str, Any]:
    return {
        "id": call.call_id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }


def _delta_of(event: AnswerEvent) -> dict[str, Any] | None:
    """What a chunk says about an event; None if nothing."""
    match event:
        case str():
            return {"content": event}
        case Reasoning(text):
            return {"reasoning": text, "reasoning_content": text}
        case CallStart(index, call_id, name):
            function = {"name": name, "arguments": ""}
            call = {"index": index, "id": call_id, "type": "function", "function": function}
            return {"tool_calls": [call]}
        case CallDelta(index, arguments):
            return {"tool_calls": [{"index": index, "function": {"arguments": arguments}}]}
    return None  # an end shows in the finish reason, what was broken follows as content


class ChatAnswer(AnswerWriter):
    """Writes an answer while it is generated, or collects it.

    Args:
        state: of the server.
        body: the request.
        model: the name to answer with.
        generation: where the text comes from.
        caller: whose turns are remembered for later prompts.
    """

    def __init__(
        self,
        state: ServerState,
        body: ChatCompletionRequest,
        model: str,
        generation: Generation,
        caller: str,
    ) -> None:
        options = body.stream_options
        self._include_usage = options is not None and bool(options.include_usage)
        self._tokenizer: Tokenizer | None = state.text.tokenizer if state.text else None
        self._generation = generation
        self._wants_logprobs = bool(body.logprobs)
        self._wants_token_ids = bool(body.return_token_ids)
        self._head = {
            "id": "chatcmpl-" + secrets.token_hex(12),
            "created": int(time.time()),
            "model": model,
        }
        self._choices = chat_choices(state, body, generation.num_choices, caller)
        self._encoder = ChunkEncoder(
            "chat.completion.chunk",
            answer_id=self._head["id"],
            created=self._head["created"],
            model=model,
            num_choices=generation.num_choices,
            include_usage=self._include_usage,
        )

    def write(self, deltas: Deltas) -> bytes:
        """See ChunkWriter.write."""
        chunks: list[bytes] = []
        plain = not self._wants_logprobs and not self._wants_token_ids
        for index, delta in deltas:
            choice = self._choices[index]
            events = choice.take(delta)
            if not choice.role_sent:
                self._open(choice, chunks)
            if plain:
                for event in events:
                    if isinstance(event, str):
                        chunks.append(self._encoder.text(index, event))
                    elif (part := _delta_of(event)) is not None:
                        chunks.append(self._chunk(index, part, None))
            else:
                self._write_detailed(choice, delta, events, chunks)
            if choice.finish_reason is not None:
                chunks.append(self._chunk(index, {}, choice.finish_reason))
        return b"".join(chunks)

    def end(self) -> bytes:
        """See ChunkWriter.end."""
        if not self._include_usage:
            return DONE
        return self._encoder.usage(usage_of(self._generation, self._choices)) + DONE

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
        parts = [part for event in events if (part := _delta_of(event)) is not None]
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
        answer: dict[str, Any] = {
            **self._head,
            "object": "chat.completion",
            "choices": [self._whole_choice(choice) for choice in self._choices],
            "usage": usage_of(self._generation, self._choices),
        }
        if self._wants_token_ids:
            answer["prompt_token_ids"] = self._generation.prompts[0]
        return answer

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
            message["tool_calls"] = [_call_object(call) for call in said.calls]
        result: dict[str, Any] = {
            "index": choice.index,
            "message": message,
            "logprobs": (
                chat_logprobs(self._tokenizer, choice.logprobs) if self._wants_logprobs else None
            ),
            "finish_reason": choice.finish_reason,
        }
        if self._wants_token_ids:
            result["token_ids"] = choice.token_ids
        return result
