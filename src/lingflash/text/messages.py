"""Checks chat messages and tools and brings them into the one form that templates see.

Used by the server and the offline LLM. What is decided here:

- Content is one string: the text parts of a list are joined without a separator.
- The arguments of an earlier tool call arrive as a string of JSON. They are parsed, and the
  template writes them again as `json.dumps(..., ensure_ascii=False)` does, with ", " and ": ". So
  the same call gives the same tokens however a client formatted it, and prefixes stay cached. A
  string that is not a JSON object is written as it is.
- Tool results are put in the order of the calls that they answer, since the prompt does not show
  ids.
- Tool definitions keep the client's keys and their order; `strict`, which is a grammar's business,
  is dropped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from lingflash.core.errors import refuse

ROLES = ("system", "developer", "user", "assistant", "tool")

# Fields of a message that a template may read.
_MESSAGE_FIELDS = frozenset(
    ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "reasoning")
)
# Fields that the OpenAI client writes into a dumped answer; harmless while they are empty.
_EMPTY_ONLY_FIELDS = frozenset(("refusal", "annotations", "audio", "function_call"))


def normalize_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Check messages and return copies in the form that templates see.

    Raises:
        InvalidRequestError: something is wrong; `param` says where, such as `messages[2].content`.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        refuse("messages", f"is {type(messages).__name__}; a list of messages is needed")
    if not messages:
        refuse("messages", "is empty; at least one message is needed")
    normalized = [_message(message, f"messages[{i}]") for i, message in enumerate(messages)]
    return _order_tool_results(normalized)


def normalize_tools(tools: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Check tool definitions; return them as the template writes them, or None if there are none.

    Raises:
        InvalidRequestError: something is wrong; `param` says where, such as
        `tools[0].function.name`.
    """
    if tools is None:
        return None
    if not isinstance(tools, Sequence) or isinstance(tools, str | bytes):
        refuse("tools", f"is {type(tools).__name__}; a list of tools is needed")
    normalized = []
    names: set[str] = set()
    for i, tool in enumerate(tools):
        where = f"tools[{i}]"
        if not isinstance(tool, Mapping):
            refuse(where, "must be an object with type and function")
        kind = tool.get("type")
        if kind != "function":
            refuse(f"{where}.type", f"is {kind!r}; only 'function' is supported")
        for key in tool:
            if key not in ("type", "function"):
                refuse(f"{where}.{key}", "is not a known field; known: type, function")
        name = _check_function(tool.get("function"), f"{where}.function")
        if name in names:
            refuse(f"{where}.function.name", f"{name!r} is defined twice; names must differ")
        names.add(name)
        function = {key: value for key, value in tool["function"].items() if key != "strict"}
        normalized.append({"type": "function", "function": function})
    return normalized or None


def _check_function(function: Any, where: str) -> str:
    if not isinstance(function, Mapping):
        refuse(where, "must be an object with name, description and parameters")
    name = function.get("name")
    if not isinstance(name, str) or not name:
        refuse(f"{where}.name", f"is {name!r}; a non-empty string is needed")
    for key, value in function.items():
        if key == "strict":
            if not isinstance(value, bool | None):
                refuse(f"{where}.strict", f"is {value!r}; true or false is needed")
        elif key == "description":
            if not isinstance(value, str | None):
                refuse(f"{where}.description", "must be a string")
        elif key == "parameters":
            if not isinstance(value, Mapping | None):
                refuse(f"{where}.parameters", "must be a JSON Schema object")
        elif key != "name":
            known = "name, description, parameters, strict"
            refuse(f"{where}.{key}", f"is not a known field; known: {known}")
    return name


def _message(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        refuse(where, f"is {type(message).__name__}; an object with role and content is needed")
    role = message.get("role")
    if role not in ROLES:
        refuse(f"{where}.role", f"is {role!r}; allowed: {', '.join(ROLES)}")
    for key, value in message.items():
        if key in _MESSAGE_FIELDS or (key in _EMPTY_ONLY_FIELDS and not value):
            continue
        if key in _EMPTY_ONLY_FIELDS:
            refuse(f"{where}.{key}", "is not supported; leave it out")
        refuse(f"{where}.{key}", "is not a known field of a message")
    calls = message.get("tool_calls")
    if calls and role != "assistant":
        refuse(f"{where}.tool_calls", f"belongs to assistant messages, not to {role!r}")
    content = _content(message.get("content"), f"{where}.content")
    if content is None and not (role == "assistant" and (calls or _reasoning(message))):
        refuse(f"{where}.content", "is missing; a string or a list of text parts is needed")
    # Templates know one word for instructions.
    result: dict[str, Any] = {
        "role": "system" if role == "developer" else role,
        "content": content or "",
    }
    if (name := _optional_string(message, "name", where)) is not None:
        result["name"] = name
    if role == "tool" and (call_id := _optional_string(message, "tool_call_id", where)) is not None:
        result["tool_call_id"] = call_id
    if role == "assistant":
        if reasoning := _reasoning(message):
            if not isinstance(reasoning, str):
                refuse(f"{where}.reasoning_content", "must be a string")
            result["reasoning_content"] = reasoning
        if calls:
            result["tool_calls"] = _tool_calls(calls, f"{where}.tool_calls")
    return result


def _reasoning(message: Mapping[str, Any]) -> Any:
    return message.get("reasoning_content") or message.get("reasoning")


def _optional_string(message: Mapping[str, Any], key: str, where: str) -> str | None:
    value = message.get(key)
    if not isinstance(value, str | None):
        refuse(f"{where}.{key}", f"is {value!r}; a string is needed")
    return value


def _content(content: Any, where: str) -> str | None:
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        refuse(where, f"is {type(content).__name__}; a string or a list of text parts is needed")
    texts = []
    for i, part in enumerate(content):
        here = f"{where}[{i}]"
        kind = part.get("type") if isinstance(part, Mapping) else None
        if not isinstance(part, Mapping) or kind != "text":
            refuse(f"{here}.type", f"is {kind!r}; this model reads text parts only")
        text = part.get("text")
        if not isinstance(text, str):
            refuse(f"{here}.text", f"is {text!r}; a string is needed")
        for key in part:
            # cache_control asks for what the prefix cache does anyway.
            if key not in ("type", "text", "cache_control"):
                refuse(f"{here}.{key}", "is not a known field of a text part")
        texts.append(text)
    return "".join(texts)


def _tool_calls(calls: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        refuse(where, "must be a list of tool calls")
    result = []
    for i, call in enumerate(calls):
        here = f"{where}[{i}]"
        if not isinstance(call, Mapping) or call.get("type", "function") != "function":
            refuse(f"{here}.type", "must be 'function'")
        function = call.get("function")
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            refuse(f"{here}.function.name", "must be a string")
        arguments = function.get("arguments")
        if arguments is None or arguments == "":
            arguments = {}
        elif isinstance(arguments, str):
            arguments = parse_arguments(arguments)
        elif not isinstance(arguments, Mapping):
            refuse(f"{here}.function.arguments", "must be a string of JSON")
        result.append(
            {
                "id": _optional_string(call, "id", here),
                "type": "function",
                "function": {"name": function["name"], "arguments": arguments},
            }
        )
    return result


def parse_arguments(arguments: str) -> dict[str, Any] | str:
    """Parse a call's arguments; anything but one JSON object comes back as it was."""
    try:
        value = json.loads(arguments, parse_constant=_not_json)
    except (ValueError, RecursionError):
        return arguments
    return value if isinstance(value, dict) else arguments


def _not_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _order_tool_results(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sort each run of tool results by the calls before it; refuse ids that no call has."""
    result: list[dict[str, Any]] = []
    order: dict[str, int] = {}
    known: set[str] = set()
    run: list[dict[str, Any]] = []

    def close_run() -> None:
        if all(message.get("tool_call_id") in order for message in run):
            run.sort(key=lambda message: order[message["tool_call_id"]])
        result.extend(run)
        run.clear()

    for i, message in enumerate(messages):
        if message["role"] == "tool":
            call_id = message.get("tool_call_id")
            if call_id is not None and call_id not in known:
                refuse(
                    f"messages[{i}].tool_call_id",
                    f"is {call_id!r}, which no earlier assistant message called",
                )
            run.append(message)
            continue
        close_run()
        result.append(message)
        if message["role"] == "assistant":
            ids = [call["id"] for call in message.get("tool_calls", ()) if call["id"]]
            order = {call_id: index for index, call_id in enumerate(ids)}
            known.update(ids)
    close_run()
    return result
