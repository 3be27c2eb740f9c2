"""Reads chat messages into the one form that templates see.

Used by the server and the offline LLM. What is decided here:

- Content is one string: the text parts of a list are joined without a separator, those of a tool's
  result by a newline.
- The arguments of an earlier tool call arrive as a string of JSON. They are parsed, and the
  template writes them again as `json.dumps(..., ensure_ascii=False)` does, with ", " and ": ". So
  the same call gives the same tokens however a client formatted it, and prefixes stay cached. A
  string that is not a JSON object is written as it is.
- The text of an earlier call of a custom tool is the argument `input`.
- The deprecated `function_call`, and its result in the role function, are a call without an id.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from lingflash.core.errors import refuse
from lingflash.protocol.fields import Dropped, take
from lingflash.protocol.history_fields import CALL, CALL_CUSTOM, CALL_FUNCTION, CHAT_MESSAGE
from lingflash.text.conversation import MessageList
from lingflash.text.parts import Part, read_parts

ROLES = ("system", "developer", "user", "assistant", "tool", "function")

_PLAIN_ROLES = ("user", "assistant", "system")

# The one argument of a custom tool, whose input is text.
CUSTOM_ARGUMENT = "input"


def normalize_messages(
    messages: Sequence[Mapping[str, Any]], into: MessageList | None = None
) -> list[dict[str, Any]]:
    """Check messages and return copies in the form that templates see.

    Args:
        into: takes the messages, and what is dropped of them.

    Raises:
        InvalidRequestError: something is wrong; `param` says where, such as `messages[2].content`.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        refuse("messages", f"is {type(messages).__name__}; a list of messages is needed")
    into = MessageList(Dropped()) if into is None else into
    for i, message in enumerate(messages):
        if type(message) is dict and len(message) == 2 and message.get("role") in _PLAIN_ROLES:
            content = message.get("content")
            if type(content) is str:  # what nearly all are, of which there may be hundreds
                into.add(message["role"], (content,), f"messages[{i}]")
                continue
        _message(message, f"messages[{i}]", into)
    return into.finish()


def _message(message: Mapping[str, Any], where: str, into: MessageList) -> None:
    if not isinstance(message, Mapping):
        refuse(where, f"is {type(message).__name__}; an object with role and content is needed")
    role = message.get("role")
    if role not in ROLES:
        refuse(f"{where}.role", f"is {role!r}; allowed: {', '.join(ROLES)}")
    said = take(message, CHAT_MESSAGE, where, into.dropped)
    calls = said.get("tool_calls")
    if calls and role != "assistant":
        refuse(f"{where}.tool_calls", f"belongs to assistant messages, not to {role!r}")
    content = said.get("content")
    if content is None and role == "assistant":
        content = _optional_string(said, "refusal", where) or ""
    if content is None:
        refuse(f"{where}.content", "is missing; a string or a list of text parts is needed")
    parts: list[Part] = read_parts(content, f"{where}.content", into.dropped)
    fields: dict[str, Any] = {}
    name = _optional_string(said, "name", where)
    if name is not None and role != "function":
        fields["name"] = name
    if role == "tool" and (call_id := _optional_string(said, "tool_call_id", where)):
        fields["tool_call_id"] = call_id
    if role == "assistant":
        if reasoning := said.get("reasoning_content") or said.get("reasoning"):
            if not isinstance(reasoning, str):
                refuse(f"{where}.reasoning_content", "must be a string")
            fields["reasoning_content"] = reasoning
        if calls:
            fields["tool_calls"] = _tool_calls(calls, f"{where}.tool_calls", into.dropped)
        elif said.get("function_call"):
            call = said["function_call"]
            found = _function_call(call, f"{where}.function_call", into.dropped)
            fields["tool_calls"] = [call_of(None, *found)]
    # Templates know one word for instructions, and one for results.
    role = {"developer": "system", "function": "tool"}.get(role, role)
    into.add(role, parts, where, joint="\n" if role == "tool" else "", **fields)


def call_of(call_id: str | None, name: str, arguments: Any) -> dict[str, Any]:
    """A call in the form that templates see.

    Args:
        arguments: an object, a string of JSON, or nothing.
    """
    if arguments is None or arguments == "":
        arguments = {}
    elif isinstance(arguments, str):
        arguments = parse_arguments(arguments)
    function = {"name": name, "arguments": arguments}
    return {"id": call_id or None, "type": "function", "function": function}


def _optional_string(message: Mapping[str, Any], key: str, where: str) -> str | None:
    value = message.get(key)
    if not isinstance(value, str | None):
        refuse(f"{where}.{key}", f"is {value!r}; a string is needed")
    return value


def _tool_calls(calls: Any, where: str, dropped: Dropped) -> list[dict[str, Any]]:
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        refuse(where, "must be a list of tool calls")
    result = []
    for i, call in enumerate(calls):
        here = f"{where}[{i}]"
        kind = call.get("type") or "function" if isinstance(call, Mapping) else None
        if not isinstance(call, Mapping) or kind not in ("function", "custom"):
            refuse(f"{here}.type", "must be 'function' or 'custom'")
        given = take(call, CALL, here, dropped)
        call_id = _optional_string(given, "id", here)
        if kind == "custom":
            name, text = _custom_call(given.get("custom"), f"{here}.custom", dropped)
            result.append(call_of(call_id, name, {CUSTOM_ARGUMENT: text}))
        else:
            found = _function_call(given.get("function"), f"{here}.function", dropped)
            result.append(call_of(call_id, *found))
    return result


def _function_call(function: Any, where: str, dropped: Dropped) -> tuple[str, Any]:
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        refuse(f"{where}.name", "must be a string")
    given = take(function, CALL_FUNCTION, where, dropped)
    arguments = given.get("arguments")
    if not isinstance(arguments, str | Mapping | None):
        refuse(f"{where}.arguments", "must be a string of JSON")
    return given["name"], arguments


def _custom_call(custom: Any, where: str, dropped: Dropped) -> tuple[str, str]:
    if not isinstance(custom, Mapping) or not isinstance(custom.get("name"), str):
        refuse(f"{where}.name", "must be a string")
    given = take(custom, CALL_CUSTOM, where, dropped)
    text = given.get("input")
    if not isinstance(text, str | None):
        refuse(f"{where}.input", "must be a string")
    return given["name"], text or ""


def parse_arguments(arguments: str) -> dict[str, Any] | str:
    """Parse a call's arguments; anything but one JSON object comes back as it was."""
    try:
        value = json.loads(arguments, parse_constant=_not_json)
    except (ValueError, RecursionError):
        return arguments
    return value if isinstance(value, dict) else arguments


def _not_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
