"""One answer's text as events: thinking, content, tool calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lingflash.text.reasoning import Reasoning, ReasoningSplitter
from lingflash.text.tool_parser import (
    CallEvent,
    CallStart,
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
        parse_reasoning: a `<think>` block at the start is thinking; else it is content. What looks
            like a call in it and is none is thinking.
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
        """Whether the text so far ends inside the thinking, and in nothing that may be a call."""
        if self._reasoning is None or not self._reasoning.is_thinking:
            return False
        return self._tools is None or not self._tools.is_in_block

    def push(self, text: str) -> list[AnswerEvent]:
        """Take more text; return what it completes, in order."""
        found: Sequence[str | CallEvent] = [text]
        if self._tools is not None:
            found = self._tools.push(text)
        if self._reasoning is None or self._reasoning.is_done:
            return list(found)
        return self._split(found, self._reasoning)

    def finish(self) -> list[AnswerEvent]:
        """End the answer; return the rest."""
        found = [] if self._tools is None else self._tools.finish()
        if self._reasoning is None:
            return list(found)
        events = self._split(found, self._reasoning)
        _add(events, self._reasoning.finish())
        return events

    def _split(
        self, found: Sequence[str | CallEvent], reasoning: ReasoningSplitter
    ) -> list[AnswerEvent]:
        events: list[AnswerEvent] = []
        for event in found:
            if isinstance(event, str):
                _add(events, reasoning.push(event))
                continue
            if isinstance(event, CallStart):
                _add(events, reasoning.take_call())
            events.append(event)
        return events


def _add(events: list[AnswerEvent], said: tuple[str, str]) -> None:
    thought, rest = said
    if thought:
        events.append(Reasoning(thought))
    if rest:
        events.append(rest)


@dataclass(slots=True)
class AnswerMessage:
    """A whole message, put together from events.

    Args:
        calls: in order.
        call_places: for each call, how many characters of the content stand before it.
    """

    content: str = ""
    reasoning: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    call_places: list[int] = field(default_factory=list, compare=False)

    def add(self, events: list[AnswerEvent]) -> None:
        """Take in events."""
        for event in events:
            if isinstance(event, str):
                self.content += event
            elif isinstance(event, Reasoning):
                self.reasoning += event.text
            else:
                if isinstance(event, CallStart):
                    self.call_places.append(len(self.content))
                collect_calls((event,), self.calls)
