"""Responses' items as chat messages, and a Responses request as a chat request.

Items that a model wrote in one turn (thinking, text, function calls) become one assistant message,
as they were when they were generated, so that the prompt continues what the cache holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lingflash.api.answer.param_names import ParamNames
from lingflash.core.errors import refuse
from lingflash.protocol.chat import ChatCompletionRequest
from lingflash.protocol.fields import check_keys, parse_request
from lingflash.protocol.responses import ResponsesRequest

_ROLES = ("user", "assistant", "system", "developer")
_STATUSES = ("in_progress", "completed", "incomplete")

# Chat's field to Responses'.
_NAMES = {
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
    "messages": "input",
}


class ItemReader:
    """Turns items into messages, remembering where each came from."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.sources: list[str] = []
        self._turn: dict[str, Any] | None = None  # an assistant message that may still grow

    def add_message(self, role: str, content: Any, source: str) -> None:
        """Add a finished message."""
        self._turn = None
        self.messages.append({"role": role, "content": content})
        self.sources.append(source)

    def read(self, items: Sequence[Any], source: str) -> None:
        """Add items.

        Raises:
            InvalidRequestError: an item is malformed or not supported.
        """
        for i, item in enumerate(items):
            self._item(item, f"{source}[{i}]")

    def _item(self, item: Any, where: str) -> None:
        if not isinstance(item, Mapping):
            refuse(where, f"is {type(item).__name__}; an object with a type is needed")
        kind = item.get("type", "message" if "role" in item else None)
        if kind == "message":
            self._message(item, where)
        elif kind == "function_call":
            self._call(item, where)
        elif kind == "function_call_output":
            self._call_output(item, where)
        elif kind == "reasoning":
            self._reasoning(item, where)
        elif kind == "item_reference":
            refuse(
                f"{where}.type", "is 'item_reference'; send the item, or use previous_response_id"
            )
        else:
            refuse(
                f"{where}.type",
                f"is {kind!r}; allowed: message, function_call, function_call_output, reasoning",
            )

    def _message(self, item: Mapping[str, Any], where: str) -> None:
        _check_item(item, ("type", "role", "content", "id", "status", "phase"), where)
        role = item.get("role")
        if role not in _ROLES:
            refuse(f"{where}.role", f"is {role!r}; allowed: {', '.join(_ROLES)}")
        content = _text_parts(item.get("content"), f"{where}.content")
        if role != "assistant":
            self.add_message(role, content, where)
            return
        turn = self._assistant(where)
        # After a call that has no result yet the turn goes on; another text has a turn of its own.
        if turn["content"] and not turn.get("tool_calls"):
            self._turn = None
            turn = self._assistant(where)
        turn["content"] += "".join(part["text"] for part in content)

    def _call(self, item: Mapping[str, Any], where: str) -> None:
        _check_item(
            item,
            ("type", "id", "call_id", "name", "arguments", "status", "caller", "namespace"),
            where,
        )
        for key in ("caller", "namespace"):
            if item.get(key) is not None and item[key] != {"type": "direct"}:
                refuse(f"{where}.{key}", "is not supported; leave it out")
        for key in ("call_id", "name", "arguments"):
            if not isinstance(item.get(key), str) or (key != "arguments" and not item[key]):
                refuse(f"{where}.{key}", f"is {item.get(key)!r}; a string is needed")
        call = {
            "id": item["call_id"],
            "type": "function",
            "function": {"name": item["name"], "arguments": item["arguments"]},
        }
        self._assistant(where).setdefault("tool_calls", []).append(call)

    def _call_output(self, item: Mapping[str, Any], where: str) -> None:
        _check_item(item, ("type", "id", "call_id", "output", "status", "caller", "name"), where)
        call_id = item.get("call_id")
        if not isinstance(call_id, str):
            refuse(f"{where}.call_id", f"is {call_id!r}; a string is needed")
        output = _text_parts(item.get("output"), f"{where}.output")
        self._turn = None
        self.messages.append({"role": "tool", "tool_call_id": call_id, "content": output})
        self.sources.append(where)

    def _reasoning(self, item: Mapping[str, Any], where: str) -> None:
        _check_item(
            item, ("type", "id", "summary", "content", "encrypted_content", "status"), where
        )
        if item.get("encrypted_content") is not None:
            refuse(f"{where}.encrypted_content", "is set, but none is ever made here; leave it out")
        content = item.get("content") or []
        texts = _text_parts(content, f"{where}.content", kinds=("reasoning_text", "text"))
        text = "".join(part["text"] for part in texts)
        if text:
            self._turn = None
            self._assistant(where)["reasoning_content"] = text

    def _assistant(self, where: str) -> dict[str, Any]:
        if self._turn is None:
            self._turn = {"role": "assistant", "content": ""}
            self.messages.append(self._turn)
            self.sources.append(where)
        return self._turn


def to_chat(
    body: ResponsesRequest, earlier: Sequence[Sequence[Any]]
) -> tuple[ChatCompletionRequest, ParamNames]:
    """Write a Responses request as a chat request.

    Args:
        earlier: items of the responses that it continues, oldest first.

    Returns:
        The chat request, and what translates errors found in it.

    Raises:
        InvalidRequestError: it cannot be written so; `param` is in Responses' terms.
    """
    reader = ItemReader()
    if body.instructions:
        reader.add_message("system", body.instructions, "instructions")
    for items in earlier:
        reader.read(items, "previous_response_id")
    if isinstance(body.input, str):
        reader.add_message("user", body.input, "input")
    else:
        reader.read(body.input, "input")
    if not reader.messages:
        refuse("input", "is empty; at least one item is needed")
    names = ParamNames(_NAMES, reader.sources)
    fields: dict[str, Any] = {
        "model": body.model,
        "messages": reader.messages,
        "tools": _tools(body.tools),
        "tool_choice": _tool_choice(body.tool_choice),
        "parallel_tool_calls": body.parallel_tool_calls,
        "response_format": _response_format(body),
        "max_completion_tokens": body.max_output_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "stream": body.stream,
        "timeout": body.timeout,
        "return_cache_report": body.return_cache_report,
    }
    effort = body.reasoning.effort if body.reasoning is not None else None
    if effort not in (None, "none"):
        fields["reasoning_effort"] = effort
    with names.errors_translated():
        return parse_request(ChatCompletionRequest, fields), names


def _tools(tools: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]] | None:
    if not tools:
        return None
    result = []
    for i, tool in enumerate(tools):
        kind = tool.get("type")
        if kind != "function":
            refuse(f"tools[{i}].type", f"is {kind!r}; only 'function' is supported")
        for key, harmless in (("allowed_callers", ["direct"]), ("defer_loading", False)):
            if tool.get(key) not in (None, harmless):
                refuse(f"tools[{i}].{key}", "is not supported; leave it out")
        dropped = ("type", "allowed_callers", "defer_loading", "output_schema")
        function = {key: value for key, value in tool.items() if key not in dropped}
        if function.get("description") is None:
            function.pop("description", None)
        result.append({"type": "function", "function": function})
    return result


def _tool_choice(choice: Any) -> Any:
    """Responses write {"type": "function", "name"}; chat has the name one level deeper."""
    if not isinstance(choice, Mapping):
        return choice
    if choice.get("type") == "function" and "name" in choice:
        return {"type": "function", "function": {"name": choice["name"]}}
    if choice.get("type") == "allowed_tools":
        tools = [
            {"type": "function", "function": {"name": tool.get("name")}}
            if isinstance(tool, Mapping) and tool.get("type") == "function"
            else tool
            for tool in choice.get("tools") or []
        ]
        allowed = {"mode": choice.get("mode"), "tools": tools}
        return {"type": "allowed_tools", "allowed_tools": allowed}
    return dict(choice)


def _response_format(body: ResponsesRequest) -> dict[str, Any] | None:
    given = body.text.format if body.text is not None else None
    if given is None or given.get("type") != "json_schema":
        return given
    schema = {key: value for key, value in given.items() if key != "type" and value is not None}
    return {"type": "json_schema", "json_schema": schema}


def _text_parts(
    content: Any, where: str, kinds: tuple[str, ...] = ("input_text", "output_text", "text")
) -> list[dict[str, str]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        refuse(where, f"is {type(content).__name__}; a string or a list of text parts is needed")
    parts = []
    for i, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if not isinstance(part, Mapping) or kind not in kinds:
            refuse(f"{where}[{i}].type", f"is {kind!r}; allowed: {', '.join(kinds)}")
        known = ("type", "text", "annotations", "logprobs", "prompt_cache_breakpoint")
        _check_item(part, known, f"{where}[{i}]")
        text = part.get("text")
        if not isinstance(text, str):
            refuse(f"{where}[{i}].text", f"is {text!r}; a string is needed")
        parts.append({"type": "text", "text": text})
    return parts


def _check_item(item: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    check_keys(item, known, where)
    status = item.get("status")
    if status is not None and status not in _STATUSES:
        refuse(f"{where}.status", f"is {status!r}; allowed: {', '.join(_STATUSES)}")
