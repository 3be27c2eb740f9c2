"""The text of a custom tool's call, out of the JSON that the model writes it in, as it comes.

The model calls a custom tool like a function of one string, {"input": "..."}; its client wants that
text. If the model writes something else, all of its JSON is the text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from lingflash.text.answer import AnswerEvent
from lingflash.text.messages import CUSTOM_ARGUMENT
from lingflash.text.tool_parser import CallBroken, CallDelta, CallEnd, CallStart
from lingflash.text.tools import ToolSet

_BEGIN = re.compile(r'\s*\{\s*"' + CUSTOM_ARGUMENT + r'"\s*:\s*"')
# As far as the begin can come.
_BEGINS = [
    re.compile(pattern)
    for pattern in (
        r"\s*",
        r"\s*\{\s*",
        r'\s*\{\s*"\w*',
        r'\s*\{\s*"\w*"\s*',
        r'\s*\{\s*"\w*"\s*:\s*',
    )
]
# A string up to what may be the beginning of an escape.
_WHOLE = re.compile(r'(?:[^"\\]|\\(?:u[0-9a-fA-F]{4}|[^u]))*')
_HIGH_SURROGATE = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}\Z")


class InputReader:
    """Reads one call's arguments."""

    def __init__(self) -> None:
        self._held = ""
        self._state = "begin"

    def push(self, arguments: str) -> str:
        """Take more of the JSON; return the text that it completes."""
        self._held += arguments
        if self._state == "begin":
            begin = _BEGIN.match(self._held)
            if begin is not None:
                self._state, self._held = "string", self._held[begin.end() :]
            elif not any(pattern.fullmatch(self._held) for pattern in _BEGINS):
                self._state = "other"
        return self._more() if self._state == "string" else ""

    def finish(self) -> str:
        """The end of the call; return what is left of the text."""
        state, self._state = self._state, "done"
        if state == "string":
            return _decoded(self._held)
        if state in ("begin", "other") and self._held != "{}":
            return self._held
        return ""

    def _more(self) -> str:
        whole = _WHOLE.match(self._held)
        assert whole is not None
        text = whole[0]
        if self._held[whole.end() : whole.end() + 1] == '"':
            self._state, self._held = "done", ""
            return _decoded(text)
        half = _HIGH_SURROGATE.search(text)
        if half is not None:
            text = text[: half.start()]
        self._held = self._held[len(text) :]
        return _decoded(text)


def _decoded(text: str) -> str:
    """A piece of a JSON string as text; what is cut off at its end is left out."""
    whole = _WHOLE.match(text)
    assert whole is not None
    try:
        decoded: str = json.loads(f'"{whole[0]}"', strict=False)
    except ValueError:
        return whole[0]
    return decoded.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class CustomInputs:
    """Turns the arguments of custom tools' calls into their texts.

    Args:
        tools: that may be called.
    """

    def __init__(self, tools: ToolSet) -> None:
        self._tools = tools
        self._reader: InputReader | None = None
        self._index = 0
        # Of the custom tools' calls so far.
        self.indexes: set[int] = set()

    def read(self, events: Sequence[AnswerEvent], *, is_end: bool) -> list[AnswerEvent]:
        """The events with texts for arguments.

        Args:
            is_end: no more come.
        """
        found: list[AnswerEvent] = []
        for event in events:
            match event:
                case CallStart(index, _, name):
                    tool = self._tools.called(name)
                    is_custom = tool is not None and tool.kind == "custom"
                    self._reader, self._index = InputReader() if is_custom else None, index
                    if is_custom:
                        self.indexes.add(index)
                    found.append(event)
                case CallDelta(_, arguments) if self._reader is not None:
                    self._add(self._reader.push(arguments), found)
                case CallEnd():
                    self._close(found)
                    found.append(event)
                case CallBroken():
                    self._reader = None
                    found.append(event)
                case _:
                    found.append(event)
        if is_end:
            self._close(found)
        return found

    def _close(self, found: list[AnswerEvent]) -> None:
        if self._reader is not None:
            self._add(self._reader.finish(), found)
            self._reader = None

    def _add(self, text: str, found: list[AnswerEvent]) -> None:
        if text:
            found.append(CallDelta(self._index, text))
