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
- A call is reported when it is whole, never before, since a client runs what it was told of
  (docs/adr/0010): its arguments in the pieces that they came in, the exact substring that the model
  wrote, unless something in them was repaired (see call_scanner.py); no arguments is `{}`.
- A call is whole once its JSON is, if then comes its closing tag, the next call, or the end of the
  answer, however it ended.
- `</tool_call>` inside a JSON string of the call does not end it.
- A block that is not such a call (invalid JSON, no name, arguments that are no object), or that the
  end of the answer cuts off, is content, tags and all.

The events do not depend on how the text was cut into pieces, but for the pieces of arguments and
content themselves.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from lingflash.text.call_scanner import CLOSE_TAG, OPEN_TAG, CallScanner

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
    """More of a call's arguments, which are the JSON of an object."""

    index: int
    arguments: str


@dataclass(frozen=True, slots=True)
class CallEnd:
    """A call is complete.

    Args:
        raw: its whole block as generated, tags and all; the closing one may be missing.
    """

    index: int
    raw: str = field(default="", compare=False)


CallEvent = CallStart | CallDelta | CallEnd


@dataclass(slots=True)
class ToolCall:
    """One call of a finished answer.

    Args:
        arguments: JSON of an object, exactly as generated unless it was repaired.
        is_complete: whether its end was reported.
        raw: its whole block as generated, once it is complete.
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
        self._pieces: list[str] = []  # of the open block's arguments, as they came
        self._num_taken = 0
        self._form_space = ""
        self._blank = ""  # white space after a call: content only if more content follows
        self.num_calls = 0

    @property
    def is_in_block(self) -> bool:
        """Whether the text so far ends in what may become a call."""
        return self._block is not None

    def push(self, text: str) -> list[str | CallEvent]:
        """Take more text; return content and calls in order."""
        events: list[str | CallEvent] = []
        if self._block is None:
            self._buffer += text
        else:
            self._block.text += text
        self._advance(events, at_end=False)
        return events

    def finish(self) -> list[str | CallEvent]:
        """End the answer; return the rest."""
        events: list[str | CallEvent] = []
        self._advance(events, at_end=True)
        while self._block is not None:
            if self._block.is_whole:
                self._close(self._block, events)
                if CLOSE_TAG.startswith(self._buffer):
                    self._buffer = ""
            else:
                self._break(self._block, events)
            self._advance(events, at_end=True)
        self._blank = ""
        return events

    def _advance(self, events: list[str | CallEvent], *, at_end: bool) -> None:
        while True:
            block = self._block
            if block is None:
                if not self._open(events, at_end=at_end):
                    return
                continue
            outcome = block.scan()
            if outcome == "broken":
                self._break(block, events)
                continue
            self._take_arguments(block)
            if outcome == "more":
                return
            self._close(block, events)

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
        self._pieces = []
        return True

    def _take_arguments(self, block: CallScanner) -> None:
        start = block.arguments_start
        if block.name is None or start is None:
            return
        if not self._pieces:
            self._num_taken = start
        end = block.position if block.arguments_end is None else block.arguments_end
        if end > self._num_taken:
            self._pieces.append(block.text[self._num_taken : end])
            self._num_taken = end

    def _close(self, block: CallScanner, events: list[str | CallEvent]) -> None:
        assert block.name is not None
        repaired = block.repaired_arguments
        index = self.num_calls
        events.append(CallStart(index, self._make_id(), block.name))
        pieces = self._pieces if repaired is None else [repaired]
        events += [CallDelta(index, piece) for piece in pieces]
        events.append(CallEnd(index, OPEN_TAG + block.text[: block.position]))
        self.num_calls += 1
        self._block, self._buffer = None, block.text[block.position :]

    def _break(self, block: CallScanner, events: list[str | CallEvent]) -> None:
        """The block is no call: what was read is content, the rest is read anew."""
        self._block = None
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
