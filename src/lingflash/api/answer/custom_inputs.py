"""The text of a custom tool's call, out of the JSON that the model writes it in.

The model calls a custom tool like a function of one string, {"input": "..."}; its client wants that
text. If the model writes something else, all of its JSON is the text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from lingflash.text.answer import AnswerEvent
from lingflash.text.messages import CUSTOM_ARGUMENT
from lingflash.text.tool_parser import CallDelta, CallEnd, CallStart
from lingflash.text.tools import ToolSet


def with_texts(events: Iterable[AnswerEvent], tools: ToolSet) -> list[AnswerEvent]:
    """Events whose calls are whole, with the texts of custom tools' calls for their arguments."""
    found: list[AnswerEvent] = []
    pieces: list[str] | None = None  # of a custom tool's call
    for event in events:
        match event:
            case CallStart(_, _, name):
                pieces = [] if tools.is_custom(name) else None
            case CallDelta(_, arguments) if pieces is not None:
                pieces.append(arguments)
                continue
            case CallEnd(index) if pieces is not None:
                if text := _text_of("".join(pieces)):
                    found.append(CallDelta(index, text))
                pieces = None
            case _:
                pass
        found.append(event)
    return found


def _text_of(arguments: str) -> str:
    try:
        value = json.loads(arguments)
    except ValueError:
        return arguments
    text = value.get(CUSTOM_ARGUMENT) if isinstance(value, dict) else None
    if isinstance(text, str):
        # Half of a surrogate pair has no bytes.
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return "" if value == {} else arguments
