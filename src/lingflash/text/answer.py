"""One answer's text as events: thinking, content, tool calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from lingflash.text.reasoning import Reasoning, ReasoningSplitter
from lingflash.text.tool_parser import (
    CallEvent,
    ToolCall,
    ToolParser,
    collect_calls,
    new_call_id,
)

AnswerEvent = str | Reasoning | CallEvent


class AnswerParser:
    """Reads the text of one choice.

    Args:
        parse_tools: `<tool_call>` blocks are calls; else they are content.
        parse_reasoning: a `<think>` block at the start is thinking; else it is content.
    """

    def __init__(
        self,
        *,
        parse_tools: bool,
        parse_reasoning: bool,
        make_id: Callable[[], str] = new_call_id,
    ) -> None:
        self._tools = ToolParser(make_id) if parse_tools else None
        self._reasoning = ReasoningSplitter() if parse_reasoning else None

    @property
    def num_calls(self) -> int:
        """Complete calls so far."""
        return 0 if self._tools is None else self._tools.num_calls

    @property
    def is_thinking(self) -> bool:
        """Whether the text so far ends inside the thinking."""
        return self._reasoning is not None and self._reasoning.is_thinking

    def push(self, text: str) -> list[AnswerEvent]:
        """Take more text; return what it completes, in order."""
        thought = ""
        if self._reasoning is not None:
            thought, text = self._reasoning.push(text)
        events: list[AnswerEvent] = [Reasoning(thought)] if thought else []
        if text:
            events += [text] if self._tools is None else self._tools.push(text)
        return events

    def finish(self, *, is_cut_off: bool) -> list[AnswerEvent]:
        """End the answer; return the rest.

        Args:
            is_cut_off: the token limit ended it, not the model.
        """
        events: list[AnswerEvent] = []
        if self._reasoning is not None:
            thought, text = self._reasoning.finish()
            if thought:
                events.append(Reasoning(thought))
            if text:
                events += [text] if self._tools is None else self._tools.push(text)
        if self._tools is not None:
            events += self._tools.finish(is_cut_off=is_cut_off)
        return events


@dataclass(slots=True)
class AnswerMessage:
    """A whole message, put together from events.

    Args:
        calls: in order; the last may be cut off.
    """

    content: str = ""
    reasoning: str = ""
    calls: list[ToolCall] = field(default_factory=list)

    def add(self, events: list[AnswerEvent]) -> None:
        """Take in events."""
        for event in events:
            if isinstance(event, str):
                self.content += event
            elif isinstance(event, Reasoning):
                self.reasoning += event.text
            else:
                collect_calls((event,), self.calls)
