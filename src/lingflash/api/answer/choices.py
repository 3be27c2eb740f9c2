"""The choices of a conversation's answer: what is read from their text, in any dialect."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import assert_never

from lingflash.api.answer.conversation import Conversation
from lingflash.api.answer.custom_inputs import with_texts
from lingflash.api.answer.generation import Answering, never_written
from lingflash.api.state import ServerState
from lingflash.core.types import FinishReason, TokenLogprob, Usage
from lingflash.text.answer import AnswerEvent, AnswerMessage, AnswerParser
from lingflash.text.output import OutputDelta
from lingflash.text.reasoning import END_THINK_TAG, THINK_TAG
from lingflash.text.tool_parser import OPEN_TAG
from lingflash.text.tools import ToolSet


def is_cut_off(reason: FinishReason) -> bool:
    """Whether a limit ended the answer, not the model."""
    match reason:
        case "stop":
            return False
        case "length":
            return True
        case "error" | "aborted":
            raise never_written(reason)
        case _:
            assert_never(reason)


class ChatChoice:
    """One choice's answer so far.

    Args:
        parser: reads thinking and calls; None takes all for content.
        tools: that may be called.
        remember: is given a turn that holds calls, and its tokens, for later prompts.
        tag_ids: tokens that end the thinking: its closing tag, and a call's opening tag.
    """

    def __init__(
        self,
        index: int,
        parser: AnswerParser | None,
        tools: ToolSet,
        remember: Callable[[AnswerMessage, Sequence[int]], None],
        tag_ids: tuple[int | None, int | None] = (None, None),
    ) -> None:
        self.index = index
        self.parser = parser
        self.tools = tools
        self._has_texts = tools.has_texts
        self._remember = remember
        self._tag_ids = tag_ids
        self.num_reasoning_tokens = 0
        self.role_sent = False
        self.message = AnswerMessage()
        self.logprobs: list[TokenLogprob] = []
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None

    def take(self, delta: OutputDelta) -> Sequence[AnswerEvent]:
        """Read a delta's text; note the finish reason."""
        parser, reason = self.parser, delta.finish_reason
        if parser is None:
            events: Sequence[AnswerEvent] = [delta.text] if delta.text else []
        else:
            was_thinking = parser.is_thinking
            found = parser.push(delta.text) if delta.text else []
            if was_thinking or parser.is_thinking:
                self.num_reasoning_tokens += self._num_thinking(delta.token_ids)
            if reason is not None:
                found += parser.finish()
            if self._has_texts:
                found = with_texts(found, self.tools)
            self.token_ids += delta.token_ids
            self.message.add(found)
            events = found
        if reason is not None:
            self.finish_reason = reason
            if self.message.calls:
                self._remember(self.message, self.token_ids)
        return events

    @property
    def ended_with_calls(self) -> bool:
        """Whether the model ended the turn itself, to be given the results of calls."""
        reason, parser = self.finish_reason, self.parser
        return (
            reason is not None
            and not is_cut_off(reason)
            and parser is not None
            and parser.num_calls > 0
        )

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


def usage_of(generation: Answering, choices: Sequence[ChatChoice]) -> Usage:
    """Token counts so far, those of thinking among them."""
    num_reasoning = sum(choice.num_reasoning_tokens for choice in choices)
    return replace(generation.usage(), reasoning_tokens=num_reasoning)


def chat_choices(
    state: ServerState, conversation: Conversation, num_choices: int, caller: str
) -> list[ChatChoice]:
    """What reads the choices of a conversation's answer."""
    parse_tools, tools = conversation.may_call, conversation.tools
    tokenizer = None if state.text is None else state.text.tokenizer
    parse_reasoning = tokenizer is not None and tokenizer.token_id(THINK_TAG) is not None

    def parser() -> AnswerParser | None:
        if not (parse_tools or parse_reasoning):
            return None
        return AnswerParser(parse_tools=parse_tools, parse_reasoning=parse_reasoning)

    def remember(message: AnswerMessage, token_ids: Sequence[int]) -> None:
        state.calls.remember(caller, message, tools, token_ids)

    tag_ids: tuple[int | None, int | None] = (None, None)
    if tokenizer is not None:
        open_call = tokenizer.token_id(OPEN_TAG) if parse_tools else None
        tag_ids = tokenizer.token_id(END_THINK_TAG), open_call
    return [ChatChoice(i, parser(), tools, remember, tag_ids) for i in range(num_choices)]
