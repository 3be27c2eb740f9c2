"""Reads tool calls out of an answer while it is being written.

The form is that of Ling-2.6 (and Hermes, Qwen 2.5):

    <tool_call>
    {"name": "...", "arguments": {...}}
    </tool_call>

Rules:
- Content before, between and after calls is kept. One newline directly before `<tool_call>`
  belongs to the form (the template writes it), so it is not content; nor is, once there was a
  call, white space before the next one or before the end.
- Nothing of a tag is ever shown: text that may become one is held back.
- A call is reported as soon as its name is known and its arguments begin, and the arguments as they
  come: the exact substring that the model wrote, never written anew; no arguments is `{}`.
- `</tool_call>` inside a JSON string of the call does not end it.
- A block that is not such a call (invalid JSON, no name, arguments that are no object) becomes
  content, tags and all. If the call had been reported before that was seen, it is withdrawn; a
  grammar (see `structured/`) prevents that.
- A call that the token limit cuts off stays a call, with the arguments so far; if not even the
  name was there, its text is content.

The events do not depend on how the text was cut into pieces, but for the pieces of arguments and
content themselves.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from lingflash.text.call_scanner import CLOSE_TAG, CallScanner

OPEN_TAG = "<tool_call>"

__all__ = ["CLOSE_TAG", "OPEN_TAG"]


@dataclass(frozen=True, slots=True)
class CallStart:
    """A call has begun.

    Args:
        call_id: unique, starts with "call_".
    """

    index: int
    call_id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallDelta:
    """More of a call's arguments.

    Args:
        arguments: exactly as generated.
    """

    index: int
    arguments: str


@dataclass(frozen=True, slots=True)
class CallEnd:
    """A call is complete.

    Args:
        raw: its whole block as generated, tags and all.
    """

    index: int
    raw: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class CallBroken:
    """A reported call turned out to be none; its text follows as content."""

    index: int


CallEvent = CallStart | CallDelta | CallEnd | CallBroken


@dataclass(slots=True)
class ToolCall:
    """One call of a finished answer.

    Args:
        arguments: JSON of an object, exactly as generated; cut off if the answer was.
        is_complete: whether the call was closed.
        raw: its whole block as generated, tags and all, once it is complete.
    """

    index: int
    call_id: str
    name: str
    arguments: str = ""
    is_complete: bool = False
    raw: str = field(default="", compare=False)


def new_call_id() -> str:
    """A fresh random id for a call."""
    return "call_" + secrets.token_hex(12)


class ToolParser:
    """Splits one answer's text into content and calls, piece by piece."""

    def __init__(self, make_id: Callable[[], str] = new_call_id) -> None:
        self._make_id = make_id
        self._buffer = ""
        self._block: CallScanner | None = None
        self._index = -1  # of the last call that was reported
        self._is_reported = False
        self._num_sent = 0
        self._form_space = ""
        self._blank = ""  # white space after a call: content only if more content follows
        self.num_calls = 0  # complete ones
        self.was_cut_off = False

    def push(self, text: str) -> list[str | CallEvent]:
        """Take more text; return content and calls in order."""
        events: list[str | CallEvent] = []
        if self._block is None:
            self._buffer += text
        else:
            self._block.text += text
        self._advance(events, at_end=False)
        return events

    def finish(self, *, is_cut_off: bool = True) -> list[str | CallEvent]:
        """End the answer; return the rest.

        Args:
            is_cut_off: the token limit ended it, not the model; an open call is kept then.
        """
        events: list[str | CallEvent] = []
        self._advance(events, at_end=True)
        while self._block is not None:
            self.was_cut_off |= is_cut_off
            if is_cut_off and self._is_reported:
                return events
            self._break(events)
            self._advance(events, at_end=True)
        self._blank = ""
        return events

    def _advance(self, events: list[str | CallEvent], *, at_end: bool) -> None:
        while True:
            if self._block is None:
                if not self._open(events, at_end=at_end):
                    return
            else:
                outcome = self._block.scan()
                if outcome == "broken":
                    self._break(events)
                    continue
                self._report(self._block, events)
                if outcome == "more":
                    return
                self._close(self._block, events)

    def _open(self, events: list[str | CallEvent], *, at_end: bool) -> bool:
        start = self._buffer.find(OPEN_TAG)
        if start < 0:
            keep = len(self._buffer) if at_end else _held_from(self._buffer)
            self._content(self._buffer[:keep], events)
            self._buffer = self._buffer[keep:]
            return False
        before = self._buffer[:start]
        content = before.removesuffix("\n")
        self._content(content, events)
        # If the block turns out to be no call, what was taken for the form's white space is
        # content.
        self._form_space = self._blank + before[len(content) :]
        self._blank = ""
        self._block = CallScanner()
        self._block.text = self._buffer[start + len(OPEN_TAG) :]
        self._buffer = ""
        self._is_reported = False
        return True

    def _report(self, block: CallScanner, events: list[str | CallEvent]) -> None:
        start = block.arguments_start
        if block.name is None or start is None:
            return
        if not self._is_reported:
            self._start(block.name, events)
            self._num_sent = start
        end = block.position if block.arguments_end is None else block.arguments_end
        if end > self._num_sent:
            events.append(CallDelta(self._index, block.text[self._num_sent : end]))
            self._num_sent = end

    def _start(self, name: str, events: list[str | CallEvent]) -> None:
        self._is_reported = True
        self._index += 1
        events.append(CallStart(self._index, self._make_id(), name))

    def _close(self, block: CallScanner, events: list[str | CallEvent]) -> None:
        if not self._is_reported:
            assert block.name is not None
            self._start(block.name, events)
            events.append(CallDelta(self._index, "{}"))
        events.append(CallEnd(self._index, OPEN_TAG + block.text[: block.position]))
        self.num_calls += 1
        self._block, self._buffer = None, block.text[block.position :]

    def _break(self, events: list[str | CallEvent]) -> None:
        """The block is no call: what was read is content, the rest is read anew."""
        block = self._block
        assert block is not None
        self._block = None
        # What was reported is certain to hold the same whatever the pieces: up to the break.
        self._report(block, events)
        if self._is_reported:
            events.append(CallBroken(self._index))
        self._is_reported = False
        end = block.safe_position
        self._content(self._form_space + OPEN_TAG + block.text[:end], events)
        self._buffer = block.text[end:]

    def _content(self, text: str, events: list[str | CallEvent]) -> None:
        if self.num_calls:
            text = self._blank + text
            content = text.rstrip()
            text, self._blank = content, text[len(content) :]
        if not text:
            return
        if events and isinstance(events[-1], str):
            events[-1] += text
        else:
            events.append(text)


def _held_from(buffer: str) -> int:
    """Where text begins that may become a newline and an opening tag."""
    for size in range(min(len(OPEN_TAG), len(buffer)), -1, -1):
        if buffer.endswith(OPEN_TAG[:size]):
            start = len(buffer) - size
            return start - 1 if buffer[start - 1 : start] == "\n" else start
    return len(buffer)


def collect_calls(events: Iterable[object], calls: list[ToolCall]) -> None:
    """Apply call events to the calls of a message; other events are passed over."""
    for event in events:
        match event:
            case CallStart(index, call_id, name):
                calls.append(ToolCall(index, call_id, name))
            case CallDelta(_, arguments):
                calls[-1].arguments += arguments
            case CallEnd(_, raw):
                calls[-1].is_complete, calls[-1].raw = True, raw
            case CallBroken():
                calls.pop()
