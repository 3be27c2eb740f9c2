"""The text of a custom tool's call, or of code, out of the JSON that the model writes it in.

The model calls a custom tool like a function of one string, {"input": "..."}; its client wants that
text. If the model writes something else, all of its JSON is the text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from lingflash.text.answer import AnswerEvent
from lingflash.text.tool_parser import CallDelta, CallEnd, CallStart
from lingflash.text.tools import ToolSet


def with_texts(events: Iterable[AnswerEvent], tools: ToolSet) -> list[AnswerEvent]:
    """Events whose calls are whole, with the text for the arguments of calls that are of text."""
    found: list[AnswerEvent] = []
    argument: str | None = None  # that the text of a call is written in
    pieces: list[str] = []
    for event in events:
        match event:
            case CallStart(_, _, name):
                tool = tools.called(name)
                argument, pieces = None if tool is None else tool.text_argument, []
            case CallDelta(_, arguments) if argument is not None:
                pieces.append(arguments)
                continue
            case CallEnd(index) if argument is not None:
                if text := _text_of("".join(pieces), argument):
                    found.append(CallDelta(index, text))
                argument = None
            case _:
                pass
        found.append(event)
    return found


def _text_of(arguments: str, argument: str) -> str:
    try:
        value = json.loads(arguments)
    except ValueError:
        return arguments
    text = value.get(argument) if isinstance(value, dict) else None
    if isinstance(text, str):
        # Half of a surrogate pair has no bytes.
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return "" if value == {} else arguments
