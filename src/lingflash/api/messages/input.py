"""An Anthropic messages request as a conversation.

- The blocks of a system prompt, and the text blocks of a message, are joined by an empty line.
- `tool_use` blocks become tool calls, `tool_result` blocks messages of the role tool; a result with
  `is_error` begins with "Error: ".
- Claude Code begins its system prompt with a line `x-anthropic-billing-header: ...` that differs in
  every request. It says nothing to the model, and would keep the prefix cache from matching
  anything, so it is left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lingflash.api.answer.conversation import Conversation, make_conversation, new_messages
from lingflash.api.answer.param_names import ParamNames
from lingflash.api.messages.code_blocks import (
    CODE_NAME,
    RESULT,
    USE,
    call_id_of,
    text_of_result,
)
from lingflash.api.messages.tools import read_choice, read_tools
from lingflash.api.state import ServerState
from lingflash.core.errors import refuse
from lingflash.protocol.chat import ChatOptions
from lingflash.protocol.endpoint_fields import MESSAGES
from lingflash.protocol.fields import Dropped, parse_request, take
from lingflash.protocol.history_fields import (
    CODE_RESULT,
    MESSAGE,
    OTHER_BLOCKS,
    THINKING,
    TOOL_RESULT,
    TOOL_USE,
)
from lingflash.protocol.messages import (
    EDIT_TABLE,
    FORMAT_TABLE,
    CountTokensRequest,
    MessagesRequest,
)
from lingflash.text.conversation import MessageList
from lingflash.text.messages import call_of
from lingflash.text.parts import Part, Unreadable, read_part, read_parts
from lingflash.text.tools import ToolSet

_ROLES = ("user", "assistant", "system")
_BILLING_LINE = re.compile(r"\Ax-anthropic-billing-header:[^\n]*\n?")
_JOINT = "\n\n"

# Chat's field to Anthropic's.
NAMES = ParamNames(
    {
        "max_completion_tokens": "max_tokens",
        "stop": "stop_sequences",
        "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
        "reasoning_effort": "thinking",
        "response_format": "output_config.format",
    },
    MESSAGES.too_long,
)
_EFFORTS = ("low", "medium", "high", "xhigh", "max")


def read_messages(
    state: ServerState, body: MessagesRequest | CountTokensRequest, dropped: Dropped
) -> tuple[Conversation, ChatOptions]:
    """Read a messages request.

    Returns:
        The conversation, and its options as chat's.

    Raises:
        InvalidRequestError: something in it cannot be served; `param` is in Anthropic's terms.
    """
    runs_code = state.containers is not None
    found = found_tools(body.messages)
    tools = read_tools(body.tools, found, body.tool_choice, dropped, runs_code=runs_code)
    max_model_len = state.engine.info.max_model_len if runs_code else 0
    reader = _Reader(new_messages(state, dropped, "tool_use_id"), tools, max_model_len)
    system = _system(body.system, dropped)
    if system:
        reader.messages.add("system", [system], "system")
    if not body.messages:
        refuse("messages", "is empty; at least one message is needed")
    for i, message in enumerate(body.messages):
        reader.read(message, f"messages[{i}]")
    is_answered = body.messages[-1].get("role") == "assistant"
    if is_answered and isinstance(body, MessagesRequest):
        refuse(
            f"messages[{len(body.messages) - 1}].role",
            "is 'assistant' in the last message; continuing an answer is not supported, so end "
            "with a user message",
        )
    _check_edits(body.context_management, dropped)
    fields: dict[str, Any] = {
        **read_choice(body.tool_choice, tools, dropped),
        **_thinking(body.thinking),
        **_output_config(body.output_config, dropped),
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
    with NAMES.errors_translated():
        options = parse_request(ChatOptions, fields)
        messages = reader.messages.finish()
        return make_conversation(state, options, messages, tools, dropped), options


def found_tools(messages: Sequence[Any]) -> set[str]:
    """Names of tools that a conversation has found by a search, been given, or called."""
    found: set[str] = set()
    kinds = {"tool_reference": "tool_name", "tool_use": "name"}

    def look(value: Any) -> None:
        if isinstance(value, list):
            for item in value:
                look(item)
        elif isinstance(value, Mapping):
            name = value.get(kinds.get(str(value.get("type")), ""))
            if isinstance(name, str):
                found.add(name)
            elif value.get("type") == "tool_addition" and isinstance(value.get("tool"), Mapping):
                found.add(str(value["tool"].get("name")))
            look(value.get("content"))

    for message in messages:
        look(message)
    return found


@dataclass(slots=True)
class _AssistantTurn:
    """What the assistant said at once."""

    parts: list[Part] = field(default_factory=list[Part])
    thoughts: list[str] = field(default_factory=list[str])
    calls: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    @property
    def says_something(self) -> bool:
        return bool(self.parts or self.thoughts or self.calls)

    def add_to(self, messages: MessageList, where: str) -> None:
        fields: dict[str, Any] = {}
        if self.thoughts:
            fields["reasoning_content"] = _JOINT.join(self.thoughts)
        if self.calls:
            fields["tool_calls"] = self.calls
        messages.add("assistant", self.parts, where, joint=_JOINT, **fields)


class _Reader:
    """Turns messages into chat's.

    Args:
        max_model_len: where code is run here, tokens of the context; else 0.
    """

    def __init__(self, messages: MessageList, tools: ToolSet, max_model_len: int) -> None:
        self.messages = messages
        self._max_model_len = max_model_len
        self._tools = tools
        self._dropped = messages.dropped

    def read(self, message: Any, where: str) -> None:
        if not isinstance(message, Mapping):
            refuse(where, f"is {type(message).__name__}; an object with role and content is needed")
        said = take(message, MESSAGE, where, self._dropped)
        role = said.get("role")
        if role not in _ROLES:
            refuse(f"{where}.role", f"is {role!r}; allowed: {', '.join(_ROLES)}")
        content = said.get("content")
        if content is None and role == "system":
            self._dropped.add(where)  # it only sets options, which say nothing here
            return
        if isinstance(content, str):
            self.messages.add(role, [content], where)
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
        turn = _AssistantTurn()
        has_ended = False  # a turn, by the result of code that it called
        for i, block in enumerate(blocks):
            here = f"{where}.content[{i}]"
            kind = _kind(block, here)
            if kind == "thinking":
                thought = take(block, THINKING, here, self._dropped)
                turn.thoughts.append(_string(thought, "thinking", here))
            elif kind == "tool_use":
                turn.calls.append(self._tool_use(block, here))
            elif self._max_model_len and kind == USE and block.get("name") == CODE_NAME:
                turn.calls.append(self._code_use(block, here))
            elif self._max_model_len and kind == RESULT:
                if turn.says_something:
                    turn.add_to(self.messages, where)
                    turn, has_ended = _AssistantTurn(), True
                self._code_result(block, here)
            else:
                turn.parts += self._other(block, kind, here)
        if turn.says_something or not has_ended:
            turn.add_to(self.messages, where)

    def _code_use(self, block: Mapping[str, Any], where: str) -> dict[str, Any]:
        call = take(block, TOOL_USE, where, self._dropped)
        given = call.get("input")
        code = given.get("code") if isinstance(given, Mapping) else None
        if not isinstance(code, str):
            refuse(f"{where}.input.code", f"is {type(code).__name__}; a string is needed")
        call_id = call_id_of(_string(call, "id", where))
        return call_of(call_id, *self._tools.code_call(code))

    def _code_result(self, block: Mapping[str, Any], where: str) -> None:
        result = take(block, CODE_RESULT, where, self._dropped)
        call_id = call_id_of(_string(result, "tool_use_id", where))
        text = text_of_result(result.get("content"), self._max_model_len)
        self.messages.add("tool", [text], where, tool_call_id=call_id)

    def _user(self, role: str, blocks: Sequence[Any], where: str) -> None:
        parts: list[Part] = []
        has_results = False
        for i, block in enumerate(blocks):
            here = f"{where}.content[{i}]"
            kind = _kind(block, here)
            if kind == "tool_result" and role == "user":
                if any(isinstance(part, str) for part in parts):
                    refuse(f"{here}.type", "is 'tool_result' after a text; put results first")
                has_results = True
                self._tool_result(block, here)
            else:
                parts += self._other(block, kind, here)
        if parts or not has_results:
            self.messages.add(role, parts, where, joint=_JOINT)

    def _other(self, block: Mapping[str, Any], kind: str, where: str) -> list[Part]:
        """A block that is text, cannot be read, or says nothing."""
        if kind == "compaction":
            if isinstance(block.get("content"), str):
                return [block["content"]]
            self._dropped.add(where, kind)
            return []
        if kind in ("tool_addition", "tool_removal"):
            self._dropped.add(where, kind)
            return []
        if kind in OTHER_BLOCKS:
            self._dropped.add(where, kind)
            return []
        found = read_part(block, where, self._dropped)
        if found and isinstance(found[0], Unreadable) and found[0].kind == "part":
            known = "text, image, document, search_result, tool_use, tool_result, thinking"
            refuse(f"{where}.type", f"is {kind!r}; allowed: {known}")
        return found

    def _tool_use(self, block: Mapping[str, Any], where: str) -> dict[str, Any]:
        call = take(block, TOOL_USE, where, self._dropped)
        given = call.get("input")
        if not isinstance(given, Mapping):
            refuse(f"{where}.input", f"is {type(given).__name__}; an object is needed")
        return call_of(_string(call, "id", where), _string(call, "name", where), given)

    def _tool_result(self, block: Mapping[str, Any], where: str) -> None:
        result = take(block, TOOL_RESULT, where, self._dropped)
        content = result.get("content")
        parts: list[Part] = (
            [] if content is None else read_parts(content, f"{where}.content", self._dropped)
        )
        if result.get("is_error"):
            if parts and isinstance(parts[0], str):
                parts[0] = "Error: " + parts[0]
            else:
                parts.insert(0, "Error: ")
        call_id = _string(result, "tool_use_id", where)
        self.messages.add("tool", parts, where, joint=_JOINT, tool_call_id=call_id)


def _system(system: str | list[dict[str, Any]] | None, dropped: Dropped) -> str:
    texts: list[str] = []
    for part in read_parts(system or "", "system", dropped):
        if isinstance(part, Unreadable):
            refuse(f"{part.where}.type", f"is {part.type!r}; allowed: text")
        texts.append(part)
    if texts:
        texts[0] = _BILLING_LINE.sub("", texts[0])
    return _JOINT.join(text for text in texts if text)


def _thinking(thinking: Mapping[str, Any] | None) -> dict[str, Any]:
    if thinking is None:
        return {}
    kind = thinking.get("type")
    if kind not in ("enabled", "adaptive", "between_tools", "disabled"):
        refuse("thinking.type", f"is {kind!r}; allowed: disabled, enabled, adaptive")
    if kind == "between_tools":
        refuse("thinking.type", "is 'between_tools', which is not supported; use 'enabled'")
    return {} if kind == "disabled" else {"reasoning_effort": "medium"}


def _output_config(config: Mapping[str, Any] | None, dropped: Dropped) -> dict[str, Any]:
    if config is None:
        return {}
    effort = config.get("effort")
    if effort is not None:
        if effort not in _EFFORTS:
            refuse("output_config.effort", f"is {effort!r}; allowed: {', '.join(_EFFORTS)}")
        dropped.add("output_config.effort", "effort")
    form = config.get("format")
    if form is None:
        return {}
    if not isinstance(form, Mapping) or form.get("type") != "json_schema":
        refuse("output_config.format", "must be an object with the type 'json_schema'")
    fields = take(form, FORMAT_TABLE, "output_config.format", dropped)
    schema = {"name": "answer", "schema": fields.get("schema")}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


def _check_edits(management: Mapping[str, Any] | None, dropped: Dropped) -> None:
    """Refuse edits of the conversation; but thinking of earlier turns is never in the prompt."""
    edits = (management or {}).get("edits") or []
    if not isinstance(edits, Sequence) or isinstance(edits, str):
        refuse("context_management.edits", "must be a list of edits")
    for i, edit in enumerate(edits):
        where = f"context_management.edits[{i}]"
        kind = edit.get("type") if isinstance(edit, Mapping) else None
        if kind != "clear_thinking_20251015":
            refuse(
                f"{where}.type",
                f"is {kind!r}, which is not supported; send a shorter conversation",
            )
        take(edit, EDIT_TABLE, where, dropped)
        dropped.add(where, "context_management")


def _kind(block: Any, where: str) -> str:
    kind = block.get("type") if isinstance(block, Mapping) else None
    if not isinstance(kind, str):
        refuse(f"{where}.type", f"is {kind!r}; a block's type is needed, such as 'text'")
    return kind


def _string(block: Mapping[str, Any], key: str, where: str) -> str:
    value = block.get(key)
    if not isinstance(value, str):
        refuse(f"{where}.{key}", f"is {value!r}; a string is needed")
    return value
