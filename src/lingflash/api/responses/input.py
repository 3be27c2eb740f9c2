"""A Responses request as a conversation.

Items that a model wrote in one turn (thinking, text, calls) become one assistant message, as they
were when they were generated, so that the prompt continues what the cache holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lingflash.api.answer.conversation import Conversation, make_conversation, new_messages
from lingflash.api.answer.param_names import ParamNames
from lingflash.api.code.outputs import text_of
from lingflash.api.responses.code_items import ITEM, call_id_of
from lingflash.api.responses.tools import add_tools, read_choice, read_code_tool
from lingflash.api.state import ServerState
from lingflash.core.errors import refuse
from lingflash.protocol.chat import ChatOptions
from lingflash.protocol.fields import Dropped, FieldTable, parse_request, take
from lingflash.protocol.history_fields import (
    ITEM_CALL,
    ITEM_CALL_OUTPUT,
    ITEM_CODE,
    ITEM_MESSAGE,
    ITEM_REASONING,
    OTHER_ITEMS,
    REFUSED_ITEMS,
)
from lingflash.protocol.responses import InputTokensRequest, ResponsesRequest
from lingflash.text.conversation import MessageList
from lingflash.text.messages import CUSTOM_ARGUMENT, call_of
from lingflash.text.parts import join_parts, read_parts
from lingflash.text.tools import ToolSet

_ROLES = ("user", "assistant", "system", "developer")
_STATUSES = ("in_progress", "completed", "incomplete")

# Chat's field to Responses'.
NAMES = ParamNames(
    {
        "max_completion_tokens": "max_output_tokens",
        "response_format": "text.format",
        "reasoning_effort": "reasoning.effort",
        "messages": "input",
    }
)


class CodePlace(NamedTuple):
    """The container that a request names, and the one where code of its history ran last."""

    named: str | None
    earlier: str | None


class ItemReader:
    """Turns items into messages.

    Args:
        tools: whose names calls are of; tools that items bring are added.
        max_model_len: where code is run here, tokens of the context; else 0.
    """

    def __init__(self, messages: MessageList, tools: ToolSet, max_model_len: int = 0) -> None:
        self.messages = messages
        self._max_model_len = max_model_len
        self.container_id: str | None = None  # where code ran last
        self._tools = tools
        self._turn: dict[str, Any] | None = None  # an assistant message that may still grow
        self._has_text = False
        self._has_calls = False

    def read(self, items: Sequence[Any], source: str) -> None:
        """Add items.

        Raises:
            InvalidRequestError: an item is malformed or not supported.
        """
        for i, item in enumerate(items):
            self._item(item, f"{source}[{i}]")

    def read_tools(self, items: Sequence[Any], source: str) -> None:
        """Add the tools that items bring."""
        for i, item in enumerate(items):
            if isinstance(item, Mapping) and item.get("type") in _WITH_TOOLS:
                tools, here = item.get("tools"), f"{source}[{i}].tools"
                if not isinstance(tools, Sequence) or isinstance(tools, str):
                    refuse(here, f"is {type(tools).__name__}; a list of tools is needed")
                add_tools(tools, self._tools, self.messages.dropped, here)

    def _item(self, item: Any, where: str) -> None:
        if not isinstance(item, Mapping):
            refuse(where, f"is {type(item).__name__}; an object with a type is needed")
        kind = item.get("type") or ("message" if "role" in item else None)
        if kind == "message":
            self._message(item, where)
        elif kind in ("function_call", "custom_tool_call"):
            self._call(item, where)
        elif kind in ("function_call_output", "custom_tool_call_output"):
            self._call_output(item, where)
        elif kind == "reasoning":
            self._reasoning(item, where)
        elif kind == ITEM and self._max_model_len:
            self._code(item, where)
        elif kind in _WITH_TOOLS:
            pass  # read before
        elif isinstance(kind, str) and kind in OTHER_ITEMS:
            self.messages.dropped.add(where, kind)
        elif isinstance(kind, str) and kind in REFUSED_ITEMS:
            refuse(f"{where}.type", f"is {kind!r}, which {REFUSED_ITEMS[kind]}")
        elif kind in (None, "item_reference") and isinstance(item.get("id"), str):
            refuse(f"{where}.id", f"is {item['id']!r}, which is not stored here")
        else:
            refuse(
                f"{where}.type",
                f"is {kind!r}; allowed: message, function_call, function_call_output, "
                "custom_tool_call, custom_tool_call_output, reasoning, item_reference",
            )

    def _take(self, item: Mapping[str, Any], table: FieldTable, where: str) -> dict[str, Any]:
        status = item.get("status")
        if status is not None and status not in _STATUSES:
            refuse(f"{where}.status", f"is {status!r}; allowed: {', '.join(_STATUSES)}")
        return take(item, table, where, self.messages.dropped)

    def _message(self, item: Mapping[str, Any], where: str) -> None:
        said = self._take(item, ITEM_MESSAGE, where)
        role = said.get("role")
        if role not in _ROLES:
            refuse(f"{where}.role", f"is {role!r}; allowed: {', '.join(_ROLES)}")
        content = read_parts(said.get("content"), f"{where}.content", self.messages.dropped)
        if role != "assistant":
            self._turn = None
            # Templates know one word for instructions.
            self.messages.add("system" if role == "developer" else role, content, where)
            return
        turn = self._turn
        # After a call that has no result yet the turn goes on; another text has a turn of its own.
        if turn is not None and self._has_text and not turn.get("tool_calls"):
            self._turn = None
        self.messages.extend(self._assistant(where), content)
        self._has_text = self._has_text or any(content)

    def _call(self, item: Mapping[str, Any], where: str) -> None:
        call = self._take(item, ITEM_CALL, where)
        is_custom = call["type"] == "custom_tool_call"
        key = "input" if is_custom else "arguments"
        for name in ("call_id", "name", key):
            if not isinstance(call.get(name), str) or (name != key and not call[name]):
                refuse(f"{where}.{name}", f"is {call.get(name)!r}; a string is needed")
        namespace = call.get("namespace")
        if not isinstance(namespace, str | None):
            refuse(f"{where}.namespace", f"is {namespace!r}; a string is needed")
        name = self._tools.prompt_name(call["name"], namespace or None)
        arguments = {CUSTOM_ARGUMENT: call[key]} if is_custom else call[key]
        turn = self._assistant(where)
        self._has_calls = True
        turn.setdefault("tool_calls", []).append(call_of(call["call_id"], name, arguments))

    def _call_output(self, item: Mapping[str, Any], where: str) -> None:
        given = self._take(item, ITEM_CALL_OUTPUT, where)
        call_id = given.get("call_id") or None
        # Without one it answers the call before it, if there is one.
        if not isinstance(call_id, str) and not (call_id is None and self._has_calls):
            refuse(f"{where}.call_id", f"is {call_id!r}; a string is needed")
        output = read_parts(given.get("output"), f"{where}.output", self.messages.dropped)
        self._turn = None
        fields = {} if call_id is None else {"tool_call_id": call_id}
        self.messages.add("tool", output, where, joint="\n", **fields)

    def _code(self, item: Mapping[str, Any], where: str) -> None:
        """A call of code with what came of it: the next message of the model is of another turn."""
        given = self._take(item, ITEM_CODE, where)
        code, outputs, item_id = given.get("code") or "", given.get("outputs"), given.get("id")
        if not isinstance(code, str):
            refuse(f"{where}.code", f"is {type(code).__name__}; a string is needed")
        if not isinstance(outputs, list | None):
            refuse(f"{where}.outputs", f"is {type(outputs).__name__}; a list is needed")
        if not isinstance(item_id, str) or not item_id:
            refuse(f"{where}.id", f"is {item_id!r}; a string is needed")
        call_id, turn = call_id_of(item_id), self._assistant(where)
        call = call_of(call_id, *self._tools.code_call(code))
        turn.setdefault("tool_calls", []).append(call)
        self._turn = None
        result = text_of(outputs, self._max_model_len)
        self.messages.add("tool", [result], where, tool_call_id=call_id)
        if isinstance(given.get("container_id"), str):
            self.container_id = given["container_id"]

    def _reasoning(self, item: Mapping[str, Any], where: str) -> None:
        given = self._take(item, ITEM_REASONING, where)
        content = given.get("content") or []
        text = join_parts(read_parts(content, f"{where}.content", self.messages.dropped), "")
        if text:
            self._turn = None
            self._assistant(where)["reasoning_content"] = text

    def _assistant(self, where: str) -> dict[str, Any]:
        if self._turn is None:
            self._turn = self.messages.add("assistant", [], where)
            self._has_text = False
        return self._turn


_WITH_TOOLS = ("additional_tools", "tool_search_output")


def read_responses(
    state: ServerState,
    body: ResponsesRequest | InputTokensRequest,
    earlier: Sequence[Sequence[Any]],
    dropped: Dropped,
) -> tuple[Conversation, ChatOptions, CodePlace]:
    """Read a Responses request, its item references resolved.

    Args:
        earlier: items of the responses that it continues, oldest first.

    Returns:
        The conversation, its options as chat's, and where its code may run.

    Raises:
        InvalidRequestError: something in it cannot be served; `param` is in Responses' terms.
    """
    tools = ToolSet()
    messages = new_messages(state, dropped, "call_id")
    runs_code = state.containers is not None
    max_model_len = state.engine.info.max_model_len if runs_code else 0
    reader = ItemReader(messages, tools, max_model_len)
    sources = [(items, "previous_response_id") for items in earlier]
    if not isinstance(body.input, str):
        sources.append((body.input or [], "input"))
    add_tools(body.tools or (), tools, dropped, runs_code=runs_code)
    for items, source in sources:
        reader.read_tools(items, source)
    named = read_code_tool(body.tools or (), tools, dropped) if runs_code else None
    if body.instructions:
        messages.add("system", [body.instructions], "instructions")
    for items, source in sources:
        reader.read(items, source)
    if isinstance(body.input, str):
        messages.add("user", [body.input], "input")
    fields: dict[str, Any] = {
        "tool_choice": read_choice(body.tool_choice, tools),
        "parallel_tool_calls": body.parallel_tool_calls,
        "response_format": _response_format(body),
    }
    effort = body.reasoning.effort if body.reasoning is not None else None
    if effort not in (None, "none"):
        fields["reasoning_effort"] = effort
    if isinstance(body, ResponsesRequest):
        fields |= {
            "max_completion_tokens": body.max_output_tokens,
            "temperature": body.temperature,
            "top_p": body.top_p,
            "ignore_eos": body.ignore_eos,
            "stream": body.stream,
            "timeout": body.timeout,
            "return_cache_report": body.return_cache_report,
            "stream_options": body.stream_options and body.stream_options.model_dump(),
        }
    with NAMES.errors_translated():
        options = parse_request(ChatOptions, fields)
        found = messages.finish("input")
        conversation = make_conversation(state, options, found, tools, dropped)
    return conversation, options, CodePlace(named, reader.container_id)


def _response_format(body: ResponsesRequest | InputTokensRequest) -> dict[str, Any] | None:
    given = body.text.format if body.text is not None else None
    if given is None or given.get("type") != "json_schema":
        return given
    schema = {key: value for key, value in given.items() if key != "type" and value is not None}
    return {"type": "json_schema", "json_schema": schema}
