"""An Anthropic messages request as a chat request.

- The blocks of a system prompt, and the text blocks of a message, are joined by an empty line.
- `tool_use` blocks become tool calls, `tool_result` blocks messages of the role tool; a result with
  `is_error` begins with "Error: ".
- Claude Code begins its system prompt with a line `x-anthropic-billing-header: ...` that differs in
  every request. It says nothing to the model, and would keep the prefix cache from matching
  anything, so it is left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lingflash.api.answer.param_names import ParamNames
from lingflash.core.errors import refuse
from lingflash.protocol.chat import ChatCompletionRequest
from lingflash.protocol.fields import check_keys, parse_request
from lingflash.protocol.messages import CountTokensRequest, MessagesRequest

_ROLES = ("user", "assistant", "system")
_BILLING_LINE = re.compile(r"\Ax-anthropic-billing-header:[^\n]*\n?")
_JOINT = "\n\n"

# Chat's field to Anthropic's.
_NAMES = {
    "max_completion_tokens": "max_tokens",
    "stop": "stop_sequences",
    "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
    "reasoning_effort": "thinking",
    "response_format": "output_config.format",
}
_EFFORTS = ("low", "medium", "high", "xhigh", "max")


def to_chat(
    body: MessagesRequest | CountTokensRequest,
) -> tuple[ChatCompletionRequest, ParamNames]:
    """Write a messages request as a chat request.

    Returns:
        The chat request, and what translates errors found in it.

    Raises:
        InvalidRequestError: it cannot be written so; `param` is in Anthropic's terms.
    """
    reader = _Reader()
    system = _system(body.system)
    if system:
        reader.add({"role": "system", "content": system}, "system")
    if not body.messages:
        refuse("messages", "is empty; at least one message is needed")
    for i, message in enumerate(body.messages):
        reader.read(message, f"messages[{i}]")
    if body.messages[-1].get("role") == "assistant":
        refuse(
            f"messages[{len(body.messages) - 1}].role",
            "is 'assistant' in the last message; continuing an answer is not supported, so end "
            "with a user message",
        )
    names = ParamNames(
        _NAMES, reader.sources, tool_parameters="input_schema", call_id="tool_use_id"
    )
    fields: dict[str, Any] = {
        "model": body.model,
        "messages": reader.messages,
        "tools": _tools(body.tools),
        **_tool_choice(body.tool_choice),
        **_thinking(body.thinking),
        **_output_config(body.output_config),
    }
    if isinstance(body, MessagesRequest):
        fields |= {
            "max_completion_tokens": body.max_tokens,
            "stop": body.stop_sequences or None,
            "temperature": body.temperature,
            "top_p": body.top_p,
            "top_k": body.top_k,
            "stream": body.stream,
            "timeout": body.timeout,
            "return_cache_report": body.return_cache_report,
        }
    with names.errors_translated():
        return parse_request(ChatCompletionRequest, fields), names


class _Reader:
    """Turns messages into chat messages, remembering where each came from."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.sources: list[str] = []

    def add(self, message: dict[str, Any], source: str) -> None:
        self.messages.append(message)
        self.sources.append(source)

    def read(self, message: Mapping[str, Any], where: str) -> None:
        check_keys(message, ("role", "content"), where)
        role = message.get("role")
        if role not in _ROLES:
            refuse(f"{where}.role", f"is {role!r}; allowed: {', '.join(_ROLES)}")
        content = message.get("content")
        if isinstance(content, str):
            self.add({"role": role, "content": content}, where)
            return
        if not isinstance(content, Sequence):
            refuse(
                f"{where}.content",
                f"is {type(content).__name__}; a string or a list of blocks is needed",
            )
        if role == "assistant":
            self._assistant(content, where)
        else:
            self._user(role, content, where)

    def _assistant(self, blocks: Sequence[Any], where: str) -> None:
        texts: list[str] = []
        thoughts: list[str] = []
        calls: list[dict[str, Any]] = []
        for i, block in enumerate(blocks):
            here = f"{where}.content[{i}]"
            kind = _kind(block, here, ("text", "tool_use", "thinking"))
            if kind == "text":
                texts.append(_text(block, here))
            elif kind == "thinking":
                check_keys(block, ("type", "thinking", "signature"), here)
                thoughts.append(_string(block, "thinking", here))
            else:
                calls.append(_tool_use(block, here))
        message: dict[str, Any] = {"role": "assistant", "content": _JOINT.join(texts)}
        if thoughts:
            message["reasoning_content"] = _JOINT.join(thoughts)
        if calls:
            message["tool_calls"] = calls
        self.add(message, where)

    def _user(self, role: str, blocks: Sequence[Any], where: str) -> None:
        texts: list[str] = []
        allowed = ("text", "tool_result") if role == "user" else ("text",)
        for i, block in enumerate(blocks):
            here = f"{where}.content[{i}]"
            if _kind(block, here, allowed) == "text":
                texts.append(_text(block, here))
                continue
            if texts:
                refuse(f"{here}.type", "is 'tool_result' after a text; put results first")
            self._tool_result(block, here)
        if texts or not blocks:
            self.add({"role": role, "content": _JOINT.join(texts)}, where)

    def _tool_result(self, block: Mapping[str, Any], where: str) -> None:
        known = ("type", "tool_use_id", "content", "is_error", "cache_control", "toolset_name")
        check_keys(block, known, where)
        content = block.get("content")
        if content is None:
            text = ""
        elif isinstance(content, str):
            text = content
        elif isinstance(content, Sequence):
            parts = []
            for i, part in enumerate(content):
                here = f"{where}.content[{i}]"
                _kind(part, here, ("text",))
                parts.append(_text(part, here))
            text = _JOINT.join(parts)
        else:
            refuse(
                f"{where}.content",
                f"is {type(content).__name__}; a string or a list of text blocks is needed",
            )
        if block.get("is_error"):
            text = "Error: " + text
        message = {
            "role": "tool",
            "tool_call_id": _string(block, "tool_use_id", where),
            "content": text,
        }
        self.add(message, where)


def _system(system: str | list[dict[str, Any]] | None) -> str:
    if system is None or isinstance(system, str):
        texts = [system or ""]
    else:
        texts = []
        for i, block in enumerate(system):
            _kind(block, f"system[{i}]", ("text",))
            texts.append(_text(block, f"system[{i}]"))
    if texts:
        texts[0] = _BILLING_LINE.sub("", texts[0])
    return _JOINT.join(text for text in texts if text)


def _tools(tools: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]] | None:
    if not tools:
        return None
    result = []
    for i, tool in enumerate(tools):
        where = f"tools[{i}]"
        kind = tool.get("type")
        if kind not in (None, "custom"):
            refuse(f"{where}.type", f"is {kind!r}; only tools with an input_schema are supported")
        known = (
            *("type", "name", "description", "input_schema", "strict", "cache_control"),
            *("eager_input_streaming", "input_examples", "allowed_callers", "defer_loading"),
        )
        check_keys(tool, known, where)
        # Examples would be shown to the model; the others are about tools that run elsewhere.
        for key, harmless in (
            ("input_examples", []),
            ("allowed_callers", ["direct"]),
            ("defer_loading", False),
        ):
            if tool.get(key) not in (None, harmless):
                refuse(f"{where}.{key}", "is not supported; leave it out")
        if not isinstance(tool.get("input_schema"), Mapping):
            refuse(f"{where}.input_schema", "is missing; a JSON Schema object is needed")
        function: dict[str, Any] = {"name": tool.get("name")}
        if tool.get("description") is not None:
            function["description"] = tool["description"]
        function["parameters"] = tool["input_schema"]
        if tool.get("strict") is not None:
            function["strict"] = tool["strict"]
        result.append({"type": "function", "function": function})
    return result


def _tool_choice(choice: Mapping[str, Any] | None) -> dict[str, Any]:
    if choice is None:
        return {}
    check_keys(choice, ("type", "name", "disable_parallel_tool_use"), "tool_choice")
    kind = choice.get("type")
    fields: dict[str, Any] = {}
    if kind in ("auto", "none"):
        fields["tool_choice"] = kind
    elif kind == "any":
        fields["tool_choice"] = "required"
    elif kind == "tool":
        name = _string(choice, "name", "tool_choice")
        fields["tool_choice"] = {"type": "function", "function": {"name": name}}
    else:
        refuse("tool_choice.type", f"is {kind!r}; allowed: auto, none, any, tool")
    if choice.get("disable_parallel_tool_use"):
        fields["parallel_tool_calls"] = False
    return fields


def _thinking(thinking: Mapping[str, Any] | None) -> dict[str, Any]:
    if thinking is None:
        return {}
    check_keys(thinking, ("type", "budget_tokens", "display"), "thinking")
    kind = thinking.get("type")
    if kind not in ("enabled", "adaptive", "between_tools", "disabled"):
        refuse("thinking.type", f"is {kind!r}; allowed: disabled, enabled, adaptive")
    if kind == "between_tools":
        refuse("thinking.type", "is 'between_tools', which is not supported; use 'enabled'")
    return {} if kind == "disabled" else {"reasoning_effort": "medium"}


def _output_config(config: Mapping[str, Any] | None) -> dict[str, Any]:
    if config is None:
        return {}
    check_keys(config, ("format", "effort"), "output_config")
    effort = config.get("effort")
    if effort is not None and effort not in _EFFORTS:
        refuse("output_config.effort", f"is {effort!r}; allowed: {', '.join(_EFFORTS)}")
    form = config.get("format")
    if form is None:
        return {}
    if not isinstance(form, Mapping) or form.get("type") != "json_schema":
        refuse("output_config.format", "must be an object with the type 'json_schema'")
    check_keys(form, ("type", "schema"), "output_config.format")
    schema = {"name": "answer", "schema": form.get("schema")}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


def _tool_use(block: Mapping[str, Any], where: str) -> dict[str, Any]:
    known = ("type", "id", "name", "input", "cache_control", "caller", "toolset_name")
    check_keys(block, known, where)
    given = block.get("input")
    if not isinstance(given, Mapping):
        refuse(f"{where}.input", f"is {type(given).__name__}; an object is needed")
    return {
        "id": _string(block, "id", where),
        "type": "function",
        "function": {
            "name": _string(block, "name", where),
            "arguments": json.dumps(given, ensure_ascii=False),
        },
    }


def _kind(block: Any, where: str, allowed: tuple[str, ...]) -> str:
    kind = block.get("type") if isinstance(block, Mapping) else None
    if kind not in allowed:
        refuse(f"{where}.type", f"is {kind!r}; allowed: {', '.join(allowed)}")
    return kind


def _text(block: Mapping[str, Any], where: str) -> str:
    check_keys(block, ("type", "text", "cache_control", "citations"), where)
    if block.get("citations"):
        refuse(f"{where}.citations", "is not supported; leave it out")
    return _string(block, "text", where)


def _string(block: Mapping[str, Any], key: str, where: str) -> str:
    value = block.get(key)
    if not isinstance(value, str):
        refuse(f"{where}.{key}", f"is {value!r}; a string is needed")
    return value
